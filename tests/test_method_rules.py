"""What each method keeps, against the rule of its paper written out for one sample in plain Python.

The contexts are made by hand: a few tokens, text among them, in rows of different lengths.
"""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tokenprune as tp

from .support.method_contexts import (
    FACTS,
    HEIGHT,
    ROWS,
    WIDTH,
    best,
    by_rows,
    check_means,
    context_of,
    cosine,
    kept,
    seeds,
)


@given(seed=seeds, keep=st.integers(1, 30))
def test_fastv(seed: int, keep: int) -> None:
    context = context_of(seed, ROWS)
    for selection, row, visual in by_rows(tp.FastVConfig(keep=keep), context):
        scores = {t: float(context.received["last"].total[row, t]) for t in visual}
        assert kept(selection.keep, context, row) == best(scores, keep)


@given(seed=seeds, ratio=st.floats(0.05, 0.95))
def test_pyramiddrop(seed: int, ratio: float) -> None:
    context = context_of(seed, ROWS)
    config = tp.PyramidDropConfig(keep=ratio)
    assert config.fitted(FACTS).layers == (7, 15, 23)
    for selection, row, visual in by_rows(config, context):
        scores = {t: float(context.received["last"].total[row, t]) for t in visual}
        count = max(1, round(ratio * len(visual)))
        assert kept(selection.keep, context, row) == best(scores, count)


@given(seed=seeds, keep=st.integers(1, 50))
def test_divprune(seed: int, keep: int) -> None:
    context = context_of(seed, ROWS)
    for selection, row, visual in by_rows(tp.DivPruneConfig(keep=keep), context):
        states = context.hidden_states[row]
        far = {(a, b): 1 - cosine(states[a], states[b]) for a in visual for b in visual}
        chosen: list[int] = []
        for _ in range(min(keep, len(visual))):
            among = chosen or visual
            nearest = {
                t: min(far[t, o] for o in among if o != t) for t in visual if t not in chosen
            }
            chosen.append(max(nearest, key=lambda t: nearest[t]))
        assert kept(selection.keep, context, row) == sorted(chosen)


@given(seed=seeds, keep=st.integers(1, 50), gamma=st.sampled_from([1.0, 20.0]))
def test_idselection(seed: int, keep: int, gamma: float) -> None:
    context = context_of(seed, ROWS)
    for selection, row, visual in by_rows(tp.IDSelectionConfig(keep=keep, gamma=gamma), context):
        states = context.hidden_states[row]
        raw = {t: float(context.received["last"].total[row, t]) for t in visual}
        low, high = min(raw.values()), max(raw.values())
        left = {t: (s - low) / (high - low) for t, s in raw.items()}
        chosen: list[int] = []
        for _ in range(min(keep, len(visual))):
            rest = [t for t in visual if t not in chosen]
            # At 0 all are alike; which of them comes first says nothing of the rule.
            if max(left[t] for t in rest) < 1e-6:
                break
            top = max(rest, key=lambda t: left[t])
            chosen.append(top)
            taken = left[top]
            for t in visual:
                distance = 1 - cosine(states[t], states[top])
                left[t] = max(0.0, left[t] - taken * math.exp(-gamma * distance**2))
        found = kept(selection.keep, context, row)
        assert len(found) == min(keep, len(visual))
        assert set(chosen) <= set(found)


@given(share=st.floats(0.03, 1.0))
def test_uniform_and_downsample(share: float) -> None:
    context = context_of(0, ROWS, layer=-1)
    rows, cols = (max(1, round(share**0.5 * side)) for side in (HEIGHT, WIDTH))

    def cell(t: int, row: int) -> tuple[int, int, int]:
        image, y, x = (
            int(part[row, t])
            for part in (context.layout.image, context.layout.row, context.layout.col)
        )
        return image, y * rows // HEIGHT, x * cols // WIDTH

    for selection, row, visual in by_rows(tp.UniformConfig(keep=share), context):
        found = kept(selection.keep, context, row)
        # One token of each cell, and as far from its first line as from its last.
        assert sorted(cell(t, row) for t in found) == sorted({cell(t, row) for t in visual})
        for t in found:
            for part in (context.layout.row, context.layout.col):
                lines = {int(part[row, o]) for o in visual if cell(o, row) == cell(t, row)}
                assert abs((min(lines) + max(lines)) / 2 - int(part[row, t])) < 1
    for selection, row, visual in by_rows(tp.DownsampleConfig(keep=share), context):
        check_means(selection, context, row, {t: cell(t, row) for t in visual})


@given(seed=seeds, stride=st.integers(1, 7))
def test_matryoshka(seed: int, stride: int) -> None:
    context = context_of(seed, ROWS, layer=-1)
    for selection, row, visual in by_rows(tp.MatryoshkaConfig(stride=stride), context):
        at = context.layout
        cells = {
            t: (int(at.image[row, t]), int(at.row[row, t]) // stride, int(at.col[row, t]) // stride)
            for t in visual
        }
        check_means(selection, context, row, cells)


def test_wrong_numbers_for_the_layers_are_named() -> None:
    config = tp.SparseVLMConfig(layers=(2, 6), keep=(9,))
    with pytest.raises(
        ValueError, match=r"keep=\(9,\): expected one entry for each of the layers \(2, 6\)"
    ):
        config.fitted(FACTS)
