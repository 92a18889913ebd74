"""LLaVA and its descendants: a vision transformer, a projector, a decoder."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.families.base import (
    BREAK,
    END,
    HIDDEN,
    IMAGE,
    VIDEO,
    WINDOW,
    Arguments,
    Family,
    Place,
    Places,
    draw,
    grid,
    make,
    nowhere,
    text_fields,
    tower_fields,
)


def clip(side: int) -> Any:
    return make("CLIPVisionConfig", **tower_fields(side, projection_dim=16))


def decoder(kind: str = "llama") -> Any:
    if kind == "mistral":
        return make("MistralConfig", **text_fields(sliding_window=WINDOW, head_dim=8))
    return make({"llama": "LlamaConfig", "qwen2": "Qwen2Config"}[kind], **text_fields())


class Llava(Family):
    """Images of one size, `side` × `side` tokens each."""

    name = "llava"
    model = "LlavaForConditionalGeneration"
    side = 5

    def config(self) -> Any:
        return make(
            self.model.replace("ForConditionalGeneration", "Config"),
            vision_config=clip(self.side),
            text_config=decoder(),
            image_token_index=IMAGE,
            image_seq_length=self.side**2,
            vision_feature_layer=-1,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        size = config.vision_config.image_size
        return {"pixel_values": torch.randn(1, 3, size, size, generator=generator)}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        return [grid(self.side, self.side) for _ in arguments.get("pixel_values", ())]


class VipLlava(Llava):
    name = "vipllava"
    model = "VipLlavaForConditionalGeneration"

    def config(self) -> Any:
        return make(
            "VipLlavaConfig",
            vision_config=clip(self.side),
            text_config=decoder(),
            image_token_index=IMAGE,
            image_seq_length=self.side**2,
            vision_feature_layers=[-1, -2],
        )


class VideoLlava(Llava):
    """A video keeps the class token of each frame; an image does not."""

    name = "video_llava"
    model = "VideoLlavaForConditionalGeneration"
    videos = True
    side = 4

    def config(self) -> Any:
        config = super().config()
        config.video_token_index = VIDEO
        return config

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        if not video:
            return super().picture(config, generator, count, video)
        size = config.vision_config.image_size
        # The processor samples the same number of frames from every video.
        return {"pixel_values_videos": torch.randn(1, 2, 3, size, size, generator=generator)}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        if "pixel_values_videos" not in arguments:
            images = arguments.get("pixel_values", arguments.get("pixel_values_images", ()))
            return [grid(self.side, self.side) for _ in images]
        frames = range(arguments["pixel_values_videos"].shape[1])
        side = self.side
        one = [p for f in frames for p in (nowhere(f, side, side), *grid(side, side, f))]
        return [one for _ in arguments["pixel_values_videos"]]


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


def with_newlines(height: int, width: int, unit: int) -> Places:
    return [
        Place(unit, r, c, height, width) if c < width else nowhere(unit, height, width)
        for r in range(height)
        for c in range(width + 1)
    ]


class LlavaNext(Llava):
    """The whole image first, small; then its tiles as one grid whose rows end in a newline."""

    name = "llava_next"
    model = "LlavaNextForConditionalGeneration"
    side = 3
    text = "llama"

    def config(self) -> Any:
        tower = self.tower()
        tile = tower.image_size
        return make(
            self.model.replace("ForConditionalGeneration", "Config"),
            vision_config=tower,
            text_config=decoder(self.text),
            image_token_index=IMAGE,
            image_grid_pinpoints=[[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile]],
            vision_feature_layer=-1,
        )

    def tower(self) -> Any:
        return clip(self.side)

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        tile = config.vision_config.image_size
        size = (draw(8, 40, generator), draw(8, 40, generator))
        high, wide = best_resolution(size, config.image_grid_pinpoints)
        tiles = 1 + high * wide // tile**2
        return {
            "pixel_values": torch.randn(1, tiles, 3, tile, tile, generator=generator),
            "image_sizes": torch.tensor([size]),
        }

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


class LlavaNextMistral(LlavaNext):
    name = "llava_next-mistral"
    text = "mistral"


class Granite4Vision(LlavaNext):
    """The tower's grid is halved by Q-formers over windows of 2 × 2, one window a token.

    Nothing stands at an image's tokens before the first layer: features are added in every layer.
    """

    name = "granite4_vision"
    model = "Granite4VisionForConditionalGeneration"

    def config(self) -> Any:
        tower = make(
            "CLIPVisionConfig", **tower_fields(2 * self.side, hidden_size=64, projection_dim=16)
        )
        tile = tower.image_size
        between = {
            "model_type": "blip_2_qformer",
            "vocab_size": 100,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "cross_attention_frequency": 1,
        }
        return make(
            "Granite4VisionConfig",
            vision_config=tower,
            text_config=make("Granite4VisionTextConfig", **text_fields(num_hidden_layers=8)),
            qformer_config=between,
            image_token_index=IMAGE,
            image_grid_pinpoints=[[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile]],
            downsample_rate="1/2",
            deepstack_layer_map=[[-1, 0]],
            spatial_target_layers=[1, 2, 3, 4],
        )


class LlavaNextVideo(LlavaNext):
    """A video's frames are pooled 2 × 2 and have no newlines."""

    name = "llava_next_video"
    model = "LlavaNextVideoForConditionalGeneration"
    videos = True
    side = 4

    def config(self) -> Any:
        config = super().config()
        config.video_token_index = VIDEO
        config.image_grid_pinpoints = config.image_grid_pinpoints[:2]
        return config

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        if not video:
            return super().picture(config, generator, count, video)
        size = config.vision_config.image_size
        return {"pixel_values_videos": torch.randn(1, 3, 3, size, size, generator=generator)}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        if "pixel_values_videos" not in arguments:
            return super().places(config, arguments)
        frames = arguments["pixel_values_videos"].shape[1]
        one = [p for f in range(frames) for p in grid(self.side // 2, self.side // 2, f)]
        return [one for _ in arguments["pixel_values_videos"]]


class LlavaOnevision(LlavaNext):
    """Tiles only where a prompt has one image; large grids are resampled to fewer tokens."""

    name = "llava_onevision"
    model = "LlavaOnevisionForConditionalGeneration"
    videos = True
    text = "qwen2"

    def tower(self) -> Any:
        return make("SiglipVisionConfig", vision_use_head=False, **tower_fields(self.side))

    def config(self) -> Any:
        config = super().config()
        config.video_token_index = VIDEO
        config.vision_feature_select_strategy = "full"
        config.vision_aspect_ratio = "anyres_max_2"
        return config

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        if video:
            size = config.vision_config.image_size
            pixels = torch.randn(1, 3, 3, size, size, generator=generator)
            return {"pixel_values_videos": pixels}
        picture = super().picture(config, generator, count, video)
        if count > 1:
            picture["pixel_values"] = picture["pixel_values"][:, :1]
        # One entry a prompt: together() keeps the first.
        picture["batch_num_images"] = torch.tensor([count])
        return picture

    def together(self, pictures: Any, count: int) -> Arguments:
        sample = super().together(pictures, count)
        if "batch_num_images" in sample:
            sample["batch_num_images"] = sample["batch_num_images"][:1]
        return sample

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        side = self.side
        if "pixel_values_videos" in arguments:
            half = math.ceil(side / 2)
            frames = arguments["pixel_values_videos"].shape[1]
            one = [p for f in range(frames) for p in grid(half, half, f)]
            one.append(nowhere(frames - 1, half, half))
            return [one for _ in arguments["pixel_values_videos"]]
        if "batch_num_images" in arguments and int(arguments["batch_num_images"][0]) > 1:
            one = [*grid(side, side), nowhere(0, side, side)]
            return [one for _ in arguments["image_sizes"]]
        return super().places(config, arguments)

    def shrunk(self, config: Any, height: int, width: int) -> tuple[int, int]:
        most = int(config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(height * width / (most * self.side**2))
        return (int(height // ratio), int(width // ratio)) if ratio > 1.1 else (height, width)


class LlavaPixtral(Family):
    """Images of any size; a break token after each row of tokens, after the last an end token."""

    name = "llava-pixtral"
    model = "LlavaForConditionalGeneration"
    merge = 1
    breaks = True

    def config(self) -> Any:
        return make(
            "LlavaConfig",
            vision_config=self.tower(),
            text_config=decoder("mistral"),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )

    def tower(self) -> Any:
        return make("PixtralVisionConfig", **tower_fields(16))

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        cell = config.vision_config.patch_size * self.merge
        height, width = (cell * draw(2, 7, generator) for _ in range(2))
        return {
            "pixel_values": torch.randn(1, 3, height, width, generator=generator),
            "image_sizes": torch.tensor([[height, width]]),
        }

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        cell = config.vision_config.patch_size * self.merge
        sizes = arguments["image_sizes"].tolist() if "image_sizes" in arguments else []
        return [grid(height // cell, width // cell) for height, width in sizes]

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        if not self.breaks:
            return super().span(config, places, video)
        row = [*[IMAGE] * places[0].width, BREAK]
        return [*(row * places[0].height)[:-1], END]


class Mistral3(LlavaPixtral):
    name = "mistral3"
    model = "Mistral3ForConditionalGeneration"
    merge = 2

    def config(self) -> Any:
        text = text_fields(sliding_window=None, head_dim=HIDDEN // 4, model_type="mistral")
        return make(
            "Mistral3Config",
            vision_config=self.tower(),
            text_config=make("MistralConfig", **text),
            image_token_index=IMAGE,
            vision_feature_layer=-1,
            spatial_merge_size=self.merge,
        )


class LightOnOcr(LlavaPixtral):
    name = "lighton_ocr"
    model = "LightOnOcrForConditionalGeneration"
    merge = 2
    breaks = False

    def config(self) -> Any:
        return make(
            "LightOnOcrConfig",
            vision_config=self.tower(),
            text_config=make("Qwen3Config", **text_fields(head_dim=HIDDEN // 4)),
            image_token_id=IMAGE,
            spatial_merge_size=self.merge,
        )


class DeepseekVL(Llava):
    name = "deepseek_vl"
    model = "DeepseekVLForConditionalGeneration"

    def config(self) -> Any:
        return make(
            "DeepseekVLConfig",
            vision_config=make("SiglipVisionConfig", **tower_fields(self.side)),
            text_config=decoder(),
            image_token_id=IMAGE,
        )


FAMILIES = [
    Llava(),
    LlavaNext(),
    LlavaNextMistral(),
    Granite4Vision(),
    VipLlava(),
    VideoLlava(),
    LlavaNextVideo(),
    LlavaOnevision(),
    LlavaPixtral(),
    Mistral3(),
    LightOnOcr(),
    DeepseekVL(),
]
