"""Count the tokens that stay on the batches of all ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..distributed import all_gather, is_sharded, together
from ..engine import engine_of, without_ddp
from ..engine.record import Record
from .progress import Progress

__all__ = ["Counting"]


class Counting:
    """The visual tokens that a model computes on, over the batches of all ranks.

    Parameters
    ----------
    model : nn.Module
        A wrapped model.
    batches : sequence of mapping
        This rank's. Ranks may have different numbers of them, or none.
    progress : Progress

    Raises
    ------
    ValueError
        If no rank has a batch; or one has none and the model is sharded. Every rank then raises.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Mapping[str, Any]], progress: Progress
    ) -> None:
        self.model = without_ddp(model)
        self.batches = batches
        self.progress = progress
        numbers = all_gather(len(batches))
        if not any(numbers):
            raise ValueError(
                "batches is empty: expected at least one dict of the model's arguments."
            )
        # A forward of a sharded model waits for those of all other ranks.
        sharded = is_sharded(model)
        if sharded and not all(numbers):
            raise ValueError(
                f"batches is empty on rank {numbers.index(0)}: the model is sharded, so that each "
                "rank has to run it: give every rank at least one batch."
            )
        self.passes = max(numbers) if sharded else len(batches)

    def expect(self, counts: int) -> None:
        """Say how many more times `mean_tokens` may be called."""
        self.progress.expect(counts * self.passes)

    @torch.no_grad()
    def mean_tokens(self) -> float:
        """Measure the visual tokens per image, mean over all layers and all rows with images.

        The sums are of whole numbers, so how batches are split over ranks does not change them.

        Raises
        ------
        ValueError
            If the batches hold no image.
        RuntimeError
            If the model raised on another rank.
        """
        kept, images, layers = 0, 0, 1
        own = True

        def count(record: Record) -> None:
            nonlocal kept, images, layers
            if own:
                kept += int((record.alive() & record.layout.mask).sum())
                images += int((record.layout.image.amax(dim=1) + 1).sum())
                layers = record.num_layers

        trackers = engine_of(self.model).trackers
        trackers.append(count)
        try:
            with together():
                for number in range(self.passes):
                    own = number < len(self.batches)  # others run because other ranks do
                    batch = self.batches[number if own else -1]
                    self.model(**{**batch, "use_cache": False})
                    self.progress.advance()
        finally:
            trackers.remove(count)
        sums = all_gather((kept, images, layers))
        images = sum(n for _, n, _ in sums)
        if not images:
            raise ValueError("batches hold no image: expected prompts with images.")
        layers = max(n for *_, n in sums)
        mean = sum(n for n, *_ in sums) / (layers * images)
        self.progress.note(f"{mean:.1f} tokens")
        return mean
