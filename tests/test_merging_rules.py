"""What methods that merge tokens keep and merge, against their papers' rules in plain Python."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenprune as tp
from tokenprune.methods import build
from tokenprune.methods.sparsevlm.method import raters

from .support.method_contexts import (
    FACTS,
    ROWS,
    best,
    by_rows,
    context_of,
    kept,
    seeds,
    visual_of,
)
from .support.published import prumerge, sparsevlm, visionzip
from .support.tiny_llava import IMAGE


def in_order(selection: tp.Selection, row: int, visual: list[int]) -> torch.Tensor:
    """The states that go on of one row, as they stand where they are numbered anew."""
    stay = [t for t in visual if selection.keep[row, t]]
    stay.sort(key=lambda t: float(selection.order[row, t]))
    return selection.hidden_states[row, stay]


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("plus", [False, True])
@given(seed=seeds, neighbours=st.integers(0, 40))
def test_prumerge(seed: int, neighbours: int, plus: bool) -> None:
    context = context_of(seed, ROWS, layer=-1)
    config = tp.PruMergeConfig(neighbours=neighbours, plus=plus)
    for selection, row, visual in by_rows(config, context):
        attention = context.tower.whole_attention[row, visual]
        top = len(prumerge.chosen(attention, False))
        if not 0 < top <= len(visual) // 3:
            continue  # none stands out, or steps of 0: the authors' code fails
        stay = prumerge.chosen(attention, plus)
        keys = context.tower.keys[row, visual].flatten(1)
        states = context.hidden_states[row, visual]
        close(
            in_order(selection, row, visual),
            prumerge.merged(attention, keys, states, stay, neighbours),
        )


@given(seed=seeds, keep=st.integers(1, 30), plus=st.booleans())
def test_prumerge_with_a_budget(seed: int, keep: int, plus: bool) -> None:
    """So many in all, the sum of the dropped among them; half of the others stand out."""
    context = context_of(seed, ROWS, layer=-1)
    for selection, row, visual in by_rows(tp.PruMergeConfig(keep=keep, plus=plus), context):
        found = kept(selection.keep, context, row)
        assert len(found) == min(keep, len(visual))
        if keep >= len(visual):
            continue
        scores = {t: float(context.tower.whole_attention[row, t]) for t in visual}
        first = best(scores, (keep - 1) // 2 if plus else keep - 1)
        spaced: list[int] = []
        if plus and first:
            step = int(1 / (len(first) / len(visual)))
            spaced = visual[step // 2 : -1 : step][: keep - 1 - len(first)]
        stay = {*first, *spaced}
        stay |= set(best({t: s for t, s in scores.items() if t not in stay}, keep - 1 - len(stay)))
        assert set(found) - stay == {max(set(visual) - stay)}


@given(seed=seeds, keep=st.integers(1, 30), contextual=st.floats(0, 0.9))
def test_visionzip(seed: int, keep: int, contextual: float) -> None:
    context = context_of(seed, ROWS, layer=-1)
    config = tp.VisionZipConfig(keep=keep, contextual=contextual)
    for selection, row, visual in by_rows(config, context):
        count = min(keep, len(visual))
        merged = round(count * contextual)
        wanted = visionzip.visionzip(
            context.tower.attention[row, visual],
            context.tower.keys[row, visual].mean(dim=1),
            context.hidden_states[row, visual],
            count - merged,
            merged,
        )
        close(in_order(selection, row, visual), wanted)


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


@given(seed=seeds, keep=st.integers(1, 20), recycle=st.floats(0.05, 0.9))
def test_sparsevlm_recycles(seed: int, keep: int, recycle: float) -> None:
    context = context_of(seed, ROWS)
    config = tp.SparseVLMConfig(layers=(0,), keep=(keep,), recycle=recycle)
    for selection, row, visual in by_rows(config, context):
        states = context.hidden_states[row, visual]
        scores = selection.scores[row, visual]
        if not scores.any():
            continue  # nobody rates this picture: all scores are the same
        stay, merged = sparsevlm.pruned(scores, states, keep, recycle)
        close(in_order(selection, row, visual), torch.cat([states[stay], merged]))


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
    config = tp.SparseVLMConfig(layers=(0,), keep=(1,), recycle=1.0, clusters=2.5 / 23)
    selection = build(config.fitted(FACTS), FACTS).select(context)
    first = best({t: float(selection.scores[0, t]) for t in visual}, 1)
    extra = [t for t in kept(selection.keep, context, 0) if t not in first]
    assert sorted(group[visual.index(t)] for t in extra) == [0, 1, 2]


@given(seed=seeds)
def test_sparsevlm_raters(seed: int) -> None:
    rows = [*ROWS, (4, IMAGE), (3, IMAGE, 1)]
    context = context_of(seed, rows, layer=-1)
    found = raters(context.hidden_states, context.layout.mask, context.prompt)
    for row in range(len(rows)):
        visual = visual_of(context, row)
        texts = context.prompt[row].nonzero()[:, 0].tolist()
        # Text before the picture is asked where there is none behind it.
        texts = [t for t in texts if t > visual[-1]] or texts
        states = context.hidden_states[row]
        numbers = sparsevlm.raters(states[visual], states[texts])
        wanted = [texts[n] for n in numbers] if len(texts) > 1 else texts
        assert found[row].nonzero()[:, 0].tolist() == wanted
