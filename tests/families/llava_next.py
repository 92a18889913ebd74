"""LLaVA-NeXT and its descendants: an image once whole and once in tiles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from .base import Wanted, family
from .fields import IMAGE, VIDEO, make, mistral, qwen2, siglip, text_fields, tower_fields
from .grids import Places, frame_grids, grid, nowhere, with_newlines
from .llava import Llava
from .padding import Arguments


def best_resolution(size: tuple[int, int], choices: list[list[int]]) -> tuple[int, int]:
    """The (height, width) that keeps most of an image's pixels and wastes the fewest."""
    height, width = size

    def worth(choice: list[int]) -> tuple[int, int]:
        high, wide = choice
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - high * wide

    high, wide = max(choices, key=worth)
    return high, wide


def unpadded(size: tuple[int, int], height: int, width: int) -> tuple[int, int]:
    """What is left of a height × width grid once the bars around the image are cut off."""
    high, wide = size
    if wide / high > width / height:
        inner = int(round(high * (width / wide), 7))
        return height - 2 * ((height - inner) // 2), width
    inner = int(round(wide * (height / high), 7))
    return height, width - 2 * ((width - inner) // 2)


@family("llava_next", "LlavaNextForConditionalGeneration")
class LlavaNext(Llava):
    """The whole image first, small; then its tiles as one grid whose rows end in a newline."""

    side = 3

    def fields(self) -> dict[str, Any]:
        tile = self.tower().image_size
        return {
            "image_token_index": IMAGE,
            "image_grid_pinpoints": [[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile]],
            "vision_feature_layer": -1,
        }

    def picture(self, wanted: Wanted) -> Arguments:
        if wanted.video:
            return super().picture(wanted)
        tile = wanted.config.vision_config.image_size
        size = (wanted.integer(8, 40), wanted.integer(8, 40))
        high, wide = best_resolution(size, wanted.config.image_grid_pinpoints)
        tiles = 1 + high * wide // tile**2
        return {"pixel_values": wanted.squares(1, tiles), "image_sizes": torch.tensor([size])}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        sizes = arguments["image_sizes"].tolist() if "image_sizes" in arguments else []
        return [self.tiled(config, (high, wide)) for high, wide in sizes]

    def tiled(self, config: Any, size: tuple[int, int]) -> Places:
        cell = config.vision_config.image_size // self.side
        high, wide = best_resolution(size, config.image_grid_pinpoints)
        height, width = self.shrunk(config, *unpadded(size, high // cell, wide // cell))
        return [*grid(self.side, self.side), *with_newlines(height, width, 1)]

    def shrunk(self, config: Any, height: int, width: int) -> tuple[int, int]:
        return height, width


@family("granite4_vision", "Granite4VisionForConditionalGeneration")
class Granite4Vision(LlavaNext):
    """The tower's grid is halved by Q-formers over windows of 2 × 2, one window a token.

    Nothing stands at an image's tokens before the first layer: features are added in every layer.
    """

    def tower(self) -> Any:
        fields = tower_fields(2 * self.side, hidden_size=64, projection_dim=16)
        return make("CLIPVisionConfig", **fields)

    def text(self) -> Any:
        return self.own("Text", **text_fields(num_hidden_layers=8))

    def fields(self) -> dict[str, Any]:
        fields = super().fields()
        del fields["vision_feature_layer"]
        qformer = {
            "model_type": "blip_2_qformer",
            "vocab_size": 100,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "cross_attention_frequency": 1,
        }
        return {
            **fields,
            "qformer_config": qformer,
            "downsample_rate": "1/2",
            "deepstack_layer_map": [[-1, 0]],
            "spatial_target_layers": [1, 2, 3, 4],
        }


@family("llava_next_video", "LlavaNextVideoForConditionalGeneration")
class LlavaNextVideo(LlavaNext):
    """A video's frames are pooled 2 × 2 and have no newlines."""

    videos = True
    side = 4

    def fields(self) -> dict[str, Any]:
        fields = super().fields()
        shapes = fields["image_grid_pinpoints"][:2]
        return {**fields, "image_grid_pinpoints": shapes, "video_token_index": VIDEO}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        if "pixel_values_videos" not in arguments:
            return super().places(config, arguments)
        frames = arguments["pixel_values_videos"].shape[1]
        one = frame_grids(frames, self.side // 2, self.side // 2)
        return [one for _ in arguments["pixel_values_videos"]]


@family("llava_onevision", "LlavaOnevisionForConditionalGeneration")
class LlavaOnevision(LlavaNext):
    """Tiles only where a prompt has one image; large grids are resampled to fewer tokens."""

    videos = True

    def tower(self) -> Any:
        return siglip(self.side)

    def text(self) -> Any:
        return qwen2()

    def fields(self) -> dict[str, Any]:
        return {
            **super().fields(),
            "video_token_index": VIDEO,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_2",
        }

    def picture(self, wanted: Wanted) -> Arguments:
        picture = super().picture(wanted)
        if wanted.video:
            return picture
        if wanted.count > 1:
            picture["pixel_values"] = picture["pixel_values"][:, :1]
        # One entry a prompt: together() keeps the first.
        picture["batch_num_images"] = torch.tensor([wanted.count])
        return picture

    def together(self, pictures: Sequence[Arguments], count: int) -> Arguments:
        sample = super().together(pictures, count)
        if "batch_num_images" in sample:
            sample["batch_num_images"] = sample["batch_num_images"][:1]
        return sample

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        side = self.side
        if "pixel_values_videos" in arguments:
            half = math.ceil(side / 2)
            frames = arguments["pixel_values_videos"].shape[1]
            one = [*frame_grids(frames, half, half), nowhere(frames - 1, half, half)]
            return [one for _ in arguments["pixel_values_videos"]]
        if "batch_num_images" in arguments and int(arguments["batch_num_images"][0]) > 1:
            one = [*grid(side, side), nowhere(0, side, side)]
            return [one for _ in arguments["image_sizes"]]
        return super().places(config, arguments)

    def shrunk(self, config: Any, height: int, width: int) -> tuple[int, int]:
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(height * width / (most * self.side**2))
        return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)


@family("llava_next-mistral", "LlavaNextForConditionalGeneration")
class LlavaNextMistral(LlavaNext):
    def text(self) -> Any:
        return mistral()
