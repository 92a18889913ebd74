"""Invariant 5: what the cache of each layer holds, and everything that goes on from it."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, StaticCache

import tokenprune as tp
from tokenprune.engine.caches import load

from .support.reference_decoder import Pass, Reference
from .support.scripted_method import alive_table, scripted
from .support.strategies import LAYERS, Case, cases, model_of, positions, prompts
from .support.tiny_llava import IMAGE, Batch, cache_of, make_batch, on_cache, row_alone
from .support.tolerance import assert_close


class Turn:
    """One row's tokens so far, and which of them each layer has."""

    def __init__(self, model: Any) -> None:
        self.reference = Reference(model)
        self.embeds: list[Tensor] = []
        self.alive: list[Tensor] = []

    def __deepcopy__(self, _: Any) -> "Turn":
        twin = copy.copy(self)
        twin.embeds, twin.alive = list(self.embeds), list(self.alive)
        return twin

    def add(self, row: Batch, layers: tuple[int, ...], script: Tensor) -> Pass:
        """The pass over all tokens, the row's new ones last."""
        self.embeds.append(self.reference.embed(row))
        self.alive.append(alive_table(row, layers, script, LAYERS))
        return self.now()

    def now(self) -> Pass:
        return self.reference.run(torch.cat(self.embeds), self.table)

    @property
    def table(self) -> Tensor:
        return torch.cat(self.alive, dim=1)


def held(cache: Any, layer: int, mask: Tensor) -> list[Tensor]:
    """Of each row, the slots of a layer's cache that hold a token, as (slot, position) pairs.

    `mask` is the attention mask of all positions; positions are counted in the row without padding.
    """
    past = cache.get_seq_length()
    batch, seen = mask.shape
    known = load(cache, past).get(layer)
    every = torch.arange(seen, device=mask.device).expand(batch, -1)
    if known is None:
        index, valid = every, torch.ones_like(every, dtype=torch.bool)
    else:
        ones = torch.ones_like(known.index, dtype=torch.bool)
        tail = every[:, known.origin :]
        index = torch.cat([known.index, tail], dim=1)
        valid = torch.cat(
            [ones if known.valid is None else known.valid, torch.ones_like(tail).bool()], dim=1
        )
    assert index.shape[1] == cache.layers[layer].keys.shape[2]
    valid = valid & mask.bool().gather(1, index)
    place = (mask.cumsum(dim=1) - 1).gather(1, index)
    return [torch.stack([v.nonzero()[:, 0], p[v]]) for v, p in zip(valid, place, strict=True)]


def assert_cache_is(cache: Any, mask: Tensor, turns: list[Turn]) -> None:
    """Each layer's cache holds exactly the tokens alive there, with the reference's values."""
    for n, turn in enumerate(turns):
        wanted = turn.now()
        for layer in range(LAYERS):
            slot, place = held(cache, layer, mask)[n]
            assert torch.equal(place, turn.table[layer].nonzero()[:, 0]), f"layer {layer}, row {n}"
            for name in ("keys", "values"):
                ours = getattr(cache.layers[layer], name)[n][:, slot]
                theirs = getattr(wanted, name)[layer][:, place]
                assert_close(ours, theirs, f"{name}, layer {layer}, row {n}")


def prefill(model: Any, batch: Batch, **more: Any) -> Any:
    return model(**batch, position_ids=positions(batch["attention_mask"]), use_cache=True, **more)


def step(model: Any, ids: Tensor, mask: Tensor, cache: Any, **more: Any) -> Any:
    """A forward on the cache. `mask` is over all positions, the new ones last."""
    places = positions(mask)[:, -ids.shape[1] :]
    return model(
        input_ids=ids, attention_mask=mask, position_ids=places, **on_cache(model, cache), **more
    )


def grown(mask: Tensor, count: int) -> Tensor:
    return torch.cat([mask, mask.new_ones(mask.shape[0], count)], dim=1)


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


def test_words_taken_back(device: str) -> None:
    """A cache cropped back to words that all layers have is right, as without pruning."""
    model = model_of(device=device)
    batch = make_batch([(3, IMAGE, 4)], device=device)
    mask = batch["attention_mask"]
    script = torch.zeros(1, 1, 1, 6, 6, dtype=torch.bool)
    words = torch.tensor([[9, 10, 11]], device=device)
    with torch.no_grad(), scripted(model, (1,), script):
        cache = cache_of(prefill(model, batch))
        wanted = step(model, words[:, :1], grown(mask, 1), copy.deepcopy(cache)).logits
        step(model, words, grown(mask, 3), cache)
        cache.crop(-3)
        assert torch.equal(step(model, words[:, :1], grown(mask, 1), cache).logits, wanted)


# How a cache's rows are changed, and which row each new one was.
ROWS = {
    "reordered": (lambda cache, rows: cache.reorder_cache(rows), None),
    "selected": (lambda cache, rows: cache.batch_select_indices(rows), None),
    "repeated": (lambda cache, rows: cache.batch_repeat_interleave(2), 2),
}


@pytest.mark.parametrize("how", ROWS)
@given(case=cases(image=True), data=st.data())
def test_rows_are_followed(device: str, how: str, case: Case, data: st.DataObject) -> None:
    """What is known of each layer's keys moves with the rows, twice in a row and with repeats."""
    model = model_of(device=device)
    batch, script = case.batch(device), case.script()
    mask = batch["attention_mask"]
    change, repeats = ROWS[how]
    turns = [Turn(model) for _ in range(case.rows)]
    for n, turn in enumerate(turns):
        turn.add(row_alone(batch, n), case.layers, script[:, n])
    with torch.no_grad(), scripted(model, case.layers, script):
        cache = cache_of(prefill(model, batch))
        for _ in range(2):
            rows = torch.arange(len(turns), device=device)
            if repeats is not None:
                rows = rows.repeat_interleave(repeats)
            else:
                drawn = st.lists(st.integers(0, len(turns) - 1), min_size=1, max_size=4)
                rows = torch.tensor(data.draw(drawn), device=device)
            change(cache, rows)
            turns = [copy.deepcopy(turns[n]) for n in rows.tolist()]
            mask = mask[rows]
        shared = {id(getattr(layer, "held", None)) for layer in cache.layers}
        assert len(shared) <= len(case.layers) + 2, "layers that share their keys go on doing so"
        text = make_batch([(2,)] * len(turns), device=device, seed=1)
        mask = grown(mask, 2)
        logits = step(model, text["input_ids"], mask, cache).logits
        for n, turn in enumerate(turns):
            row = turn.add(row_alone(text, n), case.layers, script[:, 0])
            assert_close(logits[n], row.logits[-2:], f"row {n}")
        assert_cache_is(cache, mask, turns)


def cropped(cache: Any) -> None:
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[..., :30, :], layer.values[..., :30, :]


SPOILED = {
    "cropped to a length": cropped,
    "cropped into the prompt": lambda cache: cache.crop(-2),
    "from its tensors": lambda cache: vars(cache).update(vars(rebuilt(cache))),
}


def rebuilt(cache: Any) -> DynamicCache:
    """A cache of the same keys and values that knows nothing of what was dropped."""
    plain = DynamicCache()
    for number, layer in enumerate(cache.layers):
        plain.update(layer.keys, layer.values, number)
    return plain


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("how", SPOILED)
def test_spoiled_cache_is_noticed(device: str, how: str, padding: str) -> None:
    """The engine cannot know which keys are left, so it says so."""
    model = model_of(device=device)
    batch = make_batch([(3, IMAGE, 4), (6, IMAGE, 2)], padding, device)
    script = torch.rand(1, 2, 1, 6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad(), scripted(model, (1,), script):
        cache = cache_of(prefill(model, batch))
        SPOILED[how](cache)
        rows = cache.layers[0].keys.shape[0]
        word = torch.full((rows, 1), 9, device=device)
        mask = torch.ones(rows, cache.get_seq_length() + 1, dtype=torch.long, device=device)
        with pytest.raises(RuntimeError, match=r"copy.deepcopy; or run this prompt inside"):
            step(model, word, mask, cache)
        # The refusal came before anything was written, and leaves no trace.
        assert cache.get_seq_length() == mask.shape[1] - 1
        prefill(model, batch)


def refused_caches(model: Any) -> dict[str, Any]:
    offloaded = DynamicCache()
    offloaded.offloading = True  # its constructor asks for a CUDA stream
    return {
        "static": StaticCache(config=model.config.text_config, max_cache_len=64),
        "offloaded": offloaded,
    }


@pytest.mark.parametrize("kind", ["static", "offloaded"])
def test_refused_cache_is_not_written_to(kind: str) -> None:
    model = model_of()
    batch = make_batch([(3, IMAGE, 4)])
    cache = refused_caches(model)[kind]
    script = torch.zeros(1, 1, 1, 6, 6, dtype=torch.bool)
    with torch.no_grad(), scripted(model, (1,), script):
        with pytest.raises(ValueError, match="cannot hold a different number of keys") as error:
            model(**batch, **on_cache(model, cache))
        assert type(cache).__name__ in str(error.value)
        assert cache.get_seq_length() == 0
        # The way out that the message names.
        if kind != "offloaded":
            with tp.paused(model):
                model(**batch, **on_cache(model, cache))
            assert cache.get_seq_length() == 7 + 36


def test_generate_refuses_a_static_cache() -> None:
    model = model_of()
    batch = make_batch([(3, IMAGE, 4)])
    script = torch.zeros(1, 1, 1, 6, 6, dtype=torch.bool)
    arguments = {"max_new_tokens": 2, "cache_implementation": "static", "disable_compile": True}
    with scripted(model, (1,), script):
        with pytest.raises(ValueError, match="Leave cache_implementation out"):
            model.generate(**batch, **arguments)
        # transformers 4 keeps it, and cannot use it again before something was written to it.
        vars(model).pop("_cache", None)
        with tp.paused(model):
            model.generate(**batch, **arguments)
    vars(model).pop("_cache", None)
