"""Qwen2-VL and its kin: images and videos of any size, told by ``image_grid_thw``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.layout import VisualLayout

from .base import KINDS, Adapter, base_model, brings, grid_places, register, where_is

__all__ = ["Qwen2VLAdapter", "Qwen2_5_VLAdapter", "Qwen3VLAdapter"]


@register
class Qwen2VLAdapter(Adapter):
    """`Qwen2VLForConditionalGeneration`: every frame of a video has a grid of its own."""

    model_type = "qwen2_vl"
    causal = True
    sizes: tuple[str, ...] = ("image_grid_thw", "video_grid_thw")

    def core(self, model: Any) -> Any:
        """`Qwen2VLModel`."""
        return base_model(model).model

    def decoder_layers(self, model: Any) -> Any:
        """Of its language model."""
        return self.core(model).language_model.layers

    def grid(self, model: Any) -> tuple[int, int]:
        """24×24, about what an image of 672×672 has; sizes differ."""
        return 24, 24

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Image and video tokens, after the tower's spatial merge."""
        merge = core.config.vision_config.spatial_merge_size
        parts = [
            (
                where_is(core, inputs, getattr(core.config, f"{kind}_token_id")),
                grid_places(inputs[f"{kind}_grid_thw"], merge),
            )
            for kind in KINDS
            if brings(inputs, kind)
        ]
        return VisualLayout.from_places(parts)


@register
class Qwen2_5_VLAdapter(Qwen2VLAdapter):  # noqa: N801 (the family's own spelling)
    """`Qwen2_5_VLForConditionalGeneration`: window attention in the tower changes no order."""

    model_type = "qwen2_5_vl"


@register
class Qwen3VLAdapter(Qwen2VLAdapter):
    """`Qwen3VLForConditionalGeneration`.

    Its first decoder layers get features of the tower's middle layers added at the visual tokens
    (deepstack), so no token may go before the last of them.
    """

    model_type = "qwen3_vl"

    def first_layer(self, model: Any) -> int:
        """The layer after the last one that gets features."""
        return len(model.config.vision_config.deepstack_visual_indexes)
