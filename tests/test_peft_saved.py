"""PEFT's adapters and the heads beside them: saved, loaded in either order, resumed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import LlavaForConditionalGeneration

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.saved import HEADS

from .support.tiny_llava import make_batch, tiny_llava
from .support.training import LAYERS, PROMPTS, labelled
from .test_resumed_trainer import KILLED, losses, trainer

CONFIG = tp.ATPConfig(layers=LAYERS, target_tokens=18.0)
LORA = {"r": 2, "target_modules": "all-linear"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with the base model, which adapters name."""
    tiny_llava().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder: Path) -> Any:
    return LlavaForConditionalGeneration.from_pretrained(folder)


def wrapped_then_lora(base: Path) -> Any:
    torch.manual_seed(0)
    return peft.get_peft_model(tp.wrap(loaded(base), CONFIG), peft.LoraConfig(**LORA))


def lora_then_wrapped(base: Path) -> Any:
    torch.manual_seed(0)
    return tp.wrap(peft.get_peft_model(loaded(base), peft.LoraConfig(**LORA)), CONFIG)


def changed(model: Any) -> Any:
    """As training leaves both, with thresholds shifted."""
    with torch.no_grad():
        for parameter in tp.trainable(model, "heads", "lora"):
            parameter.add_(torch.randn_like(parameter) * 0.05)
    engine_of(model).method.load_runtime_state({"shifts": [0.3, -0.2]})
    return model


def run(model: Any) -> tuple[torch.Tensor, list[Any]]:
    with torch.no_grad():
        logits = model(**make_batch(PROMPTS)).logits
    return logits, tp.stats(model).alive.tolist()


LOADERS = {
    "from_pretrained": lambda base, folder: tp.from_pretrained(folder),
    "adapters, then heads": lambda base, folder: tp.wrap(
        peft.PeftModel.from_pretrained(loaded(base), folder), folder
    ),
    "heads, then adapters": lambda base, folder: peft.PeftModel.from_pretrained(
        tp.wrap(loaded(base), folder), folder
    ),
}


@pytest.mark.parametrize("make", [wrapped_then_lora, lora_then_wrapped])
def test_both_are_saved_and_come_back(make: Any, base: Path, tmp_path: Path) -> None:
    model = changed(make(base)).eval()
    expected, kept = run(model)
    assert not torch.allclose(run(tp.wrap(loaded(base), CONFIG))[0], expected)
    model.save_pretrained(folder := tmp_path / "saved")
    assert {HEADS, "adapter_model.safetensors"} <= {path.name for path in folder.iterdir()}
    saved = (folder / "adapter_model.safetensors").read_bytes()
    assert b"tokenprune" not in saved
    for load in LOADERS.values():
        logits, same = run(load(base, folder).eval())
        torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
        assert same == kept
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    logits, same = run(tp.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert same == kept


def test_unwrap_undoes_it(base: Path, tmp_path: Path) -> None:
    model = changed(wrapped_then_lora(base))
    assert "save_pretrained" in vars(model)
    tp.unwrap(model)
    for each in (model, model.get_base_model()):
        assert "save_pretrained" not in vars(each)
    model = changed(lora_then_wrapped(base))
    tp.unwrap(model.get_base_model())
    model.save_pretrained(tmp_path / "saved")
    assert HEADS not in {path.name for path in (tmp_path / "saved").iterdir()}


def test_a_copy_saves_its_own(base: Path, tmp_path: Path) -> None:
    model = changed(wrapped_then_lora(base))
    other = copy.deepcopy(model)
    engine_of(other).method.load_runtime_state({})
    other.save_pretrained(tmp_path / "saved")
    found = engine_of(tp.from_pretrained(tmp_path / "saved")).method
    assert found.shifts == [[0.0, 0.0]] * 2


def test_the_trainer_s_checkpoints_have_both_and_resume(base: Path, tmp_path: Path) -> None:
    def start() -> Any:
        return trainer(
            wrapped_then_lora(base), tmp_path / "run", [tp.TrainerCallback()], ["heads", "lora"]
        )

    whole = start()
    whole.train()
    checkpoint = tmp_path / "run" / f"checkpoint-{KILLED}"
    names = {path.name for path in checkpoint.iterdir()}
    assert {HEADS, "adapter_model.safetensors"} <= names
    assert "model.safetensors" not in names
    resumed = start()
    with torch.no_grad():
        for parameter in engine_of(resumed.model).parameters():
            parameter.zero_()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed) == losses(whole)
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    batch = labelled()
    with torch.no_grad():
        assert torch.equal(resumed.model(**batch).logits, whole.model(**batch).logits)
