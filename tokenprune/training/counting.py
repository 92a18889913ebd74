"""Count the tokens that stay on the batches of all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..distributed import all_gather, is_sharded, together
from ..engine import engine_of, without_ddp
from ..engine.record import Record
from .progress import Progress

__all__ = ["Count", "Counting"]


@dataclass(frozen=True)
class Count:
    """What was counted on all batches of all ranks.

    Attributes
    ----------
    tokens : float
        Visual tokens per image, mean over all layers and all rows with images.
    share : float
        Of each row's own visual tokens, mean over all layers and rows.
    images, own_tokens : int
        Images, and their visual tokens before any was dropped.
    divergence : float
        Mean of what was compared on the way; NaN where nothing was.
    """

    tokens: float
    share: float
    images: int
    own_tokens: int
    divergence: float

    def in_unit(self, unit: str) -> float:
        """Return the count in "tokens" or as a "share"."""
        return self.tokens if unit == "tokens" else self.share

    def one_token(self, unit: str) -> float:
        """Return what one token of one image is worth that stays in every layer."""
        return 1 / self.images if unit == "tokens" else 1 / self.own_tokens


class Counting:
    """The visual tokens that a model computes on, over the batches of all ranks.

    Parameters
    ----------
    model : nn.Module
        A wrapped model.
    batches : sequence of mapping
        This rank's. Ranks may have different numbers of them, or none.
    progress : Progress

    Attributes
    ----------
    compare : callable, optional
        Called with a batch's number and the model's output; returns a number for each row.

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
        self.compare: Callable[[int, Any], list[float]] | None = None
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
        """Say how many more times `count` may be called."""
        self.progress.expect(counts * self.passes)

    @torch.no_grad()
    def run(self, each: Callable[[int, Any], None]) -> None:
        """Run the model on this rank's batches, and give `each` their numbers and outputs."""
        with together():
            for number in range(self.passes):
                own = number < len(self.batches)  # others run because other ranks do
                batch = self.batches[number if own else -1]
                output = self.model(**{**batch, "use_cache": False})
                if own:
                    each(number, output)
                self.progress.advance()

    def count(self) -> Count:
        """Count the visual tokens, and compare outputs if it was asked for.

        How batches are split over ranks does not change the result: sums are of whole numbers, or
        exact ones of floats.

        Raises
        ------
        ValueError
            If the batches hold no image.
        RuntimeError
            If the model raised on another rank.
        """
        kept, images, own_tokens, layers = 0, 0, 0, 1
        shares: list[float] = []
        compared: list[float] = []
        last: Record | None = None

        def note(record: Record) -> None:
            nonlocal last
            last = record

        def add(number: int, output: Any) -> None:
            nonlocal kept, images, own_tokens, layers, last
            if self.compare is not None:
                compared.extend(self.compare(number, output))
            if last is None:
                return
            layers = last.num_layers
            counts = (last.alive() & last.layout.mask).sum(dim=(0, 2)).tolist()
            own = last.layout.mask.sum(dim=1).tolist()
            kept += sum(counts)
            own_tokens += sum(own)
            images += int((last.layout.image.amax(dim=1) + 1).sum())
            pairs = zip(counts, own, strict=True)
            shares.extend(few / (layers * many) for few, many in pairs if many)
            last = None

        trackers = engine_of(self.model).trackers
        trackers.append(note)
        try:
            self.run(add)
        finally:
            trackers.remove(note)
        told = all_gather((kept, images, own_tokens, layers, shares, compared))
        images = sum(n for _, n, *_ in told)
        if not images:
            raise ValueError("batches hold no image: expected prompts with images.")
        layers = max(n for *_, n, _, _ in told)
        found = Count(
            tokens=sum(n for n, *_ in told) / (layers * images),
            share=_mean([share for *_, of_rank, _ in told for share in of_rank]),
            images=images,
            own_tokens=sum(n for _, _, n, *_ in told),
            divergence=_mean([value for *_, of_rank in told for value in of_rank]),
        )
        self.progress.note(f"{found.tokens:.1f} tokens")
        return found


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
