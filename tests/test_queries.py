"""What methods are shown: attention by groups of queries, and the vision tower's class token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given

import tokenprune as tp
from tokenprune.engine.passes import observed
from tokenprune.kernels import attention_received
from tokenprune.methods.context import Context

from .support.scripted_method import Scripted, scripted
from .support.strategies import LAYERS, Case, cases, model_of
from .support.tiny_llava import IMAGE, cache_of, is_text, make_batch, on_cache, tiny_llava
from .support.tolerance import assert_close

NEEDS = ("visual", "prompt", "last", "each")


def shown(model: Any, batch: Any, layer: int) -> Context:
    """The context of a module that keeps everything."""
    rows = len(batch["input_ids"])
    everything = torch.ones(1, rows, 2, 6, 6, dtype=torch.bool)
    with torch.no_grad(), scripted(model, (layer,), everything, NEEDS) as method:
        model(**batch)
    return method.contexts[0]


@given(case=cases(image=True))
def test_groups_of_queries(device: str, case: Case) -> None:
    """Against the whole map that eager attention gives: what the visual tokens of a row receive."""
    model = model_of("eager", device)
    batch = case.batch(device)
    layer = max(0, case.layers[0])
    with torch.no_grad():
        maps = model(**batch, output_attentions=True).attentions[layer].mean(dim=1)
    received = shown(model, batch, layer).received
    texts = is_text(batch)
    for row in range(case.rows):
        there = batch["attention_mask"][row].bool()
        text = texts[row].nonzero()[:, 0]
        visual = (there & ~texts[row]).nonzero()[:, 0]
        table = maps[row][:, visual]
        last = text[-1:] if len(text) else there.nonzero()[-1]
        for name, queries in (("visual", visual), ("prompt", text), ("last", last)):
            found = received[name].total[row, visual]
            assert_close(found, table[queries].sum(0), f"{name}, row {row}")
            assert received[name].queries[row] == len(queries)
        each = received["each"].total[row][:, visual]
        assert_close(each[: len(text)], table[text], f"each, row {row}")
        assert (each[len(text) :] == 0).all()


def test_a_second_turn_is_asked_about_its_own_tokens(device: str) -> None:
    """The keys of an earlier turn stand before them."""
    model = model_of("eager", device)
    batch = make_batch([(7, IMAGE, 5)], device=device)
    visual = ~is_text(batch)[0]
    with torch.no_grad():
        table = model(**batch, output_attentions=True).attentions[1].mean(dim=1)[0]
        cache = cache_of(model(input_ids=batch["input_ids"][:, :4], use_cache=True))
    second = {**batch, "input_ids": batch["input_ids"][:, 4:], **on_cache(model, cache)}
    received = shown(model, second, 1).received
    expected = table[visual][:, visual].sum(0)
    assert_close(received["visual"].total[0, visual[4:]], expected, "visual")
    expected = table[4:][~visual[4:]][:, visual].sum(0)
    assert_close(received["prompt"].total[0, visual[4:]], expected, "prompt")


def test_the_last_text_is_the_prompts_and_not_an_answers(device: str) -> None:
    model = model_of("eager", device)
    batch = make_batch([(4, IMAGE, 5)], device=device)
    whole = shown(model, batch, 1).received["last"].total
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :-2] = -100
    shorter = shown(model, batch, 1).received["last"].total
    short = {name: value[:, :-2] for name, value in batch.items() if name != "pixel_values"}
    short["pixel_values"] = batch["pixel_values"]
    del short["labels"]
    assert_close(shorter[:, :-2], shown(model, short, 1).received["last"].total, "prompt alone")
    assert not torch.allclose(shorter, whole)


@pytest.mark.parametrize("back", [1, 2])
def test_the_towers_class_token(device: str, attn: str, back: int) -> None:
    """Against the attention that CLIP itself gives, image by image and row by row."""
    model = tiny_llava(attn, layers=LAYERS, device=device)
    batch = make_batch([(4, IMAGE, 3), (2, IMAGE, IMAGE, 6), (5, IMAGE)], device=device)
    tower = model.model.vision_tower
    states = {}
    modules = [m for name, m in tower.named_modules() if name.endswith("self_attn")]
    # The tiny tower has one layer: what is asked for beyond it is that one.
    handle = modules[0].k_proj.register_forward_hook(lambda m, a, out: states.update(key=out))
    eager = tiny_llava("eager", layers=LAYERS, device=device).model.vision_tower
    eager.load_state_dict(tower.state_dict())
    with torch.no_grad():
        wanted = eager(batch["pixel_values"], output_attentions=True).attentions[0]
    method = Scripted((-1,), torch.ones(1, 3, 2, 6, 6, dtype=torch.bool))
    method.tower_layer = -back
    tp.wrap(model, method)
    with torch.no_grad():
        model(**batch)
    handle.remove()
    found = method.contexts[0].tower
    assert found is not None
    visual = batch["input_ids"] == 63
    assert_close(found.attention[visual], wanted.mean(1)[:, 0, 1:].flatten(), "attention")
    assert (found.attention[~visual] == 0).all()
    keys = states["key"][:, 1:].flatten(0, 1)
    assert_close(found.keys[visual].flatten(1), keys, "keys")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@given(case=cases(image=True))
def test_what_the_attention_kernel_leaves_is_used(
    device: str, attn: str, dtype: torch.dtype, case: Case
) -> None:
    """A fused kernel's log-sum-exp, and the same answer as without it."""
    model = model_of(attn, device, dtype)
    seen = []

    def both(*args: Any) -> Any:
        *given, lse, wanted = args
        seen.append(lse)
        found, plain = (attention_received(*given, used, wanted) for used in (lse, None))
        for ours, theirs in zip(found, plain, strict=True):
            # In bfloat16 newer CPU kernels sum what they have rounded.
            error = 3e-4 if dtype == torch.bfloat16 else 3e-5
            assert (ours - theirs).abs().max() <= error * theirs.abs().max()
        return found

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(observed, "attention_received", both)
        with scripted(model, case.layers, case.script(), ("visual", "prompt")):
            model(**case.batch(device, dtype))
    here = [layer for layer in case.layers if layer >= 0]
    assert len(seen) == len(here)
    if attn == "eager" or (attn, device) == ("flex_attention", "cpu"):
        assert all(lse is None for lse in seen)
    elif device == "cpu" and torch.__version__ >= (2, 11) and not case.revives:
        # Older ones leave none where query heads share keys.
        assert all(lse is not None and lse.dtype == torch.float32 for lse in seen)
