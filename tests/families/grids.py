"""Rows and columns of visual tokens, constructed without the library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Place(NamedTuple):
    """Row and column of a visual token.

    `unit` counts what has a grid of its own inside one image or video: frames, tiles, thumbnails.
    """

    unit: int
    row: int
    col: int
    height: int
    width: int


Places = list[Place]


def nowhere(unit: int, height: int = 0, width: int = 0) -> Place:
    return Place(unit, -1, -1, height, width)


def grid(height: int, width: int, unit: int = 0) -> Places:
    """Row by row."""
    return [Place(unit, r, c, height, width) for r in range(height) for c in range(width)]


def frame_grids(frames: int, height: int, width: int) -> Places:
    """A video's grids, frame by frame."""
    return [place for frame in range(frames) for place in grid(height, width, frame)]


def with_newlines(height: int, width: int, unit: int) -> Places:
    """A grid whose rows end in one more token."""
    return [
        Place(unit, r, c, height, width) if c < width else nowhere(unit, height, width)
        for r in range(height)
        for c in range(width + 1)
    ]


def without_place(tokens: int) -> Places:
    return [nowhere(0)] * tokens


def in_one(pictures: Iterable[Places]) -> Places:
    """One list of them all, their units counted on."""
    first, together = 0, []
    for places in pictures:
        together += [place._replace(unit=first + place.unit) for place in places]
        first += 1 + max(place.unit for place in places)
    return together
