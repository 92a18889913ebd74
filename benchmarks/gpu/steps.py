"""The steps, in order, and what each may take."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

__all__ = ["DEVICES", "ENVIRONMENT", "STEPS", "Step", "missing"]

DEVICES = ("cuda", "cpu", "elsewhere")
"""The last is the pretended one of ``tests/support/fake_device.py``."""

# What the library itself imports.
_LIBRARY = ("einops", "numpy", "PIL", "rich", "safetensors", "torch", "transformers")


@dataclass(frozen=True)
class Step:
    """A Python file with ``measure(job)``, which returns the results and saves them as it goes.

    Attributes
    ----------
    name : str
        Of the step and of its file.
    program : str
        Python file of this package, without its suffix.
    seconds : float
        That are kept for it. What earlier steps leave over comes on top.
    needs : tuple of str
        Packages without which it is not begun.
    """

    name: str
    program: str
    seconds: float
    needs: tuple[str, ...] = _LIBRARY


ENVIRONMENT = Step("environment", "environment", 35, needs=("torch",))
STEPS = (
    ENVIRONMENT,
    Step("properties", "properties", 130, needs=(*_LIBRARY, "hypothesis", "pytest")),
    Step("kernels", "kernels", 100, needs=(*_LIBRARY, "triton")),
    Step("speed-llava-1.5-7b", "speed", 75),
    Step("speed-llava-next-7b", "speed", 95),
    Step("speed-qwen2-vl-7b", "speed", 75),
)


def missing(step: Step) -> list[str]:
    """Return the packages that the step needs and that cannot be imported."""
    return [name for name in step.needs if find_spec(name) is None]
