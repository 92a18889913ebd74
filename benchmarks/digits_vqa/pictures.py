"""Pictures of coloured handwritten digits on noisy backgrounds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .handwriting import by_digit, load

SIZE = 96
"""Side of a square picture in pixels."""

Size = tuple[int, int]
"""Width and height of a picture in pixels, multiples of 16."""

PATCH = 8
"""Side of a patch in pixels: a picture is 12 x 12 patches, hence 144 visual tokens."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (70, 100, 255),
    "yellow": (240, 225, 50),
    "cyan": (60, 220, 225),
    "magenta": (225, 70, 215),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
}
"""The colours a digit can have, with their RGB values before jitter."""

MOST_DIGITS = len(COLOURS) - 1
"""One colour is always absent, so that "is there red" can be answered "no"."""

_NAMES = tuple(COLOURS)
_RGB = np.array(list(COLOURS.values()), dtype=np.float32)


@dataclass(frozen=True)
class Picture:
    """One picture and what is on it.

    Attributes
    ----------
    pixels : numpy.ndarray
        Uint8 array of shape ``(height, width, 3)``.
    digits : tuple of int
        Values of the digits, all different.
    colours : tuple of str
        Their colours, all different, in the same order.
    boxes : tuple of tuple of int
        ``(x0, y0, x1, y1)`` around the ink of each digit, the far edges excluded.
    """

    pixels: np.ndarray
    digits: tuple[int, ...]
    colours: tuple[str, ...]
    boxes: tuple[tuple[int, int, int, int], ...]


def compose(
    rng: np.random.Generator,
    split: str,
    digits: tuple[int, int] = (1, 6),
    size: Size = (SIZE, SIZE),
) -> Picture:
    """Draw one picture.

    Parameters
    ----------
    rng : numpy.random.Generator
        The only source of chance.
    split : str
        Which handwriting to use, see :func:`.handwriting.load`.
    digits : tuple of int
        Smallest and largest number of digits, both included; at most 7.
    size : tuple of int
        Width and height, multiples of 16.

    Returns
    -------
    Picture
        Digits of different values and colours that do not overlap.
    """
    fewest, most = digits
    if not 1 <= fewest <= most <= MOST_DIGITS:
        raise ValueError(f"digits must lie within 1..{MOST_DIGITS}, got {digits}")
    number = int(rng.integers(fewest, most + 1))
    images, _ = load(split)
    rows = by_digit(split)
    values = rng.permutation(10)[:number]
    paints = rng.permutation(len(_NAMES))[:number]
    # Stronger distortions in training make up for the small number of handwritten digits.
    strength = 1.6 if split == "train" else 1.0
    inks = []
    for value in values:
        image = images[rows[value][rng.integers(len(rows[value]))]]
        inks.append(_write(rng, image, strength))
    corners = _place(rng, [ink.shape for ink in inks], size)

    canvas = _background(rng, size)
    boxes = []
    for ink, paint, (x, y) in zip(inks, paints, corners, strict=True):
        height, width = ink.shape
        colour = np.clip(_RGB[paint] + rng.uniform(-14, 14, 3).astype(np.float32), 0, 255)
        opacity = ink[..., None]
        region = canvas[y : y + height, x : x + width]
        region *= 1 - opacity
        region += opacity * colour
        boxes.append((x, y, x + width, y + height))
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(4, 14))
    return Picture(
        pixels=np.clip(canvas, 0, 255).astype(np.uint8),
        digits=tuple(int(value) for value in values),
        colours=tuple(_NAMES[paint] for paint in paints),
        boxes=tuple(boxes),
    )


def _write(rng: np.random.Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Enlarge an 8 x 8 digit about twice, slightly turned and slanted; crop to its ink."""
    zoom = 2.0 + rng.uniform(-0.1, 0.15) * strength
    angle = np.deg2rad(rng.uniform(-7, 7) * strength)
    slant = rng.uniform(-0.08, 0.08) * strength
    stretch = 1 + rng.uniform(-0.05, 0.05) * strength
    side = 22
    grid = (np.arange(side, dtype=np.float32) - (side - 1) / 2) / np.float32(zoom)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across, down = grid[None, :] * np.float32(stretch), grid[:, None] / np.float32(stretch)
    source_x = cosine * across - (sine - np.float32(slant)) * down + np.float32(3.5 + 1)
    source_y = sine * across + cosine * down + np.float32(3.5 + 1)
    ink = _bilinear(np.pad(image, 1), source_x, source_y)
    ink = np.clip(ink * np.float32(1.25), 0, 1)
    seen = ink > 0.3
    columns, lines = np.flatnonzero(seen.any(0)), np.flatnonzero(seen.any(1))
    return ink[lines[0] : lines[-1] + 1, columns[0] : columns[-1] + 1]


def _bilinear(image: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    limit = image.shape[0] - 1.001
    x, y = np.clip(x, 0, limit), np.clip(y, 0, limit)
    left, top = x.astype(np.intp), y.astype(np.intp)
    x, y = x - left, y - top
    return (image[top, left] * (1 - x) + image[top, left + 1] * x) * (1 - y) + (
        image[top + 1, left] * (1 - x) + image[top + 1, left + 1] * x
    ) * y


def _place(
    rng: np.random.Generator, shapes: list[tuple[int, int]], size: Size, gap: int = 3
) -> list[tuple[int, int]]:
    """Find top-left corners at which rectangles of these shapes stay ``gap`` pixels apart."""
    while True:
        placed: list[tuple[int, int, int, int]] = []
        for height, width in shapes:
            for _ in range(30):
                u, v = rng.random(2).tolist()
                x, y = int(u * (size[0] - width + 1)), int(v * (size[1] - height + 1))
                if all(
                    x >= x1 + gap
                    or x + width + gap <= x0
                    or y >= y1 + gap
                    or y + height + gap <= y0
                    for x0, y0, x1, y1 in placed
                ):
                    placed.append((x, y, x + width, y + height))
                    break
            else:
                break
        if len(placed) == len(shapes):
            return [(x, y) for x, y, _, _ in placed]


def _background(rng: np.random.Generator, size: Size) -> np.ndarray:
    """Return a dark tinted ground with soft blotches, float32 of shape (height, width, 3)."""
    width, height = size
    base = rng.uniform(15, 60) + rng.uniform(-12, 12, 3)
    blotches = rng.normal(0, 10, (height // 16, width // 16, 3)).astype(np.float32)
    ground = np.repeat(np.repeat(blotches, 16, 0), 16, 1)
    return ground + base.astype(np.float32)
