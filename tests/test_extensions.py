"""What the paper's readers ask for: tokens that come back, and text that goes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.methods.atp import ATP

from .support.reference_decoder import Reference
from .support.scripted_method import SPARED, scripted
from .support.strategies import LAYERS, Case, cases, model_of, reference_rows
from .support.tiny_llava import (
    BOS,
    IMAGE,
    IMAGE_TOKEN,
    VISUAL_TOKENS,
    make_batch,
    row_alone,
    tiny_llava,
    with_labels,
)
from .support.tolerance import assert_close


@given(case=cases(image=True))
def test_the_gone_are_scored_as_if_they_were_there(device: str, attn: str, case: Case) -> None:
    """With the state they left with, by those who are there, against the maths."""
    case = replace(case, revives=True)
    model = model_of(attn, device)
    batch, script = case.batch(device), case.script()
    with torch.no_grad(), scripted(model, case.layers, script, ("visual", "prompt")) as method:
        model(**batch)
    reference = Reference(model)
    rows = reference_rows(model, batch, case.layers, script)
    for module, layer in enumerate(case.layers):
        context = method.contexts[module]
        for n, (where, alive, row) in enumerate(rows):
            ids = row_alone(batch, n)["input_ids"][0]
            visual = ids == IMAGE_TOKEN
            assert torch.equal(context.layout.mask[n, where], visual)
            left = ~visual if layer < 0 else alive[layer] & ~visual
            assert torch.equal(context.prompt[n, where], left)
            spared = torch.isin(ids, ids.new_tensor(SPARED))
            spared[-1] = True
            droppable = left & ~spared if script.words is not None else torch.zeros_like(left)
            assert torch.equal(context.text[n, where], droppable)
            # A token's state in the layer after is what it had before, if it is not in this one.
            state = row.inputs[layer + 1]
            before = alive[max(layer, 0)] | visual
            assert_close(context.hidden_states[n, where][before], state[before], f"state, row {n}")
            if layer < 0:
                continue
            here = alive[layer]
            causal = torch.ones(len(ids), len(ids), dtype=torch.bool, device=ids.device).tril()
            itself = torch.eye(len(ids), dtype=torch.bool, device=ids.device)
            visible = (causal & (here | visual)) | itself
            table = reference.attention(row.inputs[layer], layer, visible)
            for name, asked in (("visual", here & visual), ("prompt", here & ~visual)):
                found = context.received[name]
                total, seen = table[asked].sum(0), visible[asked].sum(0)
                there = visual | droppable
                assert_close(found.total[n, where][there], total[there], f"{name}, row {n}")
                assert torch.equal(found.seen_by[n, where][there].long(), seen[there])
                assert int(found.queries[n]) == int(asked.sum())


def in_and_out(model: Any, drops_first: bool = True) -> None:
    """Set ATP's thresholds so that one module drops everything and the next nothing, or so."""
    method: Any = engine_of(model).method
    first = 30.0 if drops_first else -30.0
    for heads, bias in zip(method.thresholds, (first, -30.0, -30.0), strict=False):
        for parameter in heads.parameters():
            torch.nn.init.zeros_(parameter)
        biases = [p for name, p in heads.named_parameters() if name.endswith("bias")]
        torch.nn.init.constant_(biases[-1], bias)


@pytest.mark.parametrize("revival", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_atp_takes_back_what_passes_a_later_threshold(revival: bool, training: bool) -> None:
    config = tp.ATPConfig(layers=(1, 3), target_tokens=18, revival=revival)
    model = tp.wrap(tiny_llava(), config)
    in_and_out(model)
    model.train(training)
    batch = with_labels(make_batch([(3, IMAGE, 4), (2, IMAGE, IMAGE, 5), (4,)]), 1)
    model(**batch) if training else torch.no_grad()(model)(**batch)
    back = [36, 72, 0] if revival else [0, 0, 0]
    rows = [[36, 72, 0]] * 2 + [[0, 0, 0]] * 2 + [back] * 2
    assert tp.stats(model).kept.tolist() == rows


class Watched(ATP):
    """ATP that notes what it is given."""

    def __init__(self, config: tp.ATPConfig, visual_tokens: int) -> None:
        super().__init__(config, visual_tokens)
        self.contexts: list[tp.Context] = []

    def select(self, context: tp.Context) -> tp.Selection:
        self.contexts.append(context)
        return super().select(context)


def test_a_softened_token_is_scored_as_if_it_were_there() -> None:
    """In training too: a token that is as good as gone is not blind to the next module."""
    batch = with_labels(make_batch([(3, IMAGE, 4)]), 1)
    found = {}
    for revival in (True, False):
        config = tp.ATPConfig(
            layers=(1, 3, 4), target_tokens=18, revival=revival, prunings=("redundant",)
        )
        model: Any = tp.wrap(tiny_llava(), config)
        watched = Watched(engine_of(model).method.config, VISUAL_TOKENS)
        model = tp.wrap(tp.unwrap(model), watched).train()
        in_and_out(model)
        contexts = watched.contexts
        model(**batch)
        found[revival] = contexts[1].received["prompt"].total[contexts[1].layout.mask]
        weight = contexts[1].weight[contexts[1].layout.mask]
        assert weight.mean() == (1 if revival else 0)
        # What the second module took back speaks at the third.
        assert contexts[2].received["visual"].queries.tolist() == [36 if revival else 0]
    assert found[True].sum() > 3 * found[False].sum()


def text_by_hand(model: Any, batch: Any, threshold: float) -> Tensor:
    """Which text the second of two modules, after layers 1 and 3, must keep."""
    with torch.no_grad(), tp.paused(model):
        table = model(**batch, output_attentions=True).attentions[3].mean(dim=1)[0]
    ids = batch["input_ids"][0].tolist()
    text = [n for n, word in enumerate(ids) if word != IMAGE_TOKEN]
    may_go = [n for n in text if n != len(ids) - 1 and ids[n] not in (BOS, 17)]
    mean_of = {n: sum(float(table[q, n]) for q in text if q >= n) for n in may_go}
    mean_of = {n: got / sum(q >= n for q in text) for n, got in mean_of.items()}
    typical = sum(mean_of.values()) / len(mean_of)
    gone = {n for n, got in mean_of.items() if not got / (got + typical) > threshold}
    assert 0 < len(gone) < len(may_go)
    return torch.tensor([n not in gone for n in range(len(ids))])


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_atp_drops_text_by_the_rule(device: str, threshold: float) -> None:
    model = tiny_llava("eager", device=device, layers=LAYERS)
    config = tp.ATPConfig(
        layers=(1, 3), target_tokens=30, text_threshold=threshold, special_ids=(17,)
    )
    tp.wrap(model, config)
    in_and_out(model, drops_first=False)
    batch = make_batch([(5, IMAGE, 9)], device=device)
    batch["input_ids"][0, 0] = BOS
    batch["input_ids"][0, 2] = 17
    with torch.no_grad():
        model(**batch)
    alive = tp.stats(model).alive[:, 0]
    assert alive[:4].all()
    assert alive[4].tolist() == text_by_hand(model, batch, threshold).tolist()


def test_text_of_a_row_without_a_picture_stays(device: str) -> None:
    model = model_of(device=device)
    tp.wrap(model, tp.ATPConfig(layers=(1, 2), target_tokens=30, text_threshold=0.99))
    try:
        with torch.no_grad():
            model(**make_batch([(5, IMAGE, 9), (7,)], device=device))
        alive = tp.stats(model).alive
        assert alive[-1, 1].sum() == 7
        assert alive[-1, 0].sum() < 14
    finally:
        tp.unwrap(model)
