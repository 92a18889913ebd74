"""What the package promises by name."""

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import tokenprune as tp

SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Notes", "Examples")
PUBLIC = [name for name in tp.__all__ if name != "__version__"]


def modules():
    # Editable installs map the adapters from a folder elsewhere, which a walk does not see.
    found = {"tokenprune", "tokenprune.adapters"}
    for package in (tp, importlib.import_module("tokenprune.adapters")):
        prefix = package.__name__ + "."
        found |= {name for _, name, _ in pkgutil.walk_packages(package.__path__, prefix)}
    if not importlib.util.find_spec("lmms_eval"):  # which is what imports it
        found.discard("tokenprune.integrations.lmms_eval.model")
    return sorted(found)


def sections(text):
    """The numpy-style sections of a docstring: name → body."""
    pattern = rf"^({'|'.join(SECTIONS)})\n-+\n"
    parts = re.split(pattern, inspect.cleandoc(text), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_supported_names_what_is_registered():
    found = tp.supported()
    assert set(found) == {"families", "methods"}
    assert "llava" in found["families"]
    assert {"atp", "random"} <= set(found["methods"])
    assert all(names == sorted(names) for names in found.values())


def test_every_public_name_is_there_once():
    assert len(set(tp.__all__)) == len(tp.__all__)
    assert all(hasattr(tp, name) for name in tp.__all__)
    named = {"wrap", "unwrap", "paused", "train_only_heads", "losses", "calibrate", "set_budget"}
    named |= {"stats", "track", "draw", "save_heads", "load_heads", "supported", "ATPConfig"}
    assert named <= set(tp.__all__)


# What users are given or derive from, rather than make.
READ = {
    "Context",
    "Criterion",
    "Explanation",
    "Method",
    "PruneStats",
    "Received",
    "Selection",
    "VisualLayout",
}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_documented(name):
    thing = getattr(tp, name)
    lines = thing.__doc__.splitlines()
    assert lines[0].endswith("."), "the first line is a sentence"
    found = sections(thing.__doc__)
    if inspect.isclass(thing):
        listed = "Attributes" if name in READ else "Parameters"
        several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        signature = inspect.signature(thing)
        given = [n for n, p in signature.parameters.items() if p.kind not in several]
    else:
        listed = "Parameters"
        given = [p for p in inspect.signature(thing).parameters if p != "model"]
    for parameter in given:
        assert re.search(rf"\b{parameter}\b", found.get(listed, "")), f"{parameter} is not there"


@pytest.mark.parametrize("name", modules())
def test_every_module_says_what_it_exports_and_prints_nothing(name):
    module = importlib.import_module(name)
    if name != "tokenprune._version":
        assert module.__doc__
    for exported in getattr(module, "__all__", []):
        assert hasattr(module, exported), exported
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    assert not names & {"print", "breakpoint", "eval", "exec"}


def test_all_modules_are_seen():
    found = modules()
    assert {
        "tokenprune.io",
        "tokenprune.methods.atp.scores",
        "tokenprune.engine.passes.pruning",
    } <= set(found)
    assert "tokenprune.adapters.llava" in found
