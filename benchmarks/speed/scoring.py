"""What the pruner itself costs: its time, split; its memory; and how both grow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from tokenprune.engine.passes.layer_inputs import LayerInputs
from tokenprune.engine.passes.pruning import PruningPass
from tokenprune.kernels import attention_received
from tokenprune.methods.atp import ATP

from .kept import Kept
from .memory import peak_bytes
from .shapes import Shape
from .timing import median, synchronise
from .variants import atp

__all__ = ["growth", "memory", "split"]

# Part → where its time is spent. Scores are within heads' total, and so on: see `split`.
_PARTS = {
    "scores": (PruningPass, "observe"),
    "heads": (ATP, "margins"),
    "selection and gather": (PruningPass, "apply"),
    "masks and positions": (LayerInputs, "adapt"),
}


@contextmanager
def stopwatch(owner: Any, name: str, device: str, seconds: list[float]) -> Iterator[None]:
    """Add the time of a method's calls to the last entry of a list."""
    original = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        synchronise(device)
        start = time.perf_counter()
        found = original(*args, **kwargs)
        synchronise(device)
        seconds[-1] += time.perf_counter() - start
        return found

    with mock.patch.object(owner, name, timed):
        yield


def split(
    model: Any, shape: Shape, kept: Kept, work: Callable[[], Any], rounds: int, device: str
) -> dict[str, float]:
    """Measure the seconds of each part of the pruner in one prefill, all pruning steps together."""
    seconds: dict[str, list[float]] = {name: [] for name in _PARTS}
    with atp(model, shape, kept), ExitStack() as stack:
        for part, (owner, name) in _PARTS.items():
            stack.enter_context(stopwatch(owner, name, device, seconds[part]))
        for _ in range(rounds + 1):
            for times in seconds.values():
                times.append(0.0)
            work()
    found = {part: median(times[1:]) for part, times in seconds.items()}
    return {**found, "all": sum(found.values())}


def layer_of(shape: Shape, device: str, dtype: torch.dtype) -> Callable[[Tensor], Any]:
    """Build one decoder layer of the shape, as a function of its input."""
    config = LlamaConfig(
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        max_position_embeddings=32768,
    )
    config._attn_implementation = "sdpa"
    layer = LlamaDecoderLayer(config, 0).to(device, dtype).eval()
    rotary = LlamaRotaryEmbedding(config).to(device)

    def forward(hidden: Tensor) -> Any:
        positions = torch.arange(hidden.shape[1], device=device)[None]
        embeddings = rotary(hidden, positions)
        return layer(hidden, position_embeddings=embeddings, position_ids=positions)

    return forward


def heads_of(
    shape: Shape, length: int, batch: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw queries, keys and the queries' weights, with a log-sum-exp as attention leaves it."""
    width = shape.width // shape.heads
    query, key = (
        torch.randn(batch, heads, length, width, device=device, dtype=dtype)
        for heads in (shape.heads, shape.kv_heads or shape.heads)
    )
    visual = torch.zeros(batch, length, device=device)
    visual[:, shape.before : length - shape.after] = 1
    weights = torch.stack([1 - visual, visual], dim=1)
    lse = torch.full((batch, shape.heads, length), math.log(length), device=device)
    return query, key, weights, lse


@torch.inference_mode()
def memory(shape: Shape, batch: int, device: str, dtype: torch.dtype) -> dict[str, float]:
    """Measure the peak bytes of scoring at the first step, and of the decoder layer before it."""
    query, key, weights, lse = heads_of(shape, shape.length, batch, device, dtype)
    layer = layer_of(shape, device, dtype)
    hidden = torch.randn(batch, shape.length, shape.width, device=device, dtype=dtype)
    scoring = peak_bytes(lambda: attention_received(query, key, weights, lse=lse), device)
    whole = peak_bytes(lambda: layer(hidden), device)
    return {"scoring": scoring, "layer": whole, "share": scoring / whole}


@torch.inference_mode()
def growth(
    shape: Shape,
    sides: Sequence[int],
    rounds: int,
    device: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Measure seconds and peak bytes by number of visual tokens, with exponents.

    Of scoring, of attention itself, which has the same products to do, and of a decoder layer.
    """
    layer = layer_of(shape, device, dtype)
    rows = []
    for side in sides:
        length = shape.before + side**2 + shape.after
        query, key, weights, lse = heads_of(shape, length, 1, device, dtype)
        hidden = torch.randn(1, length, shape.width, device=device, dtype=dtype)
        works: dict[str, Callable[[], Any]] = {
            "scoring": partial(attention_received, query, key, weights, lse=lse),
            "attention": partial(
                nn.functional.scaled_dot_product_attention,
                query,
                key,
                key,
                is_causal=True,
                enable_gqa=shape.kv_heads is not None,
            ),
            "layer": partial(layer, hidden),
        }
        times: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds + 1):
            for name, work in works.items():
                synchronise(device)
                start = time.perf_counter()
                work()
                synchronise(device)
                times[name].append(time.perf_counter() - start)
        row: dict[str, float] = {"visual_tokens": side**2}
        for name, work in works.items():
            row[f"{name}_s"] = median(times[name][1:])
            row[f"{name}_bytes"] = peak_bytes(work, device)
        rows.append(row)
    names = [name for name in rows[0] if name != "visual_tokens"]
    exponents = {name: exponent([(r["visual_tokens"], r[name]) for r in rows]) for name in names}
    return {"rows": rows, "exponents": exponents}


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Fit the slope of a line through the points' logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x = sum(x for x, _ in logs) / len(logs)
    mean_y = sum(y for _, y in logs) / len(logs)
    across = sum((x - mean_x) ** 2 for x, _ in logs)
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / across
