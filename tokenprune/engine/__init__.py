"""How visual tokens leave a running decoder. Knows no method and no model family."""

from .attach import attach, detach, read_anatomy, replaced
from .calls import paused
from .engine import ATTRIBUTE, Engine, engine_of, heads_left_out
from .wrappers import base_model_of, check_heads, peft_layers, without_ddp

__all__ = [
    "ATTRIBUTE",
    "Engine",
    "attach",
    "base_model_of",
    "check_heads",
    "detach",
    "engine_of",
    "heads_left_out",
    "paused",
    "peft_layers",
    "read_anatomy",
    "replaced",
    "without_ddp",
]
