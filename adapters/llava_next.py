"""LLaVA-NeXT: a base view of the whole image, then its tiles put together and unpadded."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from tokenprune.layout import Coordinates, VisualLayout

from .adapter import Adapter, CompositeAdapter, base_model, clip_tower
from .geometry import frame_coordinates, unplaced
from .inputs import placeholder_mask
from .registry import register

__all__ = ["Granite4VisionAdapter", "LlavaNextAdapter", "tile_grid", "tokens_per_side"]


@register
class LlavaNextAdapter(CompositeAdapter):
    """`LlavaNextForConditionalGeneration`.

    Frame 0 of an image is its base view, frame 1 the tiles put together: one grid over the whole
    unpadded image, whose lines end in a newline token. Those are visual tokens without a place:
    they are counted, and kept or dropped by their redundant score, which measured better than
    always keeping them (docs/design.md).
    """

    model_type = "llava_next"
    causal = True
    sizes: tuple[str, ...] = ("image_sizes",)

    def grid(self, model: Any) -> tuple[int, int]:
        """Return the grid of the base view."""
        return (side := tokens_per_side(model.config)), side

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """Return CLIP's, where its class token is left out of the visual tokens."""
        config = base_model(model).config
        clip = config.vision_config.model_type == "clip_vision_model"
        if not clip or config.vision_feature_select_strategy != "default":
            return super().tower(model)
        return clip_tower(self.core(model).vision_tower)

    def patches(self, core: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Return the base view's patches, then the tiles' in the order of the features.

        A newline is no patch: -1.
        """
        # Not at the top: `import tokenprune` would import the modelling file, whatever the family.
        from transformers.models.llava_next import modeling_llava_next as modeling

        config = core.config
        side, tile = tokens_per_side(config), config.vision_config.image_size
        parts, first = [], 0
        for size in inputs["image_sizes"].tolist():
            rows, cols = modeling.get_anyres_image_grid_shape(
                size, config.image_grid_pinpoints, tile
            )
            parts.append(first + torch.arange(side**2))
            first += side**2
            tiles = first + torch.arange(rows * cols * side**2)
            shape = {"r": rows, "c": cols, "h": side, "w": side}
            whole = rearrange(tiles, "(r c h w) -> 1 (r h) (c w)", **shape)
            unpadded = modeling.unpad_image(whole, size)[0]
            parts.append(nn.functional.pad(unpadded, (0, 1), value=-1).flatten())
            first += len(tiles)
        return torch.cat(parts)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Find the tokens of each image: its base view, then its tiles."""
        here = placeholder_mask(core, inputs, core.config.image_token_id)
        return VisualLayout.from_coordinates([(here, self.image_coordinates(core.config, inputs))])

    def image_coordinates(self, config: Any, inputs: Mapping[str, Any]) -> Coordinates:
        """Return the coordinates of every image's tokens."""
        strategy = inputs.get("vision_feature_select_strategy")
        leading = (strategy or config.vision_feature_select_strategy) == "full"
        side, sizes = tokens_per_side(config), inputs["image_sizes"].tolist()
        parts = []
        for n, size in enumerate(sizes):
            parts += [unplaced(n, 0, side)] * leading
            parts.append(frame_coordinates(n, side, side))
            parts.append(frame_coordinates(n, *tile_grid(config, size), frame=1, line_ends=True))
        return Coordinates.cat(parts)


@register
class Granite4VisionAdapter(LlavaNextAdapter):
    """`Granite4VisionForConditionalGeneration`: many decoder layers get image features added."""

    model_type = "granite4_vision"

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """Refuse: Q-formers stand between patches and tokens."""
        return Adapter.tower(self, model)

    def first_layer(self, model: Any) -> int:
        """Return the last layer that gets features: they are added before it runs."""
        config = model.config
        layers = [layer for _, layer in config.deepstack_layer_map or ()]
        return max([*layers, *(config.spatial_target_layers or ()), 0])


def tile_grid(config: Any, size: list[int]) -> tuple[int, int]:
    """Return rows and columns of an image's tiles put together and unpadded."""
    from transformers.models.llava_next import modeling_llava_next as modeling

    side, tile = tokens_per_side(config), config.vision_config.image_size
    rows, cols = modeling.get_anyres_image_grid_shape(size, config.image_grid_pinpoints, tile)
    # Only the shape is needed: one empty channel, cut as the features will be.
    height, width = modeling.unpad_image(torch.empty(1, rows * side, cols * side), size).shape[1:]
    return height, width


def tokens_per_side(config: Any) -> int:
    """Return the tokens along a side of a tile."""
    patches = config.vision_config.image_size // config.vision_config.patch_size
    return int(patches * Fraction(getattr(config, "downsample_rate", 1)))
