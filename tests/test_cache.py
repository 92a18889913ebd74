"""Invariant 5: what the cache of each layer holds, and everything that goes on from it."""

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

import tokenprune as tp

from .support.scripted_method import alive_table, scripted
from .support.strategies import LAYERS, Case, cases, model_of, prompts
from .support.tiny_llava import IMAGE, cache_of, make_batch, on_cache, row_alone
from .support.tolerance import assert_close
from .support.turns import Turn, assert_cache_is, grown, prefill, step


@given(case=cases())
def test_holds_what_is_alive(device: str, attn: str, case: Case) -> None:
    """After the prompt, after words one by one, and after several at once."""
    model = model_of(attn, device)
    batch, script = case.batch(device), case.script()
    mask = batch["attention_mask"]
    turns = [Turn(model) for _ in range(case.rows)]
    for n, turn in enumerate(turns):
        turn.add(row_alone(batch, n), case.layers, script[:, n])
    with torch.no_grad(), scripted(model, case.layers, script):
        cache = cache_of(prefill(model, batch))
        assert_cache_is(cache, mask, turns)
        for seed, count in enumerate((1, 1, 4)):
            text = make_batch([(count,)] * case.rows, device=device, seed=seed)
            mask = grown(mask, count)
            logits = step(model, text["input_ids"], mask, cache).logits
            for n, turn in enumerate(turns):
                row = turn.add(row_alone(text, n), case.layers, script[:, n])
                assert_close(logits[n], row.logits[-count:], f"{count} words, row {n}")
        assert_cache_is(cache, mask, turns)


@given(case=cases(rows=1))
def test_number_of_keys_at_batch_one(device: str, case: Case) -> None:
    model = model_of(device=device)
    batch, script = case.batch(device), case.script()
    with torch.no_grad(), scripted(model, case.layers, script):
        cache = cache_of(prefill(model, batch))
    alive = alive_table(batch, case.layers, script[:, 0], LAYERS)
    counts = alive.sum(dim=1).tolist()
    counts[0] = alive.shape[1]  # the first layer tells transformers how much was seen
    assert [layer.keys.shape[2] for layer in cache.layers] == counts
    assert [layer.values.shape[2] for layer in cache.layers] == counts


@given(case=cases(), later=prompts(image=True), seed=st.integers(0, 2**16))
def test_second_turn_with_a_new_image(
    device: str, attn: str, case: Case, later: tuple, seed: int
) -> None:
    """Both turns' images are pruned, each in its own turn, and words go on from there."""
    model = model_of(attn, device)
    batch, script = case.batch(device), case.script()
    rows = (later,) * case.rows
    second = replace(case, prompts=rows, padding="left", shares=case.shares[::-1], seed=seed)
    more, script_2 = second.batch(device), second.script()
    words = make_batch([(2,)] * case.rows, device=device, seed=seed)
    turns = [Turn(model) for _ in range(case.rows)]
    with torch.no_grad(), scripted(model, case.layers, script) as method:
        mask = batch["attention_mask"]
        cache = cache_of(prefill(model, batch))
        method.follow(script_2)
        pixels = {"pixel_values": more["pixel_values"]}
        for new, extra in ((more, pixels), (words, {})):
            length = new["input_ids"].shape[1]
            mask = grown(mask, length)
            logits = step(model, new["input_ids"], mask, cache, **extra).logits
            for n, turn in enumerate(turns):
                if not turn.alive:
                    turn.add(row_alone(batch, n), case.layers, script[:, n])
                row = turn.add(row_alone(new, n), case.layers, script_2[:, n])
                there = turn.alive[-1][-1]
                assert_close(logits[n][there], row.logits[-length:][there], f"row {n}")
        assert_cache_is(cache, mask, turns)


@given(case=cases(image=True))
def test_deep_copy_goes_on_by_itself(device: str, case: Case) -> None:
    model = model_of(device=device)
    batch = case.batch(device)
    mask = grown(batch["attention_mask"], 1)
    first, second = (torch.full((case.rows, 1), word, device=device) for word in (9, 11))
    with torch.no_grad(), scripted(model, case.layers, case.script()):
        cache = cache_of(prefill(model, batch))
        wanted = step(model, first, mask, copy.deepcopy(cache)).logits
        twin = copy.deepcopy(cache)
        step(model, second, mask, twin)
        step(model, second, grown(mask, 1), twin)
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        assert torch.equal(step(model, first, mask, cache).logits, wanted)
        assert [layer.keys.shape[2] for layer in cache.layers] == [n + 1 for n in lengths]


def reset_empties() -> bool:
    """Whether transformers' own cache is empty once it is reset: 5.17 leaves as many zeros."""
    cache = DynamicCache()
    cache.update(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4), 0)
    cache.reset()
    return cache.get_seq_length() == 0


needs_reset = pytest.mark.skipif(
    not reset_empties(), reason="this transformers' DynamicCache.reset leaves its length as it was"
)


@needs_reset
@given(case=cases(image=True), other=cases(image=True))
def test_reset_cache_is_fresh(device: str, case: Case, other: Case) -> None:
    model = model_of(device=device)
    batch, next_batch = case.batch(device), other.batch(device)
    with torch.no_grad():
        with scripted(model, other.layers, other.script()):
            wanted = prefill(model, next_batch).logits
        with scripted(model, case.layers, case.script()):
            cache = cache_of(prefill(model, batch))
        cache.reset()
        assert cache.get_seq_length() == 0
        with scripted(model, other.layers, other.script()):
            logits = prefill(model, next_batch, **on_cache(model, cache)).logits
            assert torch.equal(logits, wanted)
        turns = [Turn(model) for _ in range(other.rows)]
        for n, turn in enumerate(turns):
            turn.add(row_alone(next_batch, n), other.layers, other.script()[:, n])
        assert_cache_is(cache, next_batch["attention_mask"], turns)


@needs_reset
def test_reset_cache_serves_the_unpruned_model(device: str) -> None:
    """What was known of the pruned prompt does not outlive it."""
    model = model_of(device=device)
    batch = make_batch([(3, IMAGE, 4)], device=device)
    word = torch.tensor([[9]], device=device)
    nothing = torch.zeros(1, 1, 1, 6, 6, dtype=torch.bool)
    with torch.no_grad(), scripted(model, (1,), nothing):
        cache = cache_of(prefill(model, batch))
        cache.reset()
        with tp.paused(model):
            fresh = cache_of(prefill(model, batch))
            prefill(model, batch, **on_cache(model, cache))
            mask = grown(batch["attention_mask"], 1)
            wanted = step(model, word, mask, fresh).logits
            assert torch.equal(step(model, word, mask, cache).logits, wanted)


@given(case=cases(image=True))
def test_pruned_prompt_then_paused_words(device: str, case: Case) -> None:
    """A pause changes what is dropped, not what a cache holds."""
    model = model_of(device=device)
    batch = case.batch(device)
    word = torch.full((case.rows, 1), 9, device=device)
    mask = grown(batch["attention_mask"], 1)
    with torch.no_grad(), scripted(model, case.layers, case.script()):
        cache = cache_of(prefill(model, batch))
        wanted = step(model, word, mask, copy.deepcopy(cache)).logits
        with tp.paused(model):
            assert torch.equal(step(model, word, mask, cache).logits, wanted)
