"""Video-LLaVA, LLaVA-NeXT-Video and LLaVA-OneVision: videos whose frames all have one grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tokenprune.layout import Coordinates, VisualLayout

from .adapter import Adapter
from .geometry import frame_coordinates, unplaced
from .inputs import has_modality, placeholder_mask
from .llava_next import LlavaNextAdapter, tile_grid, tokens_per_side
from .registry import register

__all__ = ["LlavaNextVideoAdapter", "LlavaOnevisionAdapter", "VideoLlavaAdapter"]


@register
class LlavaNextVideoAdapter(LlavaNextAdapter):
    """`LlavaNextVideoForConditionalGeneration`: frames are pooled."""

    model_type = "llava_next_video"
    sizes: tuple[str, ...] = ("image_sizes", "pixel_values_videos")

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """Refuse: a video's patches are pooled."""
        return Adapter.tower(self, model)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Find images as in LLaVA-NeXT, and the frames of videos."""
        config, parts = core.config, []
        if has_modality(inputs, "image"):
            here = placeholder_mask(core, inputs, config.image_token_id)
            parts.append((here, self.image_coordinates(config, inputs)))
        if has_modality(inputs, "video"):
            here = placeholder_mask(core, inputs, config.video_token_id)
            videos, frames = inputs["pixel_values_videos"].shape[:2]
            each = [self.video_coordinates(config, n, frames) for n in range(videos)]
            parts.append((here, Coordinates.cat(each)))
        return VisualLayout.from_coordinates(parts)

    def video_coordinates(self, config: Any, video: int, frames: int) -> Coordinates:
        """Return the coordinates of one video's tokens."""
        side = tokens_per_side(config) // config.spatial_pool_stride
        return Coordinates.cat([frame_coordinates(video, side, side, t) for t in range(frames)])


@register
class LlavaOnevisionAdapter(LlavaNextVideoAdapter):
    """`LlavaOnevisionForConditionalGeneration`.

    Tiles only where a prompt has one image; large grids are made smaller; a newline token ends what
    has no tiles, and each video.
    """

    model_type = "llava_onevision"
    sizes: tuple[str, ...] = ("image_sizes", "batch_num_images", "pixel_values_videos")

    def image_coordinates(self, config: Any, inputs: Mapping[str, Any]) -> Coordinates:
        """Return the coordinates of every image's tokens."""
        side, sizes = tokens_per_side(config), inputs["image_sizes"].tolist()
        numbers = inputs.get("batch_num_images")
        counts = [1] * len(sizes) if numbers is None else numbers.tolist()
        tiled = [count == 1 for count in counts for _ in range(count)]
        parts = []
        for n, size in enumerate(sizes):
            parts.append(frame_coordinates(n, side, side))
            if tiled[n]:
                grid = _at_most(config, *tile_grid(config, size))
                parts.append(frame_coordinates(n, *grid, frame=1, line_ends=True))
            else:
                parts.append(unplaced(n, 0, side))
        return Coordinates.cat(parts)

    def video_coordinates(self, config: Any, video: int, frames: int) -> Coordinates:
        """Return the coordinates of one video's tokens."""
        side = math.ceil(tokens_per_side(config) / 2)
        each = [frame_coordinates(video, side, side, t) for t in range(frames)]
        return Coordinates.cat([*each, unplaced(video, frames - 1, side)])


def _at_most(config: Any, height: int, width: int) -> tuple[int, int]:
    """Return the grid after ``anyres_max_N``: no more than about N tiles' tokens."""
    most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
    ratio = math.sqrt(height * width / (most * tokens_per_side(config) ** 2))
    return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)


@register
class VideoLlavaAdapter(LlavaNextVideoAdapter):
    """`VideoLlavaForConditionalGeneration`: frames of videos keep their class token."""

    model_type = "video_llava"
    sizes: tuple[str, ...] = ("pixel_values", "pixel_values_images", "pixel_values_videos")

    def image_coordinates(self, config: Any, inputs: Mapping[str, Any]) -> Coordinates:
        """Return the coordinates of every image's tokens."""
        side = tokens_per_side(config)
        pixels = inputs.get("pixel_values_images")
        pixels = inputs["pixel_values"] if pixels is None else pixels
        return Coordinates.cat([frame_coordinates(n, side, side) for n in range(len(pixels))])

    def video_coordinates(self, config: Any, video: int, frames: int) -> Coordinates:
        """Return the coordinates of one video's tokens."""
        side = tokens_per_side(config)
        each = (
            (unplaced(video, t, side), frame_coordinates(video, side, side, t))
            for t in range(frames)
        )
        return Coordinates.cat([part for pair in each for part in pair])
