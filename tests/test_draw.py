"""Drawn pictures show which tokens stayed, cell by cell."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageDraw

import tokenprune as tp

from .support.drawing import check_panels, panels, picture, stats_of
from .support.tiny_llava import IMAGE, make_batch
from .support.wrapping import wrapped_llava

NUM_LAYERS = 6
LAYERS = (1, 3)


@pytest.fixture(scope="module")
def shared():
    return wrapped_llava(tp.ATPConfig(layers=LAYERS, target_tokens=18.0, start_spatial=1.0))


@pytest.fixture
def captions(monkeypatch):
    """What is written above the panels."""
    written = []
    text = ImageDraw.ImageDraw.text

    def write(self, xy, caption, **options):
        written.append(caption)
        text(self, xy, caption, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", write)
    return written


def two_views(stats):
    """The 6×6 tokens of one image as a view of it, its first nine as another, 3×3, before it."""
    first = stats.visual & (np.cumsum(stats.visual, axis=1) <= 9)
    order = np.cumsum(first, axis=1) - 1
    return dataclasses.replace(
        stats,
        frame=np.where(first, 0, np.where(stats.visual, 1, -1)),
        row=np.where(first, order // 3, stats.row),
        col=np.where(first, order % 3, stats.col),
        grid=np.where(first[..., None], 3, stats.grid),
    )


@pytest.mark.parametrize("size", [(24, 24), (50, 51), (400, 380)])
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
    path = tmp_path_factory.mktemp("drawn") / "any.png"
    image = picture(11 * cols + 1, 11 * rows, seed)
    tp.draw(image, made, path)
    # A class token that stays lights no cell up.
    on = dataclasses.replace(made, visual=on_grid[None])
    check_panels(path, image, on)


def test_the_frame_with_most_tokens_is_drawn_or_the_one_named(shared, tmp_path):
    made = two_views(stats_of(shared, make_batch(((4, IMAGE, 6),))))
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


def test_a_dark_picture_fades_to_black_behind_a_line(shared, tmp_path):
    """Nothing that was dropped is brighter than it was, and the line alone parts black from black.

    The line lies in the dropped cells: kept ones are untouched.
    """
    stats = stats_of(shared, make_batch(((4, IMAGE, 6),), seed=5))
    image = picture(48, 48, light=0.2)
    tp.draw(image, stats, tmp_path / "dark.png")
    original, *after = panels(tmp_path / "dark.png", 3, (336, 336))
    line = np.array([255, 170, 0])
    for layer, panel in zip(LAYERS, after, strict=True):
        alive = stats.alive[layer + 1, 0] & stats.visual[0]
        kept = np.zeros((6, 6), dtype=bool)
        kept[stats.row[0][alive], stats.col[0][alive]] = True
        assert 0 < kept.sum() < 36
        mask = kept.repeat(56, axis=0).repeat(56, axis=1)
        assert (panel[mask] == original[mask]).all()
        drawn = (panel == line).all(axis=2)
        assert drawn.any()
        assert not (drawn & mask).any()
        dropped = ~mask & ~drawn
        assert (panel[dropped] == panel[dropped][:, :1]).all(), "a dropped cell has colour"
        assert (panel[dropped].mean(axis=1) <= original[dropped].mean(axis=1)).all()
        assert panel[dropped].max() < 60
        # Wherever a kept cell ends at a dropped one, the next pixel is the line.
        ends = mask[:, :-1] & ~mask[:, 1:]
        assert drawn[:, 1:][ends].all()
        assert drawn[1:][mask[:-1] & ~mask[1:]].all()


def test_captions_count_the_frame_or_view_that_is_drawn(shared, tmp_path, captions):
    """And layers from 0, as everywhere else."""
    stats = stats_of(shared, make_batch(((4, IMAGE, 6),), seed=5))
    tp.draw(picture(24, 24), stats, tmp_path / "one.png")
    kept = [stats.kept[2, 0], stats.kept[4, 0]]
    assert captions[:2] == ["image", "36 visual tokens"]
    assert captions[2::2] == [
        f"after layer {n}: {k} kept" for n, k in zip(LAYERS, kept, strict=True)
    ]
    views = two_views(stats)
    # The same tokens as two frames of 3×6.
    frames = dataclasses.replace(
        stats,
        frame=np.where(stats.visual, stats.row // 3, -1),
        row=np.where(stats.visual, stats.row % 3, -1),
        grid=np.where(stats.visual[..., None], [3, 6], -1),
    )
    for made, name, sizes, size in (
        (views, "view", (9, 27), (24, 24)),
        (frames, "frame", (18, 18), (48, 24)),
    ):
        counted = []
        for number, tokens in enumerate(sizes):
            captions.clear()
            tp.draw(picture(*size), made, tmp_path / "x.png", frame=number)
            here = made.alive[:, 0] & (made.frame[0] == number)
            after = [int(here[layer + 1].sum()) for layer in LAYERS]
            assert captions[:2] == [f"{name} {number}", f"{tokens} visual tokens"]
            assert captions[2::2] == [
                f"after layer {layer}: {count} kept in {name} {number}"
                for layer, count in zip(LAYERS, after, strict=True)
            ]
            counted.append(after)
        assert np.sum(counted, axis=0).tolist() == kept


def test_a_step_before_the_decoder_is_called_that(tmp_path, captions):
    stats = stats_of(wrapped_llava(tp.DivPruneConfig(keep=9)), make_batch(((4, IMAGE, 6),)))
    tp.draw(picture(24, 24), stats, tmp_path / "x.png")
    assert captions[2] == "before layer 0: 9 kept"
