"""How visual tokens leave a running decoder. Knows no method and no model family."""

from .attach import attach, detach, read_anatomy
from .calls import paused
from .engine import ATTRIBUTE, Engine, engine_of

__all__ = ["ATTRIBUTE", "Engine", "attach", "detach", "engine_of", "paused", "read_anatomy"]
