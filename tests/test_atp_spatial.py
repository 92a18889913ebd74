"""ATP's spatial score: a ladder of uniform grids over each image."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenprune.adapters.geometry import frame_coordinates

from tokenprune.layout import Coordinates, VisualLayout
from tokenprune.methods.atp.spatial import spatial_score

STRIDES = (2, 3, 4, 6)


def one_image(height, width, leading=0, text=0):
    mask = torch.ones(1, text + leading + height * width, dtype=torch.bool)
    mask[:, :text] = False
    return VisualLayout.from_grids(mask, height, width, leading)


def by_hand(height, width, strides, weight):
    """Paint each grid, dense to sparse, over a picture of zeros."""
    canvas = [[0.0] * width for _ in range(height)]
    for stride in sorted(strides):
        for row in range(0, height, stride):
            for col in range(0, width, stride):
                canvas[row][col] = 1 - weight * (1 / stride**2)
    return torch.tensor(canvas)


def test_the_ladder_on_24_by_24():
    score = spatial_score(one_image(24, 24), STRIDES, 3.0).view(24, 24)
    torch.testing.assert_close(score, by_hand(24, 24, STRIDES, 3.0))
    levels = {round(1 - 3 / s**2, 4): s for s in STRIDES} | {0.0: None}
    counts = Counter(levels[round(v, 4)] for v in score.flatten().tolist())
    # Stride 6 picks 4×4; stride 4 picks 6×6, of which 2×2 are on stride 6 too; and so on.
    assert counts == {6: 16, 4: 32, 3: 48, 2: 96, None: 384}
    assert [int((score > t).sum()) for t in (0.0, 0.3, 0.7, 0.85, 0.92)] == [192, 96, 48, 16, 0]


grids = st.tuples(st.integers(1, 13), st.integers(1, 13))
ladders = st.sets(st.integers(2, 7), min_size=1).map(tuple)


@given(grid=grids, strides=ladders, weight=st.floats(0.1, 3.9))
def test_any_ladder_equals_the_painting(grid, strides, weight):
    score = spatial_score(one_image(*grid), strides, weight).view(*grid)
    torch.testing.assert_close(score, by_hand(*grid, strides, weight))
    assert score[0, 0] == score.max() > 0, "the origin is on every grid"


@given(grid=grids, frames=st.integers(1, 8), strides=ladders)
def test_the_temporal_ladder_takes_every_so_many_frames(grid, frames, strides):
    """Frames that a stride skips are as if painted by the smaller strides alone."""
    height, width = grid
    tokens = Coordinates.cat(frame_coordinates(0, height, width, frame) for frame in range(frames))
    mask = torch.ones(1, len(tokens.row), dtype=torch.bool)
    layout = VisualLayout.from_coordinates([(mask, tokens)])
    score = spatial_score(layout, strides, 3.0, temporal=True).view(frames, height, width)
    canvas = torch.zeros(frames, height, width)
    for stride in sorted(strides):
        canvas[::stride, ::stride, ::stride] = 1 - 3.0 / stride**3
    torch.testing.assert_close(score, canvas)
    each = spatial_score(layout, strides, 3.0).view(frames, height, width)
    torch.testing.assert_close(each, by_hand(*grid, strides, 3.0).expand(frames, -1, -1))


@given(grid=grids, strides=ladders, seed=st.integers(0, 999))
def test_each_token_keeps_its_score_when_others_are_dropped(grid, strides, seed):
    layout = one_image(*grid, text=2)
    score = spatial_score(layout, strides, 3.0)
    generator = torch.Generator().manual_seed(seed)
    alive = torch.rand(layout.mask.shape, generator=generator) < 0.5
    alive[:, :2] = True
    index = alive[0].nonzero()[None, :, 0]
    assert torch.equal(spatial_score(layout.gather(index, None), strides, 3.0), score[alive][None])


@given(grid=grids, low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_higher_threshold_keeps_a_subset(grid, low, high):
    low, high = sorted((low, high))
    score = spatial_score(one_image(*grid), STRIDES, 3.0)
    assert ((score > low) | ~(score > high)).all()


@pytest.mark.parametrize("factor", [2, 3])
def test_a_grid_of_a_multiple_of_the_stride_is_nested(factor):
    layout = one_image(12, 12)
    dense = spatial_score(layout, (2,), 3.0) > 0
    sparse = spatial_score(layout, (2 * factor,), 3.0) > 0
    assert dense[sparse].all()
    assert 0 < sparse.sum() < dense.sum()


def test_no_grid_picks_text_or_a_token_without_a_place():
    layout = one_image(4, 4, leading=1, text=3)
    score = spatial_score(layout, STRIDES, 3.0)[0]
    assert score[:4].tolist() == [0, 0, 0, 0]
    assert score[4] > 0


def test_every_image_of_a_row_has_its_own_grid():
    mask = torch.ones(1, 2 * 16 + 1, dtype=torch.bool)
    mask[0, 16] = False
    score = spatial_score(VisualLayout.from_grids(mask, 4, 4), STRIDES, 3.0)[0]
    assert torch.equal(score[:16], score[17:])
    assert torch.equal(score[:16], spatial_score(one_image(4, 4), STRIDES, 3.0)[0])


def test_the_paper_s_limits_of_sample_weight_hold():
    """λ_sample = 3: every picked token is above 0, so a threshold of 0 keeps the densest grid."""
    score = spatial_score(one_image(24, 24), STRIDES, 3.0)
    assert int((score > 0).sum()) == 144 + 64 - 16  # strides 2 and 3, less what both pick
