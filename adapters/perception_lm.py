"""Perception LM: tiles one after the other, pooled; a timm tower."""

from __future__ import annotations

from typing import Any

from .generic import GenericAdapter
from .registry import register

__all__ = ["PerceptionLMAdapter"]


@register
class PerceptionLMAdapter(GenericAdapter):
    """`PerceptionLMForConditionalGeneration`: each tile is an image with a grid of its own."""

    model_type = "perception_lm"

    def per_image(self, config: Any) -> int:
        """Return the tokens of one tile, after pooling."""
        tower = config.vision_config.model_args
        side = tower["img_size"][0] // tower["patch_size"] // config.projector_pooling_ratio
        return side * side
