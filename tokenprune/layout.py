"""Where the visual tokens of a batch are, and where each one lies in its image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Coordinates", "VisualLayout"]


class Coordinates(NamedTuple):
    """The place of each of a list of visual tokens; all fields int64, (tokens,).

    Attributes
    ----------
    image : int64
        Number of the image or video, any that differs from its neighbours'.
    frame : int64
        Number of the frame within its video, or of the view within its image.
    row, col : int64
        Place in the grid of that frame, -1 for a token that has none (a class token, a newline).
    height, width : int64
        Rows and columns of that frame's grid.
    """

    image: Tensor
    frame: Tensor
    row: Tensor
    col: Tensor
    height: Tensor
    width: Tensor

    @classmethod
    def cat(cls, parts: Iterable[Coordinates]) -> Coordinates:
        """Concatenate the coordinates of several images or frames.

        Raises
        ------
        RuntimeError
            If there is nothing to concatenate.
        """
        columns = zip(*parts, strict=True)
        return cls(*map(torch.cat, columns))


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
        Number of the frame within its video, or of the view within its image where a family encodes
        an image more than once (LLaVA-NeXT: 0 the whole image, 1 its tiles put together).
    row, col : int64
        Place in the grid of that frame. -1 for a visual token that has no place, such as a class
        token or the end of a line: no spatial rule ever picks it.
    height, width : int64
        Rows and columns of that frame's grid.
    complete : bool, (), optional
        Whether the tokens are those of whole images. None: it is not known how many an image has.
        Not handed on by `gather`.

    Examples
    --------
    One row of a batch: a word, an image of 2×3 tokens, another word.

    >>> import torch
    >>> mask = torch.tensor([[False, True, True, True, True, True, True, False]])
    >>> layout = VisualLayout.from_grids(mask, height=2, width=3)
    >>> layout.counts()
    tensor([6])
    >>> layout.row
    tensor([[-1,  0,  0,  0,  1,  1,  1, -1]])
    >>> layout.gather(torch.tensor([[0, 2, 6, 7]]), valid=None).col
    tensor([[-1,  1,  2, -1]])
    """

    mask: Tensor
    image: Tensor
    frame: Tensor
    row: Tensor
    col: Tensor
    height: Tensor
    width: Tensor
    complete: Tensor | None = None

    @property
    def coordinates(self) -> Coordinates:
        """Return the integer fields, each (batch, length)."""
        return Coordinates(*(getattr(self, name) for name in Coordinates._fields))

    def gather(self, index: Tensor, valid: Tensor | None) -> VisualLayout:
        """Return the layout of the tokens at `index`.

        Parameters
        ----------
        index : int64, (batch, survivors)
            Positions in this layout's sequence.
        valid : bool, (batch, survivors), optional
            False at padding slots, which are not visual.

        Returns
        -------
        VisualLayout, (batch, survivors)
        """
        mask = self.mask.gather(1, index)
        stacked = torch.stack(self.coordinates)
        taken = stacked.gather(2, index.expand(len(stacked), -1, -1))
        return VisualLayout(mask if valid is None else mask & valid, *taken.unbind())

    def counts(self) -> Tensor:
        """Count the visual tokens of each row: int64, (batch,)."""
        return self.mask.sum(dim=1)

    def repeat_rows(self, copies: int) -> VisualLayout:
        """Repeat each row of the batch, one copy after the other, as beam search does.

        Parameters
        ----------
        copies : int
            How many times each row stands in the result.

        Returns
        -------
        VisualLayout, (batch · copies, length)
        """
        if copies == 1:
            return self
        mask = self.mask.repeat_interleave(copies, dim=0)
        columns = Coordinates(*(c.repeat_interleave(copies, dim=0) for c in self.coordinates))
        return VisualLayout(mask, *columns, self.complete)

    @classmethod
    def from_grids(cls, mask: Tensor, height: int, width: int, leading: int = 0) -> VisualLayout:
        """Build the layout of images that all have the same grid, in row-major order.

        Parameters
        ----------
        mask : bool, (batch, length)
            True at visual tokens.
        height, width : int
            The grid of every image.
        leading : int
            Tokens without a place that stand before each image's grid (a class token: 1).

        Returns
        -------
        VisualLayout, (batch, length)
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
        """Build a layout where nothing says how large images are: one run of tokens, one image.

        Parameters
        ----------
        mask : bool, (batch, length)
            True at visual tokens.
        per_image : int, optional
            A run of several times this many tokens is so many images.
        squares : bool
            Whether an image whose number of tokens is a square is that square, line by line.
            Tokens of other images have no place.

        Returns
        -------
        VisualLayout, (batch, length)
            `complete` is None.
        """
        begins = mask & ~torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
        positions = torch.arange(mask.shape[1], device=mask.device)
        since = positions - torch.where(begins, positions, 0).cummax(dim=1).values
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
    def from_coordinates(cls, parts: Sequence[tuple[Tensor, Coordinates]]) -> VisualLayout:
        """Build the layout of images of any sizes from each token's coordinates.

        Parameters
        ----------
        parts : sequence of (bool (batch, length), Coordinates)
            For each modality (images, videos): where its tokens stand, and the coordinates of every
            such token of the batch, row of the batch after row.

        Returns
        -------
        VisualLayout, (batch, length)
            Images are numbered anew, from 0 within each row.
        """
        batch, length = parts[0][0].shape
        device = parts[0][0].device
        mask = torch.zeros(batch, length, dtype=torch.bool, device=device)
        values = torch.full((len(Coordinates._fields), batch, length), -1, device=device)
        complete = torch.ones((), dtype=torch.bool, device=device)
        for number, (here, coordinates) in enumerate(parts):
            # Numbers of images and of videos must differ where one follows the other.
            image = coordinates.image * len(parts) + number
            stacked = torch.stack(coordinates._replace(image=image)).to(device)
            tokens = stacked.shape[1]
            complete = complete & (here.sum() == tokens)
            if not tokens:
                continue
            order = here.flatten().long().cumsum(0) - 1
            taken = stacked[:, order.clamp(0, tokens - 1)].unflatten(1, here.shape)
            values = torch.where(here, taken, values)
            mask = mask | here
        columns = Coordinates(*values.unbind())
        columns = columns._replace(image=_number_images(mask, columns.image))
        return cls(mask, *columns, complete)


def _number_images(mask: Tensor, image: Tensor) -> Tensor:
    """Count the runs of equal values, from 0 within each row; -1 away from the mask."""
    positions = torch.arange(mask.shape[1], device=mask.device)
    newest = torch.where(mask, positions, -1).cummax(dim=1).values
    before = torch.cat([torch.full_like(newest[:, :1], -1), newest[:, :-1]], dim=1)
    begins = mask & ((before < 0) | (image.gather(1, before.clamp(min=0)) != image))
    return torch.where(mask, begins.long().cumsum(dim=1) - 1, -1)
