"""Heads on disk come back as they were."""

import json
import os
import pickle
import stat
import warnings

import pytest
import torch

import tokenprune as tp
from tokenprune import io, saved
from tokenprune.engine import engine_of
from tokenprune.methods import METHODS

from .support.heads_files import (
    CONFIG,
    HEADS,
    edit,
    read,
    write,
)
from .support.saved_heads import as_older, atp_llava, base, config, method, run, saved_heads
from .support.tiny_llava import IMAGE, make_batch


@pytest.fixture
def heads(tmp_path):
    return saved_heads(tmp_path)


@pytest.fixture
def older(heads, tmp_path):
    return as_older(heads, tmp_path)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


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
    for name, value in saved.tensors_of(method(model)).items():
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
    for name, value in saved.tensors_of(method(model)).items():
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


@pytest.mark.parametrize(("before", "now"), [(True, "kept"), (False, "renumbered")])
def test_what_earlier_releases_wrote_of_positions(heads, before, now):
    model, folder = heads

    def earlier(about):
        del about["config"]["positions"]
        about["config"]["preserve_positions"] = before

    edit(folder, earlier)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = tp.wrap(base(), folder)
    assert engine_of(other).config.positions == now
    assert torch.equal(run(other)[0], run(model)[0]) == before
