"""What is installed: a library that needs little, and locks that hold all that its tests need."""

from __future__ import annotations

import ast
import re
import sys
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
    """Everything that `make test` needs: the library, the extra `demo`, the group `test`."""
    extras = PROJECT["project"]["optional-dependencies"]
    found = [*PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"]["test"]]
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


def test_every_package_is_in_the_wheel() -> None:
    found = {"tokenprune." + str(p.parent.relative_to(ROOT)) for p in ROOT.glob("adapters/**/*.py")}
    for path in ROOT.glob("tokenprune/**/*.py"):
        found.add(".".join(path.relative_to(ROOT).parent.parts))
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])
