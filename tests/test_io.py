"""Heads on disk: they come back as they were, or an error says why and nothing has changed."""

import json
import os
import pickle
import stat
import time

import pytest
import torch

import tokenprune as tp
from tokenprune import atomic, io, saved
from tokenprune.engine import engine_of
from tokenprune.methods import METHODS

from .support.heads_files import (
    CONFIG,
    HEADS,
    edit,
    edit_header,
    edit_tensors,
    edit_text,
    read,
    write,
    write_older,
)
from .support.tiny_llava import IMAGE, make_batch, tiny_llava
from .support.wrapping import hooks_of, wrapped_llava

LAYERS = (1, 3)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def config(**options):
    return tp.ATPConfig(**{"layers": LAYERS, "target_tokens": 18.0, "hidden": 8, **options})


def base(**options):
    torch.manual_seed(0)  # the tower's class token is drawn from it
    return tiny_llava(**options)


def atp_llava(seed=0, layers=6, **options):
    model = wrapped_llava(config(**options), layers=layers)
    torch.manual_seed(seed)
    for parameter in engine_of(model).parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def method(model):
    return engine_of(model).method


@pytest.fixture
def heads(tmp_path):
    """Saved heads with a budget set, and the model they are of."""
    model = atp_llava()
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
def test_heads_come_back_bit_for_bit(heads, how):
    model, folder = heads
    expected, stats = run(model)
    if how == "wrap":
        other = tp.wrap(base(), folder)
    else:
        other = atp_llava(seed=5)
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
    model = atp_llava()
    tp.calibrate(model, [make_batch(((4, IMAGE, 6),))], [16.0, 24.0])
    folder = tp.save_heads(model, tmp_path)
    other = tp.wrap(base(), folder)
    for each in (model, other):
        tp.set_budget(each, 20.0)
    assert torch.equal(run(model)[0], run(other)[0])


def test_one_file_has_the_heads_and_nothing_of_the_model(heads):
    model, folder = heads
    assert [p.name for p in folder.iterdir()] == [HEADS]
    about, tensors = read(folder)
    for name, value in method(model).state_dict().items():
        assert torch.equal(tensors.pop(name), value), name
    assert not tensors
    assert about == {
        "tokenprune_version": tp.__version__,
        "base_model": None,
        "family": "llava",
        "num_layers": 6,
        "hidden_size": 32,
        "config": engine_of(model).config.to_dict(),
        "runtime": method(model).runtime_state(),
    }
    assert io.read_config(folder) == engine_of(model).config


def test_a_file_written_by_hand_loads(heads, tmp_path):
    """The format is the documented one: `heads_files.write` shares no code with the library."""
    model, folder = heads
    about, tensors = read(folder)
    written = write(tmp_path / "by hand", json.dumps(about, indent=1), tensors)
    assert torch.equal(run(tp.wrap(base(), written))[0], run(model)[0])


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_files_mode_follows_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        folder = tp.save_heads(atp_llava(), tmp_path / "heads")
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / HEADS).stat().st_mode) == 0o666 & ~umask


# -- folders of two files, which earlier versions wrote -------------------------------------------


@pytest.fixture
def older(heads, tmp_path):
    """The same heads in the layout of two files, and the model they are of."""
    model, folder = heads
    return model, write_older(tmp_path / "older", *read(folder))


@pytest.mark.parametrize("how", ["wrap", "load"])
def test_an_older_folder_loads(older, how):
    model, folder = older
    if how == "wrap":
        other = tp.wrap(base(), folder)
    else:
        tp.load_heads(other := atp_llava(seed=5), folder)
    assert io.read_config(folder) == engine_of(model).config
    assert method(other).runtime_state() == method(model).runtime_state()
    assert torch.equal(run(other)[0], run(model)[0])


def test_saving_to_an_older_folder_leaves_one_file(older):
    _, folder = older
    new = atp_llava(seed=7)
    tp.save_heads(new, folder)
    assert [p.name for p in folder.iterdir()] == [HEADS]
    assert torch.equal(run(tp.wrap(base(), folder))[0], run(new)[0])


def test_the_older_json_is_not_believed_beside_a_new_file(older):
    """A saver killed between the two leaves it there; the next save removes it."""
    _, folder = older
    text = (folder / CONFIG).read_bytes()
    new = tp.wrap(base(), config(hidden=4))
    tp.save_heads(new, folder)
    (folder / CONFIG).write_bytes(text)
    assert io.read_config(folder).hidden == 4
    assert torch.equal(run(tp.wrap(base(), folder))[0], run(new)[0])
    tp.save_heads(new, folder)
    assert [p.name for p in folder.iterdir()] == [HEADS]


def test_an_older_folder_saved_to_while_it_is_read(older, monkeypatch):
    """The reader has opened the old heads, and finds their JSON gone: it reads the new file."""
    _, folder = older
    new, reading = atp_llava(seed=7), saved._older

    def late(*args):
        tp.save_heads(new, folder)
        return reading(*args)

    monkeypatch.setattr(saved, "_older", late)
    tp.load_heads(other := atp_llava(seed=5), folder)
    assert torch.equal(run(other)[0], run(new)[0])


def test_nothing_is_unpickled(heads, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    tp.load_heads(atp_llava(seed=3), heads[1])


def test_half_precision_models_keep_their_heads_exact(tmp_path):
    model = tp.wrap(base(dtype=torch.bfloat16), config())
    folder = tp.save_heads(model, tmp_path)
    other = tp.wrap(base(dtype=torch.bfloat16), folder)
    for name, value in method(model).state_dict().items():
        assert method(other).state_dict()[name].dtype == torch.float32
        assert torch.equal(method(other).state_dict()[name], value)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_comes_back(tmp_path, name):
    """Most have no tensors: the file is then a configuration."""
    options = {"target_tokens": 30} if name == "atp" else {}
    layers = {"layers": (1,)} if name in ("atp", "random", "pyramiddrop", "sparsevlm") else {}
    model = tp.wrap(base(), METHODS[name][0](**options, **layers))
    if name == "matryoshka":
        tp.set_budget(model, 9)
    other = tp.wrap(base(), tp.save_heads(model, tmp_path))
    assert engine_of(other).config == engine_of(model).config
    assert method(other).runtime_state() == method(model).runtime_state()
    tp.load_heads(other, tmp_path)
    assert torch.equal(run(other)[0], run(model)[0]) or name == "random"


def test_saving_again_replaces(heads):
    model, folder = heads
    with torch.no_grad():
        for parameter in engine_of(model).parameters():
            parameter.add_(1)
    tp.save_heads(model, folder)
    assert [p.name for p in folder.iterdir()] == [HEADS]
    assert torch.equal(run(tp.wrap(base(), folder))[0], run(model)[0])


def test_what_a_newer_release_wrote_loads_with_a_warning(heads):
    model, folder = heads
    edit(folder, lambda about: about["config"].update(zoom=2))
    with pytest.warns(UserWarning, match=r"\['zoom'\].*newer"):
        other = tp.wrap(base(), folder)
    assert torch.equal(run(other)[0], run(model)[0])


# -- what goes wrong -----------------------------------------------------------------------------


def cut(folder, name, share):
    path = folder / name
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


FIRST = "thresholds.0.project.weight"


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


def test_heads_beyond_a_half_precision_models_range_are_refused(tmp_path):
    """The heads were cast with the model after wrapping: what is finite in float32 is not there."""
    model = atp_llava()
    with torch.no_grad():
        method(model).state_dict()[FIRST].fill_(1e6)
    folder = tp.save_heads(model, tmp_path)
    half = atp_llava(seed=3).half()
    with pytest.raises(ValueError, match=rf"{FIRST}: not finite in torch\.float16"):
        tp.load_heads(half, folder)


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
def test_loading_a_damaged_older_folder_leaves_the_model_as_it_was(older, name):
    damage, error, message = OLDER_DAMAGES[name]
    damage(older[1])
    refuses_to_load(older[1], error, message)


def refuses_to_load(folder, error, message):
    model = atp_llava(seed=4)
    method(model).shifts = [0.125, 0.5]
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


def test_heads_of_another_depth_or_configuration_name_the_difference(heads):
    folder = heads[1]
    with pytest.raises(ValueError, match="num_layers: saved 6, this model 5"):
        tp.load_heads(atp_llava(layers=5), folder)
    with pytest.raises(ValueError, match="num_layers: saved 6, this model 5"):
        tp.wrap(base(layers=5), folder)
    with pytest.raises(ValueError, match=r"config\.hidden: saved 8, this model 16"):
        tp.load_heads(atp_llava(hidden=16), folder)
    with pytest.raises(ValueError, match=r"config\.layers: saved \[1, 3\], this model \[1, 2\]"):
        tp.load_heads(tp.wrap(base(), config(layers=(1, 2))), folder)
    other = tp.wrap(base(), tp.RandomConfig(layers=LAYERS, keep=(18, 9)))
    with pytest.raises(ValueError, match=r"config\.method: saved 'atp', this model 'random'"):
        tp.load_heads(other, folder)


@pytest.mark.parametrize("source", ["nobody/no-such-heads", "no such folder", "/no/such/folder"])
def test_no_heads_there_is_said_at_once(source):
    started = time.monotonic()
    model = base()
    for call in (lambda: tp.wrap(model, source), lambda: tp.load_heads(atp_llava(), source)):
        with pytest.raises(FileNotFoundError, match=r"not a folder here.*Check the path") as error:
            call()
        assert source in str(error.value)
        assert HEADS in str(error.value)
    assert time.monotonic() - started < 20
    tp.wrap(model, config())


@pytest.mark.parametrize("what", ["the folder", "the write", "the rename"])
def test_an_interrupted_save_leaves_the_old_file_whole(heads, monkeypatch, what):
    model, folder = heads
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    owner, name = {
        "the folder": (io.Path, "mkdir"),
        "the write": (os, "fsync"),
        "the rename": (os, "replace"),
    }[what]
    with torch.no_grad():
        for parameter in engine_of(model).parameters():
            parameter.add_(1)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            tp.save_heads(model, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    tp.wrap(base(), folder)


# -- what is not saved ---------------------------------------------------------------------------


def set_first(value):
    def change(model):
        with torch.no_grad():
            method(model).state_dict()[FIRST].view(-1)[3] = value

    return change


def set_runtime(**values):
    return lambda model: vars(method(model)).update(values)


UNSAVED = {
    "nan": (set_first(float("nan")), f"{FIRST}: not finite"),
    "infinite": (set_first(float("-inf")), f"{FIRST}: not finite"),
    "float64": (lambda m: (m.double(), set_first(1e308)(m)), f"{FIRST}: not finite"),
    "nan shift": (set_runtime(shifts=[float("nan"), 0.0]), "shifts"),
    "cap": (set_runtime(max_kept=0), "max_kept=0"),
    "too many budgets": (
        set_runtime(
            budgets=[
                {"tokens": n + 1 / 3, "shifts": [1 / 3] * 2, "max_kept": 10**9}
                for n in range(9_999)
            ]
        ),
        "the limit is",
    ),
}


@pytest.mark.parametrize("name", UNSAVED)
def test_what_would_not_load_is_not_saved(heads, tmp_path, name):
    change, message = UNSAVED[name]
    model, folder = heads
    before = (folder / HEADS).read_bytes()
    change(model)
    for target in (folder, tmp_path / "new"):
        with pytest.raises(ValueError, match=f"would not load again: .*{message}"):
            tp.save_heads(model, target)
    assert [p.name for p in folder.iterdir()] == [HEADS]
    assert (folder / HEADS).read_bytes() == before
    assert not (tmp_path / "new").exists()


NO_MODELS = (None, 3, "model", [], torch.zeros(2), tp, tiny_llava)


@pytest.mark.parametrize("given", NO_MODELS, ids=lambda given: type(given).__name__)
def test_what_is_no_model_has_no_heads(tmp_path, given):
    for call in (tp.save_heads, tp.load_heads):
        with pytest.raises(ValueError, match=f"model is a {type(given).__name__}: expected"):
            call(given, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_only_a_wrapped_model_has_heads(tmp_path):
    for model in (tiny_llava(), torch.nn.Linear(2, 2)):
        with pytest.raises(ValueError, match="not wrapped"):
            tp.save_heads(model, tmp_path / "x")
        with pytest.raises(ValueError, match="not wrapped"):
            tp.load_heads(model, tmp_path)
    assert not (tmp_path / "x").exists()


# -- paths ---------------------------------------------------------------------------------------


def test_a_path_of_5000_characters(tmp_path):
    long = tmp_path / ("x" * 5000)
    with pytest.raises(
        OSError, match=r"written to .{200}\.\.\. \(\d+ characters\) \(File name too long\)"
    ):
        tp.save_heads(atp_llava(), long)
    for call in (lambda: tp.load_heads(atp_llava(), long), lambda: tp.wrap(base(), str(long))):
        with pytest.raises(FileNotFoundError, match=r"x\.\.\. \(\d+ characters\) is not a folder"):
            call()


def test_a_path_that_is_a_file(heads, tmp_path):
    model, folder = heads
    with pytest.raises(FileExistsError, match=r"cannot be written to .*expected a folder"):
        tp.save_heads(model, folder / HEADS)
    with pytest.raises(NotADirectoryError, match=r"cannot be written to .*expected a folder"):
        tp.save_heads(model, folder / HEADS / "deeper")
    for call in (tp.load_heads, tp.wrap):
        with pytest.raises(ValueError, match="is a file: expected the folder it lies in"):
            call(atp_llava() if call is tp.load_heads else base(), folder / HEADS)
    tp.wrap(base(), folder)


@pytest.mark.parametrize("given", [None, 3, b"x", ["x"]], ids=repr)
def test_what_is_no_path(given):
    for call in (tp.save_heads, tp.load_heads):
        with pytest.raises(ValueError, match="expected a path"):
            call(atp_llava(), given)


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    """As an error of the system: who runs the tests may be allowed to write anywhere."""

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic.os, "open", refuse)
    with pytest.raises(PermissionError, match=r"cannot be written to .*\(Permission denied\)"):
        tp.save_heads(atp_llava(), tmp_path)
