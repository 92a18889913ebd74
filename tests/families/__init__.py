"""Tiny models of many families, so that one test can run over all of them."""

from . import (  # noqa: F401
    codebooks,
    gemma,
    glm,
    idefics,
    llava,
    llava_next,
    patches,
    pixtral,
    queries,
    qwen,
    tiles,
)
from .base import FAMILIES as _FAMILIES
from .base import Family

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = dict(sorted(_FAMILIES.items()))
