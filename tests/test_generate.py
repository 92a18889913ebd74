"""Invariant 5, as `generate` drives it: its words are those of the reference and of each other."""

import inspect
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from torch import Tensor
from transformers import GenerationConfig

import tokenprune as tp

from .support.reference_decoder import Reference
from .support.scripted_method import alive_table, scripted
from .support.strategies import LAYERS, Case, cases, model_of
from .support.tiny_llava import IMAGE, Batch, cache_of, make_batch, on_cache, row_alone, tiny_llava

STEPS = 5


def left(case: Case) -> Case:
    """`generate` wants its padding on the left."""
    return Case(case.prompts, "left", case.layers, case.shares, case.seed)


def repeated(batch: Batch, times: int) -> Batch:
    """Each row so many times, with its pictures."""
    rows = [row_alone(batch, n) for n in range(batch["input_ids"].shape[0])]
    big = {k: v.repeat_interleave(times, 0) for k, v in batch.items() if k != "pixel_values"}
    pixels = [row["pixel_values"] for row in rows if "pixel_values" in row for _ in range(times)]
    return {**big, "pixel_values": torch.cat(pixels)} if pixels else big


def answers(model: Any, batch: Batch, **arguments: Any) -> Tensor:
    ids = model.generate(**batch, max_new_tokens=STEPS, **arguments)
    return ids[:, batch["input_ids"].shape[1] :]


@cache
def repeats_pictures() -> bool:
    """Whether `generate` gives each repeated row its own pictures, in an unwrapped model.

    transformers 5.17 mixes them up where a prompt has several: it repeats picture by picture.
    """
    model, batch = tiny_llava(layers=2), make_batch([(1, IMAGE, 1, IMAGE, 1)])
    found = []
    for rows, times in ((batch, 2), (repeated(batch, 2), 1)):
        torch.manual_seed(0)
        found.append(answers(model, rows, do_sample=True, num_return_sequences=times))
    return torch.equal(*found)


def repeatable(case: Case) -> bool:
    """Whether rows of the case may be repeated by `generate`."""
    return all(prompt.count(IMAGE) < 2 for prompt in case.prompts) or repeats_pictures()


@pytest.mark.parametrize("use_cache", [True, False])
@given(case=cases())
def test_greedy_equals_the_reference(device: str, attn: str, use_cache: bool, case: Case) -> None:
    case = left(case)
    model = model_of(attn, device)
    batch, script = case.batch(device), case.script()
    with scripted(model, case.layers, script):
        ids = answers(model, batch, do_sample=False, use_cache=use_cache)
    reference = Reference(model)
    for n in range(case.rows):
        row = row_alone(batch, n)
        alive = alive_table(row, case.layers, script[:, n], LAYERS)
        words = reference.greedy(reference.embed(row), alive, ids.shape[1])
        assert ids[n].tolist() == words, f"row {n}"


@pytest.mark.parametrize(
    "arguments",
    [{"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}, {"do_sample": True}],
    ids=str,
)
@given(case=cases(rows=2, image=True))
def test_cached_equals_uncached(device: str, arguments: dict, case: Case) -> None:
    assume("num_beams" not in arguments or repeatable(case))
    case = left(case)
    model = model_of(device=device)
    batch = case.batch(device)
    with scripted(model, case.layers, case.script()):
        found = []
        for use_cache in (True, False):
            torch.manual_seed(0)
            found.append(answers(model, batch, use_cache=use_cache, **arguments))
    assert torch.equal(*found)


@given(case=cases(rows=2, image=True))
def test_sampled_sequences_are_rows_of_their_own(device: str, case: Case) -> None:
    """Several sequences of a prompt are what the prompt several times in the batch gives."""
    assume(repeatable(case))
    case = left(case)
    model = model_of(device=device)
    batch = case.batch(device)
    with scripted(model, case.layers, case.script()):
        torch.manual_seed(0)
        together = answers(model, batch, do_sample=True, num_return_sequences=3)
        torch.manual_seed(0)
        apart = answers(model, repeated(batch, 3), do_sample=True)
    assert torch.equal(together, apart)


@given(case=cases(rows=2, image=True))
def test_second_turn(device: str, case: Case) -> None:
    """A conversation on the first turn's cache goes on as one that never had a cache."""
    case = left(case)
    model = model_of(device=device)
    batch, script = case.batch(device), case.script()
    with scripted(model, case.layers, script):
        first = model.generate(
            **batch, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True
        )
        question = torch.tensor([[7, 8, 9]], device=device).expand(case.rows, -1)
        ids = torch.cat([first.sequences, question], dim=1)
        new = ids.shape[1] - batch["input_ids"].shape[1]
        mask = torch.cat([batch["attention_mask"], ids.new_ones(case.rows, new)], dim=1)
        second = model.generate(
            input_ids=ids,
            attention_mask=mask,
            **on_cache(model, cache_of(first)),
            max_new_tokens=STEPS,
            do_sample=False,
        )[:, ids.shape[1] :]
    reference = Reference(model)
    for n in range(case.rows):
        row = row_alone(batch, n)
        alive = alive_table(row, case.layers, script[:, n], LAYERS)
        said = reference.words(ids[n, batch["input_ids"].shape[1] :])
        embeds = torch.cat([reference.embed(row), said])
        alive = torch.cat([alive, alive.new_ones(LAYERS, new)], dim=1)
        assert second[n].tolist() == reference.greedy(embeds, alive, second.shape[1])


def test_kept_sets_differ_between_rows_and_change_the_answer(device: str) -> None:
    """What the tests above compare is not the unpruned model's answer."""
    model = tiny_llava(layers=LAYERS, device=device)
    case = Case(((4, "image", 5), (2, "image", 3)), "left", (0, 2), ((0.2, 0.9), (0.5, 0.1)), 0)
    batch = case.batch(device)
    plain = answers(model, batch, do_sample=False)
    with scripted(model, case.layers, case.script()):
        pruned = answers(model, batch, do_sample=False)
    assert not torch.equal(plain[0], pruned[0])
    assert not torch.equal(plain[1], pruned[1])


CHUNKED: dict[str, Any] = {
    "asked of generate": lambda model, size: {"prefill_chunk_size": size},
    "in a configuration": lambda model, size: {
        "generation_config": GenerationConfig(
            **{**model.generation_config.to_diff_dict(), "prefill_chunk_size": size}
        )
    },
    "of the model": lambda model, size: (
        setattr(model.generation_config, "prefill_chunk_size", size) or {}
    ),
}


@pytest.mark.parametrize("how", CHUNKED)
@pytest.mark.parametrize("size", [16, 1000])
def test_chunked_prefill_is_refused(how: str, size: int) -> None:
    """A chunk's forward cannot know what the rest of the prompt asks."""
    model = tiny_llava(layers=LAYERS)
    batch, text = make_batch([(3, IMAGE, 4)]), make_batch([(30,)])
    wanted, wanted_text = (model.generate(**given, max_new_tokens=4) for given in (batch, text))
    tp.wrap(model, tp.DivPruneConfig(keep=9))
    asked = CHUNKED[how](model, size)
    with pytest.raises(ValueError, match=f"prefill_chunk_size={size}: .*Leave .* out, or generate"):
        model.generate(**batch, max_new_tokens=4, **asked)
    # Nothing is pruned in these, so chunks do no harm.
    assert torch.equal(model.generate(**text, max_new_tokens=4, **asked), wanted_text)
    model.generation_config.prefill_chunk_size = None
    with tp.paused(model):
        assert torch.equal(model.generate(**batch, max_new_tokens=4), wanted)


def test_a_prompt_cut_inside_an_image_is_refused() -> None:
    """By hand, as chunked prefill does it: a part of the image's features, and then the rest."""
    model = tiny_llava(layers=LAYERS)
    if "mm_encoder_outputs" not in inspect.signature(model.forward).parameters:
        pytest.skip("this release's models take no features that were made before")
    batch = make_batch([(3, IMAGE, 4)])
    features = model.get_image_features(batch["pixel_values"])
    features.pooler_output = [torch.cat(list(features.pooler_output))[:10]]
    tp.wrap(model, tp.DivPruneConfig(keep=9))
    with torch.no_grad(), pytest.raises(ValueError, match="not those of whole images"):
        model(input_ids=batch["input_ids"][:, :13], mm_encoder_outputs={"image": features})


def test_renumbered_positions_need_no_cache() -> None:
    """On a cache, words after the prompt would have positions that no survivor's go with."""
    model = tiny_llava(layers=LAYERS)
    batch = make_batch([(3, IMAGE, 4)])
    tp.wrap(model, tp.ATPConfig(layers=(0, 2), target_tokens=20, positions="renumbered"))
    words = model.generate(**batch, max_new_tokens=3, use_cache=False)
    with pytest.raises(ValueError, match="generate with use_cache=False"):
        model.generate(**batch, max_new_tokens=3)
    one = model.generate(**batch, max_new_tokens=1)
    assert torch.equal(one, words[:, : one.shape[1]])
