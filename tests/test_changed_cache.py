"""Invariant 5 where a cache is changed between calls: followed, or noticed and refused."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache, StaticCache

import tokenprune as tp

from .support.scripted_method import scripted
from .support.strategies import Case, cases, model_of
from .support.tiny_llava import IMAGE, cache_of, make_batch, on_cache, row_alone
from .support.tolerance import assert_close
from .support.turns import Turn, assert_cache_is, grown, prefill, step


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
