"""Backbones in 8 and 4 bits: pruned, trained and counted as others are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BitsAndBytesConfig, LlavaForConditionalGeneration

import tokenprune as tp

from .support.tiny_llava import IMAGE, cache_of, make_batch, tiny_llava

pytest.importorskip("bitsandbytes", reason="quantised backbones need bitsandbytes")

KINDS: dict[str, dict[str, Any]] = {
    "8 bits": {"load_in_8bit": True},
    "4 bits": {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32},
    "nf4, bfloat16": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_compute_dtype": torch.bfloat16,
    },
}


@pytest.mark.real_device("bitsandbytes knows only real ones")
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_backbone(tmp_path: Path, device: str, kind: str) -> None:
    whole = tiny_llava("sdpa", layers=4, width=128)
    whole.save_pretrained(tmp_path)
    model = LlavaForConditionalGeneration.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(**KINDS[kind]),
        device_map={"": device},
        dtype=torch.float32,
    ).eval()
    projection = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert not projection.is_floating_point(), "the model is not quantised"
    # As real models have them. On CPUs with AVX512-BF16 bitsandbytes packs 4-bit weights by blocks
    # of 32 rows and 64 columns, and raises for others.
    sizes = [
        (m.out_features, m.in_features) for m in model.model.modules() if isinstance(m, nn.Linear)
    ]
    assert all(rows % 32 == 0 and columns % 64 == 0 for rows, columns in sizes), sizes
    batch = make_batch([(3, IMAGE, 4), (5, IMAGE, 2)], device=device)
    config = tp.ATPConfig(layers=(0, 2), target_tokens=30)

    tp.wrap(model, config)
    model.train()
    heads = tp.train_only_heads(model)
    model(**batch, labels=batch["input_ids"]).loss.backward()
    assert all(head.grad is not None and head.grad.isfinite().all() for head in heads)
    tp.unwrap(model).eval()

    with torch.no_grad():
        logits = model(**batch).logits
        tp.wrap(model, config)
        with tp.paused(model):
            assert torch.equal(model(**batch).logits, logits)
        model.tokenprune.method.load_runtime_state({"shifts": [-40.0, -40.0]})
        assert torch.equal(model(**batch).logits, logits)
        model.tokenprune.method.load_runtime_state({})
        pruned = model(**batch)
        assert pruned.logits.isfinite().all()
        assert pruned.logits.shape == logits.shape
        found = tp.stats(model)
        lengths = [layer.keys.shape[2] for layer in cache_of(model(**batch)).layers]
        assert lengths[-1] < lengths[0]
        words = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert words.shape[1] == batch["input_ids"].shape[1] + 3
        # Bytes are those of the cache, not of the weights.
        tp.wrap(whole.to(device).eval(), config)
        whole(**batch)
        assert (found.kv_bytes_unpruned == tp.stats(whole).kv_bytes_unpruned).all()
        tp.unwrap(model)
        assert torch.equal(model(**batch).logits, logits)
