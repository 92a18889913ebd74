"""Damaged heads: an error says what is wrong, and the model is as it was."""

import json

import pytest
import torch

import tokenprune as tp

from .support.heads_files import (
    CONFIG,
    FIRST,
    HEADS,
    edit,
    edit_header,
    edit_tensors,
    edit_text,
    read,
    write,
)
from .support.saved_heads import as_older, atp_llava, base, config, method, run, saved_heads
from .support.wrapping import hooks_of


@pytest.fixture
def heads(tmp_path):
    return saved_heads(tmp_path)


def cut(folder, name, share):
    path = folder / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def refuses(change, message, how=edit):
    return lambda folder: how(folder, change), ValueError, message


def with_first(value):
    return lambda tensors: tensors.update({FIRST: value})


def runtime(**values):
    return refuses(lambda about: about["runtime"].update(values), "runtime=.*expected")


def last(tensors):
    return tensors[FIRST].view(-1)[3]


DTYPES = ("int32", "int64", "uint8", "bool", "complex64", "float8_e4m3fn", "float8_e5m2")
BUDGET = {"tokens": 18.0, "shifts": [0.25, -0.5], "max_kept": 30}
DAMAGES = {
    "cut": (lambda f: cut(f, HEADS, 0.9), ValueError, "damaged: it has .* bytes"),
    "cut in the header": (lambda f: cut(f, HEADS, 0.1), ValueError, "damaged: .*ends after"),
    "empty": (lambda f: cut(f, HEADS, 0), ValueError, "damaged: it ends after 0 bytes"),
    "text": (lambda f: (f / HEADS).write_text("x" * 99), ValueError, "the limit is"),
    "longer": (
        lambda f: (f / HEADS).write_bytes((f / HEADS).read_bytes() + b"x"),
        ValueError,
        "damaged: it has .* bytes",
    ),
    "no file": (lambda f: (f / HEADS).unlink(), FileNotFoundError, "save_heads"),
    "no metadata": (
        lambda f: edit_header(f, lambda h: h.pop("__metadata__")),
        FileNotFoundError,
        "no configuration in its metadata",
    ),
    "metadata is a list": refuses(
        lambda h: h.update(__metadata__=[]), "damaged: its metadata", edit_header
    ),
    "metadata of numbers": refuses(
        lambda h: h["__metadata__"].update(tokenprune=3), "damaged: its metadata", edit_header
    ),
    "no shape": refuses(lambda h: h[FIRST].pop("shape"), f"damaged.*{FIRST}", edit_header),
    "negative shape": refuses(
        lambda h: h[FIRST].update(shape=[-8, -72]), f"damaged.*{FIRST}", edit_header
    ),
    "overlapping tensors": refuses(
        lambda h: h[FIRST].update(data_offsets=[0, 8 * 72 * 4]), "damaged", edit_header
    ),
    "no digest": refuses(
        lambda h: h["__metadata__"].pop("tokenprune_sha256"), "SHA-256 differs", edit_header
    ),
    "other digest": (
        lambda f: write(f, json.dumps(read(f)[0]), read(f)[1], digest="0" * 64),
        ValueError,
        "SHA-256 differs",
    ),
    "json changed by hand": refuses(
        lambda h: h["__metadata__"].update(
            tokenprune=h["__metadata__"]["tokenprune"].replace("0.25,", "0.75,", 1)
        ),
        "SHA-256 differs",
        edit_header,
    ),
    "json without config": refuses(lambda a: a.pop("config"), "config=None: expected"),
    "config is a list": refuses(lambda a: a.update(config=[1]), r"config=\[1\]: expected"),
    "family": refuses(
        lambda a: a.update(family="qwen2_vl"), "family: saved 'qwen2_vl', this model 'llava'"
    ),
    "depth": refuses(lambda a: a.update(num_layers=32), "num_layers: saved 32, this model 6"),
    "width": refuses(lambda a: a.update(hidden_size=9), "hidden_size: saved 9, this model 32"),
    "method": refuses(lambda a: a["config"].update(method="dream"), "method='dream'"),
    "bad value": refuses(lambda a: a["config"].update(temperature=-1), "temperature=-1"),
    "nan": refuses(lambda t: last(t).fill_(float("nan")), f"{FIRST}: not finite", edit_tensors),
    "infinite": refuses(lambda t: last(t).fill_(-torch.inf), "not finite", edit_tensors),
    "overflow": refuses(
        with_first(torch.full((8, 72), 1e308, dtype=torch.float64)),
        f"{FIRST}: not finite in torch.float32",
        edit_tensors,
    ),
    **{
        dtype: refuses(
            with_first(torch.zeros(8, 72).to(getattr(torch, dtype))),
            rf"{FIRST}: dtype '.+', expected one of \['BF16', 'F16', 'F32', 'F64'\]",
            edit_tensors,
        )
        for dtype in DTYPES
    },
    "other shape": refuses(
        with_first(torch.zeros(8, 2)),
        rf"{FIRST}: saved \[8, 2\], expected \[8, 72\]",
        edit_tensors,
    ),
    "missing tensor": refuses(lambda t: t.pop(FIRST), f"{FIRST}: saved None", edit_tensors),
    "unknown tensor": refuses(
        lambda t: t.update(extra=torch.zeros(1)), "'extra': not known", edit_tensors
    ),
    "runtime is a list": refuses(lambda a: a.update(runtime=[1]), r"runtime=\[1\]: expected"),
    "runtime words": runtime(shifts=["x", 0]),
    "runtime numbers as words": runtime(shifts=["0.5", "1"]),
    "runtime length": runtime(shifts=[1.0]),
    "runtime far away": runtime(shifts=[1e30, 0.0]),
    "runtime cap": runtime(max_kept="many"),
    "runtime cap true": runtime(max_kept=True),
    "runtime cap huge": runtime(max_kept=10**18),
    "runtime budgets": runtime(budgets=[{"tokens": 3}]),
    "runtime budgets of a number": runtime(budgets=3),
    "runtime budget of a list": runtime(budgets=[[3]]),
    "runtime budgets that fall": runtime(budgets=[BUDGET, {**BUDGET, "tokens": 9.0}]),
    "repeated key": (
        lambda f: edit_text(f, '"family":', '"family": "llava", "family":'),
        ValueError,
        "key twice",
    ),
    "nan in the json": (
        lambda f: edit_text(f, '"max_kept": 30, "budgets"', '"max_kept": NaN, "budgets"'),
        ValueError,
        "NaN",
    ),
    "overflow in the json": (
        lambda f: edit_text(f, '"temperature": 20.0', '"temperature": 1e999'),
        ValueError,
        "overflows",
    ),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_dtypes_load_as_float32(heads, dtype):
    _, folder = heads
    edit_tensors(folder, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    other = tp.wrap(base(), folder)
    for name, value in read(folder)[1].items():
        loaded = method(other).state_dict()[name]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, value.float())


def test_a_half_precision_models_range_is_not_the_heads(tmp_path):
    """They stay in float32 when the model is cast after wrapping."""
    model = atp_llava()
    with torch.no_grad():
        method(model).state_dict()[FIRST].fill_(1e6)
    folder = tp.save_heads(model, tmp_path)
    half = atp_llava(seed=3).half()
    tp.load_heads(half, folder)
    assert (method(half).state_dict()[FIRST] == 1e6).all()


@pytest.mark.parametrize("name", DAMAGES)
def test_loading_damaged_heads_leaves_the_model_as_it_was(heads, name):
    damage, error, message = DAMAGES[name]
    damage(heads[1])
    refuses_to_load(heads[1], error, message)


OLDER_DAMAGES = {
    "json cut": (lambda f: cut(f, CONFIG, 0.7), ValueError, f"{CONFIG}.*damaged"),
    "json empty": (lambda f: cut(f, CONFIG, 0), ValueError, f"{CONFIG}.*damaged"),
    "json binary": (
        lambda f: (f / CONFIG).write_bytes(b"\xff\x80"),
        ValueError,
        f"{CONFIG}.*utf-8",
    ),
    "json is a list": (lambda f: (f / CONFIG).write_text("[1]"), ValueError, "expected an object"),
    "json without config": (lambda f: (f / CONFIG).write_text("{}"), ValueError, "config=None"),
    "no json": (lambda f: (f / CONFIG).unlink(), FileNotFoundError, "save_heads"),
    "no heads": (lambda f: (f / HEADS).unlink(), FileNotFoundError, "save_heads"),
    "heads cut": (lambda f: cut(f, HEADS, 0.9), ValueError, "damaged"),
    "a bit of the heads": (
        lambda f: (f / HEADS).write_bytes((f / HEADS).read_bytes()[:-1] + b"\1"),
        ValueError,
        "SHA-256 differs",
    ),
    "family": (
        lambda f: (f / CONFIG).write_text((f / CONFIG).read_text().replace('"llava"', '"qwen"')),
        ValueError,
        "family: saved 'qwen', this model 'llava'",
    ),
}


@pytest.mark.parametrize("name", OLDER_DAMAGES)
def test_loading_a_damaged_older_folder_leaves_the_model_as_it_was(heads, tmp_path, name):
    damage, error, message = OLDER_DAMAGES[name]
    _, folder = as_older(heads, tmp_path)
    damage(folder)
    refuses_to_load(folder, error, message)


def refuses_to_load(folder, error, message):
    model = atp_llava(seed=4)
    method(model).load_runtime_state({"shifts": [0.125, 0.5]})
    before = {key: value.clone() for key, value in model.state_dict().items()}
    runtime, logits = method(model).runtime_state(), run(model)[0]
    with pytest.raises(error, match=message):
        tp.load_heads(model, folder)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())
    assert method(model).runtime_state() == runtime
    assert torch.equal(run(model)[0], logits)


@pytest.mark.parametrize("name", DAMAGES)
def test_wrapping_with_damaged_heads_leaves_the_model_unwrapped(heads, name):
    damage, error, message = DAMAGES[name]
    damage(heads[1])
    model = base()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    attributes, hooks = set(vars(model)), hooks_of(model)
    settings = model.config.to_dict()
    with pytest.raises(error, match=message):
        tp.wrap(model, heads[1])
    assert set(vars(model)) == attributes
    assert hooks_of(model) == hooks
    assert model.config.to_dict() == settings
    assert model.config.text_config._attn_implementation == "sdpa"
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[key]) for key, v in model.state_dict().items())
    tp.unwrap(tp.wrap(model, config()))
