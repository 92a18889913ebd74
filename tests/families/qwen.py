"""Qwen's vision-language models: patches of any resolution merged 2 × 2, rotary M-RoPE."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from tests.families.base import (
    END,
    HIDDEN,
    IMAGE,
    START,
    VIDEO,
    WINDOW,
    Arguments,
    Family,
    Places,
    draw,
    grid,
    make,
    text_fields,
)

MERGE, PATCH = 2, 4


class Qwen2VL(Family):
    name = "qwen2_vl"
    model = "Qwen2VLForConditionalGeneration"
    videos = True
    # Frames in one patch of the tower.
    temporal = 2
    # Frames of the grid that one token of a video stands for.
    frames = 1

    def config(self) -> Any:
        return make(
            self.model.replace("ForConditionalGeneration", "Config"),
            vision_config=self.tower(),
            text_config=self.text(),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            vision_start_token_id=START,
            vision_end_token_id=END,
        )

    def tower(self) -> dict[str, Any]:
        return {
            "depth": 2,
            "embed_dim": 16,
            "hidden_size": HIDDEN,
            "num_heads": 2,
            "mlp_ratio": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": self.temporal,
        }

    def text(self) -> dict[str, Any]:
        return text_fields(rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]})

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        frames = self.frames * draw(2, 3, generator) if video else 1
        most = 4 if video else 7
        height, width = (MERGE * draw(2, most, generator) for _ in range(2))
        shape = (frames * height * width, *self.patch())
        pixels, thw = (
            ("pixel_values_videos", "video_grid_thw")
            if video
            else ("pixel_values", "image_grid_thw")
        )
        return {
            pixels: torch.randn(*shape, generator=generator),
            thw: torch.tensor([[frames, height, width]]),
        }

    def patch(self) -> tuple[int, ...]:
        return (3 * self.temporal * PATCH**2,)

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        grids = [*arguments.get("image_grid_thw", ()), *arguments.get("video_grid_thw", ())]
        return [
            [
                place
                for frame in range(max(1, int(frames) // self.frames))
                for place in grid(int(height) // MERGE, int(width) // MERGE, frame)
            ]
            for frames, height, width in grids
        ]

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        return [START, *super().span(config, places, video), END]

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        ids = sample["input_ids"]
        sample["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


class Qwen25VL(Qwen2VL):
    name = "qwen2_5_vl"
    model = "Qwen2_5_VLForConditionalGeneration"

    def tower(self) -> dict[str, Any]:
        return {
            "depth": 2,
            "hidden_size": 16,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": self.temporal,
            "window_size": 2 * MERGE * PATCH,
            "fullatt_block_indexes": [1],
        }

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        picture = super().picture(config, generator, count, video)
        if video:
            picture["second_per_grid_ts"] = torch.tensor([0.5])
        return picture


class Qwen3VL(Qwen2VL):
    """Features of inner vision layers are added in the first decoder layers.

    Each frame of a video stands between its own start and end tokens.
    """

    name = "qwen3_vl"
    model = "Qwen3VLForConditionalGeneration"

    def tower(self) -> dict[str, Any]:
        return {
            "depth": 3,
            "hidden_size": 16,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": self.temporal,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        }

    def text(self) -> dict[str, Any]:
        scaling = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True}
        return text_fields(head_dim=HIDDEN // 4, rope_scaling=scaling)

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        if not video:
            return super().span(config, places, video)
        frames = 1 + max(place.unit for place in places)
        one = [START, *[VIDEO] * (len(places) // frames), END]
        stamp = [3, 4]
        return [token for _ in range(frames) for token in (*stamp, *one)]


class Qwen3VLMoe(Qwen3VL):
    name = "qwen3_vl_moe"
    model = "Qwen3VLMoeForConditionalGeneration"

    def text(self) -> dict[str, Any]:
        return {
            **super().text(),
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
        }


class Glm4v(Qwen3VL):
    """A video's frames are written with the image token, each between start and end tokens."""

    name = "glm4v"
    limits: ClassVar[dict[str, str]] = {"video beams": "a video is not repeated for the beams"}
    model = "Glm4vForConditionalGeneration"
    video_start, video_end = 90, 91

    def config(self) -> Any:
        return make(
            self.model.replace("ForConditionalGeneration", "Config"),
            vision_config=self.tower(),
            text_config=self.text(),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=START,
            image_end_token_id=END,
            video_start_token_id=self.video_start,
            video_end_token_id=self.video_end,
        )

    def tower(self) -> dict[str, Any]:
        return {
            "depth": 2,
            "hidden_size": 16,
            "out_hidden_size": HIDDEN,
            "intermediate_size": 32,
            "num_heads": 2,
            "image_size": 8 * PATCH,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": self.temporal,
        }

    def text(self) -> dict[str, Any]:
        scaling = {"rope_type": "default", "mrope_section": [2, 1, 1]}
        return text_fields(rope_scaling=scaling)

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        ids = super().span(config, places, video)
        if not video:
            return ids
        ids = [IMAGE if token == VIDEO else token for token in ids]
        return [self.video_start, *ids, self.video_end]

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        kind = 2 if "video_grid_thw" in sample else 1
        sample["mm_token_type_ids"] = kind * (sample["input_ids"] == IMAGE).int()


class Glm46V(Glm4v):
    name = "glm46v"
    model = "Glm46VForConditionalGeneration"


class GlmOcr(Glm4v):
    name = "glm_ocr"
    model = "GlmOcrForConditionalGeneration"

    def text(self) -> dict[str, Any]:
        return {**super().text(), "head_dim": HIDDEN // 4}


class Glm4vMoe(Glm4v):
    name = "glm4v_moe"
    model = "Glm4vMoeForConditionalGeneration"

    def text(self) -> dict[str, Any]:
        scaling = {
            "rope_type": "default",
            "mrope_section": [2, 1, 1],
            "partial_rotary_factor": 1.0,
        }
        return text_fields(
            rope_scaling=scaling,
            partial_rotary_factor=1.0,
            head_dim=HIDDEN // 4,
            n_routed_experts=4,
            n_shared_experts=1,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            first_k_dense_replace=1,
            n_group=1,
            topk_group=1,
        )


class PaddleOcrVL(Qwen2VL):
    """One frame a patch; patches row by row, merged after the tower."""

    name = "paddleocr_vl"
    model = "PaddleOCRVLForConditionalGeneration"
    videos = False
    temporal = 1

    def tower(self) -> dict[str, Any]:
        return {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 8 * PATCH,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
        }

    def text(self) -> dict[str, Any]:
        scaling = {"rope_type": "default", "mrope_section": [2, 1, 1]}
        return text_fields(head_dim=HIDDEN // 4, rope_scaling=scaling)

    def patch(self) -> tuple[int, ...]:
        return (3, PATCH, PATCH)


class VideoLlama3(Qwen2VL):
    """Each image says itself how far its tokens are merged."""

    name = "video_llama_3"
    model = "VideoLlama3ForConditionalGeneration"
    temporal = 1

    def config(self) -> Any:
        tower = {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "patch_size": PATCH,
        }
        return make(
            "VideoLlama3Config",
            vision_config=make("VideoLlama3VisionConfig", **tower),
            text_config=make("Qwen2Config", **text_fields()),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        picture = super().picture(config, generator, count, video)
        picture["video_merge_sizes" if video else "image_merge_sizes"] = torch.tensor([MERGE])
        return picture


class Ernie45VLMoe(Qwen2VL):
    """Text and pictures have experts of their own; two frames of a video are one token's."""

    name = "ernie4_5_vl_moe"
    limits: ClassVar[dict[str, str]] = {
        "uncached": "moe_mm_token_type_ids does not grow where nothing is cached",
        "video places": "the tower puts two frames into one token, which its inputs do not tell",
    }
    model = "Ernie4_5_VLMoeForConditionalGeneration"
    temporal = 1
    frames = 2

    def config(self) -> Any:
        return make(
            "Ernie4_5_VLMoeConfig",
            vision_config=make("Ernie4_5_VLMoeVisionConfig", **self.tower()),
            text_config=make("Ernie4_5_VLMoeTextConfig", **self.text()),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            image_start_token_id=START,
            image_end_token_id=END,
            video_start_token_id=90,
            video_end_token_id=91,
        )

    def tower(self) -> dict[str, Any]:
        return {
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_heads": 2,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_merge_size": self.frames,
        }

    def text(self) -> dict[str, Any]:
        return text_fields(
            rope_scaling={"rope_type": "default", "mrope_section": [1, 1, 2]},
            moe_intermediate_size=[32, 16],
            moe_k=2,
            moe_num_experts=4,
            moe_num_shared_experts=1,
        )

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        start, end = (90, 91) if video else (START, END)
        return [start, *super().span(config, places, video)[1:-1], end]

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        super().finish(model, sample)
        around = torch.tensor([START, END, 90, 91])
        kinds = sample["mm_token_type_ids"]
        edges = torch.isin(sample["input_ids"], around).int()
        sample["moe_mm_token_type_ids"] = torch.maximum(kinds, edges)


class Exaone45(Qwen25VL):
    """Positions are counted in one dimension; every fourth layer attends to everything."""

    name = "exaone4_5"
    model = "Exaone4_5_ForConditionalGeneration"

    def config(self) -> Any:
        text = text_fields(sliding_window=WINDOW, sliding_window_pattern=4, head_dim=HIDDEN // 4)
        return make(
            "Exaone4_5_Config",
            vision_config=make("Exaone4_5_VisionConfig", num_key_value_heads=1, **self.tower()),
            text_config=make("Exaone4Config", **text),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )


class HyperClovaX(Qwen25VL):
    name = "hyperclovax_vision_v2"
    model = "HyperCLOVAXVisionV2ForConditionalGeneration"

    def config(self) -> Any:
        return make(
            "HyperCLOVAXVisionV2Config",
            vision_config=make("Qwen2_5_VLVisionConfig", **self.tower()),
            text_config=make("HyperCLOVAXConfig", **text_fields(head_dim=HIDDEN // 4)),
            image_token_id=IMAGE,
            video_token_id=VIDEO,
        )


FAMILIES = [
    Qwen2VL(),
    Qwen25VL(),
    Qwen3VL(),
    Qwen3VLMoe(),
    Glm4v(),
    Glm46V(),
    GlmOcr(),
    Glm4vMoe(),
    PaddleOcrVL(),
    VideoLlama3(),
    Ernie45VLMoe(),
    Exaone45(),
    HyperClovaX(),
]
