"""Pictures that users give: opened, and held against the grid of their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

__all__ = ["check_aspect", "is_dark", "opened"]

_DARK = 128  # a picture whose mean brightness is below this is dark


def opened(image: Any) -> Image.Image:
    """Return a picture, an array or the file of one as a PIL image; ValueError if it is none."""
    expected = (
        "expected a PIL image or a uint8 array (height, width, 3) of one pixel or more, or a path."
    )
    if isinstance(image, str | Path):
        # Turned as the camera says, which transformers.image_utils.load_image does too.
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened)
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


def check_aspect(picture: Image.Image, rows: int, cols: int) -> None:
    """Raise ValueError unless the picture can have given this grid of tokens."""
    # Processors fit both sides to whole tokens: to the nearest, or both up, or both down.
    least = min(cols / (rows + 1), (cols - 1) / rows)
    most = max((cols + 1) / rows, cols / (rows - 1) if rows > 1 else float("inf"))
    if not least <= picture.width / picture.height <= most:
        raise ValueError(
            f"image is a picture of {picture.width} x {picture.height} pixels (width x height), "
            f"whose tokens lie on a grid of {cols} x {rows}: expected the picture as the processor "
            "hands it to the model. Crop or pad it likewise, or image.resize(...) it to the grid's "
            "aspect if the processor stretches it."
        )


def is_dark(picture: Image.Image) -> bool:
    """Return whether dropped cells of this RGB picture must fade to black, not to white."""
    return bool(np.asarray(picture).mean(dtype=np.float32) < _DARK)
