"""Survivors numbered anew: the decoder runs as on a prompt that never had the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tokenprune as tp

from .families import FAMILIES
from .support.config_strategies import fixed_configs, swept_methods
from .support.strategies import LAYERS, model_of
from .support.tiny_llava import (
    IMAGE,
    IMAGE_TOKEN,
    Batch,
    is_text,
    make_batch,
    row_alone,
    tiny_llava,
)
from .support.tolerance import assert_close
from .support.wrapping import wrapped

PROMPTS = [(4, IMAGE, 3), (2, IMAGE, 1, IMAGE, 6), (5, IMAGE, 2)]


class Ordered(tp.Method):
    """Before the first layer, keep and order by drawn numbers; note what was kept."""

    def __init__(self, seed: int, positions: str = "renumbered", keep: float = 0.4) -> None:
        super().__init__(tp.RandomConfig(layers=(-1,), positions=positions))
        numbers = torch.rand(2, 99, generator=torch.Generator().manual_seed(seed))
        self.stays, self.key = numbers[0] < keep, numbers[1]

    def select(self, context: tp.Context) -> tp.Selection:
        # Counted among the row's visual tokens, so that padding changes nothing.
        place = (context.layout.mask.long().cumsum(dim=1) - 1).clamp(min=0)
        return tp.Selection(keep=self.stays[place], order=self.key[place])


def inputs_of(model: Any, row: Batch) -> Tensor:
    """The first decoder layer's input of one row: (length, width)."""
    return model(**row, output_hidden_states=True).hidden_states[0][0]


def on_its_own(model: Any, embeddings: Tensor) -> Tensor:
    """What the decoder and the head make of some inputs: (tokens, vocabulary)."""
    return model.lm_head(model.model.language_model(inputs_embeds=embeddings[None])[0])[0]


@pytest.mark.parametrize("seed", range(4))
def test_the_decoder_sees_the_survivors_in_their_order(seed: int) -> None:
    """In ragged rows; two pictures stay apart."""
    model, method = model_of(), Ordered(seed)
    batch = make_batch(PROMPTS, seed=seed)
    with torch.no_grad():
        with wrapped(model, method):
            found = model(**batch).logits
        for n in range(len(PROMPTS)):
            row = row_alone(batch, n)
            text = is_text(row)[0].tolist()
            visual = iter(range(text.count(False)))
            numbers = [None if is_one else next(visual) for is_one in text]
            order: list[int] = []
            begun: list[int] = []  # of the picture that stands before the next text
            for place, number in [*enumerate(numbers), (len(numbers), None)]:
                if number is not None:
                    begun.append(place)
                    continue
                stays = [t for t in begun if method.stays[numbers[t]]]
                order += sorted(stays, key=lambda t: float(method.key[numbers[t]]))
                order += [place] * (place < len(numbers))
                begun = []
            wanted = on_its_own(model, inputs_of(model, row)[order])
            kept_text = [slot for slot, place in enumerate(order) if text[place]]
            there = batch["attention_mask"][n].bool() & (batch["input_ids"][n] != IMAGE_TOKEN)
            assert_close(found[n, there], wanted[kept_text], f"row {n}")


def test_with_their_own_positions_they_stand_in_their_own_order() -> None:
    model = model_of()
    batch = make_batch(PROMPTS)
    with torch.no_grad():
        found = []
        for same in (False, True):
            method = Ordered(3, positions="kept")
            if same:
                method.key = torch.zeros_like(method.key)
            with wrapped(model, method):
                found.append(model(**batch).logits)
    assert torch.equal(*found)


@pytest.mark.parametrize("name", swept_methods())
def test_every_method_can_number_anew(name: str) -> None:
    """Other answers than with positions kept, the same without a cache, rows still independent."""
    if name == "random":
        pytest.skip("a draw for each row differs from the draw for that row alone")
    config = fixed_configs(name)[0]
    values = {**config.to_dict(), "positions": "renumbered"}
    model = model_of()
    batch = make_batch(PROMPTS)
    with torch.no_grad():
        with wrapped(model, config):
            before = model(**batch).logits
        with wrapped(model, type(config).from_dict(values)):
            many = model(**batch).logits
            text = is_text(batch)
            assert not torch.allclose(many[text], before[text], atol=1e-3)
            for n in range(len(PROMPTS)):
                row = row_alone(batch, n)
                assert_close(many[n][text[n]], model(**row).logits[0][is_text(row)[0]], f"row {n}")


def test_the_last_step_counts() -> None:
    """Numbered by what is left: after the last step text follows the survivors without a gap."""
    model, seen = model_of(), {}
    layers = model.model.language_model.layers
    config = tp.PyramidDropConfig(layers=(0, 2), keep=0.5, positions="renumbered")
    with torch.no_grad(), wrapped(model, config):
        handles = [  # put on behind ours
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, n=n: seen.update({n: kwargs["position_ids"]}),
                with_kwargs=True,
            )
            for n, layer in enumerate(layers)
        ]
        model(**make_batch([(4, IMAGE, 3)]))
        for handle in handles:
            handle.remove()
    sizes = [43, 25, 25, *[16] * (LAYERS - 3)]
    assert [seen[n][0].tolist() for n in range(LAYERS)] == [list(range(size)) for size in sizes]


def qwen() -> Any:
    return FAMILIES["qwen2_vl"].build()


def with_sections() -> Any:
    """A model that says so in its configuration alone."""
    model = tiny_llava(layers=LAYERS)
    config = model.config.text_config
    name = "rope_parameters" if hasattr(config, "rope_parameters") else "rope_scaling"
    setattr(config, name, {"rope_type": "default", "mrope_section": [2, 1, 1]})
    return model


@pytest.mark.parametrize("build", [qwen, with_sections])
def test_positions_of_several_axes_are_refused(build: Callable[[], Any]) -> None:
    model = build()
    before = set(dir(model))
    with pytest.raises(ValueError, match=r"positions='renumbered': .*M-RoPE.*positions=\"kept\""):
        tp.wrap(model, tp.FastVConfig(layer=0, keep=4, positions="renumbered"))
    assert set(dir(model)) == before
