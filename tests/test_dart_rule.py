"""DART against its published rule, and where that rule says nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenprune as tp
from tokenprune.methods import build
from tokenprune.methods.context import Context

from .support.method_contexts import FACTS, context_of, kept, seeds, visual_of
from .support.published import dart as published
from .support.tiny_llava import IMAGE

ROWS = [(2, IMAGE, 9), (1, IMAGE, IMAGE, 12), (0, IMAGE, 6)]


def with_keys(seed: int, rows: Sequence[Sequence[int | str]] = ROWS) -> Context:
    """Rows with random states of 32 numbers, and keys of two heads."""
    context = context_of(seed, rows)
    generator = torch.Generator().manual_seed(seed)
    batch, length = context.layout.mask.shape
    return dataclasses.replace(
        context,
        hidden_states=torch.randn(batch, length, 32, generator=generator),
        keys=torch.randn(batch, 2, length, 8, generator=generator),
    )


def by_rows(config: tp.DARTConfig, context: Context, rows: Sequence[object] = ROWS):
    """What is kept in each row, its number, and its own states, keys and visual tokens."""
    selection = build(config, FACTS).select(context)
    assert context.keys is not None
    for row in range(len(rows)):
        own = int((context.layout.mask | context.prompt)[row].sum())
        states = context.hidden_states[row, :own].double().numpy()
        keys = context.keys[row, :, :own].double().permute(1, 0, 2).numpy()
        yield kept(selection.keep, context, row), row, states, keys, visual_of(context, row)


# 4 + 8 · 2 and so on: the counts that the authors' code has.
@given(seed=seeds, image=st.integers(1, 4), text=st.integers(0, 5), each=st.integers(0, 2))
def test_the_published_rule(seed: int, image: int, text: int, each: int) -> None:
    context = with_keys(seed)
    keep = image + each * (image + text)
    config = tp.DARTConfig(keep=keep, image_pivots=image, text_pivots=text, norm=1)
    for found, _, states, keys, visual in by_rows(config, context):
        first, second = published.pivots_of(keys, visual, image, text)
        order = sorted([*first, *second])
        assert found == published.retained(states, visual, first, order, each)
        assert len(found) == keep


@given(seed=seeds, keep=st.integers(1, 60), image=st.integers(1, 9), text=st.integers(0, 9))
def test_other_counts(seed: int, keep: int, image: int, text: int) -> None:
    """As many as asked for: few are the pivots alone, and the first pivots take the remainder."""
    context = with_keys(seed)
    config = tp.DARTConfig(keep=keep, image_pivots=image, text_pivots=text)
    for found, _, states, keys, visual in by_rows(config, context):
        count = min(keep, len(visual))
        first, second = published.pivots_of(keys, visual, min(image, count), text, norm=2)
        order = sorted([*first, *second])
        each, more = divmod(count - len(first), len(order))
        stay = set(first)
        for n, pivot in enumerate(order):
            rest = [t for t in visual if t not in stay]
            mine = published.retained(states, rest, [], [pivot], each + (n < more))
            stay |= set(mine)
        assert len(found) == count
        assert found == sorted(stay)


@pytest.mark.parametrize("tail", [0, 2])
def test_less_text_than_pivots(tail: int) -> None:
    """The pivots that there are share the tokens, and text before the picture is none of them."""
    rows = [(5, IMAGE, tail)]
    context = with_keys(1, rows)
    for found, _, states, keys, visual in by_rows(tp.DARTConfig(keep=16), context, rows):
        first, second = published.pivots_of(keys, visual, 4, 4, norm=2)
        assert len(second) == tail
        order = sorted([*first, *second])
        assert found == published.retained(states, visual, first, order, 12 // (4 + tail))


def test_keys_and_text_count() -> None:
    context = with_keys(2)
    assert context.keys is not None

    def chosen(context: Context, **options: int) -> tuple[int, ...]:
        config = tp.DARTConfig(keep=12, **options)
        return tuple(kept(build(config, FACTS).select(context).keep, context, 0))

    turned = dataclasses.replace(context, keys=context.keys.flip(2))
    sets = [
        chosen(context),
        chosen(turned),
        chosen(context, text_pivots=0),
        chosen(context, image_pivots=1),
        chosen(context, norm=1),
    ]
    assert len(set(sets)) == 5


def test_padding_may_hold_anything() -> None:
    context = with_keys(6)
    assert context.keys is not None
    there = context.layout.mask | context.prompt
    assert not there.all()
    nan = float("nan")
    spoilt = dataclasses.replace(
        context,
        hidden_states=context.hidden_states.masked_fill(~there[..., None], nan),
        keys=context.keys.masked_fill(~there[:, None, :, None], nan),
    )
    for keep in (3, 12, 40):
        method = build(tp.DARTConfig(keep=keep), FACTS)
        wanted, found = method.select(context).keep, method.select(spoilt).keep
        assert torch.equal(found & context.layout.mask, wanted & context.layout.mask)
