"""Video-LLaVA, LLaVA-NeXT-Video and LLaVA-OneVision: videos whose frames all have one grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokenprune.layout import VisualLayout

from .base import Adapter, brings, frame_places, no_place, register, where_is
from .llava_next import LlavaNextAdapter, side_of, tile_grid

__all__ = ["LlavaNextVideoAdapter", "LlavaOnevisionAdapter", "VideoLlavaAdapter"]


@register
class LlavaNextVideoAdapter(LlavaNextAdapter):
    """`LlavaNextVideoForConditionalGeneration`: frames are pooled."""

    model_type = "llava_next_video"
    sizes: tuple[str, ...] = ("image_sizes", "pixel_values_videos")

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """A video's patches are pooled."""
        return Adapter.tower(self, model)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Images as in LLaVA-NeXT, and the frames of videos."""
        config, parts = core.config, []
        if brings(inputs, "image"):
            here = where_is(core, inputs, config.image_token_id)
            parts.append((here, self.image_places(config, inputs)))
        if brings(inputs, "video"):
            here = where_is(core, inputs, config.video_token_id)
            videos, frames = inputs["pixel_values_videos"].shape[:2]
            each = [self.video_places(config, n, frames) for n in range(videos)]
            parts.append((here, torch.cat(each)))
        return VisualLayout.from_places(parts)

    def video_places(self, config: Any, video: int, frames: int) -> Tensor:
        """Places of one video's tokens."""
        side = side_of(config) // config.spatial_pool_stride
        return torch.cat([frame_places(video, side, side, t) for t in range(frames)])


@register
class LlavaOnevisionAdapter(LlavaNextVideoAdapter):
    """`LlavaOnevisionForConditionalGeneration`.

    Tiles only where a prompt has one image; large grids are made smaller; a newline token ends what
    has no tiles, and each video.
    """

    model_type = "llava_onevision"
    sizes: tuple[str, ...] = ("image_sizes", "batch_num_images", "pixel_values_videos")

    def image_places(self, config: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Places of every image's tokens."""
        side, sizes = side_of(config), inputs["image_sizes"].tolist()
        numbers = inputs.get("batch_num_images")
        counts = [1] * len(sizes) if numbers is None else numbers.tolist()
        tiled = [count == 1 for count in counts for _ in range(count)]
        parts = []
        for n, size in enumerate(sizes):
            parts.append(frame_places(n, side, side))
            if tiled[n]:
                grid = _at_most(config, *tile_grid(config, size))
                parts.append(frame_places(n, *grid, frame=1, line_ends=True))
            else:
                parts.append(no_place(n, 0, side))
        return torch.cat(parts)

    def video_places(self, config: Any, video: int, frames: int) -> Tensor:
        """Places of one video's tokens."""
        side = math.ceil(side_of(config) / 2)
        each = [frame_places(video, side, side, t) for t in range(frames)]
        return torch.cat([*each, no_place(video, frames - 1, side)])


def _at_most(config: Any, height: int, width: int) -> tuple[int, int]:
    """The grid after ``anyres_max_N``: no more than about N tiles' tokens."""
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(height * width / (most * side_of(config) ** 2))
    return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)


@register
class VideoLlavaAdapter(LlavaNextVideoAdapter):
    """`VideoLlavaForConditionalGeneration`: frames of videos keep their class token."""

    model_type = "video_llava"
    sizes: tuple[str, ...] = ("pixel_values", "pixel_values_images", "pixel_values_videos")

    def image_places(self, config: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Places of every image's tokens."""
        side = side_of(config)
        pixels = inputs.get("pixel_values_images")
        pixels = inputs["pixel_values"] if pixels is None else pixels
        return torch.cat([frame_places(n, side, side) for n in range(len(pixels))])

    def video_places(self, config: Any, video: int, frames: int) -> Tensor:
        """Places of one video's tokens."""
        side = side_of(config)
        each = (
            (no_place(video, t, side), frame_places(video, side, side, t)) for t in range(frames)
        )
        return torch.cat([part for pair in each for part in pair])
