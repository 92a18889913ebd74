"""NaN or infinity in heads, features and scores stops the pass, and names where it was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tokenprune as tp
from tokenprune.config import MethodConfig

from .support.strategies import LAYERS, model_of
from .support.tiny_llava import IMAGE, IMAGE_TOKEN, make_batch, tiny_llava, with_labels
from .support.wrapping import wrapped
from .test_methods import EVERY, ids

PROMPTS = ((4, IMAGE, 3), (2, IMAGE, 6), (8,))
ATP = tp.ATPConfig(layers=(0, 2), target_tokens=20)


@contextmanager
def changed_output(module: nn.Module, change: Callable[[Tensor], None]) -> Iterator[None]:
    """Inside, a decoder layer's output is changed in place, before anybody else sees it."""

    def hook(_: nn.Module, args: Any, output: Any) -> None:
        change(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(hook, prepend=True)
    try:
        yield
    finally:
        handle.remove()


# Heads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("part", ["project.weight", "heads.weight", "heads.bias"])
@pytest.mark.parametrize("module", [0, 1])
def test_heads(device: str, module: int, part: str, bad: float) -> None:
    """The layer is named; module n follows layer 2n."""
    model = model_of(device=device)
    batch = make_batch(PROMPTS, device=device)
    with torch.no_grad(), wrapped(model, ATP):
        wanted = model(**batch).logits
        parameter = model.tokenprune.method.thresholds[module].get_parameter(part)
        before = parameter.detach().clone()
        parameter.fill_(bad)
        message = rf"thresholds after decoder layer {2 * module} .*heads.*tokenprune.load_heads"
        with pytest.raises(FloatingPointError, match=message):
            model(**batch)
        with pytest.raises(FloatingPointError, match=message):
            model.generate(**batch, max_new_tokens=2, pad_token_id=0)
        with tp.paused(model):
            model(**batch)
        parameter.copy_(before)
        assert torch.equal(model(**batch).logits, wanted)


def test_one_step_on_a_loss_that_is_nan(device: str) -> None:
    """What makes heads NaN in practice: every parameter, by one optimiser step."""
    model = tiny_llava(layers=LAYERS, device=device)
    batch = with_labels(make_batch(PROMPTS, device=device), 2)
    tp.wrap(model, ATP)
    optimizer = torch.optim.AdamW(tp.train_only_heads(model), lr=1e-3)
    model.train()
    (model(**batch).loss * torch.nan).backward()
    optimizer.step()
    model.eval()
    with torch.no_grad(), pytest.raises(FloatingPointError, match="thresholds after decoder layer"):
        model(**batch)


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("training", ["soft", "straight_through"])
@pytest.mark.parametrize("prunings", [("redundant",), ("spatial",), ("redundant", "spatial")])
@pytest.mark.parametrize("revival", [False, True])
@pytest.mark.parametrize("module", [0, 1])
def test_heads_in_training(
    training: str, prunings: tuple[str, ...], revival: bool, module: int, labels: bool
) -> None:
    """The loss is NaN, as anywhere in torch: training does not wait for the device to look."""
    options = {"training": training, "prunings": prunings, "revival": revival}
    config = tp.ATPConfig(layers=(0, 2), target_tokens=20, **options)
    batch = make_batch(PROMPTS)
    if labels:
        batch = with_labels(batch, 2)
    model = model_of()
    with wrapped(model.train(), config):
        try:
            model.tokenprune.method.thresholds[module].heads.bias.data.fill_(torch.nan)
            out = model(**batch)
            losses = tp.losses(model)
        finally:
            model.eval()
    assert losses["atp"].isnan()
    assert losses["target"].isnan()
    if labels:
        assert out.loss.isnan()
        assert losses["lm"].isnan()
        assert losses["total"].isnan()


def test_a_batch_without_images_in_training() -> None:
    """It teaches the heads nothing; its loss says that they are not finite all the same."""
    model = model_of()
    with wrapped(model.train(), ATP):
        try:
            model.tokenprune.method.thresholds[0].heads.bias.data.fill_(torch.nan)
            assert model(**with_labels(make_batch([(8,)]), 2)).loss.isnan()
        finally:
            model.eval()


# Features ---------------------------------------------------------------------------------------


def place_of(layer: int) -> str:
    return "before the first decoder layer" if layer < 0 else f"after decoder layer {layer}"


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_features(device: str, config: MethodConfig, attn: str, bad: float) -> None:
    """One number of one visual token, in what each module sees first."""
    model = model_of(attn, device)
    batch = make_batch(PROMPTS, device=device)
    visual = batch["input_ids"] == IMAGE_TOKEN
    token = int(visual[1].nonzero()[5])

    def spoil(hidden: Tensor) -> None:
        hidden[1, token, 3] = bad

    with torch.no_grad(), wrapped(model, config):
        layer = model.tokenprune.method.layers[0]
        wanted = None if config.method == "random" else model(**batch).logits
        language = model.model.language_model
        where = language.layers[layer] if layer >= 0 else model.model.multi_modal_projector
        if layer < 0:

            def spoil(hidden: Tensor) -> None:
                hidden.view(-1, hidden.shape[-1])[40, 3] = bad

        with changed_output(where, spoil):
            with pytest.raises(FloatingPointError, match=rf"hidden states .*{place_of(layer)}"):
                model(**batch)
            with pytest.raises(FloatingPointError, match=place_of(layer)):
                model.generate(**batch, max_new_tokens=2, pad_token_id=0)
        if wanted is not None:
            assert torch.equal(model(**batch).logits, wanted)


@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_nan_pixels(device: str, config: MethodConfig) -> None:
    """As a broken image preprocessor hands them over: seen at the first module there is."""
    model = model_of(device=device)
    batch = make_batch(PROMPTS, device=device)
    batch["pixel_values"][1, 0, 3, 3] = torch.nan
    with torch.no_grad(), wrapped(model, config):
        place = place_of(model.tokenprune.method.layers[0])
        with pytest.raises(FloatingPointError, match=place):
            model(**batch)


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_padding_does_not_matter(device: str, config: MethodConfig, padding: str) -> None:
    """NaN at padding changes nothing: padding is dropped with the first tokens."""
    model = model_of(device=device)
    batch = make_batch(PROMPTS, padding, device=device)
    there = batch["attention_mask"].bool()

    def spoil(hidden: Tensor) -> None:
        hidden[~there] = torch.nan

    found = []
    for change in (lambda hidden: None, spoil):
        with torch.no_grad(), wrapped(model, config):
            layer = model.tokenprune.method.layers[0]
            language = model.model.language_model
            where = language.layers[layer] if layer >= 0 else language.embed_tokens
            with changed_output(where, change):
                found.append((model(**batch).logits[there], tp.stats(model).kept))
    assert torch.equal(found[0][0], found[1][0])
    assert (found[0][1] == found[1][1]).all()


def test_a_merge_that_overflows(device: str) -> None:
    """Features near half precision's largest number, to which PruMerge adds others."""
    model = model_of(device=device, dtype=torch.float16)
    batch = make_batch(PROMPTS, device=device, dtype=torch.float16)
    place = "before the first decoder layer"
    with (
        torch.no_grad(),
        wrapped(model, tp.PruMergeConfig(keep=4)),
        changed_output(model.model.multi_modal_projector, lambda hidden: hidden.fill_(65000.0)),
        pytest.raises(FloatingPointError, match=place),
    ):
        model(**batch)
