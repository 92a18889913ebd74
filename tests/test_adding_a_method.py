"""The page on adding a method, run: each file of it is the only thing that is added."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tokenprune as tp
from tokenprune import adapters

from .support.tiny_llava import IMAGE, make_batch, tiny_llava, with_labels

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)
# Those that define methods, and those that use one.
FILES = [block for block in BLOCKS if "@tp.register_method" in block]
USES = [block for block in BLOCKS if "@tp.register_method" not in block]


pytestmark = pytest.mark.usefixtures("registrations")


def run_page(folder: Path) -> dict[str, Any]:
    """Run every block in order, with a model and a batch as a reader has them."""
    names: dict[str, Any] = {
        "__name__": "adding_a_method",
        "model": tiny_llava(layers=5),
        "batch": make_batch([(4, IMAGE, 6), (2, IMAGE, 3)]),
        "folder": folder,
    }
    for block in BLOCKS:
        exec(compile(block, "docs/adding_a_method.md", "exec", dont_inherit=True), names)
    return names


def test_the_page_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = run_page(tmp_path / "heads")
    assert capsys.readouterr().out == "[9 9]\n"
    assert {"key_norm", "above_mean", "learned_threshold"} <= set(tp.supported()["methods"])
    other = tp.wrap(tiny_llava(layers=5), tmp_path / "heads")
    assert other.tokenprune.method.config == names["KeyNorm"].Config(layer=2, keep=0.25)


def test_key_norm_keeps_the_keys_with_the_smallest_norm(tmp_path: Path) -> None:
    """The keys of the layer itself, computed from its input by its own projection."""
    names = run_page(tmp_path / "heads")
    model, batch = tp.unwrap(names["model"]), names["batch"]
    keys = []
    layer = model.model.language_model.layers[2].self_attn
    handle = layer.k_proj.register_forward_hook(lambda module, given, out: keys.append(out))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    # A rotation leaves norms as they are.
    norms = keys[0].unflatten(-1, (-1, layer.head_dim)).norm(dim=-1).mean(dim=-1)
    tp.wrap(model, names["KeyNorm"].Config(layer=2, keep=7))
    with torch.no_grad():
        model(**batch)
    alive = torch.tensor(tp.stats(model).alive[3])
    for row, ids in enumerate(batch["input_ids"]):
        visual = (ids == model.config.image_token_id).nonzero()[:, 0]
        wanted = visual[norms[row, visual].argsort()[:7]].sort().values
        assert torch.equal(visual[alive[row, visual]], wanted)


def test_the_page_s_parameters_are_trained(tmp_path: Path) -> None:
    names = run_page(tmp_path / "heads")
    batch = with_labels(make_batch([(4, IMAGE, 6)]), answer=2)
    model: Any = tp.wrap(tiny_llava(layers=5), names["LearnedThreshold"].Config(layer=1))
    (threshold,) = tp.train_only_heads(model)
    model.train()(**batch).loss.backward()
    assert threshold.grad is not None
    assert threshold.grad.abs() > 0
    assert set(tp.losses(model)) == {"lm", "budget", "total"}


def as_one_file(folder: Path) -> Path:
    path = folder / "page_methods.py"
    path.write_text("\n\n".join(FILES), encoding="utf-8")
    return path


def pytest_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *arguments]
    where = {**os.environ, "HYPOTHESIS_PROFILE": "unshrunk"}
    return subprocess.run(
        command, cwd=ROOT, env=where, capture_output=True, text=True, timeout=1200
    )


FAMILIES_SWEEP = "tests/test_families.py::test_every_method"
FEW_FAMILIES = [f"{FAMILIES_SWEEP}[{name}]" for name in ("llava", "gemma3")]


def test_the_page_s_methods_are_swept(tmp_path: Path) -> None:
    """By the page's command, over a few of the families, and no other method."""
    file = str(as_one_file(tmp_path))
    assert "--method-file" in PAGE
    sweeps = ["tests/test_methods.py", "tests/test_ragged_fuzz.py", *FEW_FAMILIES]
    found = pytest_run("--method-file", file, *sweeps)
    assert found.returncode == 0, found.stdout[-5000:]
    for name in ("key_norm", "above_mean", "learned_threshold"):
        alone = rf"test_a_row_of_a_batch_is_that_row_alone\[.*{name}.*PASSED"
        assert re.search(alone, found.stdout)
        assert re.search(rf"test_dropping_is_masking\[{name}\] PASSED", found.stdout)
    assert "[fastv" not in found.stdout


def test_a_method_that_looks_at_other_rows_fails_the_sweep(tmp_path: Path) -> None:
    path = tmp_path / "other_rows.py"
    path.write_text(
        FILES[0].replace(
            "return -context.keys.norm(dim=-1).mean(dim=1)",
            "return context.hidden_states.sum(dim=-1).roll(1, dims=0)",
        ),
        encoding="utf-8",
    )
    found = pytest_run("--method-file", str(path), "tests/test_methods.py", "-k", "that_row_alone")
    assert found.returncode == 1, found.stdout[-5000:]
    assert "test_a_row_of_a_batch_is_that_row_alone" in found.stdout


def test_a_file_in_the_package_is_all_that_is_added(tmp_path: Path) -> None:
    """In a copy of the package, with the imports that the page says."""
    package = tmp_path / "tokenprune"
    leave = shutil.ignore_patterns("__pycache__", "adapters")
    shutil.copytree(Path(tp.__file__).parent, package, ignore=leave)
    shutil.copytree(Path(adapters.__file__).parent, package / "adapters", ignore=leave)
    lines = re.findall(r"`(from \.\w+ import \w+)`", PAGE)
    assert len(lines) == 2
    text = FILES[0].replace("import tokenprune as tp\n", "\n".join(lines) + "\n").replace("tp.", "")
    (package / "methods" / "key_norm.py").write_text(text, encoding="utf-8")
    code = "import tokenprune as tp; print(tp.__file__, tp.supported()['methods'])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert found.stdout.startswith(str(package)), found.stderr
    assert "'key_norm'" in found.stdout
