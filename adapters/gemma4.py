"""Gemma 4: images of any size, read from the positions of their patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.layout import Coordinates, VisualLayout

from .generic import GenericAdapter
from .geometry import frame_coordinates
from .inputs import has_modality, placeholder_mask
from .registry import register

__all__ = ["Gemma4Adapter"]


@register
class Gemma4Adapter(GenericAdapter):
    """`Gemma4ForConditionalGeneration`; tokens of videos have no place in a grid."""

    model_type = "gemma4"
    sizes: tuple[str, ...] = ("image_position_ids",)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Find image tokens, after the tower's pooling."""
        if has_modality(inputs, "video"):
            return super().locate(core, inputs)
        config = core.config
        pool = config.vision_config.pooling_kernel_size
        # (x, y) of each patch; -1 at padding.
        extents = (inputs["image_position_ids"].amax(dim=1) + 1) // pool
        coordinates = Coordinates.cat(
            frame_coordinates(n, height, width)
            for n, (width, height) in enumerate(extents.tolist())
        )
        here = placeholder_mask(core, inputs, config.image_token_id)
        return VisualLayout.from_coordinates([(here, coordinates)])
