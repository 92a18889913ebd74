"""Table 6: key-value bytes and FLOPs at LLaVA-1.5-7B's dimensions and the paper's counts.

No weights are needed: layers run on torch's meta device, where shapes are real and numbers are not.
The cache's bytes are those of a cache that such layers filled; operations are counted by torch.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig
from transformers.models.llama.modeling_llama import LlamaModel

from tokenprune.engine.arguments import cache_parameter
from tokenprune.measure.cost import DecoderShape

from .setting import Setting, open_store

__all__ = ["COUNTS", "run"]

VISUAL, TEXT, DEPTH = 576, 64, 32
"""LLaVA-1.5's visual tokens; a prompt's text (the template and a question); decoder layers."""

COUNTS = {
    "complex picture": (143, 109, 21),
    "simple picture": (106, 81, 19),
}
"""What the paper says stays after the 4th, 14th and 24th layer."""


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing."""
    store = open_store(results, "table6", setting)
    for text in (0, TEXT):
        for name, layers in counts().items():
            store.once(partial(costs, layers, text), method=name, text=text)


def counts() -> dict[str, list[int]]:
    """List the visual tokens in each layer."""
    published = {
        name: [VISUAL] * 4 + [first] * 10 + [second] * 10 + [third] * 8
        for name, (first, second, third) in COUNTS.items()
    }
    return {"unpruned": [VISUAL] * DEPTH, **published, "144 in every layer": [144] * DEPTH}


def costs(visual: list[int], text: int) -> dict[str, Any]:
    """Count the cache's bytes and the prefill's operations for these tokens in each layer."""
    config = LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=DEPTH,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = LlamaModel(config).half().eval()
    cache, flops = DynamicCache(), 0
    for layer, n in zip(model.layers, (m + text for m in visual), strict=True):
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            hidden = torch.empty(1, n, 4096, dtype=torch.float16)
            embeddings = model.rotary_emb(hidden, torch.arange(n)[None])
            layer(hidden, position_embeddings=embeddings, **{cache_parameter(layer.forward): cache})
        flops += counter.get_total_flops()
    held: Any = cache.layers
    filled = [part for layer in held for part in (layer.keys, layer.values)]
    shape = DecoderShape.of(config, torch.float16)
    tokens = np.array(visual) + text
    return {
        "mean_tokens": float(np.mean(visual)),
        "final_tokens": visual[-1],
        "kv_bytes": sum(part.numel() * part.element_size() for part in filled),
        "flops": flops,
        "kv_bytes_closed": int(shape.kv_bytes(tokens).sum()),
        "flops_closed": float(shape.prefill_flops(tokens).sum()),
    }
