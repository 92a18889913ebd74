"""Pictures to draw on, and drawn panels read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import tokenprune as tp
from tokenprune.measure.sheet import CAPTION, MARGIN


def stats_of(model: Any, batch: Any) -> tp.PruneStats:
    with torch.no_grad():
        model(**batch)
    return tp.stats(model)


def picture(width: int, height: int, seed: int = 0, light: float = 0.7) -> Image.Image:
    """Saturated colours: no pixel could be taken for a faded one. Bright, unless `light` is low."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice([0, 255], (height, width, 3), p=[1 - light, light])
    return Image.fromarray(drawn.astype(np.uint8))


def panels(path: Path, count: int, size: tuple[int, int]) -> list[np.ndarray]:
    """The panels of a picture read back: (height, width, 3) each."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    width, height = size
    top, step = CAPTION + MARGIN, width + MARGIN
    lefts = [MARGIN + n * step for n in range(count)]
    assert image.shape == (top + height + MARGIN, lefts[-1] + step, 3)
    return [image[top : top + height, left : left + width] for left in lefts]


def check_panels(
    path: Path, image: Image.Image, stats: tp.PruneStats, sample: int = 0, image_number: int = 0
) -> list[int]:
    scale = max(1, -(-336 // max(image.size)))
    size = (image.width * scale, image.height * scale)
    original, *after = panels(path, 1 + len(stats.pruning_layers), size)
    expected = np.asarray(image).repeat(scale, axis=0).repeat(scale, axis=1)
    assert (original == expected).all()
    here = stats.visual[sample] & (stats.image[sample] == image_number)
    rows, cols = stats.grid[sample][here][0]
    assert len(after) == len(stats.pruning_layers)
    for layer, panel in zip(stats.pruning_layers, after, strict=True):
        alive = stats.alive[layer + 1, sample] & here
        kept = {
            (int(r), int(c))
            for r, c in zip(stats.row[sample][alive], stats.col[sample][alive], strict=True)
        }
        for row in range(rows):
            for col in range(cols):
                y = [p for p in range(size[1]) if p * rows // size[1] == row]
                x = [p for p in range(size[0]) if p * cols // size[0] == col]
                cell, before = panel[np.ix_(y, x)], original[np.ix_(y, x)]
                if (row, col) in kept:
                    assert (cell == before).all(), "a kept cell was touched"
                else:
                    assert (cell == cell[..., :1]).all(), "a dropped cell has colour"
                    assert cell.min() >= 150, "a dropped cell is not pale"
                    assert not (cell == before).all()
    return [len(here.nonzero()[0])] + [
        int((stats.alive[layer + 1, sample] & here).sum()) for layer in stats.pruning_layers
    ]
