"""GLM-4V and its descendants: frames of videos use the image placeholder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.layout import VisualLayout

from .geometry import grid_coordinates
from .inputs import MODALITIES, has_modality, placeholder_mask
from .qwen2_vl import Qwen2VLAdapter
from .registry import register

__all__ = ["Glm4vAdapter", "Glm4vMoeAdapter", "Glm46VAdapter", "GlmOcrAdapter"]


@register
class Glm4vAdapter(Qwen2VLAdapter):
    """`Glm4vForConditionalGeneration`: one forward takes images or videos, not both."""

    model_type = "glm4v"

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Find image tokens, after the tower's spatial merge."""
        merge = core.config.vision_config.spatial_merge_size
        here = placeholder_mask(core, inputs, core.config.image_token_id)
        modality = next(name for name in MODALITIES if has_modality(inputs, name))
        coordinates = grid_coordinates(inputs[f"{modality}_grid_thw"], merge)
        return VisualLayout.from_coordinates([(here, coordinates)])


@register
class Glm4vMoeAdapter(Glm4vAdapter):
    """`Glm4vMoeForConditionalGeneration`."""

    model_type = "glm4v_moe"


@register
class Glm46VAdapter(Glm4vAdapter):
    """`Glm46VForConditionalGeneration`."""

    model_type = "glm46v"


@register
class GlmOcrAdapter(Glm4vAdapter):
    """`GlmOcrForConditionalGeneration`."""

    model_type = "glm_ocr"
