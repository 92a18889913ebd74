"""What is installed: a library that needs little, and locks that hold all that its tests need."""

from __future__ import annotations

import ast
import re
import shutil
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
    for path in [*ROOT.glob("tokenprune/**/*.py"), *ROOT.glob("adapters/**/*.py")]:
        for name in imported(path) - sys.stdlib_module_names:
            owned_by = {canonicalize_name(owner) for owner in owners.get(name, [name])}
            assert allowed & owned_by, f"{path}: {name}"


def test_every_file_is_in_the_wheel(tmp_path: Path) -> None:
    """Whatever is added to `tokenprune` or `adapters`, and nothing else."""
    source = tmp_path / "source"
    no_caches = shutil.ignore_patterns("__pycache__")
    for folder in ("tokenprune", "adapters"):
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=no_caches)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    (source / "tokenprune/adapters").unlink(missing_ok=True)  # a link where it is not installed
    for new in ("tokenprune/new", "tokenprune/new/deeper", "adapters/new"):
        (source / new).mkdir()
        (source / new / "__init__.py").touch()
    files = {
        str(path.relative_to(source)).replace("adapters/", "tokenprune/adapters/")
        for folder in ("tokenprune", "adapters")
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    command = "-m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir"
    subprocess.run([sys.executable, *command.split(), tmp_path, source], check=True)
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == files
