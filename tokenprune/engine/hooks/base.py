"""What every set of hooks has: the engine that it works for."""

from __future__ import annotations

from ..engine import Engine

__all__ = ["Hooks"]


class Hooks:
    """Hooks of one kind of module.

    Parameters
    ----------
    engine : Engine
        Of the wrapped model.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
