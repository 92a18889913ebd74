"""GLM-4V and its kin: frames of videos are written with the image's token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.layout import VisualLayout

from .base import KINDS, brings, grid_places, register, where_is
from .qwen2_vl import Qwen2VLAdapter

__all__ = ["Glm4vAdapter", "Glm4vMoeAdapter", "Glm46VAdapter", "GlmOcrAdapter"]


@register
class Glm4vAdapter(Qwen2VLAdapter):
    """`Glm4vForConditionalGeneration`: one forward takes images or videos, not both."""

    model_type = "glm4v"

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Image tokens, after the tower's spatial merge."""
        merge = core.config.vision_config.spatial_merge_size
        here = where_is(core, inputs, core.config.image_token_id)
        kind = next(kind for kind in KINDS if brings(inputs, kind))
        return VisualLayout.from_places([(here, grid_places(inputs[f"{kind}_grid_thw"], merge))])


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
