"""What methods that merge tokens keep and merge, against their papers' rules in plain Python."""

from __future__ import annotations

import math
import statistics

import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenprune as tp
from tokenprune.methods import build
from tokenprune.methods.sparsevlm.method import raters

from .support.method_contexts import (
    FACTS,
    ROWS,
    WIDE,
    best,
    by_rows,
    context_of,
    cosine,
    kept,
    seeds,
    visual_of,
)
from .support.tiny_llava import IMAGE


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
