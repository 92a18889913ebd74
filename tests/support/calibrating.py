"""A small model to calibrate, data for it, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import tokenprune as tp
from tokenprune.engine import engine_of

from .tiny_llava import IMAGE, make_batch
from .wrapping import wrapped_llava

LAYERS = (1, 3)  # of 6: the layers before the first module cost 12 of 36 tokens
PROMPTS = ((4, IMAGE, 6), (2, IMAGE, 9), (5, IMAGE, 4))


def spread_out(**options: Any) -> Any:
    """A wrapped model whose thresholds differ from picture to picture."""
    model = wrapped_llava(tp.ATPConfig(layers=LAYERS, target_tokens=18.0, **options))
    method: Any = engine_of(model).method
    for heads in method.thresholds:
        torch.nn.init.normal_(heads.heads.weight, std=0.5)
    return model


def data(seeds: Iterable[int] = range(3)) -> list[dict[str, Any]]:
    return [make_batch(PROMPTS, seed=seed) for seed in seeds]


@torch.no_grad()
def measured(model: Any, batches: Iterable[Mapping[str, Any]]) -> NDArray[np.int64]:
    """Kept visual tokens: (layers, samples)."""
    with tp.track(model) as run:
        for batch in batches:
            model(**batch)
    return run.kept()


def state(model: Any) -> dict[str, Any]:
    return engine_of(model).method.runtime_state()
