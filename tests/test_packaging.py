"""What is installed: a library that needs little, and locks that hold all that its tests need."""

from __future__ import annotations

import ast
import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers import AutoConfig, AutoModelForImageTextToText

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.models.llava import FOLDER
from benchmarks.vlm_eval import local_data
from tokenprune.io import read_config

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCKS = ("tested", "oldest")
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
PIN = re.compile(r"(?P<name>[a-z0-9.-]+)==(?P<version>[^\s;]+)( ; (?P<marker>.+))?")


def required() -> list[Requirement]:
    """Everything that `make test` needs: the library, the extra `demo`, both groups."""
    extras, groups = PROJECT["project"]["optional-dependencies"], PROJECT["dependency-groups"]
    found = [*PROJECT["project"]["dependencies"], *groups["test"], *groups["docs"]]
    found += [*extras["demo"], *extras["vision"], *extras["train"]]
    return [r for r in map(Requirement, found) if r.name != "tokenprune"]


def lines_of(lock: str) -> list[str]:
    text = (ROOT / "requirements" / f"{lock}.txt").read_text()
    return [line for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_releases_and_names_no_place(lock: str) -> None:
    lines = lines_of(lock)
    assert lines
    for line in lines:
        assert PIN.fullmatch(line), f"requirements/{lock}.txt: {line}"


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_holds_what_pyproject_asks_for(lock: str, python: str) -> None:
    """Where a requirement was added or raised and the lock was not renewed."""
    here: dict[str, str] = {**default_environment(), "python_version": python}
    here["python_full_version"] = f"{python}.9"
    pins: dict[str, str] = {}
    for line in lines_of(lock):
        pin = PIN.fullmatch(line)
        if pin and (not pin["marker"] or Marker(pin["marker"]).evaluate(here)):
            assert pin["name"] not in pins, f"two releases of {pin['name']} on Python {python}"
            pins[pin["name"]] = pin["version"]
    for wanted in required():
        version = pins.get(canonicalize_name(wanted.name))
        what = f"{wanted} of pyproject.toml, {version} in requirements/{lock}.txt, Python {python}"
        assert version is not None, f"{what}: run `make update-lock`"
        assert wanted.specifier.contains(version), f"{what}: run `make update-lock`"


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports when it is run."""
    names = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text())]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
        elif isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).split(".")[0])
        else:
            waiting += ast.iter_child_nodes(node)
    return names


def test_the_library_imports_only_what_it_depends_on() -> None:
    """What tests, examples and benchmarks need must not become a user's."""
    allowed = {Requirement(r).name for r in PROJECT["project"]["dependencies"]}
    allowed |= {"tokenprune", "triton"}  # torch brings Triton where it has one
    owners = packages_distributions()
    tools = ROOT / "tokenprune/integrations"  # imported by the tool that a folder is named after
    for path in [*ROOT.glob("tokenprune/**/*.py"), *ROOT.glob("adapters/**/*.py")]:
        if path.is_relative_to(tools):
            continue
        for name in imported(path) - sys.stdlib_module_names:
            owned_by = {canonicalize_name(owner) for owner in owners.get(name, [name])}
            assert allowed & owned_by, f"{path}: {name}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is packaged, with new files that nothing lists."""
    folder = tmp_path_factory.mktemp("packaging") / "source"
    no_caches = shutil.ignore_patterns("__pycache__")
    for name in ("tokenprune", "adapters"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=no_caches)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    (folder / "tokenprune/adapters").unlink(missing_ok=True)  # a link where it is not installed
    for new in ("tokenprune/new", "tokenprune/new/deeper", "adapters/new"):
        (folder / new).mkdir()
        (folder / new / "__init__.py").touch()
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    command = "-m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir"
    subprocess.run([sys.executable, *command.split(), source.parent, source], check=True)
    return next(source.parent.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """The Python of an environment with the wheel, and beside it what is installed here."""
    folder = wheel.parent / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    given = ["--quiet", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "install", *given, str(wheel)], check=True)
    # Behind the wheel on sys.path, so that a tokenprune that is installed here is not found.
    own = next(folder.rglob("site-packages"))
    (own / "rest.pth").write_text("\n".join(site.getsitepackages()))
    return python


def run_installed(python: Path, folder: Path, *arguments: str) -> str:
    """What the installed library prints, run in a folder that is not the checkout."""
    settings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    run = subprocess.run(
        [str(python), *arguments],
        cwd=folder,
        env={**settings, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not run.returncode, run.stderr
    return run.stdout


def test_every_file_is_in_the_wheel(source: Path, wheel: Path) -> None:
    """Whatever is added to `tokenprune` or `adapters`, and nothing else."""
    files = {
        str(path.relative_to(source)).replace("adapters/", "tokenprune/adapters/")
        for folder in ("tokenprune", "adapters")
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as opened:
        assert {name for name in opened.namelist() if ".dist-info/" not in name} == files


LMMS_EVAL = """
import dataclasses, importlib.metadata, sys, types

@dataclasses.dataclass
class ModelManifest:
    model_id: str
    chat_class_path: str


[found] = importlib.metadata.entry_points(group="lmms_eval.models")
load = found.load()
assert "accelerate" not in sys.modules, "lmms-eval's start would wait for it"
for name in ("lmms_eval", "lmms_eval.models", "lmms_eval.models.registry_v2"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["lmms_eval.models.registry_v2"].ModelManifest = ModelManifest
made = load()
module, _, name = made.chat_class_path.rpartition(".")
spec = importlib.util.find_spec(module)
print(made.model_id, name, f"class {name}(lmms)" in open(spec.origin).read())
print(spec.origin)
"""


def test_lmms_eval_finds_the_model_by_an_entry_point(installed: Path, tmp_path: Path) -> None:
    """Called as lmms-eval 0.7.3 calls it, with a stand-in for the class it then asks for."""
    said, path = run_installed(installed, tmp_path, "-c", LMMS_EVAL).splitlines()
    assert said == "tokenprune TokenPrune True"
    assert Path(path).is_relative_to(installed.parents[1])


def test_the_recipe_trains_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    local_data.mix665k(tmp_path, samples("validation", 6, 5))
    model = tmp_path / "model"
    shutil.copytree(FOLDER, model, ignore=shutil.ignore_patterns("model.safetensors"))
    config = AutoConfig.from_pretrained(FOLDER)
    config.text_config.num_hidden_layers = 3
    AutoModelForImageTextToText.from_config(config).save_pretrained(model)
    given = {
        "pretrained": model,
        "annotations": "llava_v1_5_mix665k.json",
        "images": ".",
        "options": "layers=0/1 target_tokens=90",
        "calibration": 2,
        "output_dir": "heads",
        "max_steps": 1,
        "per_device_train_batch_size": 2,
        "use_cpu": True,
        "report_to": "none",
    }
    words = " ".join(f"--{name} {value}" for name, value in given.items()).split()
    run_installed(installed, tmp_path, "-m", "tokenprune.recipes.mix665k", *words)
    found = read_config(tmp_path / "heads")
    assert isinstance(found, tp.ATPConfig)
    assert (found.layers, found.target_tokens) == ((0, 1), 90)


def test_the_command_runs_from_a_wheel(installed: Path, tmp_path: Path) -> None:
    command = next(installed.parent.glob("tokenprune*"))
    assert "estimate" in run_installed(installed, tmp_path, str(command), "--help")
