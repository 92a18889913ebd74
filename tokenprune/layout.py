"""Where the visual tokens of a batch are, and where each one lies in its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

__all__ = ["VisualLayout"]


@dataclass(frozen=True)
class VisualLayout:
    """The visual tokens of one batch of sequences.

    All tensors have shape (batch, length). Away from visual tokens the integer fields hold -1.

    Attributes
    ----------
    mask : bool
        True at visual tokens.
    image : int64
        Number of the image or video, counted from 0 within its row of the batch.
    frame : int64
        Number of the frame within its video, or of the view within its image where a family looks
        at one more than once (LLaVA-NeXT: 0 the whole image, 1 its tiles put together).
    row, col : int64
        Place in the grid of that frame. -1 for a visual token that has no place, such as a class
        token or the end of a line: no spatial rule ever picks it.
    height, width : int64
        Rows and columns of that frame's grid.
    complete : bool, (), optional
        Whether the tokens are those of whole images. None: it is not known how many an image has.
        Not handed on by `gather`.
    """

    mask: Tensor
    image: Tensor
    frame: Tensor
    row: Tensor
    col: Tensor
    height: Tensor
    width: Tensor
    complete: Tensor | None = None

    def gather(self, index: Tensor, valid: Tensor | None) -> VisualLayout:
        """The layout of the tokens at `index`.

        Parameters
        ----------
        index : int64, (batch, survivors)
            Positions in this layout's sequence.
        valid : bool, (batch, survivors), optional
            False at padding slots, which are not visual.
        """
        mask = self.mask.gather(1, index)
        places = torch.stack([getattr(self, name) for name in self._places()])
        taken = places.gather(2, index.expand(len(places), -1, -1))
        return VisualLayout(mask if valid is None else mask & valid, *taken.unbind())

    @classmethod
    def _places(cls) -> list[str]:
        """The names of the fields that say where, in order."""
        return [f.name for f in fields(cls) if f.name not in ("mask", "complete")]

    def counts(self) -> Tensor:
        """Visual tokens of each row: int64, (batch,)."""
        return self.mask.sum(dim=1)

    def repeat_rows(self, copies: int) -> VisualLayout:
        """Each row so many times in a row, as beams are."""
        if copies == 1:
            return self
        names = ("mask", *self._places())
        repeated = {name: getattr(self, name).repeat_interleave(copies, 0) for name in names}
        return VisualLayout(**repeated, complete=self.complete)

    @classmethod
    def from_grids(cls, mask: Tensor, height: int, width: int, leading: int = 0) -> VisualLayout:
        """The layout of images that all have one grid, in row-major order.

        Parameters
        ----------
        mask : bool, (batch, length)
            True at visual tokens.
        height, width : int
            The grid of every image.
        leading : int
            Tokens without a place that stand before each image's grid (a class token: 1).
        """
        per_image = height * width + leading
        order = mask.long().cumsum(dim=1) - 1
        place = order % per_image - leading
        on_grid = mask & (place >= 0)

        return cls(
            mask=mask,
            image=torch.where(mask, order // per_image, -1),
            frame=torch.where(mask, 0, -1),
            row=torch.where(on_grid, place // width, -1),
            col=torch.where(on_grid, place % width, -1),
            height=torch.where(mask, height, -1),
            width=torch.where(mask, width, -1),
            complete=(mask.sum(dim=1) % per_image == 0).all(),
        )

    @classmethod
    def from_runs(
        cls, mask: Tensor, per_image: int | None = None, squares: bool = True
    ) -> VisualLayout:
        """The layout where nothing says how large images are: one run of visual tokens, one image.


        Parameters
        ----------
        mask : bool, (batch, length)
            True at visual tokens.
        per_image : int, optional
            A run of several times this many tokens is so many images.
        squares : bool
            Whether an image whose number of tokens is a square is that square, line by line.
            Tokens of other images have no place.
        """
        begins = mask & ~torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
        places = torch.arange(mask.shape[1], device=mask.device)
        since = places - torch.where(begins, places, 0).cummax(dim=1).values
        run = begins.long().cumsum(dim=1)
        size = torch.zeros_like(run).scatter_add(1, run, mask.long()).gather(1, run)
        if per_image is not None:
            whole = size % per_image == 0
            begins = begins | (mask & whole & (since % per_image == 0))
            since = torch.where(whole, since % per_image, since)
            size = torch.where(whole, per_image, size)
        side = size.double().sqrt().round().long()
        square = mask & (side * side == size) & squares
        row, col = since // side.clamp(min=1), since % side.clamp(min=1)
        return cls(
            mask=mask,
            image=torch.where(mask, begins.long().cumsum(dim=1) - 1, -1),
            frame=torch.where(mask, 0, -1),
            row=torch.where(square, row, -1),
            col=torch.where(square, col, -1),
            height=torch.where(square, side, -1),
            width=torch.where(square, side, -1),
        )

    @classmethod
    def from_places(cls, parts: Sequence[tuple[Tensor, Tensor]]) -> VisualLayout:
        """The layout of images of any sizes, each token's place given.

        Parameters
        ----------
        parts : sequence of (bool (batch, length), int64 (tokens, 6))
            For each kind of visual token (images, videos): where it stands, and the place of every
            such token of the batch, row of the batch after row: image (any number that differs from
            the neighbours'), frame, row, column, height, width.
        """
        batch, length = parts[0][0].shape
        device = parts[0][0].device
        mask = torch.zeros(batch, length, dtype=torch.bool, device=device)
        values = torch.full((batch, length, 6), -1, device=device)
        complete = torch.ones((), dtype=torch.bool, device=device)
        for number, (here, places) in enumerate(parts):
            complete = complete & (here.sum() == len(places))
            if not len(places):
                continue
            order = here.flatten().long().cumsum(0) - 1
            taken = places.to(device)[order.clamp(0, len(places) - 1)].unflatten(0, here.shape)
            taken[..., 0] = taken[..., 0] * len(parts) + number
            values = torch.where(here[..., None], taken, values)
            mask = mask | here
        key, frame, row, col, height, width = values.unbind(-1)
        return cls(mask, _numbered(mask, key), frame, row, col, height, width, complete)


def _numbered(mask: Tensor, key: Tensor) -> Tensor:
    """Runs of equal keys counted from 0 within each row, -1 away from the mask."""
    places = torch.arange(mask.shape[1], device=mask.device)
    newest = torch.where(mask, places, -1).cummax(dim=1).values
    before = torch.cat([torch.full_like(newest[:, :1], -1), newest[:, :-1]], dim=1)
    begins = mask & ((before < 0) | (key.gather(1, before.clamp(min=0)) != key))
    return torch.where(mask, begins.long().cumsum(dim=1) - 1, -1)
