"""LLaVA-1.5, the reference: every image is one square grid of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.layout import VisualLayout

from .base import Adapter, base_model, register

__all__ = ["LlavaAdapter"]

# Towers whose images all have one size → whether a class token stands before the patches.
_TOWERS = {"clip_vision_model": True, "siglip_vision_model": False}


@register
class LlavaAdapter(Adapter):
    """`LlavaForConditionalGeneration` with a CLIP or SigLIP tower."""

    model_type = "llava"

    def check(self, model: Any) -> None:
        """A tower with images of one size, and a model that has a decoder under a core."""
        tower = model.config.vision_config.model_type
        if tower not in _TOWERS:
            raise ValueError(
                f"LLaVA with the vision tower {tower!r} is not supported: expected one of "
                f"{sorted(_TOWERS)}, whose images all have one size."
            )
        if not hasattr(base_model(model), "lm_head"):
            raise ValueError(
                f"wrap() takes the whole model, not {type(model).__name__}: expected a "
                "LlavaForConditionalGeneration."
            )

    def core(self, model: Any) -> Any:
        """`LlavaModel`."""
        return base_model(model).model

    def decoder_layers(self, model: Any) -> Any:
        """Of its language model."""
        return self.core(model).language_model.layers

    def grid(self, model: Any) -> tuple[int, int]:
        """image_size / patch_size squared: 24×24 for LLaVA-1.5."""
        return self._grid(model.config)

    @staticmethod
    def _grid(config: Any) -> tuple[int, int]:
        side = config.vision_config.image_size // config.vision_config.patch_size
        return side, side

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout | None:
        """Image tokens in the prompt, row by row of each image's grid."""
        encoded = inputs.get("mm_encoder_outputs") or {}
        if inputs.get("pixel_values") is None and encoded.get("image") is None:
            return None
        config = core.config
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
        return VisualLayout.from_grids(_image_tokens(core, inputs), rows, cols, leading)


def _image_tokens(core: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Where the image tokens stand: bool, (batch, length)."""
    token = core.config.image_token_id
    if inputs.get("input_ids") is not None:
        return inputs["input_ids"] == token
    embeds = inputs["inputs_embeds"]
    embedding = core.get_input_embeddings().weight[token].to(embeds.device)
    return (embeds == embedding).all(dim=-1)
