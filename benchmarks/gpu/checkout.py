"""Import the library from a checkout where nothing is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

__all__ = ["ROOT", "find_adapters"]

ROOT = Path(__file__).resolve().parents[2]


class _Adapters(MetaPathFinder):
    """Finds `tokenprune.adapters`, for the `tokenprune` of this checkout only, in `adapters/`.

    setuptools maps that folder into the package when the library is installed; without an
    installation Python looks in `tokenprune/` and finds nothing.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where `tokenprune.adapters` is. None: another finder's import."""
        package = str(ROOT / "tokenprune")
        if name != "tokenprune.adapters" or package not in [
            str(Path(p).resolve()) for p in path or ()
        ]:
            return None
        folder = ROOT / "adapters"
        return spec_from_file_location(
            name, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )


def find_adapters() -> None:
    """Let `import tokenprune` work in a plain checkout."""
    if not any(isinstance(finder, _Adapters) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Adapters())
