"""Invariant 1: everything kept, paused or unwrapped, the model is bit for bit what it was."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tokenprune as tp
from tokenprune.engine import ATTRIBUTE

from .support.scripted_method import attach, scripted
from .support.strategies import LAYERS, Case, cases, model_of
from .support.tiny_llava import IMAGE, cache_of, make_batch, on_cache, tiny_llava, with_labels
from .support.wrapping import config_of, hooks_of

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GENERATE = [
    {"do_sample": False},
    {"do_sample": False, "num_beams": 3},
    {"do_sample": True, "num_return_sequences": 2},
    {"do_sample": False, "use_cache": False},
]


def run(model: nn.Module, batch: dict) -> dict[str, torch.Tensor]:
    """All tensors of an output."""
    with torch.no_grad():
        out = model(**batch, output_hidden_states=True, use_cache=True)
    hidden = {f"hidden {n}": h for n, h in enumerate(out.hidden_states)}
    layers = enumerate(cache_of(out).layers)
    keys = {f"keys {n}": layer.keys for n, layer in layers}
    return {"loss": out.loss, "logits": out.logits, **hidden, **keys}


def assert_same(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        # The loss over no labels at all is NaN in both.
        torch.testing.assert_close(
            actual[name], value, rtol=0, atol=0, equal_nan=True, msg=f"{name} differs"
        )


def all_true(case: Case) -> torch.Tensor:
    return case.script().all(True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(), needs=st.sampled_from([(), ("prompt",), ("visual", "prompt")]))
def test_everything_kept(device: str, attn: str, dtype: torch.dtype, case: Case, needs) -> None:
    model = model_of(attn, device, dtype)
    batch = with_labels(case.batch(device, dtype), 2)
    expected = run(model, batch)
    with scripted(model, case.layers, all_true(case), needs) as method:
        assert_same(run(model, batch), expected)
        ran = len(case.layers) if "pixel_values" in batch else 0
        assert len(method.contexts) == ran


@pytest.mark.parametrize("arguments", GENERATE, ids=str)
@given(case=cases(rows=2, image=True))
def test_everything_kept_in_generate(device: str, arguments: dict, case: Case) -> None:
    model = model_of(device=device)
    batch = case.batch(device)

    def generate() -> torch.Tensor:
        torch.manual_seed(0)
        return model.generate(**batch, max_new_tokens=4, **arguments)

    expected = generate()
    with scripted(model, case.layers, all_true(case)) as method:
        assert torch.equal(generate(), expected)
        assert method.contexts


def test_atp_that_keeps_everything(device: str, attn: str) -> None:
    model = tiny_llava(attn, device=device)
    batch = with_labels(
        make_batch([(3, IMAGE, 4), (9,), (1, IMAGE, 2, IMAGE, 5)], device=device), 2
    )
    expected = run(model, batch)
    tp.wrap(
        model,
        tp.ATPConfig(layers=(0, 2), target_tokens=20, start_redundant=-30.0, start_spatial=-30.0),
    )
    assert_same(run(model, batch), expected)
    assert tp.stats(model).final_tokens.tolist() == [36, 0, 72]


@given(case=cases())
def test_paused(device: str, case: Case) -> None:
    model = model_of(device=device)
    batch = with_labels(case.batch(device), 2)
    expected = run(model, batch)
    ids = model.generate(**batch, max_new_tokens=3, do_sample=False)
    with scripted(model, case.layers, case.script()) as method:
        with tp.paused(model):
            assert_same(run(model, batch), expected)
            assert torch.equal(model.generate(**batch, max_new_tokens=3, do_sample=False), ids)
        assert not method.contexts


def test_paused_nests_and_ends_with_an_exception() -> None:
    model = model_of()
    batch = with_labels(make_batch([(3, IMAGE, 4)]), 2)
    expected = run(model, batch)
    with scripted(model, (1,), torch.zeros(1, 1, 1, 6, 6, dtype=torch.bool)):
        pruned = run(model, batch)
        assert not torch.equal(pruned["logits"], expected["logits"])
        with tp.paused(model):
            with tp.paused(model):
                assert_same(run(model, batch), expected)
            assert_same(run(model, batch), expected)
        assert_same(run(model, batch), pruned)
        with pytest.raises(KeyError), tp.paused(model), tp.paused(model):
            raise KeyError
        assert_same(run(model, batch), pruned)


def test_paused_is_for_one_model_only() -> None:
    first, second = tiny_llava(), tiny_llava()
    batch = with_labels(make_batch([(3, IMAGE, 4)]), 2)
    nothing = torch.zeros(1, 1, 1, 6, 6, dtype=torch.bool)
    with scripted(first, (1,), nothing), scripted(second, (1,), nothing):
        pruned = run(second, batch)
        with tp.paused(first):
            assert_same(run(second, batch), pruned)
            assert not torch.equal(run(first, batch)["logits"], pruned["logits"])


def test_unwrap_leaves_nothing(attn: str) -> None:
    model = tiny_llava(attn)
    batch = with_labels(make_batch([(3, IMAGE, 4), (6,)]), 2)
    expected = run(model, batch)
    model.model.language_model.layers[2].register_forward_hook(lambda *_: None)
    hooks, config = hooks_of(model), config_of(model)
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    frozen = "model.language_model.layers.0.self_attn.q_proj.weight"
    model.get_parameter(frozen).requires_grad_(False)
    asks = {name: p.requires_grad for name, p in model.named_parameters()}

    for _ in range(2):
        assert tp.wrap(model, tp.ATPConfig(layers=(1, 3), target_tokens=20)) is model
        assert hooks_of(model) != hooks
        own = {name for name in model.state_dict() if name.startswith(ATTRIBUTE + ".")}
        assert own
        assert model.state_dict().keys() - own == weights.keys()
        tp.train_only_heads(model)
        run(model, batch)
        model.generate(**batch_without_labels(batch), max_new_tokens=2)
        assert tp.unwrap(model) is model

        assert hooks_of(model) == hooks
        assert config_of(model) == config
        assert {n: set(vars(m)) for n, m in model.named_modules()} == attributes
        assert not hasattr(model, ATTRIBUTE)
        assert_same(model.state_dict(), weights)
        assert {n: p.requires_grad for n, p in model.named_parameters()} == asks
        assert_same(run(model, batch), expected)


def batch_without_labels(batch: dict) -> dict:
    return {name: value for name, value in batch.items() if name != "labels"}


def test_a_cache_filled_while_wrapped_serves_after_unwrap() -> None:
    model = tiny_llava(layers=LAYERS)
    batch = make_batch([(3, IMAGE, 4)])
    attach(model, (1,), torch.ones(1, 1, 1, 6, 6, dtype=torch.bool))
    cache = cache_of(model(**batch))
    tp.unwrap(model)
    follow = {"input_ids": torch.tensor([[9]]), **on_cache(model, cache)}
    fresh = {"input_ids": torch.tensor([[9]]), **on_cache(model, cache_of(model(**batch)))}
    assert torch.equal(model(**follow).logits, model(**fresh).logits)


def test_saving_while_wrapped_keeps_the_models_own_configuration(tmp_path: Path) -> None:
    model = tiny_llava()
    with scripted(model, (1,), torch.ones(1, 1, 1, 6, 6, dtype=torch.bool)):
        model.save_pretrained(tmp_path)
    assert "tokenprune" not in (tmp_path / "config.json").read_text()
