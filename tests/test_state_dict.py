"""A state dict has everything that decides how many tokens stay, not the heads' weights alone."""

import warnings

import pytest
import torch
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.methods import METHODS
from tokenprune.saved import tensors_of

from .support.saved_heads import atp_llava, base, method, run
from .support.tiny_llava import IMAGE, make_batch

KEY = "tokenprune.method._extra_state"
# Binary fractions and others, which no float32 holds.
RUNTIME = {
    "shifts": [[0.1, -0.7], [0.3, 0.0]],
    "max_kept": 21,
    "budgets": [
        {"tokens": 18.2, "shifts": [[0.1, -0.7], [0.3, 0.0]], "max_kept": 21},
        {"tokens": 24.0, "shifts": [[-0.3, 0.0], [0.1, 0.2]], "max_kept": None},
    ],
}


@pytest.fixture
def model():
    model = atp_llava()
    method(model).load_runtime_state(RUNTIME)
    return model


def kept(model):
    return run(model)[1].alive.tolist()


def written_and_read(weights, how, folder):
    """A state dict that went through a file."""
    if how == "safetensors":
        from safetensors.torch import load_file, save_file

        save_file(weights, folder / "model.safetensors")
        return load_file(folder / "model.safetensors")
    torch.save(weights, folder / "model.bin")
    return torch.load(folder / "model.bin", weights_only=True)


@pytest.mark.parametrize("how", ["safetensors", "torch"])
def test_a_strict_load_keeps_the_same_tokens(model, how, tmp_path):
    other = atp_llava(seed=5)
    assert kept(other) != kept(model)
    weights = written_and_read(model.state_dict(), how, tmp_path)
    assert other.load_state_dict(weights, strict=True).missing_keys == []
    assert method(other).runtime_state() == RUNTIME
    assert kept(other) == kept(model)
    for each in (model, other):
        tp.set_budget(each, 20.0)
    assert kept(other) == kept(model)


def test_weights_alone_do_not_decide(model):
    """The counts hang on the runtime state: without it, the tests here could not fail."""
    before = kept(model)
    method(model).load_runtime_state({})
    assert kept(model) != before


def test_half_precision_does_not_round_it(model):
    assert method(model.bfloat16()).runtime_state() == RUNTIME
    other = atp_llava(seed=5)
    other.load_state_dict(model.state_dict())
    assert method(other).runtime_state() == RUNTIME


def test_distributed_checkpoints_have_it(model):
    """``torch.distributed.checkpoint``, which FSDP2 and accelerate save with."""
    weights = get_model_state_dict(model)
    assert KEY in weights
    other = atp_llava(seed=5)
    set_model_state_dict(other, weights)
    assert kept(other) == kept(model)


@pytest.mark.parametrize("strict", [True, False])
def test_heads_without_it_are_refused(model, strict):
    """As an earlier version wrote them, and as transformers' Trainer loads them."""
    weights = model.state_dict()
    del weights[KEY]
    with pytest.raises(RuntimeError, match=rf"{KEY} is missing: .*tokenprune\.load_heads"):
        atp_llava(seed=5).load_state_dict(weights, strict=strict)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "JSON|Expecting"),
        (b'{"shifts": [NaN, 0], "max_kept": null, "budgets": []}', "NaN"),
        (b'{"shifts": [0, 0], "max_kept": 0, "budgets": []}', "max_kept=0"),
        (b'{"shifts": [0], "max_kept": null, "budgets": []}', "shifts"),
    ],
)
def test_a_damaged_one_is_refused(model, text, said):
    weights = model.state_dict()
    weights[KEY] = torch.tensor(list(text), dtype=torch.uint8)
    with pytest.raises(ValueError, match=said):
        model.load_state_dict(weights)
    assert method(model).runtime_state() == RUNTIME


def test_a_state_dict_without_heads_warns(model):
    before = kept(model)
    with pytest.warns(UserWarning, match="no pruning heads, .*tokenprune.load_heads"):
        found = model.load_state_dict(base().state_dict(), strict=False)
    assert KEY in found.missing_keys
    assert kept(model) == before
    with pytest.raises(RuntimeError, match=KEY), pytest.warns(UserWarning, match="no pruning"):
        model.load_state_dict(base().state_dict())


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method(name):
    """Those with nothing to save have no key, and take the plain model's weights."""
    options = {"target_tokens": 30, "layers": (1,)} if name == "atp" else {}
    model = tp.wrap(base(), METHODS[name][0](**options))
    own = {key for key in model.state_dict() if key.startswith("tokenprune.")}
    if not method(model).runtime_state() and not tensors_of(method(model)):
        assert not own
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.load_state_dict(base().state_dict())
    else:
        assert KEY in own
        assert model.load_state_dict(model.state_dict()).unexpected_keys == []


def test_matryoshkas_scale_comes_back():
    model, other = (tp.wrap(base(), tp.MatryoshkaConfig(stride=1)) for _ in range(2))
    tp.set_budget(model, 9)
    other.load_state_dict(model.state_dict())
    assert run(other)[1].final_tokens.tolist() == [9, 9]


def test_a_calibration_comes_back():
    model, other = atp_llava(), atp_llava(seed=5)
    tp.calibrate(model, [make_batch(((4, IMAGE, 6),))], [16.0, 24.0])
    other.load_state_dict(model.state_dict())
    assert engine_of(other).method.runtime_state() == engine_of(model).method.runtime_state()
    assert kept(other) == kept(model)
