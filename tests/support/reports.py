"""Runs whose pictures and questions are kept, for reports of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import tokenprune as tp

from .drawing import picture
from .tiny_llava import Batch

__all__ = ["ATP", "EVIL", "PICTURE", "tracked"]

ATP = tp.ATPConfig(layers=(1, 3), target_tokens=18.0, start_spatial=0.9)
EVIL = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)> & \"it\"?"
PICTURE = picture(24, 24)


@torch.no_grad()
def tracked(
    model: Any, batches: Sequence[Batch], pictures: Any, questions: Any = None
) -> tuple[Any, list[tp.PruneStats]]:
    """A run, and the statistics of each batch."""
    found = []
    with tp.track(model) as run:
        for batch in batches:
            model(**batch)
            found.append(tp.stats(model))
            run.keep(pictures, questions)
    return run, found
