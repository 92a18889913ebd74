"""Tiny models of many families, so that one test can run over all of them.

A module that is imported here registers those it defines.
"""

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
from .base import FAMILIES, Family

__all__ = ["FAMILIES", "Family"]
