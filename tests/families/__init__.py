"""Tiny models of many families, so that one test can run over all of them."""

from . import (
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
from .base import Family, register

__all__ = ["FAMILIES", "Family"]

_FILES = (
    llava,
    llava_next,
    pixtral,
    qwen,
    glm,
    tiles,
    idefics,
    gemma,
    codebooks,
    queries,
    patches,
)
FAMILIES: dict[str, Family] = register([family for file in _FILES for family in file.FAMILIES])
