"""Coordinates of an image's or a video's tokens, from the sizes of its grids."""

from __future__ import annotations

import torch
from torch import Tensor

from tokenprune.layout import Coordinates

__all__ = ["frame_coordinates", "grid_coordinates", "unplaced"]


def frame_coordinates(
    image: int, height: int, width: int, frame: int = 0, line_ends: bool = False
) -> Coordinates:
    """Return the coordinates of one frame's tokens in row-major order.

    Parameters
    ----------
    image : int
        Number of the image or video.
    height, width : int
        The frame's grid.
    frame : int
        Number of the frame within its video, or of the view within its image.
    line_ends : bool
        Whether a token without a place ends each line, such as LLaVA-NeXT's newline.

    Returns
    -------
    Coordinates
        Of height · width tokens, or height · (width + 1) with line ends.

    Examples
    --------
    >>> frame_coordinates(0, height=2, width=2, line_ends=True).col
    tensor([ 0,  1, -1,  0,  1, -1])
    """
    rows, cols = torch.arange(height), torch.arange(width + line_ends)
    row, col = (part.flatten() for part in torch.meshgrid(rows, cols, indexing="ij"))
    inside = col < width
    return Coordinates(
        image=torch.full_like(row, image),
        frame=torch.full_like(row, frame),
        row=torch.where(inside, row, -1),
        col=torch.where(inside, col, -1),
        height=torch.full_like(row, height),
        width=torch.full_like(row, width),
    )


def unplaced(image: int, frame: int, side: int) -> Coordinates:
    """Return the coordinates of one token without a place in a frame of `side` × `side` tokens.

    Examples
    --------
    >>> unplaced(0, frame=0, side=4).row
    tensor([-1])
    """
    return Coordinates(*(torch.tensor([n]) for n in (image, frame, -1, -1, side, side)))


def grid_coordinates(grids: Tensor, merge: int) -> Coordinates:
    """Return the coordinates of every image's or video's tokens by ``image_grid_thw``.

    Parameters
    ----------
    grids : int64, (images, 3)
        Frames, rows and columns of each, counted in patches of the vision tower.
    merge : int
        How many patches a side the tower merges into one token.

    Examples
    --------
    >>> grid_coordinates(torch.tensor([[1, 2, 4]]), merge=2).col
    tensor([0, 1])
    """
    return Coordinates.cat(
        frame_coordinates(number, height // merge, width // merge, frame)
        for number, (time, height, width) in enumerate(grids.tolist())
        for frame in range(time)
    )
