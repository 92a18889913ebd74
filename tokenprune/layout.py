"""Where the visual tokens of a batch are, and where each one lies in its picture."""

from __future__ import annotations

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
        Number of the image or frame, counted from 0 within its row of the batch.
    row, col : int64
        Place in the grid of that image. -1 for a visual token that has no place, such as a class
        token: no spatial rule ever picks it.
    height, width : int64
        Rows and columns of that image's grid.
    """

    mask: Tensor
    image: Tensor
    row: Tensor
    col: Tensor
    height: Tensor
    width: Tensor

    def gather(self, index: Tensor, valid: Tensor | None) -> VisualLayout:
        """The layout of the tokens at `index`.

        Parameters
        ----------
        index : int64, (batch, survivors)
            Positions in this layout's sequence.
        valid : bool, (batch, survivors), optional
            False at padding slots, which are not visual.
        """
        taken = {f.name: getattr(self, f.name).gather(1, index) for f in fields(self)}
        if valid is not None:
            taken["mask"] = taken["mask"] & valid
        return VisualLayout(**taken)

    def counts(self) -> Tensor:
        """Visual tokens of each row: int64, (batch,)."""
        return self.mask.sum(dim=1)

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
            row=torch.where(on_grid, place // width, -1),
            col=torch.where(on_grid, place % width, -1),
            height=torch.where(mask, height, -1),
            width=torch.where(mask, width, -1),
        )
