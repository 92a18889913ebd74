"""LLaVA-NeXT: a base view of the whole image, then its tiles put together and unpadded."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)

from tokenprune.layout import VisualLayout

from .base import (
    Adapter,
    base_model,
    clip_tower,
    frame_places,
    no_place,
    register,
    where_is,
)

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

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """Of CLIP, whose class token is left out of the visual tokens."""
        config = base_model(model).config
        clip = config.vision_config.model_type == "clip_vision_model"
        if not clip or config.vision_feature_select_strategy != "default":
            return super().tower(model)
        return clip_tower(self.core(model).vision_tower)

    def patches(self, core: Any, inputs: Mapping[str, Any]) -> Tensor:
        """The base view's and then the tiles', put together as the features are; newlines none."""
        config = core.config
        side, tile = side_of(config), config.vision_config.image_size
        parts, first = [], 0
        for size in inputs["image_sizes"].tolist():
            rows, cols = get_anyres_image_grid_shape(size, config.image_grid_pinpoints, tile)
            parts.append(first + torch.arange(side**2))
            first += side**2
            tiles = first + torch.arange(rows * cols * side**2)
            shape = {"r": rows, "c": cols, "h": side, "w": side}
            whole = rearrange(tiles, "(r c h w) -> 1 (r h) (c w)", **shape)
            parts.append(nn.functional.pad(unpad_image(whole, size)[0], (0, 1), value=-1).flatten())
            first += len(tiles)
        return torch.cat(parts)

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

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """Its patches become tokens by Q-formers."""
        return Adapter.tower(self, model)

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
