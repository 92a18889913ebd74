"""Heads on disk: they come back as they were, or an error says why and nothing has changed."""

import json
import os
import pickle
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

import tokenprune as tp
from tokenprune import io
from tokenprune.engine import engine_of

from .models import IMAGE, make_batch, tiny_llava

LAYERS = (1, 3)
WEIGHTS, CONFIG = "tokenprune_heads.safetensors", "tokenprune_config.json"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def config(**options):
    return tp.ATPConfig(**{"layers": LAYERS, "target_tokens": 18.0, "hidden": 8, **options})


def base(**options):
    torch.manual_seed(0)  # the tower's class token is drawn from it
    return tiny_llava(**options)


def wrapped(seed=0, layers=6, **options):
    model = tp.wrap(base(layers=layers), config(**options))
    torch.manual_seed(seed)
    for parameter in engine_of(model).parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def method(model):
    return engine_of(model).method


@pytest.fixture
def saved(tmp_path):
    """Saved heads with a budget set, and the model they are of."""
    model = wrapped()
    method(model).load_runtime_state(
        {
            "shifts": [0.25, -0.5],
            "max_kept": 30,
            "budgets": [{"tokens": 18.0, "shifts": [0.25, -0.5], "max_kept": 30}],
        }
    )
    return model, tp.save_heads(model, tmp_path / "deep" / "heads")


@torch.no_grad()
def run(model):
    logits = model(**make_batch(((4, IMAGE, 6), (2, IMAGE, 3)))).logits
    return logits, tp.stats(model)


# -- what goes well ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["wrap", "load"])
def test_heads_come_back_bit_for_bit(saved, how):
    model, folder = saved
    expected, stats = run(model)
    if how == "wrap":
        other = tp.wrap(base(), folder)
    else:
        other = wrapped(seed=5)
        assert not torch.equal(run(other)[0], expected)
        tp.load_heads(other, str(folder))
    assert engine_of(other).config == engine_of(model).config
    for name, value in method(model).state_dict().items():
        assert torch.equal(method(other).state_dict()[name], value), name
    assert method(other).runtime_state() == method(model).runtime_state()
    found, other_stats = run(other)
    assert torch.equal(found, expected)
    assert (other_stats.thresholds == stats.thresholds).all()
    assert (other_stats.alive == stats.alive).all()
    assert (stats.kept[-1] < stats.kept[0]).all()


def test_a_budget_survives_and_can_be_moved(tmp_path):
    model = wrapped()
    tp.calibrate(model, [make_batch(((4, IMAGE, 6),))], [16.0, 24.0])
    folder = tp.save_heads(model, tmp_path)
    other = tp.wrap(base(), folder)
    for each in (model, other):
        tp.set_budget(each, 20.0)
    assert torch.equal(run(model)[0], run(other)[0])


def test_files_are_safetensors_and_json_and_nothing_of_the_model(saved):
    model, folder = saved
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert set(load_file(folder / WEIGHTS)) == set(method(model).state_dict())
    about = json.loads((folder / CONFIG).read_text())
    assert about["family"] == "llava"
    assert about["num_layers"] == 6
    assert about["hidden_size"] == 32
    assert about["tokenprune_version"] == tp.__version__
    assert about["config"] == engine_of(model).config.to_dict()
    assert io.read_config(folder) == engine_of(model).config


def test_nothing_is_unpickled(saved, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    tp.load_heads(wrapped(seed=3), saved[1])


def test_half_precision_models_keep_their_heads_exact(tmp_path):
    model = tp.wrap(base(dtype=torch.bfloat16), config())
    folder = tp.save_heads(model, tmp_path)
    other = tp.wrap(base(dtype=torch.bfloat16), folder)
    for name, value in method(model).state_dict().items():
        assert method(other).state_dict()[name].dtype == torch.float32
        assert torch.equal(method(other).state_dict()[name], value)


def test_saving_again_replaces(saved):
    model, folder = saved
    with torch.no_grad():
        for parameter in engine_of(model).parameters():
            parameter.add_(1)
    tp.save_heads(model, folder)
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    assert torch.equal(run(tp.wrap(base(), folder))[0], run(model)[0])


def test_what_a_newer_release_wrote_loads_with_a_warning(saved):
    model, folder = saved
    edit(folder, lambda about: about["config"].update(zoom=2))
    with pytest.warns(UserWarning, match=r"\['zoom'\].*newer"):
        other = tp.wrap(base(), folder)
    assert torch.equal(run(other)[0], run(model)[0])


# -- what goes wrong -----------------------------------------------------------------------------


def edit(folder, change):
    path = folder / CONFIG
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


def edit_weights(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def cut(folder, name, share):
    path = folder / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


FIRST = "thresholds.0.project.weight"
DAMAGES = {
    "weights cut": (lambda f: cut(f, WEIGHTS, 0.7), ValueError, "damaged"),
    "weights empty": (lambda f: cut(f, WEIGHTS, 0), ValueError, "damaged"),
    "weights are text": (lambda f: (f / WEIGHTS).write_text("x" * 99), ValueError, "damaged"),
    "json cut": (lambda f: cut(f, CONFIG, 0.7), ValueError, "damaged"),
    "json empty": (lambda f: cut(f, CONFIG, 0), ValueError, "damaged"),
    "json binary": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x80"), ValueError, "damaged"),
    "json is a list": (lambda f: (f / CONFIG).write_text("[1]"), ValueError, "no configuration"),
    "json without config": (
        lambda f: edit(f, lambda a: a.pop("config")),
        ValueError,
        "no configuration",
    ),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), FileNotFoundError, "save_heads"),
    "no json": (lambda f: (f / CONFIG).unlink(), FileNotFoundError, "save_heads"),
    "family": (
        lambda f: edit(f, lambda a: a.update(family="qwen2_vl")),
        ValueError,
        "family: saved 'qwen2_vl', this model 'llava'",
    ),
    "depth": (
        lambda f: edit(f, lambda a: a.update(num_layers=32)),
        ValueError,
        "num_layers: saved 32, this model 6",
    ),
    "width": (
        lambda f: edit(f, lambda a: a.update(hidden_size=4096)),
        ValueError,
        "hidden_size: saved 4096, this model 32",
    ),
    "method": (
        lambda f: edit(f, lambda a: a["config"].update(method="dream")),
        ValueError,
        "method='dream'",
    ),
    "bad value": (
        lambda f: edit(f, lambda a: a["config"].update(temperature=-1)),
        ValueError,
        "temperature=-1",
    ),
    "nan": (
        lambda f: edit_weights(f, lambda t: t[FIRST].view(-1)[3].fill_(float("nan"))),
        ValueError,
        rf"{FIRST}: not finite",
    ),
    "infinite": (
        lambda f: edit_weights(f, lambda t: t[FIRST].view(-1)[3].fill_(float("inf"))),
        ValueError,
        rf"{FIRST}: not finite",
    ),
    "other shape": (
        lambda f: edit_weights(f, lambda t: t.update({FIRST: torch.zeros(8, 2)})),
        ValueError,
        rf"{FIRST}: saved \[8, 2\], expected \[8, 72\]",
    ),
    "missing tensor": (
        lambda f: edit_weights(f, lambda t: t.pop(FIRST)),
        ValueError,
        rf"{FIRST}: saved None",
    ),
    "unknown tensor": (
        lambda f: edit_weights(f, lambda t: t.update(extra=torch.zeros(1))),
        ValueError,
        "extra: not known",
    ),
    "weights of another save": (
        lambda f: edit_weights(f, lambda t: t[FIRST].view(-1)[3].add_(1.0)),
        ValueError,
        "SHA-256 differs",
    ),
    "runtime shifts": (
        lambda f: edit(f, lambda a: a["runtime"].update(shifts=["x", 0])),
        ValueError,
        "runtime",
    ),
    "runtime nan": (
        lambda f: edit(f, lambda a: a["runtime"].update(shifts=[float("nan"), 0.0])),
        ValueError,
        "runtime",
    ),
    "runtime length": (
        lambda f: edit(f, lambda a: a["runtime"].update(shifts=[1.0])),
        ValueError,
        "runtime",
    ),
    "runtime cap": (
        lambda f: edit(f, lambda a: a["runtime"].update(max_kept="many")),
        ValueError,
        "runtime",
    ),
    "runtime budgets": (
        lambda f: edit(f, lambda a: a["runtime"].update(budgets=[{"tokens": 3}])),
        ValueError,
        "runtime",
    ),
    "runtime is a list": (
        lambda f: edit(f, lambda a: a.update(runtime=[1])),
        ValueError,
        "runtime",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_loading_damaged_heads_leaves_the_model_as_it_was(saved, name):
    damage, error, message = DAMAGES[name]
    damage(saved[1])
    model = wrapped(seed=4)
    method(model).shifts = [0.125, 0.5]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    runtime, logits = method(model).runtime_state(), run(model)[0]
    with pytest.raises(error, match=message):
        tp.load_heads(model, saved[1])
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())
    assert method(model).runtime_state() == runtime
    assert torch.equal(run(model)[0], logits)


def hooks_of(model):
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return {(n, k): len(getattr(m, k)) for n, m in model.named_modules() for k in kinds}


@pytest.mark.parametrize("name", DAMAGES)
def test_wrapping_with_damaged_heads_leaves_the_model_unwrapped(saved, name):
    damage, error, message = DAMAGES[name]
    damage(saved[1])
    model = base()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes, hooks = set(vars(model)), hooks_of(model)
    settings = model.config.to_dict()
    with pytest.raises(error, match=message):
        tp.wrap(model, saved[1])
    assert set(vars(model)) == attributes
    assert hooks_of(model) == hooks
    assert model.config.to_dict() == settings
    assert model.config.text_config._attn_implementation == "sdpa"
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())
    tp.unwrap(tp.wrap(model, config()))


def test_heads_of_another_depth_or_configuration_name_the_difference(saved):
    folder = saved[1]
    with pytest.raises(ValueError, match="num_layers: saved 6, this model 5"):
        tp.load_heads(wrapped(layers=5), folder)
    with pytest.raises(ValueError, match="num_layers: saved 6, this model 5"):
        tp.wrap(base(layers=5), folder)
    with pytest.raises(ValueError, match=r"config\.hidden: saved 8, this model 16"):
        tp.load_heads(wrapped(hidden=16), folder)
    with pytest.raises(ValueError, match=r"config\.layers: saved \[1, 3\], this model \[1, 2\]"):
        tp.load_heads(tp.wrap(base(), config(layers=(1, 2))), folder)
    other = tp.wrap(base(), tp.RandomConfig(layers=LAYERS, keep=(18, 9)))
    with pytest.raises(ValueError, match=r"config\.method: saved 'atp', this model 'random'"):
        tp.load_heads(other, folder)


@pytest.mark.parametrize("source", ["nobody/no-such-heads", "no such folder", "/no/such/folder"])
def test_no_heads_there_is_said_at_once(source):
    started = time.monotonic()
    model = base()
    for call in (lambda: tp.wrap(model, source), lambda: tp.load_heads(wrapped(), source)):
        with pytest.raises(FileNotFoundError, match=r"not a folder here.*Check the path") as error:
            call()
        assert source in str(error.value)
        assert WEIGHTS in str(error.value)
    assert time.monotonic() - started < 20
    tp.wrap(model, config())


@pytest.mark.parametrize("what", ["save_file", "json.dumps", "first os.replace"])
def test_an_interrupted_save_leaves_the_old_files_whole(saved, monkeypatch, what):
    model, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    if what == "save_file":

        def half(tensors, path, **kwargs):
            path.write_bytes(b"half a fi")
            raise KeyboardInterrupt

        monkeypatch.setattr(io, "save_file", half)
    elif what == "json.dumps":
        monkeypatch.setattr(json, "dumps", interrupt)
    else:
        monkeypatch.setattr(os, "replace", interrupt)
    with torch.no_grad():
        for parameter in engine_of(model).parameters():
            parameter.add_(1)
    with pytest.raises(KeyboardInterrupt):
        tp.save_heads(model, folder)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    tp.wrap(base(), folder)


def test_only_a_wrapped_model_has_heads(tmp_path):
    with pytest.raises(ValueError, match="not wrapped"):
        tp.save_heads(tiny_llava(), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="not wrapped"):
        tp.load_heads(tiny_llava(), tmp_path)
