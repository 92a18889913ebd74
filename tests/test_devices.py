"""Models that are spread over devices, or partly on disk, by accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from transformers import LlavaForConditionalGeneration

import tokenprune as tp

from .support.tiny_llava import IMAGE, make_batch, tiny_llava
from .support.tolerance import assert_close

METHODS = {
    "ATP": tp.ATPConfig(layers=(0, 2), target_tokens=30),
    "SparseVLM": tp.SparseVLMConfig(layers=(0, 2), keep=(20, 10)),
    "before the decoder": tp.DivPruneConfig(keep=12),
}


def answers(model: Any, batch: dict[str, Any]) -> tuple[Any, Any, Any]:
    with torch.no_grad():
        logits = model(**batch).logits
        words = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    return logits, words, tp.stats(model).kept


@pytest.mark.real_device("its tensors cannot be written to disk")
@pytest.mark.parametrize("name", METHODS)
def test_layers_on_disk(tmp_path: Path, device: str, name: str) -> None:
    """Their parameters have no device of their own until they run."""
    batch = make_batch([(3, IMAGE, 4), (1, IMAGE, 2)], device=device)
    model = tp.wrap(tiny_llava("sdpa", layers=4, device=device).eval(), METHODS[name])
    expected = answers(model, batch)
    # Untrained heads are drawn anew for each model.
    tp.save_heads(model, tmp_path / "heads")
    spread = tiny_llava("sdpa", layers=4).eval()
    spread.load_state_dict(tp.unwrap(model).state_dict())
    disk_offload(spread, str(tmp_path / "disk"), execution_device=torch.device(device))
    assert next(spread.model.language_model.layers.parameters()).device.type == "meta"
    tp.wrap(spread, tmp_path / "heads")
    for ours, theirs in zip(answers(spread, batch)[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (tp.stats(spread).kept == expected[2]).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("first", [1, 3])
def test_layers_on_two_devices(device: str, name: str, first: int) -> None:
    """The later layers on the CPU, as on a second GPU: only where there is a first one."""
    if device != "cuda":
        pytest.skip("one kind of device only: nothing is spread")
    batch = make_batch([(3, IMAGE, 4), (1, IMAGE, 2)], device=device)
    model = tp.wrap(tiny_llava("sdpa", layers=4, device=device).eval(), METHODS[name])
    expected = answers(model, batch)
    language = model.model.language_model
    for part in (*language.layers[first:], language.norm, model.lm_head):
        part.to("cpu")
        add_hook_to_module(part, AlignDevicesHook(execution_device="cpu", io_same_device=False))
    logits, words, kept = answers(model, batch)
    assert_close(logits.to(device), expected[0])
    assert torch.equal(words, expected[1])
    assert (kept == expected[2]).all()


@pytest.mark.real_device("its tensors cannot be read from disk")
def test_a_device_map(tmp_path: Path, device: str) -> None:
    tiny_llava("sdpa", layers=4).save_pretrained(tmp_path / "model")
    whole, spread = (
        LlavaForConditionalGeneration.from_pretrained(
            tmp_path / "model", device_map=where, offload_folder=str(tmp_path / "disk")
        ).eval()
        for where in (
            {"": device},
            {**dict.fromkeys(PARTS, device), **dict.fromkeys(LATER, "disk")},
        )
    )
    batch = make_batch([(3, IMAGE, 4), (1, IMAGE, 2)], device=device)
    found = []
    for model in (whole, spread):
        tp.wrap(model, tp.FastVConfig(layer=1, keep=12))
        found.append(answers(model, batch))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found[0][1], found[1][1])


PARTS = (
    "model.vision_tower",
    "model.multi_modal_projector",
    "model.language_model.embed_tokens",
    "model.language_model.layers.0",
    "model.language_model.norm",
    "model.language_model.rotary_emb",
    "lm_head",
)
LATER = tuple(f"model.language_model.layers.{n}" for n in (1, 2, 3))
