"""Families that cut an image into tiles of one size, each with a grid of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.families.base import (
    BREAK,
    END,
    HIDDEN,
    IMAGE,
    LAYERS,
    START,
    VIDEO,
    WINDOW,
    Arguments,
    Family,
    Places,
    collate,
    draw,
    grid,
    make,
    text_fields,
    tower_fields,
)


def siglip(side: int) -> Any:
    return make("SiglipVisionConfig", vision_use_head=False, **tower_fields(side))


class InternVL(Family):
    """Tiles follow each other without anything between; a video is one tile a frame."""

    name = "internvl"
    model = "InternVLForConditionalGeneration"
    videos = True
    tokens = 4
    limits_of_4: ClassVar[dict[str, str]] = {
        "beams": "with them it answers otherwise where nothing is cached, pruned or not"
    }
    # What stands after each tile's tokens.
    between: tuple[int, ...] = ()

    def config(self) -> Any:
        return make(
            "InternVLConfig",
            vision_config=make("InternVLVisionConfig", **tower_fields(2 * self.tokens)),
            text_config=make("Qwen2Config", **text_fields()),
            image_token_id=IMAGE,
            image_seq_length=self.tokens**2,
        )

    def size(self, config: Any) -> int:
        size = config.vision_config.image_size
        return size if isinstance(size, int) else size[0]

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        tiles = 2 if video else (1, 3)[draw(0, 1, generator)]
        size = self.size(config)
        return {"pixel_values": torch.randn(tiles, 3, size, size, generator=generator)}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        return [grid(self.tokens, self.tokens) for _ in arguments.get("pixel_values", ())]

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        tiles = 1 + max(place.unit for place in places)
        tile = [IMAGE] * (len(places) // tiles)
        if video:
            return [START, *tile, END] * tiles
        return [START, *[*tile, *self.between] * tiles, END]


class QianfanOcr(InternVL):
    limits_of_4: ClassVar[dict[str, str]] = {}
    name = "qianfan_ocr"
    model = "QianfanOCRForConditionalGeneration"
    videos = False

    def config(self) -> Any:
        return make(
            "QianfanOCRConfig",
            vision_config=make("QianfanOCRVisionConfig", **tower_fields(2 * self.tokens)),
            text_config=make("Qwen3Config", **text_fields(head_dim=HIDDEN // 4)),
            image_token_id=IMAGE,
            image_seq_length=self.tokens**2,
        )


def cohere(window: bool) -> Any:
    changes = {} if window else {"layer_types": ["full_attention"] * LAYERS}
    return make("Cohere2Config", **text_fields(sliding_window=WINDOW, logit_scale=1.0, **changes))


class AyaVision(InternVL):
    limits_of_4: ClassVar[dict[str, str]] = {}
    name = "aya_vision"
    model = "AyaVisionForConditionalGeneration"
    videos = False
    between: tuple[int, ...] = (BREAK,)

    def config(self) -> Any:
        return make(
            "AyaVisionConfig",
            vision_config=siglip(2 * self.tokens),
            text_config=cohere(window=True),
            image_token_index=IMAGE,
        )


class Cohere2Vision(AyaVision):
    name = "cohere2_vision"
    model = "Cohere2VisionForConditionalGeneration"
    window = True

    def config(self) -> Any:
        return make(
            "Cohere2VisionConfig",
            vision_config=siglip(2 * self.tokens),
            text_config=cohere(self.window),
            image_token_id=IMAGE,
            alignment_intermediate_size=64,
        )


class Cohere2VisionFull(Cohere2Vision):
    name = "cohere2_vision-full"
    window = False


class GotOcr2(AyaVision):
    """The tower's grid is halved twice by convolutions."""

    name = "got_ocr2"
    model = "GotOcr2ForConditionalGeneration"
    between = ()

    def config(self) -> Any:
        tower = {
            **tower_fields(4 * self.tokens),
            "output_channels": 16,
            "window_size": 4,
            "global_attn_indexes": [1],
            "mlp_dim": 32,
        }
        return make(
            "GotOcr2Config",
            vision_config=make("GotOcr2VisionConfig", **tower),
            text_config=make("Qwen2Config", **text_fields()),
            image_token_index=IMAGE,
            image_seq_length=self.tokens**2,
        )


class Ovis2(AyaVision):
    """The tokens around an image are features of the tower's table too."""

    name = "ovis2"
    model = "Ovis2ForConditionalGeneration"
    indicators = (90, 91, 92, 93, 94)

    def config(self) -> Any:
        tower = tower_fields(
            2 * self.tokens, hidden_stride=2, vocab_size=40, num_visual_indicator_tokens=5
        )
        return make(
            "Ovis2Config",
            vision_config=make("Ovis2VisionConfig", **tower),
            text_config=make("Qwen2Config", **text_fields()),
            image_token_id=IMAGE,
            visual_indicator_token_ids=list(self.indicators),
            vocab_size=100,
            hidden_size=HIDDEN,
        )

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        start, end, column, *_ = self.indicators
        tiles = 1 + max(place.unit for place in places)
        tile = [*[IMAGE] * (len(places) // tiles), column]
        return [start, *(tile * tiles)[:-1], end]


class Llama4(AyaVision):
    """Decoder layers attend within chunks of the text, every fourth everywhere."""

    name = "llama4"
    refused = "scaled by how many tokens stand before"
    model = "Llama4ForConditionalGeneration"

    def config(self) -> Any:
        tower = tower_fields(
            2 * self.tokens,
            vision_output_dim=16,
            projector_input_dim=16,
            projector_output_dim=16,
            intermediate_size=64,
        )
        text = text_fields(
            head_dim=HIDDEN // 4,
            intermediate_size_mlp=64,
            num_local_experts=2,
            interleave_moe_layer_step=2,
            attention_chunk_size=WINDOW,
        )
        return make(
            "Llama4Config",
            vision_config=make("Llama4VisionConfig", **tower),
            text_config=make("Llama4TextConfig", **text),
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        )


class Idefics3(InternVL):
    """All pictures of a row along the second dimension, missing ones all zero."""

    limits_of_4: ClassVar[dict[str, str]] = {}
    name = "idefics3"
    model = "Idefics3ForConditionalGeneration"
    videos = False
    between = (BREAK,)

    def config(self) -> Any:
        name = self.model.replace("ForConditionalGeneration", "")
        return make(
            f"{name}Config",
            vision_config=make(f"{name}VisionConfig", **tower_fields(2 * self.tokens)),
            text_config=make("LlamaConfig", **text_fields()),
            image_token_id=IMAGE,
            scale_factor=2,
            pad_token_id=0,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        pixels = super().picture(config, generator, count, video)["pixel_values"][None]
        mask = torch.ones_like(pixels[:, :, 0], dtype=torch.long)
        return {"pixel_values": pixels, "pixel_attention_mask": mask}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        pixels = arguments.get("pixel_values", torch.zeros(1, 0))
        return [grid(self.tokens, self.tokens) for _ in pixels[0]]

    def together(self, pictures: Sequence[Arguments], count: int) -> Arguments:
        names = pictures[0] if pictures else ()
        return {name: along_second([one[name] for one in pictures]) for name in names}

    def join_pictures(self, rows: Sequence[Arguments]) -> Arguments:
        example = next((row for row in rows if row), {})
        nothing = {name: torch.zeros_like(values[:, :1]) for name, values in example.items()}
        return collate([row or nothing for row in rows])


def along_second(parts: Sequence[Tensor]) -> Tensor:
    """Concatenated along the second dimension, the later ones padded to the largest."""
    return collate([{"x": part.transpose(0, 1)} for part in parts])["x"].transpose(0, 1)


class SmolVLM(Idefics3):
    name = "smolvlm"
    model = "SmolVLMForConditionalGeneration"


class Idefics2(Idefics3):
    """A perceiver turns an image of any size into so many tokens without a place."""

    name = "idefics2"
    model = "Idefics2ForConditionalGeneration"
    latents = 8

    def config(self) -> Any:
        perceiver = {
            "hidden_size": HIDDEN,
            "resampler_n_latents": self.latents,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        }
        text = text_fields(sliding_window=WINDOW, head_dim=HIDDEN // 4)
        return make(
            "Idefics2Config",
            vision_config=tower_fields(8),
            perceiver_config=perceiver,
            text_config=make("MistralConfig", **text),
            image_token_id=IMAGE,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        height, width = (4 * draw(3, 8, generator) for _ in range(2))
        pixels = torch.randn(1, 1, 3, height, width, generator=generator)
        mask = torch.ones_like(pixels[:, :, 0], dtype=torch.long)
        return {"pixel_values": pixels, "pixel_attention_mask": mask}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        pixels = arguments.get("pixel_values", torch.zeros(1, 0))
        return [without_place(self.latents) for _ in pixels[0]]


def without_place(tokens: int) -> Places:
    return [place._replace(row=-1, col=-1, height=0, width=0) for place in grid(1, tokens)]


class PerceptionLM(Family):
    """Every image of a batch has the same number of tiles; pooled 2 × 2."""

    name = "perception_lm"
    model = "PerceptionLMForConditionalGeneration"
    videos = True
    tokens = 3

    def config(self) -> Any:
        side = 8 * self.tokens
        tower = make(
            "TimmWrapperConfig",
            architecture="vit_pe_core_large_patch14_336",
            model_args={
                "embed_dim": 32,
                "num_heads": 2,
                "depth": 2,
                "img_size": (side, side),
                "patch_size": 4,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": (2 * self.tokens, 2 * self.tokens),
            },
        )
        return make(
            "PerceptionLMConfig",
            vision_config=tower,
            text_config=make("LlamaConfig", **text_fields()),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            projector_pooling_ratio=2,
            vision_use_cls_token=True,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        side = 8 * self.tokens
        name = "pixel_values_videos" if video else "pixel_values"
        return {name: torch.randn(1, 2, 3, side, side, generator=generator)}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        pixels = arguments.get("pixel_values", arguments.get("pixel_values_videos"))
        tiles = 0 if pixels is None else pixels.shape[0] * pixels.shape[1]
        return [grid(self.tokens, self.tokens) for _ in range(tiles)]


FAMILIES = [
    InternVL(),
    QianfanOcr(),
    AyaVision(),
    Cohere2Vision(),
    Cohere2VisionFull(),
    GotOcr2(),
    Ovis2(),
    Llama4(),
    Idefics3(),
    SmolVLM(),
    Idefics2(),
    PerceptionLM(),
]
