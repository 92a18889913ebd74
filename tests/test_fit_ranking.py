"""A learned ranking is fitted to the attention that is to come, and to nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tokenprune as tp
from tokenprune.engine import engine_of, replaced
from tokenprune.training.attention_to_come import Watcher

from .support.tiny_llava import IMAGE, Batch, make_batch, tiny_llava
from .support.tolerance import assert_close

LAYERS = (0, 2)
# One row without an image, one with two, and padding on the left.
RAGGED = ((4, IMAGE, 3), (2, IMAGE, 2, IMAGE, 5), (6,), (1, IMAGE, 9))


def learned(**options: Any) -> Any:
    torch.manual_seed(0)
    chosen = {"layers": LAYERS, "ranking": "learned", "target_tokens": 20.0, **options}
    return tp.wrap(tiny_llava(), tp.ATPConfig(**chosen))


def prompts(count: int, seed: int = 0) -> list[Batch]:
    return [make_batch([(4, IMAGE, 3 + n % 3), (3, IMAGE, 5)], seed=seed + n) for n in range(count)]


def method_of(model: Any) -> Any:
    return engine_of(model).method


def test_what_is_to_be_foreseen_is_the_attention_of_the_layers_behind_each_step() -> None:
    batch = make_batch(RAGGED)
    plain = tiny_llava(attn="eager")
    with torch.no_grad():
        run = plain(**batch, output_attentions=True, output_hidden_states=True)
    visual = batch["input_ids"] == plain.config.image_token_id
    model = learned()
    engine = engine_of(model)
    watcher = Watcher(engine.method, engine.anatomy.num_layers)
    with replaced(engine, model, watcher), torch.no_grad():
        there = batch["attention_mask"].bool()
        assert_close(model(**batch).logits[there], run.logits[there])
        seen = watcher.take()
    rows = [row for row in range(len(visual)) if visual[row].any()]
    assert len(seen) == len(rows) == 3
    width = plain.config.text_config.hidden_size
    for row, steps in zip(rows, seen, strict=True):
        last = int(batch["attention_mask"][row].nonzero().max())
        for layer, step in zip(LAYERS, steps, strict=True):
            # The last layer's is not looked at.
            behind = [a[row, :, last].mean(dim=0) for a in run.attentions[layer + 1 : -1]]
            assert_close(step.to_come, torch.stack(behind).sum(dim=0)[visual[row]])
            state = run.hidden_states[layer + 1][row]
            state = torch.nn.functional.rms_norm(state, state.shape[-1:], eps=1e-6)
            torch.testing.assert_close(
                step.tokens[:, :width].float(), state[visual[row]], rtol=2e-3, atol=2e-3
            )
            torch.testing.assert_close(
                step.prompt[:width].float(), state[last], rtol=2e-3, atol=2e-3
            )


def test_it_comes_closer_to_it_on_prompts_that_it_did_not_see() -> None:
    model = learned()
    found = tp.fit_ranking(model, prompts(40))
    assert tuple(found) == LAYERS
    for before, after in found.values():
        assert after < 0.8 * before


def test_the_model_is_as_it_was_but_for_its_ranking() -> None:
    model = learned()
    tp.train_only_heads(model)
    model.train()
    model.model.vision_tower.eval()
    batch = make_batch(RAGGED)
    engine, backend = engine_of(model), model.config.text_config._attn_implementation
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    with tp.paused(model), torch.no_grad():
        before = model(**batch).logits
    state = torch.get_rng_state()
    tp.fit_ranking(model, prompts(10))
    assert torch.equal(torch.get_rng_state(), state)
    assert engine_of(model) is engine
    assert model.config.text_config._attn_implementation == backend
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert {name: module.training for name, module in model.named_modules()} == modes
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, values[n])}
    assert changed
    assert all("rankings" in name for name in changed)
    with tp.paused(model), torch.no_grad():
        assert torch.equal(model(**batch).logits, before)
    assert not tp.is_wrapped(tp.unwrap(model))


def test_the_same_prompts_give_the_same_ranking_whatever_was_before() -> None:
    first, other = learned(), learned()
    tp.fit_ranking(first, prompts(10))
    tp.fit_ranking(other, prompts(10, seed=99))
    tp.fit_ranking(other, prompts(10))
    for name, value in method_of(first).rankings.named_parameters():
        assert torch.equal(value, method_of(other).rankings.get_parameter(name)), name


def test_budgets_are_forgotten_and_can_be_met_again() -> None:
    model = learned()
    tp.calibrate(model, prompts(4), 14.0)
    assert method_of(model).budgets
    tp.fit_ranking(model, prompts(10))
    assert method_of(model).runtime_state() == method_of(learned()).runtime_state()
    assert tp.calibrate(model, prompts(4), 14)[14] == pytest.approx(14, rel=0.02)


def test_more_than_memory_holds_is_fitted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenprune.training.ranking._MEMORY", 200_000)
    found = tp.fit_ranking(learned(), prompts(40))
    for before, after in found.values():
        assert after < 0.9 * before


def test_what_cannot_be_fitted_is_refused_and_the_heads_stay() -> None:
    with pytest.raises(ValueError, match="wrapped with FastV, whose ranking is not learned"):
        tp.fit_ranking(tp.wrap(tiny_llava(), tp.FastVConfig(layer=1, keep=9)), prompts(1))
    with pytest.raises(ValueError, match="wrapped with ATP, whose ranking is not learned"):
        tp.fit_ranking(tp.wrap(tiny_llava(), tp.ATPConfig(layers=LAYERS)), prompts(1))
    model = learned()
    budgets = tp.calibrate(model, prompts(4), 14)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match="hold 4 prompts with an image before text"):
        tp.fit_ranking(model, prompts(2))
    with pytest.raises(ValueError, match="hold 0 prompts"):
        tp.fit_ranking(model, [make_batch([(5,)])])
    torch.nn.init.constant_(model.model.language_model.layers[1].mlp.down_proj.weight, torch.inf)
    with pytest.raises((ValueError, FloatingPointError), match="finite"):
        tp.fit_ranking(model, prompts(10))
    assert [b["tokens"] for b in method_of(model).budgets] == list(budgets)
    for name, value in method_of(model).named_parameters():
        assert torch.equal(value, before[f"tokenprune.method.{name}"]), name


def test_several_ranks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenprune.training.ranking.world_size", lambda: 2)
    with pytest.raises(RuntimeError, match="2 ranks run: fit in one process"):
        tp.fit_ranking(learned(), prompts(1))
