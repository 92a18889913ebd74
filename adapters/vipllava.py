"""VipLLaVA: LLaVA-1.5 with the features of several of CLIP's layers side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.layout import VisualLayout

from .adapter import CompositeAdapter, base_model, clip_tower
from .inputs import placeholder_mask
from .registry import register

__all__ = ["VipLlavaAdapter"]


@register
class VipLlavaAdapter(CompositeAdapter):
    """`VipLlavaForConditionalGeneration`. The class token is always left out."""

    model_type = "vipllava"
    causal = True

    def grid(self, model: Any) -> tuple[int, int]:
        """Return image_size / patch_size, squared."""
        config = base_model(model).config.vision_config
        return (side := config.image_size // config.patch_size), side

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """Return CLIP's."""
        return clip_tower(self.core(model).vision_tower)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Find image tokens in the prompt, row by row of each image's grid."""
        here = placeholder_mask(core, inputs, core.config.image_token_id)
        return VisualLayout.from_grids(here, *self.grid(core))
