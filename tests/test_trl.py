"""TRL's SFTTrainer: the budget's terms are in its loss; it logs and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune as tp
from tokenprune.engine import engine_of

from .support.tiny_llava import IMAGE
from .support.training import atp_llava, labelled

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

STEPS, KILLED = 4, 2
ROWS = [labelled([row]) for row in ((4, IMAGE, 6), (2, IMAGE, 9), (5, IMAGE, 3))]


def trainer(model: Any, folder: Path, callbacks: list[Any], **options: Any) -> Any:
    from benchmarks.digits_vqa.recipe import load

    arguments = trl.SFTConfig(
        output_dir=str(folder),
        max_steps=STEPS,
        **{"save_steps": KILLED, **options},
        logging_steps=1,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        bf16=False,
        remove_unused_columns=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    tp.train_only_heads(model)
    _, processor = load("llava")
    return trl.SFTTrainer(
        model,
        arguments,
        train_dataset=datasets.Dataset.from_dict({"row": list(range(len(ROWS)))}),
        data_collator=lambda rows: ROWS[rows[0]["row"]],
        processing_class=processor,
        callbacks=callbacks,
    )


def entries(ran: Any) -> list[dict[str, float]]:
    return [entry for entry in ran.state.log_history if "loss" in entry]


def test_it_trains_to_the_budget_logs_and_resumes(tmp_path: Path) -> None:
    whole = trainer(atp_llava(), tmp_path, [tp.TrainerCallback()])
    whole.train()
    for entry in entries(whole):
        budget = 0.01 * entry["tokenprune/atp"] + 4 * entry["tokenprune/target"]
        assert budget > 0.1
        assert entry["loss"] == pytest.approx(entry["tokenprune/lm"] + budget, abs=1e-3)
    checkpoint = tmp_path / f"checkpoint-{KILLED}"
    assert (checkpoint / "model.safetensors").stat().st_size < 100
    model = atp_llava(seed=0)
    with torch.no_grad():
        for head in engine_of(model).parameters():
            head.zero_()
    resumed = trainer(model, tmp_path, [tp.TrainerCallback()])
    resumed.train(resume_from_checkpoint=str(checkpoint))
    found, expected = ([entry["loss"] for entry in entries(ran)] for ran in (resumed, whole))
    assert found == expected
    pairs = zip(model.parameters(), whole.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_without_the_callback_it_warns(tmp_path: Path) -> None:
    ran = trainer(atp_llava(), tmp_path, [], save_strategy="no")
    with pytest.warns(UserWarning, match=r"without a budget.*tokenprune\.TrainerCallback"):
        ran.train()


def test_distillation_is_refused(tmp_path: Path) -> None:
    """With the callback when the trainer is made, without it at the first step."""
    message = "distill.* TRL's SFTTrainer has the Trainer compute another"
    with pytest.raises(ValueError, match=message):
        trainer(atp_llava(loss="distill"), tmp_path, [tp.TrainerCallback()])
    ran = trainer(atp_llava(loss="distill"), tmp_path, [], save_strategy="no")
    with pytest.raises(ValueError, match=r"distill.* SFTTrainer"):
        ran.train()
