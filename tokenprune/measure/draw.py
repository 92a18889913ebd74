"""Draw which tokens were kept: the image, then one panel for each pruning step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..checks import is_whole, require
from ..fields import BEFORE_DECODER
from .pictures import check_aspect, is_dark, opened
from .sheet import FORMATS, Panel, save
from .stats import PruneStats

__all__ = ["draw", "draw_methods"]

_PANEL = 336  # least number of pixels of a panel's longer side
_DIM = 0.22  # contrast of a dropped token, relative to a kept one
_PALE = 230  # what dropped tokens fade to in a bright picture; in a dark one, black
_BORDER = (255, 170, 0)  # between kept and dropped tokens of a dark picture


def draw(
    image: Image.Image | np.ndarray | str | Path,
    stats: PruneStats,
    path: str | Path,
    *,
    sample: int = 0,
    image_number: int = 0,
    frame: int | None = None,
    question: str | None = None,
) -> Path:
    """Write a picture: the image, then for each pruning step the tokens that were kept.

    Dropped tokens are grey and faded: towards white in a bright picture, towards black in a dark
    one, where a line separates them from kept ones. Captions count the tokens of the frame or view
    that is drawn; layers count from 0.

    Parameters
    ----------
    image : PIL image, uint8 array (height, width, 3) or path
        The image that the model was given, or its file; of a video, the frame. Where the processor
        crops, pads or stretches, the image after that.
    stats : PruneStats
        Of the prefill with that image.
    path : path
        Where to write, ending in ``.png``, ``.jpg`` or ``.jpeg``; the folder is created if it
        does not exist.
    sample : int
        Row of the batch.
    image_number : int
        Which of the row's images or videos, from 0.
    frame : int, optional
        Which frame of a video, or view of an image, from 0. None: the first of those with the most
        tokens.
    question : str, optional
        Stands above the picture, in Pillow's own font, which has no other than Latin letters.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    ValueError
        If the batch has no such sample, the sample no such image, the image no such frame, or if
        the places of its tokens are not known; if the image is empty or has another aspect than
        the grid of its tokens, the path ends otherwise, or an argument is of another type. Nothing
        is then written.
    OSError
        If `image` is a path and no image can be read there.

    Examples
    --------
    >>> from PIL import Image
    >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
    >>> output = model(**batch)
    >>> image = Image.new("RGB", (24, 24), "navy")
    >>> draw(image, tp.stats(model), folder / "kept.png").name
    'kept.png'
    """
    path = _checked(path, question)
    panels = _panels(image, stats, sample, image_number, frame)
    return save([panels], question, path)


def draw_methods(
    image: Image.Image | np.ndarray | str | Path,
    stats: Mapping[str, PruneStats],
    path: str | Path,
    *,
    sample: int = 0,
    image_number: int = 0,
    frame: int | None = None,
    question: str | None = None,
) -> Path:
    """Write what several methods kept of one picture, a row of panels for each: see `draw`.

    Parameters
    ----------
    image : PIL image, uint8 array (height, width, 3) or path
    stats : mapping
        Name of each method, which stands above its row, → statistics of its prefill with the image.
    path : path
    sample, image_number, frame, question
        As in `draw`.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    ValueError
        As in `draw`, or if the statistics are of prompts with other visual tokens.
    OSError
        If `image` is a path and no image can be read there.

    Examples
    --------
    >>> from PIL import Image
    >>> found = {}
    >>> for config in (tp.FastVConfig(layer=1, keep=9), tp.UniformConfig(layer=1, keep=9)):
    ...     model = tp.wrap(model, config)
    ...     output = model(**batch)
    ...     found[config.method] = tp.stats(model)
    ...     model = tp.unwrap(model)
    >>> image = Image.new("RGB", (24, 24), "navy")
    >>> tp.draw_methods(image, found, folder / "methods.png").name
    'methods.png'
    """
    named = isinstance(stats, Mapping) and len(stats) > 0
    named = named and all(isinstance(name, str) for name in stats)
    require(named, "stats", stats, "a mapping of one or more names to what tokenprune.stats gives")
    path = _checked(path, question)
    rows = []
    first: PruneStats | None = None
    for name, found in stats.items():
        (picture, what, below), *steps = _panels(image, found, sample, image_number, frame)
        first = first or found
        if not _same_tokens(first, found, sample):
            raise ValueError(
                f"stats[{name!r}] is of another prompt than the first: expected the statistics of "
                "prefills with the same prompt and image."
            )
        rows.append([(picture, f"{name}: {what}", below), *steps])
    return save(rows, question, path)


def _same_tokens(one: PruneStats, other: PruneStats, sample: int) -> bool:
    """Return whether the visual tokens of a sample lie at the same places."""
    return all(
        np.array_equal(getattr(one, name)[sample], getattr(other, name)[sample])
        for name in ("visual", "image", "frame", "row", "col", "grid")
    )


def _checked(path: str | Path, question: str | None) -> Path:
    """Check what does not depend on the statistics."""
    require(isinstance(path, str | Path), "path", path, "a path, as a str or pathlib.Path")
    path = Path(path)
    known = path.suffix.lower() in FORMATS
    require(known, "path", str(path), f"a name that ends in one of {', '.join(FORMATS)}")
    require(question is None or isinstance(question, str), "question", question, "a str")
    return path


def _panels(
    image: Any, stats: PruneStats, sample: int, image_number: int, frame: int | None
) -> list[Panel]:
    """Return the picture and what each step kept of it, with captions."""
    if not isinstance(stats, PruneStats):
        raise ValueError(
            f"stats is a {type(stats).__name__}: expected what tokenprune.stats(model) gives after "
            "the model has seen the picture."
        )
    numbers = {"sample": sample, "image_number": image_number}
    for name, number in (numbers if frame is None else numbers | {"frame": frame}).items():
        require(is_whole(number), name, number, "a whole number")
    batch = stats.visual.shape[0]
    if not 0 <= sample < batch:
        raise ValueError(f"sample={sample}: expected 0 to {batch - 1}, the rows of this batch.")
    here = stats.visual[sample] & (stats.image[sample] == image_number)
    if not here.any():
        raise ValueError(
            f"image_number={image_number}: sample {sample} has "
            f"{stats.image[sample].max() + 1} image(s), counted from 0."
        )
    picture = opened(image).convert("RGB")
    placed = here & (stats.row[sample] >= 0)
    frames, sizes = np.unique(stats.frame[sample][placed], return_counts=True)
    if not len(frames):
        raise ValueError("Nothing says where in the picture this family's visual tokens lie.")
    if frame is None:
        frame = int(frames[sizes.argmax()])
    name = "image"
    if len(frames) > 1:
        # Frames of a video have one size; the views of an image that is encoded twice do not.
        same = len(np.unique(stats.grid[sample][placed], axis=0)) == 1
        name = f"{'frame' if same else 'view'} {frame}"
        here &= stats.frame[sample] == frame
    placed &= stats.frame[sample] == frame
    if not placed.any():
        raise ValueError(f"frame={frame}: expected one of {frames.tolist()}.")
    rows, cols = stats.grid[sample][placed][0]
    check_aspect(picture, int(rows), int(cols))
    picture = _enlarged(picture)
    panels = [(picture, name, f"{here.sum()} visual tokens")]
    for number, layer in enumerate(stats.pruning_layers):
        alive = stats.alive[layer + 1, sample] & here
        kept = np.zeros((rows, cols), dtype=bool)
        shown_here = alive & placed
        kept[stats.row[sample][shown_here], stats.col[sample][shown_here]] = True
        values = stats.thresholds[number, sample]
        # Letters: the font that comes with Pillow has no θ.
        shown = "  ".join(
            f"threshold {letter} {value:.2f}"
            for letter, value in zip(("r", "s"), values, strict=False)
            if not np.isnan(value)
        )
        when = "before layer 0" if layer == BEFORE_DECODER else f"after layer {layer}"
        counted = f"{alive.sum()} kept" + (f" in {name}" if len(frames) > 1 else "")
        panels.append((_faded(picture, kept), f"{when}: {counted}", shown))
    return panels


def _enlarged(picture: Image.Image) -> Image.Image:
    scale = max(1, -(-_PANEL // max(picture.size)))
    size = (picture.width * scale, picture.height * scale)
    # Integer scale and no smoothing: small images stay sharp.
    return picture.resize(size, Image.Resampling.NEAREST)


def _faded(picture: Image.Image, kept: np.ndarray) -> Image.Image:
    """Turn the dropped cells grey and fade them.

    Parameters
    ----------
    picture : RGB image
    kept : bool, (rows, columns)
        Of the grid of tokens.
    """
    pixels = np.asarray(picture).astype(np.float32)
    rows = np.arange(picture.height) * kept.shape[0] // picture.height
    cols = np.arange(picture.width) * kept.shape[1] // picture.width
    mask = kept[rows[:, None], cols[None, :]]
    dark = is_dark(picture)
    grey = pixels.mean(axis=2, keepdims=True) * _DIM + (0 if dark else _PALE * (1 - _DIM))
    faded = np.where(mask[..., None], pixels, grey)
    if dark:
        # Black fades to black: there only the line says what was dropped.
        faded[_beside(mask) & ~mask] = _BORDER
    return Image.fromarray(faded.round().clip(0, 255).astype(np.uint8))


def _beside(mask: np.ndarray) -> np.ndarray:
    """Return the mask, grown by two pixels: bool, (height, width)."""
    for _ in range(2):
        grown = np.pad(mask, 1)
        mask = grown[1:-1, 1:-1] | grown[:-2, 1:-1] | grown[2:, 1:-1]
        mask = mask | grown[1:-1, :-2] | grown[1:-1, 2:]
    return mask
