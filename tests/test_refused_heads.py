"""Heads that do not fit, paths that lead nowhere, and what is not saved."""

import os
import time

import pytest
import torch

import tokenprune as tp
from tokenprune import atomic, io
from tokenprune.engine import engine_of

from .support.heads_files import (
    FIRST,
    HEADS,
)
from .support.saved_heads import LAYERS, atp_llava, base, config, method, saved_heads
from .support.tiny_llava import tiny_llava


@pytest.fixture
def heads(tmp_path):
    return saved_heads(tmp_path)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


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


@pytest.mark.parametrize("source", ["nobody/no-such-heads", "no/such folder", "/no/such/folder"])
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
    "float64": (lambda m: (method(m).double(), set_first(1e308)(m)), f"{FIRST}: not finite"),
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
