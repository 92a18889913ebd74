"""Imports: no circle, and arrows between packages that point one way; no file too long to read."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
Graph = dict[str, set[str]]

# Packages and modules of the top level, lowest first: each imports from lower levels only.
LEVELS: tuple[set[str], ...] = (
    {"_version", "atomic", "checks", "distributed", "layout", "releases", "strict_json"},
    {"fields"},
    {"config", "data", "model_card"},
    {"adapters", "heads_file", "kernels", "methods"},
    {"engine", "saved"},
    {"io", "measure"},
    {"hub", "saving"},
    {"callback", "training"},
    {"api"},
    {"checkpoint", "pretrained"},
    {"integrations", "recipes", "serving"},
    {"__init__", "cli"},
    {"__main__"},
)


def sources(tokenprune: Path, adapters: Path) -> dict[str, Path]:
    """Every module of the library by its name; `adapters/` is installed as tokenprune.adapters."""
    found = {}
    for package, folder in (("tokenprune", tokenprune), ("tokenprune.adapters", adapters)):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "tokenprune" and parts[0] == "adapters":
                continue  # a link to the other folder, where the library is not installed
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def imports(name: str, modules: dict[str, Path]) -> set[str]:
    """The library's modules that one imports, under TYPE_CHECKING and inside functions too.

    ``from package import name`` is an import of the package's module of that name if there is one,
    else of the package itself.
    """
    path = modules[name]
    text = path.read_text(encoding="utf-8")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            ancestors = package.split(".")
            start = ancestors[: len(ancestors) + 1 - node.level] if node.level else []
            source = ".".join([*start, *([node.module] if node.module else [])])
            inside = {alias.name: f"{source}.{alias.name}" for alias in node.names}
            found |= {full if full in modules else source for full in inside.values()}
    if "iter_modules(__path__)" in text:  # a package that imports every module in it
        found |= {other for other in modules if other.rpartition(".")[0] == name}
    return found & modules.keys()


def graph_of(modules: dict[str, Path]) -> Graph:
    return {name: imports(name, modules) for name in modules}


def circle(graph: Graph) -> list[str]:
    """One circle of imports, its first module repeated at the end; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def part_of(module: str) -> str:
    """The package below `tokenprune` that a module is in, or the module itself."""
    return [*module.split("."), "__init__"][1]


def level_of(module: str) -> int:
    part = part_of(module)
    found = [number for number, parts in enumerate(LEVELS) if part in parts]
    assert found, f"LEVELS does not say where {part!r} belongs"
    return found[0]


def wrong_arrows(graph: Graph) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, targets in sorted(graph.items())
        for target in sorted(targets)
        if part_of(module) != part_of(target) and level_of(module) <= level_of(target)
    ]


@pytest.fixture(scope="module")
def library() -> Graph:
    return graph_of(sources(ROOT / "tokenprune", ROOT / "adapters"))


def test_no_circle_of_imports(library: Graph) -> None:
    assert not (found := circle(library)), " imports ".join(found)


def test_arrows_point_one_way(library: Graph) -> None:
    """api → methods, engine, adapters → layout, config; `docs/design.md`."""
    assert not (found := wrong_arrows(library)), "\n".join(found)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"a": "from .b import x", "b": "from .a import y"}, {"a", "b"}),
        ({"a": "from . import b", "b": "import tokenprune.c", "c": "from .a import x"}, set("abc")),
        ({"a": "from .b import x", "b": "def f():\n    from .a import y"}, {"a", "b"}),
        ({"a": "from .b import x", "b": "if TYPE_CHECKING:\n    from .a import y"}, {"a", "b"}),
        ({"a": "from tokenprune import x", "__init__": "from .a import y"}, {"a", "__init__"}),
        ({"a": "from .adapters import x", "adapters/b": "from ..a import y"}, {"a", "adapters.b"}),
        ({"a": "from .b import x", "b": "import os\nfrom math import pi"}, set()),
    ],
)
def test_a_planted_circle_is_named(
    files: dict[str, str], expected: set[str], tmp_path: Path
) -> None:
    """In each way that one can be written; the last of these has none."""
    (tmp_path / "tokenprune/adapters").mkdir(parents=True)
    files = {"__init__": "", "adapters/__init__": "iter_modules(__path__)", **files}
    for name, text in files.items():
        (tmp_path / f"tokenprune/{name}.py").write_text(text)
    folder = tmp_path / "tokenprune"
    found = circle(graph_of(sources(folder, folder / "adapters")))
    named = {module.removeprefix("tokenprune").removeprefix(".") or "__init__" for module in found}
    assert named - {"adapters"} == expected
    assert found[:1] == found[-1:]


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("tokenprune.methods.base", "tokenprune.engine.engine"),
        ("tokenprune.methods.base", "tokenprune.adapters.adapter"),
        ("tokenprune.adapters.llava", "tokenprune.methods"),
        ("tokenprune.adapters.llava", "tokenprune.engine"),
        ("tokenprune.kernels.fused", "tokenprune.engine"),
        ("tokenprune.layout", "tokenprune.config"),
    ],
)
def test_a_planted_arrow_is_named(module: str, target: str) -> None:
    graph = {module: {target}, "tokenprune.api": {module, target}}
    assert wrong_arrows(graph) == [f"{module} imports {target}"]


def test_adapters_import_no_modelling_file_at_the_top() -> None:
    """`import tokenprune` would run it, whatever family is used."""
    for path in (ROOT / "adapters").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "transformers.models" not in ast.unparse(node), path.name


def test_a_part_without_a_level_is_named() -> None:
    with pytest.raises(AssertionError, match="does not say where 'unknown' belongs"):
        wrong_arrows({"tokenprune.unknown": {"tokenprune.layout"}})


def test_no_file_is_over_300_lines() -> None:
    folders = ("tokenprune", "adapters", "benchmarks", "examples", "scripts", "tests")
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if (lines := path.read_text(encoding="utf-8").count("\n")) > 300
    }
    assert not long
