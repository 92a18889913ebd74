"""Draw which tokens were kept: the image, then one panel for each pruning step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..checks import is_whole, require
from .stats import PruneStats

__all__ = ["draw"]

_PANEL = 336  # least number of pixels of a panel's longer side
_MARGIN = 12
_CAPTION = 44
_INK = (30, 30, 30)
_DIM = 0.22  # brightness of a dropped token, relative to a kept one


def draw(
    image: Image.Image | np.ndarray,
    stats: PruneStats,
    path: str | Path,
    *,
    sample: int = 0,
    image_number: int = 0,
    frame: int | None = None,
) -> Path:
    """Write a PNG: the image, then for each pruning step the tokens that were kept.

    Parameters
    ----------
    image : PIL image or uint8 array (height, width, 3)
        The image that the model was given; of a video, the frame.
    stats : PruneStats
        Of the prefill with that image.
    path : path
        Where to write; the folder is created if it does not exist.
    sample : int
        Row of the batch.
    image_number : int
        Which of the row's images or videos, from 0.
    frame : int, optional
        Which frame of a video, or view of an image, from 0. None: the first of those with the most
        tokens.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    ValueError
        If the batch has no such sample, the sample no such image, the image no such frame, or if
        the places of its tokens are not known; if the image is empty, or an argument is of another
        type. Nothing is then written.

    Examples
    --------
    >>> from PIL import Image
    >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
    >>> output = model(**batch)
    >>> image = Image.new("RGB", (24, 24), "navy")
    >>> draw(image, tp.stats(model), folder / "kept.png").name
    'kept.png'
    """
    if not isinstance(stats, PruneStats):
        raise ValueError(
            f"stats is a {type(stats).__name__}: expected what tokenprune.stats(model) gives after "
            "the model has seen the picture."
        )
    require(isinstance(path, str | Path), "path", path, "a path, as a str or pathlib.Path")
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
    picture = _as_picture(image)
    placed = here & (stats.row[sample] >= 0)
    frames, sizes = np.unique(stats.frame[sample][placed], return_counts=True)
    if not len(frames):
        raise ValueError("Nothing says where in the picture this family's visual tokens lie.")
    if frame is None:
        frame = int(frames[sizes.argmax()])
    placed &= stats.frame[sample] == frame
    if not placed.any():
        raise ValueError(f"frame={frame}: expected one of {frames.tolist()}.")
    rows, cols = stats.grid[sample][placed][0]
    panels = [(picture, "image", f"{here.sum()} visual tokens")]
    for number, layer in enumerate(stats.pruning_layers):
        alive = stats.alive[layer + 1, sample] & here
        kept = np.zeros((rows, cols), dtype=bool)
        shown_here = alive & placed
        kept[stats.row[sample][shown_here], stats.col[sample][shown_here]] = True
        values = stats.thresholds[number, sample]
        # Letters: the font that comes with Pillow has no θ.
        shown = "  ".join(
            f"threshold {name} {value:.2f}"
            for name, value in zip(("r", "s"), values, strict=False)
            if not np.isnan(value)
        )
        title = f"after layer {layer + 1}: {alive.sum()} kept"
        panels.append((_dim(picture, kept), title, shown))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _row(panels).save(path, format="PNG")
    return path


def _as_picture(image: Image.Image | np.ndarray) -> Image.Image:
    picture = _opened(image).convert("RGB")
    scale = max(1, -(-_PANEL // max(picture.size)))
    size = (picture.width * scale, picture.height * scale)
    # Integer scale and no smoothing: small images stay sharp.
    return picture.resize(size, Image.Resampling.NEAREST)


def _opened(image: Any) -> Image.Image:
    expected = "expected a PIL image or a uint8 array (height, width, 3) of one pixel or more."
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise ValueError(
                f"image is a picture of {image.width} x {image.height} pixels: {expected}"
            )
        return image
    if not hasattr(image, "__array__"):
        raise ValueError(f"image is a {type(image).__name__}: {expected}")
    array = np.asarray(image)
    # Greyscale and RGBA are read too.
    shaped = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not shaped or 0 in array.shape:
        raise ValueError(
            f"image is an array of shape {array.shape} and dtype {array.dtype}: {expected}"
        )
    return Image.fromarray(array)


def _dim(picture: Image.Image, kept: np.ndarray) -> Image.Image:
    """Dim the dropped cells and turn them grey."""
    pixels = np.asarray(picture).astype(np.float32)
    rows = np.arange(picture.height) * kept.shape[0] // picture.height
    cols = np.arange(picture.width) * kept.shape[1] // picture.width
    mask = kept[rows[:, None], cols[None, :]][..., None]
    grey = pixels.mean(axis=2, keepdims=True) * _DIM + 255 * (1 - _DIM) * 0.9
    return Image.fromarray(np.where(mask, pixels, grey).clip(0, 255).astype(np.uint8))


def _row(panels: list[tuple[Image.Image, str, str]]) -> Image.Image:
    width, height = panels[0][0].size
    canvas = Image.new(
        "RGB",
        ((width + _MARGIN) * len(panels) + _MARGIN, height + _CAPTION + 2 * _MARGIN),
        "white",
    )
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=15)
    for number, (panel, title, below) in enumerate(panels):
        left = _MARGIN + number * (width + _MARGIN)
        pen.text((left, _MARGIN // 2), title, fill=_INK, font=font)
        pen.text((left, _MARGIN // 2 + 20), below, fill=(110, 110, 110), font=font)
        canvas.paste(panel, (left, _CAPTION + _MARGIN))
    return canvas
