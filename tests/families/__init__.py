"""Tiny models of many families, so that one test can run over all of them."""

from tests.families import gemma, llava, others, qwen, tiles
from tests.families.base import Family, register

__all__ = ["FAMILIES", "Family"]

FAMILIES: dict[str, Family] = register(
    [*llava.FAMILIES, *qwen.FAMILIES, *tiles.FAMILIES, *gemma.FAMILIES, *others.FAMILIES]
)
