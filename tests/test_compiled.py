"""A wrapped model under torch.compile: hooks and attention are not traced, the rest is."""

from __future__ import annotations

import torch

import tokenprune as tp

from .support.tiny_llava import IMAGE, make_batch, tiny_llava
from .support.tolerance import assert_close


def test_a_compiled_model_prunes_as_it_did(device: str) -> None:
    torch.compiler.reset()
    config = tp.ATPConfig(layers=(0, 2), target_tokens=30)
    model = tp.wrap(tiny_llava("sdpa", layers=4, device=device), config).eval()
    torch.manual_seed(0)
    for parameter in model.tokenprune.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch = make_batch([(3, IMAGE, 4), (1, IMAGE, 2)], device=device)
    # Dynamo's part alone, which is ours to get along with.
    compiled = torch.compile(model, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        logits, kept = model(**batch).logits, tp.stats(model).kept
        words = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert_close(compiled(**batch).logits, logits)
        assert (tp.stats(model).kept == kept).all()
        again = compiled.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert torch.equal(again, words)
    assert kept.min() < kept.max()
