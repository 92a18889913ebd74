"""VisualLayout: which token is which patch of which image."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenprune.engine.survivors import gather_hidden, scatter_hidden, survivors
from tokenprune.layout import Coordinates, VisualLayout


@st.composite
def batches(draw):
    """A visual mask, its grid, and how many images each row holds."""
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    leading = draw(st.integers(0, 2))
    images = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    per_image = height * width + leading
    length = max(images) * per_image + int(rng.integers(1, 6))
    mask = np.zeros((len(images), length), dtype=bool)
    for row, n in zip(mask, images, strict=True):
        row[rng.choice(length, n * per_image, replace=False)] = True
    return torch.from_numpy(mask), height, width, leading, images


PER_TOKEN = [field for field in fields(VisualLayout) if field.name != "complete"]


@settings(max_examples=100, deadline=None)
@given(batches())
def test_each_token_is_the_patch_painted_with_its_number(batch):
    mask, height, width, leading, images = batch
    layout = VisualLayout.from_grids(mask, height, width, leading)
    canvas = np.arange(height * width).reshape(height, width)
    for b, count in enumerate(images):
        expected = []
        for number in range(count):
            expected += [(number, -1, -1)] * leading
            for patch in range(height * width):
                (row, col), *_ = np.argwhere(canvas == patch)
                expected.append((number, row, col))
        positions = mask[b].nonzero()[:, 0]
        names = ("image", "row", "col")
        found = [tuple(int(getattr(layout, n)[b, p]) for n in names) for p in positions]
        assert found == expected
        assert layout.height[b, positions].eq(height).all()
        assert layout.width[b, positions].eq(width).all()
        away = ~mask[b]
        for field in PER_TOKEN:
            if field.name != "mask":
                assert getattr(layout, field.name)[b, away].eq(-1).all()
    assert layout.counts().tolist() == [n * (height * width + leading) for n in images]


@settings(max_examples=60, deadline=None)
@given(batches(), st.integers(0, 2**31))
def test_gather_picks_the_same_tokens_from_every_field(batch, seed):
    mask, height, width, leading, _ = batch
    layout = VisualLayout.from_grids(mask, height, width, leading)
    rng = np.random.default_rng(seed)
    slots = int(rng.integers(1, mask.shape[1] + 1))
    index = torch.from_numpy(rng.integers(0, mask.shape[1], (mask.shape[0], slots)))
    valid = torch.from_numpy(rng.random(index.shape) < 0.7)
    for given_valid in (None, valid):
        taken = layout.gather(index, given_valid)
        for field in PER_TOKEN:
            whole, part = getattr(layout, field.name), getattr(taken, field.name)
            expected = torch.stack([row[i] for row, i in zip(whole, index, strict=True)])
            if field.name == "mask" and given_valid is not None:
                expected = expected & given_valid
            assert torch.equal(part, expected)


@settings(max_examples=80, deadline=None)
@given(
    alive=st.integers(1, 4).flatmap(
        lambda batch: st.lists(
            st.lists(st.booleans(), min_size=9, max_size=9).filter(any),
            min_size=batch,
            max_size=batch,
        )
    )
)
def test_gather_then_scatter_is_the_identity_on_survivors(alive):
    alive = torch.tensor(alive)
    counts = alive.sum(dim=1)
    hidden = torch.randn(*alive.shape, 3)
    kept = survivors(alive, int(counts.max()), ragged=bool(counts.max() != counts.min()))
    gathered = gather_hidden(hidden, kept.index)
    assert gathered.shape[1] == counts.max()
    if kept.valid is not None:  # what stands in padding slots must reach nobody
        gathered = gathered.masked_fill(~kept.valid[..., None], float("nan"))
    back = scatter_hidden(gathered, kept, alive.shape[1])
    assert torch.equal(back[alive], hidden[alive])
    assert back[~alive].eq(0).all()
    for b, row in enumerate(alive):  # in order, padding behind
        assert kept.index[b, : counts[b]].tolist() == row.nonzero()[:, 0].tolist()


@pytest.mark.parametrize("leading", [0, 1])
def test_a_layout_lives_where_its_mask_does(device, leading):
    mask = torch.ones(1, 6 + leading, dtype=torch.bool, device=device)
    layout = VisualLayout.from_grids(mask, 2, 3, leading)
    assert {getattr(layout, f.name).device.type for f in PER_TOKEN} == {mask.device.type}


@pytest.mark.parametrize(("cut", "complete"), [(0, True), (1, False), (6, True), (7, False)])
def test_part_of_an_image_is_noticed(device, cut, complete):
    """By a grid that all images have, and by coordinates given for each."""
    mask = torch.ones(2, 12, dtype=torch.bool, device=device)
    mask[1, 12 - cut :] = False
    coordinates = Coordinates(*torch.zeros(6, 24, dtype=torch.long))
    assert bool(VisualLayout.from_grids(mask, 2, 3).complete) == complete
    assert bool(VisualLayout.from_coordinates([(mask, coordinates)]).complete) == (cut == 0)
    assert bool(VisualLayout.from_grids(mask, 2, 3).repeat_rows(2).complete) == complete
