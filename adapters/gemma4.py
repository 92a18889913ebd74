"""Gemma 4: images of any size, told by the places of their patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tokenprune.layout import VisualLayout

from .base import brings, frame_places, register, where_is
from .generic import GenericAdapter

__all__ = ["Gemma4Adapter"]


@register
class Gemma4Adapter(GenericAdapter):
    """`Gemma4ForConditionalGeneration`; tokens of videos have no places."""

    model_type = "gemma4"
    sizes: tuple[str, ...] = ("image_position_ids",)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Image tokens, after the tower's pooling."""
        if brings(inputs, "video"):
            return super().locate(core, inputs)
        config = core.config
        pool = config.vision_config.pooling_kernel_size
        # (x, y) of each patch; -1 at padding.
        extents = (inputs["image_position_ids"].amax(dim=1) + 1) // pool
        places = [
            frame_places(n, height, width) for n, (width, height) in enumerate(extents.tolist())
        ]
        here = where_is(core, inputs, config.image_token_id)
        return VisualLayout.from_places([(here, torch.cat(places))])
