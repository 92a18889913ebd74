"""Qwen2-VL and its descendants: images and videos of any size, read from ``image_grid_thw``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.layout import VisualLayout

from .adapter import CompositeAdapter
from .geometry import grid_coordinates
from .inputs import MODALITIES, has_modality, placeholder_mask
from .registry import register

__all__ = ["Qwen2VLAdapter", "Qwen2_5_VLAdapter", "Qwen3VLAdapter"]


@register
class Qwen2VLAdapter(CompositeAdapter):
    """`Qwen2VLForConditionalGeneration`: every frame of a video has a grid of its own."""

    model_type = "qwen2_vl"
    causal = True
    sizes: tuple[str, ...] = ("image_grid_thw", "video_grid_thw")

    def grid(self, model: Any) -> tuple[int, int]:
        """Return 24×24, about what an image of 672×672 has; sizes differ."""
        return 24, 24

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Find image and video tokens, after the tower's spatial merge."""
        merge = core.config.vision_config.spatial_merge_size
        parts = [
            (
                placeholder_mask(core, inputs, getattr(core.config, f"{modality}_token_id")),
                grid_coordinates(inputs[f"{modality}_grid_thw"], merge),
            )
            for modality in MODALITIES
            if has_modality(inputs, modality)
        ]
        return VisualLayout.from_coordinates(parts)


@register
class Qwen2_5_VLAdapter(Qwen2VLAdapter):  # noqa: N801 (the family's own spelling)
    """`Qwen2_5_VLForConditionalGeneration`: window attention in the tower changes no order."""

    model_type = "qwen2_5_vl"


@register
class Qwen3VLAdapter(Qwen2VLAdapter):
    """`Qwen3VLForConditionalGeneration`.

    Its first decoder layers get features of the tower's middle layers added at the visual tokens
    (deepstack), so no token may be dropped before the last of them.
    """

    model_type = "qwen3_vl"

    def first_layer(self, model: Any) -> int:
        """Return the layer after the last one that gets features."""
        return len(model.config.vision_config.deepstack_visual_indexes)
