"""LLaVA-1.5, the reference: every image is one square grid of tokens, with Pixtral any grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.layout import VisualLayout

from .base import Adapter, base_model, clip_tower, register, where_is
from .pixtral import pixtral_places

__all__ = ["LlavaAdapter"]

# Tower → whether a class token stands before the patches.
_TOWERS = {"clip_vision_model": True, "siglip_vision_model": False, "pixtral": False}


@register
class LlavaAdapter(Adapter):
    """`LlavaForConditionalGeneration` with a CLIP, SigLIP or Pixtral tower."""

    model_type = "llava"
    causal = True
    sizes: tuple[str, ...] = ("image_sizes",)

    def check(self, model: Any) -> None:
        """Only towers whose grids are known."""
        super().check(model)
        tower = model.config.vision_config.model_type
        if tower not in _TOWERS:
            raise ValueError(
                f"LLaVA with the vision tower {tower!r} is not supported: expected one of "
                f"{sorted(_TOWERS)}."
            )

    def core(self, model: Any) -> Any:
        """`LlavaModel`."""
        return base_model(model).model

    def decoder_layers(self, model: Any) -> Any:
        """Of its language model."""
        return self.core(model).language_model.layers

    def grid(self, model: Any) -> tuple[int, int]:
        """image_size / patch_size squared: 24×24 for LLaVA-1.5, the largest one for Pixtral."""
        return self._grid(model.config)

    @staticmethod
    def _grid(config: Any) -> tuple[int, int]:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return side, side

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """Of CLIP, whose class token is left out of the visual tokens."""
        config = base_model(model).config
        own_class_token = _TOWERS[config.vision_config.model_type]
        if not own_class_token or config.vision_feature_select_strategy != "default":
            return super().tower(model)
        return clip_tower(self.core(model).vision_tower)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Image tokens in the prompt, row by row of each image's grid."""
        config = core.config
        here = where_is(core, inputs, config.image_token_id)
        if config.vision_config.model_type == "pixtral":
            sizes = inputs["image_sizes"]
            return VisualLayout.from_places([(here, pixtral_places(sizes, config.vision_config))])
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
