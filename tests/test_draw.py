"""Drawn pictures show which tokens stayed, cell by cell."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tokenprune as tp
from tokenprune.measure.draw import _CAPTION, _MARGIN

from .support.tiny_llava import IMAGE, make_batch
from .support.wrapping import wrapped_llava

NUM_LAYERS = 6
LAYERS = (1, 3)


@pytest.fixture(scope="module")
def shared():
    return wrapped_llava(tp.ATPConfig(layers=LAYERS, target_tokens=18.0, start_spatial=1.0))


def stats_of(model, batch):
    with torch.no_grad():
        model(**batch)
    return tp.stats(model)


def picture(width, height, seed=0):
    """Saturated colours: no pixel could be taken for a dimmed one."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.choice([0, 255], (height, width, 3)).astype(np.uint8))


def panels(path, count, size):
    """The panels of a picture read back: (height, width, 3) each."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    width, height = size
    top, step = _CAPTION + _MARGIN, width + _MARGIN
    lefts = [_MARGIN + n * step for n in range(count)]
    assert image.shape == (top + height + _MARGIN, lefts[-1] + step, 3)
    return [image[top : top + height, left : left + width] for left in lefts]


def check_panels(path, image, stats, sample=0, image_number=0):
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


@pytest.mark.parametrize("size", [(24, 24), (50, 31), (400, 340)])
def test_panels_show_what_stayed(shared, tmp_path, size):
    stats = stats_of(shared, make_batch(((4, IMAGE, 6), (2, IMAGE, 3)), seed=5))
    for sample in range(2):
        path = tmp_path / "new" / "folder" / f"{sample}.png"
        image = picture(*size, seed=sample)
        assert tp.draw(image, stats, path, sample=sample) == path
        counts = check_panels(path, image, stats, sample)
        assert counts == [36, stats.kept[LAYERS[0] + 1, sample], stats.kept[-1, sample]]
        assert 0 < counts[-1] < counts[0]


def test_several_images_each_have_their_panels(shared, tmp_path):
    stats = stats_of(shared, make_batch(((5,), (4, IMAGE, 6, IMAGE, 3)), seed=6))
    total = 0
    for number in range(2):
        path, image = tmp_path / f"{number}.png", picture(24, 24, number)
        tp.draw(np.asarray(image), stats, str(path), sample=1, image_number=number)
        total += check_panels(path, image, stats, 1, number)[-1]
    assert total == stats.kept[-1, 1]


@given(seed=st.integers(0, 999), rows=st.integers(1, 7), cols=st.integers(1, 7))
def test_grids_of_any_shape_are_drawn_cell_by_cell(shared, tmp_path_factory, seed, rows, cols):
    """Statistics written by hand, with a class token, which has no place."""
    stats = stats_of(shared, make_batch(((4, IMAGE, 6),)))
    length = rows * cols + 2  # a word, a class token, the grid
    places = np.arange(length) - 2
    visual = np.arange(length) >= 1
    on_grid = visual & (places >= 0)
    alive = np.ones((NUM_LAYERS, 1, length), dtype=bool)
    rng = np.random.default_rng(seed)
    alive[2:] &= rng.random(length) < 0.6
    alive[4:] &= rng.random(length) < 0.6
    made = dataclasses.replace(
        stats,
        alive=alive,
        visual=visual[None],
        row=np.where(on_grid, places // cols, -1)[None],
        col=np.where(on_grid, places % cols, -1)[None],
        image=np.where(visual, 0, -1)[None],
        frame=np.where(visual, 0, -1)[None],
        grid=np.tile([rows, cols], (1, length, 1)),
    )
    path, image = tmp_path_factory.mktemp("drawn") / "any.png", picture(37, 22, seed)
    tp.draw(image, made, path)
    # A class token that stays lights no cell up.
    on = dataclasses.replace(made, visual=on_grid[None])
    check_panels(path, image, on)


def test_the_frame_with_most_tokens_is_drawn_or_the_one_named(shared, tmp_path):
    """Two views of one image: 6×6 as it was, and its first nine tokens as a 3×3 before it."""
    stats = stats_of(shared, make_batch(((4, IMAGE, 6),)))
    first = stats.visual & (np.cumsum(stats.visual, axis=1) <= 9)
    order = np.cumsum(first, axis=1) - 1
    made = dataclasses.replace(
        stats,
        frame=np.where(first, 0, np.where(stats.visual, 1, -1)),
        row=np.where(first, order // 3, stats.row),
        col=np.where(first, order % 3, stats.col),
        grid=np.where(first[..., None], 3, stats.grid),
    )
    image = picture(24, 24)
    tp.draw(image, made, tmp_path / "most.png")
    check_panels(tmp_path / "most.png", image, dataclasses.replace(made, visual=made.frame == 1))
    tp.draw(image, made, tmp_path / "named.png", frame=0)
    check_panels(tmp_path / "named.png", image, dataclasses.replace(made, visual=made.frame == 0))
    with pytest.raises(ValueError, match=r"frame=2: expected one of \[0, 1\]"):
        tp.draw(image, made, tmp_path / "x.png", frame=2)
    lost = dataclasses.replace(made, row=np.full_like(made.row, -1))
    with pytest.raises(ValueError, match="where in the picture"):
        tp.draw(image, lost, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize("sample", [-1, 2, 99])
def test_a_sample_that_is_not_there_is_refused(shared, tmp_path, sample):
    stats = stats_of(shared, make_batch(((4, IMAGE, 6), (5,))))
    with pytest.raises(ValueError, match=rf"sample={sample}: expected 0 to 1"):
        tp.draw(picture(24, 24), stats, tmp_path / "x.png", sample=sample)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("sample", "number", "count"), [(0, 1, 1), (0, -1, 1), (1, 0, 0)])
def test_an_image_that_is_not_there_is_refused(shared, tmp_path, sample, number, count):
    stats = stats_of(shared, make_batch(((4, IMAGE, 6), (5,))))
    message = rf"image_number={number}: sample {sample} has {count} image"
    with pytest.raises(ValueError, match=message):
        tp.draw(picture(24, 24), stats, tmp_path / "x.png", sample=sample, image_number=number)
    assert list(tmp_path.iterdir()) == []
