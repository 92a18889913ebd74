"""What wrapping costs where nothing is pruned, and what training costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import tokenprune as tp

from .kept import Kept
from .shapes import Shape
from .timing import Variant, interleaved, median, ratio, ratios, spread
from .variants import paused

__all__ = ["paused_overhead", "training"]


def paused_overhead(
    model: Any, shape: Shape, kept: Kept, rounds: int, device: str
) -> tuple[float, float]:
    """Measure how much longer a wrapped, paused model takes, and the spread: 0.01 is 1 %.

    For a single token, where what hooks cost is the largest part of the time.
    """
    token = torch.full((1, 1), 9, device=device)
    variants: dict[str, Variant] = {
        "unpruned": nullcontext,
        "paused": partial(paused, model, shape, kept),
    }

    def work() -> None:
        with torch.inference_mode():
            model(input_ids=token)

    times = interleaved(variants, work, rounds, device)
    found = ratios(times["paused"], times["unpruned"])
    return median(found) - 1, spread(found)


def training(
    model: Any, shape: Shape, batch: dict[str, Tensor], rounds: int, device: str
) -> dict[str, float]:
    """Measure a training step of the heads against forward and backward of the unwrapped layers.

    The unwrapped model's gradient goes as far down: to a vector that is added to the output of the
    layer after which ATP prunes first.
    """
    labels = batch["input_ids"].clone()
    labels[:, :-8] = -100

    def step() -> None:
        model(**batch, labels=labels).loss.backward()

    @contextmanager
    def bare() -> Iterator[None]:
        layer = model.model.language_model.layers[shape.prune_after[0]]
        nothing = nn.Parameter(torch.zeros(shape.width, device=device, dtype=model.dtype))
        handle = layer.register_forward_hook(
            lambda _, args, output: (
                (output[0] + nothing, *output[1:])
                if isinstance(output, tuple)
                else output + nothing
            )
        )
        yield
        handle.remove()

    @contextmanager
    def heads() -> Iterator[None]:
        tp.wrap(model, tp.ATPConfig(layers=shape.prune_after, target_tokens=shape.side**2 / 2))
        tp.train_only_heads(model)
        model.train()
        yield
        model.eval()
        tp.unwrap(model)

    needed = [parameter.requires_grad for parameter in model.parameters()]
    model.requires_grad_(False)
    try:
        times = interleaved({"unpruned": bare, "heads": heads}, step, rounds, device)
    finally:
        for parameter, need in zip(model.parameters(), needed, strict=True):
            parameter.requires_grad_(need)
    return {
        "unpruned_s": median(times["unpruned"]),
        "heads_s": median(times["heads"]),
        "ratio": ratio(times["heads"], times["unpruned"]),
    }
