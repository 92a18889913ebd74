"""What a pruning step dropped, kept until the end of the pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import ReferenceType

from torch import Tensor

from ..survivors import Survivors, gather_hidden, scatter_hidden

__all__ = ["Drop", "full_length"]


@dataclass(frozen=True)
class Drop:
    """One pruning step that dropped tokens.

    Attributes
    ----------
    output : weak reference
        The layer's output before anything was dropped.
    before : Survivors, optional
        The pass's positions that the layer computed on. None: all.
    kept : Survivors
        Those that the next layer computes on.
    changed : Tensor, (batch, kept, width), optional
        What the survivors became, if the method changed them.
    """

    output: ReferenceType[Tensor]
    before: Survivors | None
    kept: Survivors
    changed: Tensor | None


def full_length(
    hidden_states: tuple[Any, ...], drops: Mapping[int, Drop], length: int, num_layers: int
) -> tuple[Any, ...]:
    """Return collected hidden states at the full length, zeros where a token was dropped.

    Parameters
    ----------
    hidden_states : tuple of (batch, tokens, width) or None
        Entry n is the input of layer n; the last one is at full length already.
    drops : mapping
        Decoder layer → what was dropped after it.
    length : int
        Of the pass before anything was dropped.
    num_layers : int
    """
    kept: Survivors | None = None
    full: list[Any] = []
    for n, hidden in enumerate(hidden_states):
        drop = drops.get(n - 1)
        if drop is not None:
            kept = drop.kept
            collected = drop.output()
            if collected is not None and collected is hidden:
                # This release collects a layer's output before our hook: drop here too.
                hidden = _dropped(drop, collected, length)
        if hidden is not None and kept is not None and n < num_layers:
            hidden = scatter_hidden(hidden, kept, length)
        full.append(hidden)
    return tuple(full)


def _dropped(drop: Drop, hidden: Tensor, length: int) -> Tensor:
    """Return what a layer's output became: (batch, kept, width)."""
    if drop.changed is not None:
        return drop.changed
    full = hidden if drop.before is None else scatter_hidden(hidden, drop.before, length)
    return gather_hidden(full, drop.kept.index)
