"""Prefill, the first token, each further token, and whole answers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.arguments import cache_in, cache_parameter

from .kept import kept_of
from .shapes import Shape, inputs
from .timing import Variant, Variants, interleaved, median, ratio, ratios, spread, synchronise
from .variants import atp, features_once

__all__ = ["decode", "end_to_end", "prefill", "throughput"]

Batch = dict[str, Tensor]
"""What the processor makes of prompts."""

# They take long, and their figures may be rough.
_SLOW = ("unpruned", "ATP, full map")


def forward(model: Any, batch: Mapping[str, Tensor]) -> Any:
    """Run one prefill with a cache; the language-model head reads the last position only."""
    with torch.inference_mode():
        return model(**batch, use_cache=True, logits_to_keep=1)


def against_oracle(times: Mapping[str, list[float]]) -> dict[str, Any]:
    """Summarise times as medians, spreads, and the ratios to the oracle and the unpruned model."""
    found: dict[str, Any] = {f"{_short(name)}_s": median(took) for name, took in times.items()}
    if {"oracle", "ATP"} <= times.keys():
        found["oracle_ratio"] = ratio(times["oracle"], times["ATP"])
        found["oracle_ratio_spread"] = spread(ratios(times["oracle"], times["ATP"]))
    if {"unpruned", "ATP"} <= times.keys():
        found["speedup"] = ratio(times["unpruned"], times["ATP"])
    return {
        **found,
        "spread": {name: spread(found) for name, found in times.items()},
        "rounds": {name: len(found) for name, found in times.items()},
    }


def _short(name: str) -> str:
    return name.lower().replace(", ", "_").replace(" ", "_")


def prefill(
    model: Any, batch: Batch, variants: Variants, rounds: int, device: str, tower: bool = False
) -> dict[str, Any]:
    """Measure the decoder on the prompt, and with `tower` the vision tower before it."""
    with nullcontext() if tower else features_once(model, batch):
        times = interleaved(variants, lambda: forward(model, batch), rounds, device, once=_SLOW)
    return against_oracle(times)


def throughput(
    model: Any,
    shape: Shape,
    rows: int,
    new_tokens: int,
    device: str,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """Measure decoded tokens a second at the largest batch whose cache fits into one budget.

    Parameters
    ----------
    rows : int
        The budget: the cache of so many unpruned prompts.
    new_tokens : int
        Decoded in each row after its prompt.
    """
    found: dict[str, Any] = {}
    for name in ("unpruned", "ATP"):

        def prepare(size: int, name: str = name) -> tuple[dict[str, Tensor], Variant]:
            kept = kept_of(shape, size, device, ragged=False)
            wrapped = partial(atp, model, shape, kept)
            return inputs(
                shape, size, device, dtype
            ), nullcontext if name == "unpruned" else wrapped

        batch, variant = prepare(1)
        with variant():
            row_bytes = cache_bytes(cache_of(forward(model, batch)))
        if name == "unpruned":
            found["budget_bytes"] = rows * row_bytes
        batch, variant = prepare(found["budget_bytes"] // row_bytes)
        size = len(batch["input_ids"])
        token = torch.full((size, 1), 9, device=device)
        with features_once(model, batch), variant(), torch.inference_mode():
            synchronise(device)
            start = time.perf_counter()
            cache = cache_of(forward(model, batch))
            synchronise(device)
            middle = time.perf_counter()
            for _ in range(new_tokens):
                model(input_ids=token, **{cache_parameter(model.forward): cache})
            synchronise(device)
            end = time.perf_counter()
        found[name] = {
            "rows": size,
            "prompts_per_s": size / (middle - start),
            "tokens_per_s": size * new_tokens / (end - middle),
        }
    return found


def cache_of(output: Any) -> Any:
    """Return the key-value cache that a forward filled."""
    return cache_in(output.values())


def cache_bytes(cache: Any) -> int:
    """Return the bytes of all keys and values of a cache."""
    return sum(part.nbytes for layer in cache.layers for part in (layer.keys, layer.values))


def decode(
    model: Any, batch: Batch, variants: Variants, new_tokens: int, rounds: int, device: str
) -> dict[str, Any]:
    """Measure the seconds of each token after the first, on the cache that the prefill left."""
    found: dict[str, list[float]] = {name: [] for name in variants}
    rows = len(batch["input_ids"])
    token = torch.full((rows, 1), 9, device=device)
    with features_once(model, batch):
        for _ in range(rounds):
            for name, variant in variants.items():
                with variant(), torch.inference_mode():
                    cache = cache_of(forward(model, batch))
                    mask = batch["attention_mask"]
                    seconds = []
                    for _ in range(new_tokens):
                        mask = torch.cat([mask, mask[:, -1:]], dim=1)
                        synchronise(device)
                        start = time.perf_counter()
                        model(
                            input_ids=token,
                            attention_mask=mask,
                            **{cache_parameter(model.forward): cache},
                        )
                        synchronise(device)
                        seconds.append(time.perf_counter() - start)
                    del cache  # two of them may not fit
                    found[name].append(median(seconds))
    return against_oracle(found)


def end_to_end(
    model: Any, batch: Batch, variants: Variants, lengths: tuple[int, ...], rounds: int, device: str
) -> dict[str, Any]:
    """Measure the seconds of `generate`, tower included, for answers of some lengths."""

    def answer(new_tokens: int) -> None:
        model.generate(
            **batch, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False
        )

    found = {}
    for new_tokens in lengths:
        times = interleaved(variants, partial(answer, new_tokens), rounds, device, ("unpruned",))
        found[str(new_tokens)] = against_oracle(times)
    return found
