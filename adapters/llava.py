"""LLaVA-1.5, the reference: every image is one square grid of tokens, with Pixtral any grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.layout import VisualLayout

from .adapter import CompositeAdapter, base_model, clip_tower
from .inputs import placeholder_mask
from .pixtral import pixtral_coordinates
from .registry import register

__all__ = ["LlavaAdapter"]

# Tower → whether a class token stands before the patches.
_TOWERS = {"clip_vision_model": True, "siglip_vision_model": False, "pixtral": False}


@register
class LlavaAdapter(CompositeAdapter):
    """`LlavaForConditionalGeneration` with a CLIP, SigLIP or Pixtral tower."""

    model_type = "llava"
    causal = True
    sizes: tuple[str, ...] = ("image_sizes",)

    def check(self, model: Any) -> None:
        """Check that the tower is one whose grids are known."""
        super().check(model)
        tower = model.config.vision_config.model_type
        if tower not in _TOWERS:
            raise ValueError(
                f"LLaVA with the vision tower {tower!r} is not supported: expected one of "
                f"{sorted(_TOWERS)}."
            )

    def grid(self, model: Any) -> tuple[int, int]:
        """Return image_size / patch_size, squared: 24×24 for LLaVA-1.5, the largest for Pixtral."""
        return self._grid(model.config)

    @staticmethod
    def _grid(config: Any) -> tuple[int, int]:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return side, side

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """Return CLIP's, where its class token is left out of the visual tokens."""
        config = base_model(model).config
        own_class_token = _TOWERS[config.vision_config.model_type]
        if not own_class_token or config.vision_feature_select_strategy != "default":
            return super().tower(model)
        return clip_tower(self.core(model).vision_tower)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Find image tokens in the prompt, row by row of each image's grid."""
        config = core.config
        here = placeholder_mask(core, inputs, config.image_token_id)
        if config.vision_config.model_type == "pixtral":
            coordinates = pixtral_coordinates(inputs["image_sizes"], config.vision_config)
            return VisualLayout.from_coordinates([(here, coordinates)])
        rows, cols = self._grid(config)
        strategy = inputs.get("vision_feature_select_strategy")
        strategy = strategy or config.vision_feature_select_strategy
        has_class_token = _TOWERS[config.vision_config.model_type]
        leading = int(has_class_token and strategy == "full")
        # "default" cuts the first token, which is a patch where the tower has no class token.
        if strategy == "default" and not has_class_token:
            raise ValueError(
                'vision_feature_select_strategy="default" drops a patch of a tower without a class '
                'token: expected "full".'
            )
        return VisualLayout.from_grids(here, rows, cols, leading)
