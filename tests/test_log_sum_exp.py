"""What a fused attention kernel leaves beside its output is found, whatever mode torch is in."""

from typing import Any

import pytest
import torch

import tokenprune as tp
from tokenprune.engine.passes import observed
from tokenprune.kernels import attention_received

from .support.tiny_llava import IMAGE, make_batch, tiny_llava

MODES = {
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "grad": torch.enable_grad,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 3])
def test_the_kernel_s_own_sums_are_used(
    device: str, monkeypatch: pytest.MonkeyPatch, mode: str, rows: int
) -> None:
    if (mode, device) == ("inference", "elsewhere"):
        pytest.skip("tensors of a pretended device cannot be inference tensors")
    seen = []

    def spy(*args: Any) -> Any:
        query, key, _, mask, scaling, _, lse, _ = args
        seen.append((query, key, mask, scaling, lse))
        return attention_received(*args)

    model = tp.wrap(
        tiny_llava("sdpa", device=device), tp.ATPConfig(layers=(0, 2), target_tokens=20)
    ).eval()
    batch = make_batch([(3, IMAGE, 4), (5,), (1, IMAGE, 2)][:rows], device=device)
    monkeypatch.setattr(observed, "attention_received", spy)
    with MODES[mode]():
        model(**batch)
    assert len(seen) == 2
    for query, key, mask, scaling, lse in seen:
        if lse is None and device != "cpu":
            continue  # CUDA's kernel for float32 leaves none without a gradient
        shared = query.shape[1] // key.shape[1]
        logits = query @ key.repeat_interleave(shared, 1).transpose(2, 3) * scaling
        length = logits.shape[-1]
        visible = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        if mask is not None:
            visible = mask
        expected = logits.masked_fill(~visible, -torch.inf).logsumexp(dim=-1)
        there = expected.isfinite()  # a padding token sees nothing
        torch.testing.assert_close(lse[there], expected[there], rtol=1e-5, atol=1e-5)
