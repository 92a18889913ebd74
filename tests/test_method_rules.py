"""What each method keeps, against the rule of its paper written out for one sample in plain Python.

The contexts are made by hand: a few tokens, text among them, in rows of different lengths.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import tokenprune as tp
from tokenprune.config import ModelFacts
from tokenprune.layout import VisualLayout
from tokenprune.methods import build
from tokenprune.methods.context import Context, Received, Tower
from tokenprune.methods.sparsevlm.method import raters

from .support.tiny_llava import IMAGE

HEIGHT, WIDTH, WIDE = 4, 6, 5
FACTS = ModelFacts(32, (HEIGHT, WIDTH), (3, 13, 23))
seeds = st.integers(0, 2**20)


def layout_of(rows: Sequence[Sequence[int | str]]) -> VisualLayout:
    """Rows of text and pictures, padded at the end."""
    parts = [[[p == IMAGE] * (HEIGHT * WIDTH if p == IMAGE else int(p)) for p in r] for r in rows]
    flat = [[x for part in row for x in part] for row in parts]
    length = max(map(len, flat))
    mask = torch.tensor([row + [False] * (length - len(row)) for row in flat])
    return VisualLayout.from_grids(mask, HEIGHT, WIDTH)


def context_of(seed: int, rows: Sequence[Sequence[int | str]], layer: int = 0) -> Context:
    generator = torch.Generator().manual_seed(seed)
    layout = layout_of(rows)
    batch, length = layout.mask.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    there = torch.tensor([sum(HEIGHT * WIDTH if p == IMAGE else int(p) for p in r) for r in rows])
    prompt = ~layout.mask & (torch.arange(length) < there[:, None])
    texts = int(prompt.sum(1).max())
    own = torch.arange(texts)[:, None] < prompt.sum(1)[:, None, None]
    each = draw(batch, texts, length) * own
    ones = torch.ones(batch, length)
    return Context(
        step=0,
        layer=layer,
        layout=layout,
        weight=layout.mask.float(),
        prompt=prompt,
        text=torch.zeros_like(prompt),
        received={
            "last": Received(draw(batch, length), ones, ones[:, 0]),
            "each": Received(each, torch.ones(batch, texts, length), torch.ones(batch, texts)),
        },
        hidden_states=torch.randn(batch, length, WIDE, generator=generator),
        positions=torch.arange(length).expand(batch, -1),
        memory=prompt & (draw(batch, length) < 0.7),
        tower=Tower(
            draw(batch, length) ** 4, torch.randn(batch, length, 2, 3, generator=generator)
        ),
    )


ROWS = [(2, IMAGE, 3), (1, IMAGE, IMAGE, 2), (4, IMAGE, 6)]


def visual_of(context: Context, row: int) -> list[int]:
    return context.layout.mask[row].nonzero()[:, 0].tolist()


def kept(keep: Tensor, context: Context, row: int) -> list[int]:
    return [t for t in visual_of(context, row) if keep[row, t]]


def by_rows(config, context: Context):
    """What the method selects, and each row's number and visual tokens."""
    selection = build(config.fitted(FACTS), FACTS).select(context)
    for row in range(len(ROWS)):
        yield selection, row, visual_of(context, row)


def best(scores: dict[int, float], count: int) -> list[int]:
    return sorted(sorted(scores, key=lambda t: (-scores[t], t))[:count])


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(a @ b / (a.norm() * b.norm()))


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


def check_means(selection, context: Context, row: int, cells: dict[int, tuple]) -> None:
    """One token a cell, the first, holding the mean."""
    found = kept(selection.keep, context, row)
    firsts = [min(t for t in cells if cells[t] == cell) for cell in set(cells.values())]
    assert found == sorted(firsts)
    for t in found:
        members = [context.hidden_states[row, o] for o in cells if cells[o] == cells[t]]
        wanted = torch.stack(members).double().mean(0)
        torch.testing.assert_close(
            selection.hidden_states[row, t].double(), wanted, rtol=0, atol=1e-6
        )


def quartile(values: list[float], q: float) -> float:
    return statistics.quantiles(values, n=4, method="inclusive")[0 if q == 0.25 else 2]


@given(seed=seeds, neighbours=st.integers(0, 40))
def test_prumerge(seed: int, neighbours: int) -> None:
    context = context_of(seed, ROWS, layer=-1)
    for selection, row, visual in by_rows(tp.PruMergeConfig(neighbours=neighbours), context):
        scores = {t: float(context.tower.attention[row, t]) for t in visual}
        low, high = (quartile(list(scores.values()), q) for q in (0.25, 0.75))
        above = [t for t in visual if scores[t] > high + 1.5 * (high - low)]
        found = kept(selection.keep, context, row)
        assert found == best(scores, max(1, len(above)))
        keys = context.tower.keys[row].flatten(1)
        gone = [t for t in visual if t not in found]
        for t in found:
            near = sorted(gone, key=lambda o: -cosine(keys[t], keys[o]))[:neighbours]
            parts = [context.hidden_states[row, o] * scores[o] for o in near]
            wanted = context.hidden_states[row, t] + sum(parts, torch.zeros(WIDE))
            torch.testing.assert_close(selection.hidden_states[row, t], wanted, rtol=0, atol=1e-5)


@given(seed=seeds, keep=st.none() | st.integers(2, 20))
def test_prumerge_plus(seed: int, keep: int | None) -> None:
    context = context_of(seed, ROWS, layer=-1)
    for selection, row, visual in by_rows(tp.PruMergeConfig(plus=True, keep=keep), context):
        scores = {t: float(context.tower.attention[row, t]) for t in visual}
        found = kept(selection.keep, context, row)
        if keep is None:
            low, high = (quartile(list(scores.values()), q) for q in (0.25, 0.75))
            count = max(1, sum(s > high + 1.5 * (high - low) for s in scores.values()))
            more = 3 * count
        else:
            count = max(1, round(keep / 4))
            more = keep - count
        first = best(scores, count)
        rest = [t for t in visual if t not in first]
        assert found == sorted(first + spaced(rest, more))


def spaced(tokens: list[int], count: int) -> list[int]:
    """From the first on, so many at equal steps."""
    count = min(count, len(tokens))
    return [tokens[i * len(tokens) // count] for i in range(count)]


@given(seed=seeds, keep=st.integers(1, 30), contextual=st.floats(0, 0.9))
def test_visionzip(seed: int, keep: int, contextual: float) -> None:
    context = context_of(seed, ROWS, layer=-1)
    config = tp.VisionZipConfig(keep=keep, contextual=contextual)
    for selection, row, visual in by_rows(config, context):
        scores = {t: float(context.tower.attention[row, t]) for t in visual}
        count = min(keep, len(visual))
        merged = round(count * contextual)
        dominant = best(scores, count - merged)
        rest = [t for t in visual if t not in dominant]
        targets = spaced(rest, merged) if merged else []
        assert kept(selection.keep, context, row) == sorted(dominant + targets)
        keys = context.tower.keys[row].mean(1)
        own = {t: max(targets, key=lambda o: cosine(keys[t], keys[o])) for t in rest if targets}
        own.update({t: t for t in targets})
        for t in dominant:
            assert torch.equal(selection.hidden_states[row, t], context.hidden_states[row, t])
        for t in targets:
            members = [context.hidden_states[row, o] for o in rest if own[o] == t]
            wanted = torch.stack(members).mean(0)
            torch.testing.assert_close(selection.hidden_states[row, t], wanted, rtol=0, atol=1e-5)


@given(seed=seeds, scale=st.floats(0.1, 1), keep=st.none() | st.integers(1, 30))
def test_sparsevlm_scores_and_counts(seed: int, scale: float, keep: int | None) -> None:
    context = context_of(seed, ROWS)
    config = tp.SparseVLMConfig(
        layers=(0,), scale=scale, keep=None if keep is None else (keep,), recycle=0
    )
    for selection, row, visual in by_rows(config, context):
        texts = [t for t in range(context.prompt.shape[1]) if context.prompt[row, t]]
        chosen = [n for n, t in enumerate(texts) if context.memory[row, t]]
        table = context.received["each"].total[row][chosen][:, visual].double()
        scores = {t: float(table[:, n].mean()) if chosen else 0.0 for n, t in enumerate(visual)}
        rank = int(torch.linalg.matrix_rank(table)) if chosen else 0
        count = keep if keep is not None else len(visual) - round(scale * (len(visual) - rank))
        found = kept(selection.keep, context, row)
        if chosen:
            assert found == best(scores, count)
        assert len(found) == min(count, len(visual))


@given(seed=seeds, recycle=st.floats(0.05, 1), clusters=st.floats(0.05, 1))
def test_sparsevlm_recycles(seed: int, recycle: float, clusters: float) -> None:
    """Of the dropped, the best are shared out among so many centres, each of which is a mean."""
    context = context_of(seed, ROWS)
    plain = tp.SparseVLMConfig(layers=(0,), keep=(8,), recycle=0)
    config = tp.SparseVLMConfig(layers=(0,), keep=(8,), recycle=recycle, clusters=clusters)
    without = build(plain.fitted(FACTS), FACTS).select(context)
    for selection, row, visual in by_rows(config, context):
        first = kept(without.keep, context, row)
        gone = {t: float(selection.scores[row, t]) for t in visual if t not in first}
        worth = best(gone, math.ceil(recycle * len(gone) - 1e-6))
        extra = [t for t in kept(selection.keep, context, row) if t not in first]
        assert set(extra) <= set(worth)
        assert len(extra) == max(1, round(clusters * len(worth)))
        states = context.hidden_states[row]
        for t in first:
            assert torch.equal(selection.hidden_states[row, t], states[t])
        own = {t: min(extra, key=lambda o: float((states[t] - states[o]).norm())) for t in worth}
        own.update({t: t for t in extra})
        for t in extra:
            members = torch.stack([states[o] for o in worth if own[o] == t])
            torch.testing.assert_close(
                selection.hidden_states[row, t], members.mean(0), rtol=0, atol=1e-5
            )


def test_sparsevlm_centres_are_the_peaks() -> None:
    """Three tight groups, far apart, two of them larger: three centres, one in each."""
    context = context_of(1, [(2, IMAGE, 3)])
    visual = visual_of(context, 0)
    middles = torch.tensor([[9.0, 0, 0, 0, 0], [0, 9, 0, 0, 0], [0, 0, 9, 0, 0]])
    group = [n % 3 for n in range(len(visual))]
    states = context.hidden_states.clone()
    for n, t in enumerate(visual):
        states[0, t] = middles[group[n]] + 0.1 * states[0, t]
    object.__setattr__(context, "hidden_states", states)
    config = tp.SparseVLMConfig(layers=(0,), keep=(1,), recycle=1.0, clusters=3 / 23)
    selection = build(config.fitted(FACTS), FACTS).select(context)
    first = best({t: float(selection.scores[0, t]) for t in visual}, 1)
    extra = [t for t in kept(selection.keep, context, 0) if t not in first]
    assert sorted(group[visual.index(t)] for t in extra) == [0, 1, 2]


@given(seed=seeds)
def test_sparsevlm_raters(seed: int) -> None:
    context = context_of(seed, ROWS, layer=-1)
    found = raters(context.hidden_states, context.layout.mask, context.prompt)
    for row in range(len(ROWS)):
        visual = visual_of(context, row)
        texts = context.prompt[row].nonzero()[:, 0].tolist()
        states = context.hidden_states[row].double()
        shares = torch.stack([(states[texts] @ states[v]).softmax(0) for v in visual]).sum(0)
        wanted = [t for t, s in zip(texts, shares, strict=True) if s >= shares.mean()]
        assert found[row].nonzero()[:, 0].tolist() == wanted


def test_wrong_numbers_for_the_layers_are_named() -> None:
    config = tp.SparseVLMConfig(layers=(2, 6), keep=(9,))
    with pytest.raises(
        ValueError, match=r"keep=\(9,\): expected one entry for each of the layers \(2, 6\)"
    ):
        config.fitted(FACTS)
