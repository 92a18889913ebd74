"""transformers' Trainer: a run that is killed and resumed goes on as if it had not been."""

import copy
import warnings

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
    "shifts": [-0.7, 0.3],
    "max_kept": 21,
    "budgets": [{"tokens": 18.2, "shifts": [-0.7, 0.3], "max_kept": 21}],
}


def trainer(model, folder, callbacks=(), **options):
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
    tp.train_only_heads(model)
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
