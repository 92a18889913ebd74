"""CDPruner against its published rule, and where that rule says nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenprune as tp
from tokenprune.methods import build
from tokenprune.methods.context import Context

from .support.method_contexts import FACTS, ROWS, best, by_rows, context_of, kept, seeds
from .support.published import cdpruner as published

configs = st.builds(
    tp.CDPrunerConfig,
    keep=st.integers(1, 26),
    negated=st.booleans(),
    theta=st.sampled_from([None, 0.0, 0.5, 0.9]),
)


def with_width(seed: int, width: int) -> Context:
    """Rows of one and two pictures, with random hidden states."""
    context = context_of(seed, ROWS, layer=-1)
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(*context.layout.mask.shape, width, generator=generator)
    return dataclasses.replace(context, hidden_states=states)


def relevance(context: Context, row: int, visual: list[int], negated: bool) -> np.ndarray:
    """By the published rule, against the row's own text."""
    states = context.hidden_states[row].double().numpy()
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    return published.relevance_of(unit[visual] @ unit[context.prompt[row].numpy()].T, negated)


@given(seed=seeds, config=configs)
def test_the_published_rule(seed: int, config: tp.CDPrunerConfig) -> None:
    context = with_width(seed, 64)
    for selection, row, visual in by_rows(config, context):
        weight = relevance(context, row, visual, config.negated)
        features = context.hidden_states[row, visual].double().numpy()
        count = min(int(config.keep), len(visual))
        taken = published.chosen(features, weight, count, config.theta)
        assert kept(selection.keep, context, row) == sorted(visual[t] for t in taken)


@given(seed=seeds, config=configs)
def test_beyond_the_width_the_most_relevant(seed: int, config: tp.CDPrunerConfig) -> None:
    """Five tokens span the rest, of which the authors' code takes one by its rounding errors."""
    context = with_width(seed, 5)
    for selection, row, visual in by_rows(config, context):
        weight = relevance(context, row, visual, config.negated)
        features = context.hidden_states[row, visual].double().numpy()
        count = min(int(config.keep), len(visual))
        taken = published.chosen(features, weight, min(count, 5), config.theta)
        rest = {t: float(w) for t, w in enumerate(weight) if t not in taken}
        taken += best(rest, count - len(taken))
        assert kept(selection.keep, context, row) == sorted(visual[t] for t in taken)


def test_the_prompt_and_the_options_count() -> None:
    """Another prompt, sign or weight, another set: the comparisons above are not of equals."""
    context = with_width(3, 64)
    other = dataclasses.replace(
        context,
        hidden_states=torch.where(
            context.layout.mask[..., None], context.hidden_states, with_width(4, 64).hidden_states
        ),
    )

    def chosen(context: Context, **options) -> list[int]:
        config = tp.CDPrunerConfig(keep=8, **options)
        return kept(build(config, FACTS).select(context).keep, context, 0)

    sets = [
        chosen(context),
        chosen(other),
        chosen(context, negated=False),
        chosen(context, theta=0.5),
        chosen(context, theta=0.0),
    ]
    assert len({tuple(s) for s in sets}) == 5


def test_without_text_diversity_alone_decides() -> None:
    context = with_width(5, 64)
    bare = dataclasses.replace(context, prompt=torch.zeros_like(context.prompt))
    selections = [
        build(tp.CDPrunerConfig(keep=8, theta=theta), FACTS).select(bare) for theta in (None, 0.0)
    ]
    assert torch.equal(selections[0].keep, selections[1].keep)
    assert selections[0].keep.sum(1).tolist() == [8, 8, 8]


def test_padding_may_hold_anything() -> None:
    context = with_width(6, 64)
    there = context.layout.mask | context.prompt
    assert not there.all()
    spoilt = context.hidden_states.masked_fill(~there[..., None], float("nan"))
    for config in (tp.CDPrunerConfig(keep=8), tp.CDPrunerConfig(keep=40)):
        wanted = build(config, FACTS).select(context).keep
        found = build(config, FACTS).select(dataclasses.replace(context, hidden_states=spoilt)).keep
        assert torch.equal(found & context.layout.mask, wanted & context.layout.mask)
