"""Families with a Pixtral tower: images of any size, told by ``image_sizes`` in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenprune.layout import VisualLayout

from .base import frame_places, register, where_is
from .generic import GenericAdapter

__all__ = ["LightOnOcrAdapter", "Mistral3Adapter", "pixtral_places"]


def pixtral_places(sizes: Tensor, vision_config: Any, merge: int = 1) -> Tensor:
    """Places of the patches, `merge` of them a side made one token.

    The text tokens that some processors put after each row of patches are no visual tokens.
    """
    cell = vision_config.patch_size * merge
    grids = [(height // cell, width // cell) for height, width in sizes.tolist()]
    return torch.cat([frame_places(n, *grid) for n, grid in enumerate(grids)])


@register
class Mistral3Adapter(GenericAdapter):
    """`Mistral3ForConditionalGeneration`."""

    model_type = "mistral3"
    sizes: tuple[str, ...] = ("image_sizes",)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Patches, after the spatial merge."""
        config = core.config
        here = where_is(core, inputs, config.image_token_id)
        places = pixtral_places(
            inputs["image_sizes"], config.vision_config, config.spatial_merge_size
        )
        return VisualLayout.from_places([(here, places)])


@register
class LightOnOcrAdapter(Mistral3Adapter):
    """`LightOnOcrForConditionalGeneration`."""

    model_type = "lighton_ocr"
