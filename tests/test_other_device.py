"""A model that was made and wrapped on the CPU, and then moved."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.utils import backend_registration

import tokenprune as tp
from tokenprune.config import MethodConfig

from .support.strategies import LAYERS
from .support.tiny_llava import IMAGE, make_batch, tiny_llava
from .test_methods import DECIDING

ATPS = (
    tp.ATPConfig(layers=(0, 2), target_tokens=20),
    tp.ATPConfig(layers=(0, 1, 2), target_tokens=20, revival=True),
    tp.ATPConfig(layers=(0, 2), target_tokens=20, text_threshold=0.5),
)
EVERY = [*ATPS, *(config for config in DECIDING if config.method != "atp")]
PROMPTS = [(3, IMAGE, 4), (1, IMAGE, 2)]


@pytest.mark.parametrize("config", EVERY, ids=lambda config: config.method)
def test_answers_are_the_cpu_s(device: str, attn: str, config: MethodConfig) -> None:
    if device == "cpu":
        pytest.skip("the same device")
    model = tp.wrap(tiny_llava(attn, layers=LAYERS), config)
    found = []
    for place in ("cpu", device):
        model.to(place)
        batch = make_batch(PROMPTS, device=place)
        with torch.no_grad():
            logits = model(**batch).logits
            words = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert logits.device.type == place
        found.append((logits.cpu(), words.cpu(), tp.stats(model).kept))
    (logits, words, kept), expected = found[1], found[0]
    torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
    assert torch.equal(words, expected[1])
    assert (kept == expected[2]).all()


@pytest.mark.parametrize("config", ATPS, ids=lambda config: config.method)
def test_gradients_are_the_cpu_s(device: str, config: MethodConfig) -> None:
    if device == "cpu":
        pytest.skip("the same device")
    model = tp.wrap(tiny_llava("sdpa", layers=LAYERS), config)
    tp.train_only_heads(model)
    model.train()
    found = []
    for place in ("cpu", device):
        model.to(place)
        model.zero_grad()
        batch = make_batch(PROMPTS, device=place)
        model(**batch, labels=batch["input_ids"]).loss.backward()
        found.append([p.grad.cpu() for p in model.parameters() if p.grad is not None])
    assert found[1]
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_on_a_pretended_device() -> None:
    """The tests above, where there is no GPU."""
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        pytest.skip(f"torch {torch.__version__} has no devices that Python makes")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--device", "elsewhere", "-p", "no:xdist", __file__],
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    assert f"{2 * len(EVERY) + len(ATPS)} passed" in ran.stdout
