"""Run a test on drawn cases of every family that can be pruned: batches, layers, kept sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenprune.adapters import adapter_for
from torch import Tensor

from tokenprune.methods.base import Method
from tokenprune.methods.context import Context, Selection

from .base import FAMILIES, Family

# Wider than any grid here, and one more for tokens without a place.
_MOST = 64


class Patterned(Method):
    """Keeps what stands at some rows and columns, in every image alike.

    Parameters
    ----------
    layers : tuple of int
    share : float
        Of all places, how many each module keeps.
    seed : int
    revives : bool
        Whether tokens come back.
    needs : sequence of str
        Asked for, and not used.
    """

    def __init__(
        self,
        layers: tuple[int, ...],
        share: float,
        seed: int,
        revives: bool = False,
        needs: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.layers = layers
        self.revives = revives
        self.needs = frozenset(needs)
        self.contexts: list[Context] = []
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.rand(len(layers), _MOST, _MOST, generator=generator) < share

    def select(self, context: Context) -> Selection:
        layout = context.layout
        self.contexts.append(context)
        return Selection(keep=self.table[context.step, layout.row + 1, layout.col + 1])

    def alive(self, family: Family, model: Any, sample: Any, num_layers: int) -> Tensor:
        """What each layer must compute on: bool, (num_layers, length)."""
        length = sample["input_ids"].shape[1]
        alive = torch.ones(num_layers, length, dtype=torch.bool)
        for position, _, row, col, _, _ in family.geometry(model, sample):
            if not family.knows_places(sample):
                row, col = -1, -1
            stays = True
            for layer, table in zip(self.layers, self.table, strict=True):
                stays = (stays or self.revives) and bool(table[row + 1, col + 1])
                alive[layer + 1 :, position] = stays
        return alive


@dataclass(frozen=True)
class Case:
    """Prompts, and what goes."""

    images: tuple[int, ...]
    video: bool
    padding: str
    first: int
    gap: int
    share: float
    seed: int
    revives: bool

    def samples(self, family: Family, model: Any) -> list[Any]:
        return [
            family.sample(model, images, self.seed + n, video=self.video)
            for n, images in enumerate(self.images)
        ]

    def method(self, model: Any) -> Patterned:
        adapter = adapter_for(model)
        earliest = adapter.first_layer(model)
        # Before the first layer too, where no layer adds image features.
        first = max(earliest + self.first, earliest or -1)
        second = min(first + self.gap, len(adapter.decoder_layers(model)) - 2)
        return Patterned((first, second), self.share, self.seed, self.revives)


def cases(family: Family) -> st.SearchStrategy[Case]:
    # Families that want pictures in every row, or none, get them in every row.
    counts = st.integers(0 if family.text_beside_images else 1, 2)
    return st.builds(
        Case,
        images=st.lists(counts, min_size=1, max_size=3).map(tuple).filter(any),
        video=st.booleans() if family.videos else st.just(False),
        padding=st.sampled_from(["left", "right"]),
        first=st.integers(-1, 1),
        gap=st.integers(1, 2),
        share=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
        seed=st.integers(0, 2**16),
        revives=st.booleans(),
    )


@cache
def built(name: str, attn: str = "sdpa") -> Any:
    return FAMILIES[name].build(attn=attn)


def present(batch: Any, row: int) -> Tensor:
    return batch["attention_mask"][row].bool()


@torch.no_grad()
def logits(model: Any, batch: Any) -> Tensor:
    return model(**batch).logits


def skipped(family: Family, limit: str = "") -> Any:
    """A family as a parameter, skipped where this release has it not or it cannot do so itself."""
    reason = f"{family.name}: {family.limits.get(limit)}"
    if not family.available():
        reason = f"this transformers has no {family.model} that works"
    skip = limit in family.limits or not family.available()
    return pytest.param(family.name, marks=[pytest.mark.skip(reason=reason)] if skip else [])


def over(examples: int, limit: str = "") -> Callable[[Callable[..., Any]], Any]:
    """Run a test on drawn cases of every family that can be pruned."""

    def decorate(test: Callable[..., Any]) -> Any:
        def run(name: str) -> None:
            family = FAMILIES[name]

            @settings(max_examples=examples, deadline=None)
            @given(case=cases(family))
            def drawn(case: Case) -> None:
                test(name, family, case)

            drawn()

        run.__name__, run.__module__ = test.__name__, test.__module__
        run.__doc__ = test.__doc__
        run.swept = True  # type: ignore[attr-defined]
        names = [skipped(family, limit) for family in FAMILIES.values() if not family.refused]
        return pytest.mark.parametrize("name", names)(run)

    return decorate


def has_tower(model: Any) -> bool:
    try:
        adapter_for(model).tower(model)
    except ValueError:
        return False
    return True
