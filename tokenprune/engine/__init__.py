"""How visual tokens leave a running decoder. Knows no method and no model family."""

from .attach import attach, detach, read_anatomy
from .calls import paused
from .engine import ATTRIBUTE, Engine, engine_of, heads_left_out

__all__ = [
    "ATTRIBUTE",
    "Engine",
    "attach",
    "detach",
    "engine_of",
    "heads_left_out",
    "paused",
    "read_anatomy",
]
