"""Families with a Pixtral tower: images of any size, read from ``image_sizes`` in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tokenprune.layout import Coordinates, VisualLayout

from .generic import GenericAdapter
from .geometry import frame_coordinates
from .inputs import placeholder_mask
from .registry import register

__all__ = ["LightOnOcrAdapter", "Mistral3Adapter", "pixtral_coordinates"]


def pixtral_coordinates(sizes: Tensor, vision_config: Any, merge: int = 1) -> Coordinates:
    """Return the coordinates of the patches, `merge` of them a side merged into one token.

    The text tokens that some processors put after each row of patches are no visual tokens.
    """
    cell = vision_config.patch_size * merge
    grids = [(height // cell, width // cell) for height, width in sizes.tolist()]
    return Coordinates.cat(frame_coordinates(n, *grid) for n, grid in enumerate(grids))


@register
class Mistral3Adapter(GenericAdapter):
    """`Mistral3ForConditionalGeneration`."""

    model_type = "mistral3"
    sizes: tuple[str, ...] = ("image_sizes",)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Find patches, after the spatial merge."""
        config = core.config
        here = placeholder_mask(core, inputs, config.image_token_id)
        coordinates = pixtral_coordinates(
            inputs["image_sizes"], config.vision_config, config.spatial_merge_size
        )
        return VisualLayout.from_coordinates([(here, coordinates)])


@register
class LightOnOcrAdapter(Mistral3Adapter):
    """`LightOnOcrForConditionalGeneration`."""

    model_type = "lighton_ocr"
