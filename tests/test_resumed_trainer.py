"""transformers' Trainer: a run that is killed and resumed goes on as if it had not been."""

import copy
import logging
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.saved import HEADS

from .support.saved_heads import method
from .support.tiny_llava import IMAGE
from .support.training import atp_llava, labelled

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

STEPS, KILLED = 4, 2
ROWS = ((4, IMAGE, 6), (2, IMAGE, 9), (5, IMAGE, 3))
RUNTIME = {
    "shifts": [[-0.7, 0.3]] * 2,
    "max_kept": 21,
    "budgets": [{"tokens": 18.2, "shifts": [[-0.7, 0.3]] * 2, "max_kept": 21}],
}


def trainer(model, folder, callbacks=(), parts=("heads",), **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=KILLED,
        logging_steps=1,
        per_device_train_batch_size=1,
        learning_rate=1e-2,
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    tp.trainable(model, *parts)
    return transformers.Trainer(
        model,
        arguments,
        train_dataset=[labelled([row]) for row in ROWS],
        eval_dataset=[labelled([row]) for row in ROWS],
        data_collator=lambda rows: rows[0],
        callbacks=list(callbacks),
    )


def losses(ran):
    return [entry["loss"] for entry in ran.state.log_history if "loss" in entry]


def others():
    """The same model with other heads, not calibrated: as the script that resumes makes it."""
    model = atp_llava()
    for parameter in engine_of(model).parameters():
        torch.nn.init.normal_(parameter)
    return model


@pytest.fixture
def whole(tmp_path):
    """A run to its end, which has left a checkpoint on its way."""
    model = atp_llava()
    method(model).load_runtime_state(RUNTIME)
    ran = trainer(model, tmp_path / "run")
    ran.train()
    return ran


def heads(model):
    return {name: value for name, value in model.state_dict().items() if "tokenprune." in name}


@pytest.mark.parametrize("moved", [False, True])
def test_a_resumed_run_goes_on_at_the_same_loss(whole, tmp_path, moved):
    """The script that resumes does not calibrate: what was calibrated is in the checkpoint."""
    checkpoint = tmp_path / "run" / f"checkpoint-{KILLED}"
    if moved:
        checkpoint = checkpoint.rename(tmp_path / "elsewhere")
    model = others()
    resume = tp.TrainerCallback(checkpoint if moved else None)
    resumed = trainer(model, tmp_path / "run", [resume])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The state dict that was loaded")
        resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed) == losses(whole)
    assert len(losses(resumed)) == STEPS
    assert method(model).runtime_state() == RUNTIME
    assert heads(model).keys() == heads(whole.model).keys()
    for name, value in heads(whole.model).items():
        assert torch.equal(heads(model)[name], value), name


def test_without_the_callback_it_warns(whole, tmp_path):
    resumed = trainer(others(), tmp_path / "run")
    with pytest.warns(UserWarning, match=r"no pruning heads.*tokenprune\.TrainerCallback"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{KILLED}"))
    assert losses(resumed) != losses(whole)


def test_a_checkpoint_without_heads_is_refused(whole, tmp_path):
    checkpoint = tmp_path / "run" / f"checkpoint-{KILLED}"
    (checkpoint / HEADS).unlink()
    resumed = trainer(others(), tmp_path / "run", [tp.TrainerCallback()])
    with pytest.raises(FileNotFoundError, match=rf"has no {HEADS}: .*resume_from"):
        resumed.train(resume_from_checkpoint=str(checkpoint))


def test_the_best_checkpoints_heads_are_loaded(tmp_path):
    ran = trainer(
        model := atp_llava(),
        tmp_path,
        [tp.TrainerCallback()],
        eval_strategy="steps",
        eval_steps=KILLED,
        load_best_model_at_end=True,
        greater_is_better=False,
    )
    ran.train()
    best = ran.state.best_model_checkpoint
    assert best.endswith(f"checkpoint-{KILLED}")  # or its heads would be there anyway
    other = tp.wrap(tp.unwrap(copy.deepcopy(model)), best)
    for name, value in heads(other).items():
        assert torch.equal(heads(model)[name], value), name


@pytest.mark.parametrize("of", ["checkpoint", "save_model"])
def test_stock_transformers_loads_what_it_saved(whole, tmp_path, of):
    folder = tmp_path / "run" / f"checkpoint-{STEPS}"
    if of == "save_model":
        whole.save_model(folder := tmp_path / "final")
    _, found = transformers.LlavaForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(found.values())
    for name, value in heads(whole.model).items():
        assert torch.equal(heads(tp.from_pretrained(folder))[name], value), name


def test_what_is_calibrated_decides_the_loss(tmp_path):
    """Or the test above would pass without it."""
    found = []
    for runtime in ({}, RUNTIME):
        model = atp_llava()
        method(model).load_runtime_state(runtime)
        ran = trainer(model, tmp_path / str(bool(runtime)))
        ran.train()
        found.append(losses(ran))
    assert found[0] != found[1]


def test_checkpoints_of_heads_hold_them_alone(tmp_path, caplog):
    """And the run resumes from them, without a word about keys that are missing."""
    run = tmp_path / "run"
    method(model := atp_llava()).load_runtime_state(RUNTIME)
    whole = trainer(model, run, [tp.TrainerCallback()])
    whole.train()
    checkpoint = run / f"checkpoint-{KILLED}"
    assert not (checkpoint / "config.json").exists()
    assert (checkpoint / "model.safetensors").stat().st_size < 100
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        resumed = trainer(others(), run, [tp.TrainerCallback()])
        resumed.train(resume_from_checkpoint=True)
        model = others()
        resumed = trainer(model, run, [tp.TrainerCallback()])
        resumed.train(resume_from_checkpoint=str(checkpoint))
    finally:
        logger.removeHandler(caplog.handler)
    assert not [record for record in caplog.records if "keys" in record.getMessage()]
    assert losses(resumed) == losses(whole)
    for name, value in heads(whole.model).items():
        assert torch.equal(heads(model)[name], value), name
    for save in (resumed.save_model, model.save_pretrained):
        save(folder := tmp_path / save.__name__)
        assert (folder / "model.safetensors").stat().st_size > 50_000
        assert torch.equal(run_alone(tp.from_pretrained(folder)), run_alone(model))
    with pytest.raises(FileNotFoundError, match=r"holds the pruning alone.*tokenprune\.wrap"):
        tp.from_pretrained(checkpoint)
    fresh = tp.wrap(tp.unwrap(others()), run / f"checkpoint-{STEPS}")
    assert torch.equal(run_alone(fresh), run_alone(model))


def run_alone(model):
    model.eval()
    with torch.no_grad():
        return model(**labelled()).logits


def test_checkpoints_of_more_than_heads_hold_the_model(tmp_path):
    ran = trainer(model := atp_llava(), tmp_path, [tp.TrainerCallback()])
    model.lm_head.requires_grad_(True)
    ran.train()
    checkpoint = tmp_path / f"checkpoint-{STEPS}"
    assert (checkpoint / "model.safetensors").stat().st_size > 50_000
    assert torch.equal(run_alone(tp.from_pretrained(checkpoint)), run_alone(model))


class Reporter(transformers.TrainerCallback):
    """In the place of TensorBoard's or others'."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs, **_):
        self.logs.append(dict(logs))


def test_logs_say_what_is_kept(tmp_path):
    reporter = Reporter()
    ran = trainer(atp_llava(), tmp_path, [tp.TrainerCallback(), reporter])
    ran.train()
    entries = [logs for logs in reporter.logs if "loss" in logs]
    assert len(entries) == STEPS
    names = {name for name in entries[0] if name.startswith("tokenprune/")}
    thresholds = {f"tokenprune/layer_{n}/threshold_{k}" for n in (1, 3) for k in (0, 1)}
    terms = {f"tokenprune/{name}" for name in ("kept_tokens", "lm", "atp", "target")}
    assert names == thresholds | terms
    for entry, history in zip(entries, ran.state.log_history, strict=False):
        assert {name: history[name] for name in names} == {name: entry[name] for name in names}
        budget = 0.01 * entry["tokenprune/atp"] + 4 * entry["tokenprune/target"]
        assert entry["loss"] == pytest.approx(entry["tokenprune/lm"] + budget, abs=1e-3)
        assert 12 < entry["tokenprune/kept_tokens"] < 36
    assert all(0 < entry[name] < 1 for entry in entries for name in thresholds)


def test_a_loss_without_the_terms_is_refused(tmp_path):
    ran = trainer(atp_llava(), tmp_path, [tp.TrainerCallback()], label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"not in it.*leave out label_smoothing_factor"):
        ran.train()


KILLED_RUN = """
import os, signal, sys
import tokenprune as tp, transformers
from tests.test_resumed_trainer import RUNTIME, KILLED, atp_llava, method, trainer

class Kill(transformers.TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == KILLED + 1:
            os.kill(os.getpid(), signal.SIGKILL)

method(model := atp_llava()).load_runtime_state(RUNTIME)
trainer(model, sys.argv[1], [tp.TrainerCallback(), Kill()]).train()
"""


def test_a_run_that_was_killed_resumes(tmp_path):
    command = [sys.executable, "-c", KILLED_RUN, str(tmp_path / "killed")]
    ended = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    method(model := atp_llava()).load_runtime_state(RUNTIME)
    whole = trainer(model, tmp_path / "whole", [tp.TrainerCallback()])
    whole.train()
    resumed = trainer(others(), tmp_path / "killed", [tp.TrainerCallback()])
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed)[KILLED:] == losses(whole)[KILLED:]
    for name, value in heads(whole.model).items():
        assert torch.equal(heads(resumed.model)[name], value), name


def test_distillation_in_a_trainer(tmp_path):
    """Its loss is the one logged, with the terms; no other loss may take its place."""
    ran = trainer(atp_llava(loss="distill"), tmp_path, [tp.TrainerCallback()])
    ran.train()
    for entry in ran.state.log_history[:STEPS]:
        budget = 0.01 * entry["tokenprune/atp"] + 4 * entry["tokenprune/target"]
        assert entry["loss"] == pytest.approx(entry["tokenprune/distill"] + budget, abs=1e-3)
    with pytest.raises(ValueError, match=r"distill.* label_smoothing_factor has the Trainer"):
        trainer(
            atp_llava(loss="distill"), tmp_path, [tp.TrainerCallback()], label_smoothing_factor=0.1
        )
