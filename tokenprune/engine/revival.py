"""Tokens that were dropped and may come back: what they were, and the keys they would have now."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .arguments import without_cache
from .compact import Survivors, scatter_hidden
from .stage import Stage

__all__ = ["Departed", "KeysMade", "all_again", "keys_of"]


@dataclass(frozen=True)
class Departed:
    """The visual tokens that are gone.

    Attributes
    ----------
    gone : Survivors, optional
        Where they stand. None: all have come back.
    states : Tensor, (batch, length, width)
        At their places, the hidden states that they left with.
    """

    gone: Survivors | None
    states: Tensor


class KeysMade(Exception):  # noqa: N818 - not an error: it ends the layer early
    """A layer's attention has its keys: what would follow is not wanted."""

    def __init__(self, key: Tensor) -> None:
        super().__init__("the keys of tokens that were dropped")
        self.key = key


@torch.no_grad()
def keys_of(forward: Callable[..., Any], hidden: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """The keys that a layer makes of some hidden states: (batch, kv_heads, tokens, width).

    The layer runs up to its attention, which must raise `KeysMade`: whatever the family does before
    it (norms, projections, rotary embeddings) is done as the family does it.
    """
    try:
        forward(hidden, **{**without_cache(kwargs), "attention_mask": None})
    except KeysMade as made:
        return made.key
    raise RuntimeError("The layer ran without its attention being seen: wrap the model again.")


def all_again(
    first: Stage, stage: Stage, hidden: Tensor, departed: Departed
) -> tuple[Stage, Tensor]:
    """The stage of all visual tokens and the text that is left, and their hidden states.

    Parameters
    ----------
    first, stage : Stage
        The pass's first and its present one.
    hidden : Tensor, (batch, tokens, width)
        The present one's.
    """
    assert stage.kept is not None
    here = stage.kept.marks(first.layout.mask)
    states = scatter_hidden(hidden, stage.kept, here.shape[1])
    states = torch.where(here[..., None], states, departed.states)
    present = here | first.layout.mask
    back = replace(first, present=present, prompt=first.prompt & here, text=first.text & here)
    return back, states
