"""What `import tokenprune` imports beside torch and transformers: nothing that takes long."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from importlib import import_module

import pytest

import tokenprune as tp

# Measured, each takes between 0.1 and 3 s: `import tokenprune` is to take less than 0.2 s.
HEAVY = (
    "PIL",
    "accelerate",
    "rich",
    "scipy",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.tensor",
    "torchvision",
    "transformers.cache_utils",
    "transformers.masking_utils",
    "transformers.modeling_utils",
    "transformers.models",
    "transformers.processing_utils",
    "triton",
)
CONFIGURATIONS = [name for name in tp.__all__ if name.endswith("Config")]


@cache
def imported_by(code: str) -> tuple[str, ...]:
    """Modules that the code imports in a new interpreter that has torch and transformers."""
    script = f"""
import json, sys
import torch, transformers
before = set(sys.modules)
{code}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    return tuple(json.loads(run.stdout))


def heavy(modules: tuple[str, ...]) -> list[str]:
    inside = tuple(f"{name}." for name in HEAVY)
    return [name for name in modules if name in HEAVY or name.startswith(inside)]


def test_the_import_is_light() -> None:
    found = imported_by("import tokenprune")
    assert "tokenprune" in found
    assert not heavy(found)
    assert len(found) < 10, found


def test_configurations_are_light() -> None:
    """A script reads its command line before it loads a model."""
    made = "; ".join(f"tp.{name}" for name in CONFIGURATIONS)
    found = imported_by(f"import tokenprune as tp; {made}; tp.ATPConfig(target_tokens=144)")
    assert "tokenprune.methods.atp.config" in found
    assert not heavy(found)


def test_adapters_are_light() -> None:
    """No family's modelling file is imported before a model of it is."""
    assert not heavy(imported_by("import tokenprune.adapters"))


def test_what_is_heavy_is_seen() -> None:
    assert "transformers.modeling_utils" in heavy(imported_by("from tokenprune import wrap"))


@pytest.mark.parametrize("name", [name for name in tp.__all__ if name != "__version__"])
def test_a_public_name_is_found_where_it_is_defined(name: str) -> None:
    """Whichever is used first, and the same object at every use."""
    assert getattr(tp, name) is getattr(tp, name)
    assert name in dir(tp)
    modules = [import_module(f"tokenprune.{home}") for home in tp._HOMES]
    homes = [module for module in modules if name in module.__all__]
    assert homes
    assert all(getattr(home, name) is getattr(tp, name) for home in homes)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="'tokenprune' has no attribute 'wrapp'"):
        tp.wrapp  # noqa: B018
