"""LLaVA-NeXT: a base view of the whole image, then its tiles put together and unpadded."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)

from tokenprune.layout import VisualLayout

from .base import Adapter, base_model, frame_places, no_place, register, where_is

__all__ = ["Granite4VisionAdapter", "LlavaNextAdapter", "side_of", "tile_grid"]


@register
class LlavaNextAdapter(Adapter):
    """`LlavaNextForConditionalGeneration`.

    Frame 0 of an image is its base view, frame 1 the tiles put together: one grid over the whole
    unpadded image, whose lines end in a newline token. Those are visual tokens without a place:
    they are counted, and go or stay by their redundant score, which measured better than keeping
    them (docs/design.md).
    """

    model_type = "llava_next"
    causal = True
    sizes: tuple[str, ...] = ("image_sizes",)

    def core(self, model: Any) -> Any:
        """`LlavaNextModel`."""
        return base_model(model).model

    def decoder_layers(self, model: Any) -> Any:
        """Of its language model."""
        return self.core(model).language_model.layers

    def grid(self, model: Any) -> tuple[int, int]:
        """Of the base view."""
        return (side := side_of(model.config)), side

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Base view, then tiles, of each image."""
        here = where_is(core, inputs, core.config.image_token_id)
        return VisualLayout.from_places([(here, self.image_places(core.config, inputs))])

    def image_places(self, config: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Places of every image's tokens."""
        strategy = inputs.get("vision_feature_select_strategy")
        leading = (strategy or config.vision_feature_select_strategy) == "full"
        side, sizes = side_of(config), inputs["image_sizes"].tolist()
        parts = []
        for n, size in enumerate(sizes):
            parts += [no_place(n, 0, side)] * leading
            parts.append(frame_places(n, side, side))
            parts.append(frame_places(n, *tile_grid(config, size), frame=1, line_ends=True))
        return torch.cat(parts)


@register
class Granite4VisionAdapter(LlavaNextAdapter):
    """`Granite4VisionForConditionalGeneration`: many decoder layers get image features added."""

    model_type = "granite4_vision"

    def first_layer(self, model: Any) -> int:
        """The last that gets features: before it runs, as LLaVA-NeXT's would before layer 0."""
        config = model.config
        layers = [layer for _, layer in config.deepstack_layer_map or ()]
        return max([*layers, *(config.spatial_target_layers or ()), 0])


def tile_grid(config: Any, size: list[int]) -> tuple[int, int]:
    """Rows and columns of an image's tiles put together and unpadded."""
    side, tile = side_of(config), config.vision_config.image_size
    rows, cols = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, tile)
    # Only its shape is asked for: one channel of nothing, cut as the features will be.
    height, width = unpad_image(torch.empty(1, rows * side, cols * side), size).shape[1:]
    return height, width


def side_of(config: Any) -> int:
    """Tokens along a side of a tile."""
    patches = config.vision_config.image_size // config.vision_config.patch_size
    return int(patches * Fraction(getattr(config, "downsample_rate", 1)))
