"""How visual tokens leave a running decoder. Knows no method and no model family."""

from .engine import ATTRIBUTE, Engine, engine_of

__all__ = ["ATTRIBUTE", "Engine", "engine_of"]
