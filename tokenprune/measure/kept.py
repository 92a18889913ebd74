"""What a tracker keeps of a sample whose picture it is given, for a report."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from .explanation import Explanation
from .pictures import check_aspect, is_dark, opened

__all__ = ["KeptSample", "Panel", "panels_of"]

_LONGEST = 448  # pixels of the longer side of a picture that is kept
_SMALL = 96  # pictures up to this size are kept without loss


@dataclass(frozen=True)
class Panel:
    """A picture, and the grid of tokens over it: an image, a frame of a video or a view.

    Attributes
    ----------
    name : str
        "image", or which of the sample's it is.
    source : str
        The picture as a data URI.
    width, height : int
        Of it.
    dark : bool
    cells : int64, (rows, columns)
        Number of the visual token at each place, -1 where there is none.
    """

    name: str
    source: str
    width: int
    height: int
    dark: bool
    cells: np.ndarray


@dataclass(frozen=True)
class KeptSample:
    """One sample of a run.

    Attributes
    ----------
    number : int
        In the run, from 0.
    question : str
    panels : tuple of Panel
    explanation : Explanation
    """

    number: int
    question: str
    panels: tuple[Panel, ...]
    explanation: Explanation


def panels_of(explanation: Explanation, grid: np.ndarray, given: Any) -> tuple[Panel, ...]:
    """Lay a sample's pictures under its tokens.

    Parameters
    ----------
    explanation : Explanation
    grid : int64, (tokens, 2)
        Rows and columns of each token's frame.
    given : picture, or a sequence
        The sample's picture; of several images a sequence with a picture for each, of a video a
        sequence with a picture for each frame of its tokens.

    Raises
    ------
    ValueError
        If these are not the pictures of the tokens.
    """
    several = isinstance(given, Sequence) and not isinstance(given, str)
    entries = list(given) if several else [given]
    images = np.unique(explanation.image).tolist()
    if not images:
        return ()
    if len(images) == 1 and len(entries) != 1:
        entries = [entries]
    if len(entries) != len(images):
        raise ValueError(
            f"pictures: {len(entries)} for sample {explanation.sample}, whose prompt has "
            f"{len(images)} images: expected a sequence with a picture for each."
        )
    panels: list[Panel] = []
    for image, entry in zip(images, entries, strict=True):
        name = f"image {image}" if len(images) > 1 else "image"
        here = (explanation.image == image) & (explanation.row >= 0)
        frames = np.unique(explanation.frame[here]).tolist()
        # Frames of a video have one size; the views of an image that is encoded twice do not.
        video = len(frames) > 1 and len(np.unique(grid[here], axis=0)) == 1
        listed = isinstance(entry, Sequence) and not isinstance(entry, str)
        pictures = list(entry) if listed else [entry] if video else [entry] * len(frames)
        if len(pictures) != len(frames):
            raise ValueError(
                f"pictures: {len(pictures)} for {name} of sample {explanation.sample}, whose "
                f"tokens lie in {len(frames)} frame(s): expected a picture for each of them."
            )
        for frame, picture in zip(frames, pictures, strict=True):
            part = f", {'frame' if video else 'view'} {frame}" if len(frames) > 1 else ""
            tokens = (here & (explanation.frame == frame)).nonzero()[0]
            panels.append(_panel(name + part, explanation, tokens, grid[tokens[0]], picture))
    return tuple(panels)


def _panel(
    name: str, explanation: Explanation, tokens: np.ndarray, size: np.ndarray, picture: Any
) -> Panel:
    picture = opened(picture).convert("RGB")
    check_aspect(picture, *map(int, size))
    cells = np.full(size, -1, dtype=np.int64)
    cells[explanation.row[tokens], explanation.col[tokens]] = tokens
    picture.thumbnail((_LONGEST, _LONGEST))
    width, height = picture.size
    return Panel(name, _data_uri(picture), width, height, is_dark(picture), cells)


def _data_uri(picture: Image.Image) -> str:
    form = "PNG" if max(picture.size) <= _SMALL else "JPEG"
    file = io.BytesIO()
    picture.save(file, format=form, quality=85)
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
