"""Gather the tokens that stay, and scatter them back to the full length."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["Survivors", "gather_hidden", "gather_positions", "scatter_hidden", "survivors"]


@dataclass(frozen=True)
class Survivors:
    """The positions that stay, in order unless rearranged, shorter rows padded at their end.

    Padding at the end needs no mask under a causal decoder: no survivor can see it.

    Attributes
    ----------
    index : int64, (batch, slots)
        Position of each survivor. A padding slot repeats the row's first survivor.
    valid : bool, (batch, slots), optional
        False at padding slots. None: there are none.
    """

    index: Tensor
    valid: Tensor | None

    def marks(self, like: Tensor) -> Tensor:
        """Return True at the survivors' positions: bool, of the shape (batch, length) of `like`."""
        valid = self.valid
        if valid is None:
            valid = torch.ones_like(self.index, dtype=torch.bool)
        # A padding slot repeats a survivor's index, so it must not write: amax, not assignment.
        marks = torch.zeros_like(like, dtype=torch.uint8)
        return marks.scatter_reduce(1, self.index, valid.byte(), "amax").bool()

    def followed_by(self, later: Survivors) -> Survivors:
        """Return those that survive once more, `later` being counted among these."""
        return Survivors(self.index.gather(1, later.index), later.valid)

    def rearranged(self, movable: Tensor, group: Tensor, order: Tensor) -> Survivors:
        """Return these with some in another order, in the slots that they have among them.

        Parameters
        ----------
        movable : bool, (batch, length)
            Which positions may move.
        group : int64, (batch, length)
            These stand together: lower groups first.
        order : (batch, length)
            Within a group, lower values first; of equal ones, the earlier position.
        """
        moves = movable.gather(1, self.index)
        if self.valid is not None:
            moves = moves & self.valid
        # The slots that move and then the others, as they stand and as they are to come: the key
        # that counts most is sorted by last, and the others' keys are all equal.
        keys = [part.gather(1, self.index).masked_fill(~moves, 0) for part in (order, group)]
        keys.append((~moves).byte())
        stand = keys[-1].argsort(dim=1, stable=True)
        come = torch.arange(moves.shape[1], device=moves.device).expand_as(stand)
        for key in keys:
            come = come.gather(1, key.gather(1, come).argsort(dim=1, stable=True))
        return Survivors(self.index.scatter(1, stand, self.index.gather(1, come)), self.valid)

    def shifted(self, past: int) -> Survivors:
        """Return these with their positions counted from `past` earlier ones."""
        return Survivors(self.index + past, self.valid)

    def concatenated(self, others: Survivors) -> Survivors:
        """Return these and then those, with padding in between and behind."""
        index = torch.cat([self.index, others.index], dim=1)
        if self.valid is None and others.valid is None:
            return Survivors(index, None)
        parts = [
            torch.ones_like(some.index, dtype=torch.bool) if some.valid is None else some.valid
            for some in (self, others)
        ]
        return Survivors(index, torch.cat(parts, dim=1))


def survivors(alive: Tensor, slots: int, ragged: bool) -> Survivors:
    """Return the True positions of `alive`.

    Parameters
    ----------
    alive : bool, (batch, length)
    slots : int
        The longest row's count.
    ragged : bool
        Whether any row has fewer.
    """
    order = (~alive).byte().argsort(dim=1, stable=True)[:, :slots]
    if not ragged:
        return Survivors(order, None)
    valid = torch.arange(slots, device=alive.device) < alive.sum(dim=1, keepdim=True)
    return Survivors(torch.where(valid, order, order[:, :1]), valid)


def gather_hidden(hidden: Tensor, index: Tensor) -> Tensor:
    """Gather hidden states at `index`: (batch, length, width) → (batch, slots, width)."""
    # Whole rows of memory at a time, unlike `gather`.
    rows = _flat_index(index.to(hidden.device), hidden.shape[1])
    return hidden.flatten(0, 1).index_select(0, rows).unflatten(0, index.shape)


def scatter_hidden(hidden: Tensor, kept: Survivors, length: int) -> Tensor:
    """Scatter hidden states to their positions, zeros elsewhere: (batch, length, width)."""
    batch, _, width = hidden.shape
    index = kept.index
    if kept.valid is not None:
        # Padding slots go to one position past the end, which is cut off.
        index = torch.where(kept.valid, index, length)
    slots = length + (kept.valid is not None)
    full = hidden.new_zeros(batch * slots, width)
    full.index_copy_(0, _flat_index(index.to(hidden.device), slots), hidden.flatten(0, 1))
    return full.view(batch, slots, width)[:, :length]


def _flat_index(index: Tensor, length: int) -> Tensor:
    """Return indices into the batch with its rows laid end to end: int64, (batch · slots,)."""
    if len(index) > 1:
        index = index + torch.arange(len(index), device=index.device)[:, None] * length
    return index.flatten()


def gather_positions(values: Tensor, index: Tensor, axis: int) -> Tensor:
    """Gather position ids, or position embeddings, of the survivors.

    Parameters
    ----------
    values : Tensor
        The sequence stands at `axis` (-1: position ids, -2: embeddings), the batch right before
        it with 1 or batch entries; M-RoPE has one more axis in front.
    index : int64, (batch, slots)
    """
    batch, index = index.shape[0], index.to(values.device)
    sequence_last = values if axis == -1 else rearrange(values, "... l d -> ... d l")
    batch_axis = values.ndim + axis - 1
    shape = list(sequence_last.shape)
    shape[batch_axis] = batch
    picks = index.reshape(
        *(1,) * batch_axis, batch, *(1,) * (values.ndim - batch_axis - 2), index.shape[1]
    )
    taken = sequence_last.expand(shape).gather(-1, picks.expand(*shape[:-1], index.shape[1]))
    return taken if axis == -1 else rearrange(taken, "... d l -> ... l d")
