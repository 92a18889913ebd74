"""GLM and what else writes a video between tokens of its own, merged as Qwen's."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from .base import family
from .fields import END, HIDDEN, IMAGE, START, VIDEO, special_ids, text_fields
from .grids import Places
from .padding import Arguments
from .qwen import PATCH, Qwen2VL, Qwen3VL, m_rope, merging_fields

VIDEO_START, VIDEO_END = 90, 91


def token_fields() -> dict[str, int]:
    """The ids of the placeholders and of the tokens around them."""
    return {
        **special_ids("image_token_id", "image_start_token_id", "image_end_token_id"),
        "video_token_id": VIDEO,
        "video_start_token_id": VIDEO_START,
        "video_end_token_id": VIDEO_END,
    }


@family("glm4v", "Glm4vForConditionalGeneration")
class Glm4v(Qwen3VL):
    """A video's frames are written with the image token, each between start and end tokens."""

    limits: ClassVar[dict[str, str]] = {"video beams": "a video is not repeated for the beams"}

    def tower(self) -> Any:
        return merging_fields(
            out_hidden_size=HIDDEN,
            intermediate_size=32,
            image_size=8 * PATCH,
            temporal_patch_size=self.temporal,
        )

    def text(self) -> Any:
        return text_fields(rope_scaling=m_rope(2, 1, 1))

    def fields(self) -> dict[str, Any]:
        return token_fields()

    def span(self, places: Places, video: bool) -> list[int]:
        ids = super().span(places, video)
        if not video:
            return ids
        ids = [IMAGE if token == VIDEO else token for token in ids]
        return [VIDEO_START, *ids, VIDEO_END]

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        kind = 2 if "video_grid_thw" in sample else 1
        sample["mm_token_type_ids"] = kind * (sample["input_ids"] == IMAGE).int()


@family("glm46v", "Glm46VForConditionalGeneration")
class Glm46V(Glm4v):
    """As its predecessor, under another model type."""


@family("glm_ocr", "GlmOcrForConditionalGeneration")
class GlmOcr(Glm4v):
    def text(self) -> Any:
        return {**super().text(), "head_dim": HIDDEN // 4}


@family("glm4v_moe", "Glm4vMoeForConditionalGeneration")
class Glm4vMoe(Glm4v):
    def text(self) -> Any:
        return text_fields(
            rope_scaling=m_rope(2, 1, 1, partial_rotary_factor=1.0),
            partial_rotary_factor=1.0,
            head_dim=HIDDEN // 4,
            **routed_fields(),
        )


def routed_fields() -> dict[str, int]:
    """Those of a decoder whose feed-forward parts, but for the first, are routed to experts."""
    return {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    }


@family("ernie4_5_vl_moe", "Ernie4_5_VLMoeForConditionalGeneration")
class Ernie45VLMoe(Qwen2VL):
    """Text and pictures have experts of their own; two frames of a video are one token's."""

    limits: ClassVar[dict[str, str]] = {
        "uncached": "moe_mm_token_type_ids does not grow where nothing is cached",
        "video places": "the tower puts two frames into one token, which its inputs do not tell",
    }
    temporal = 1
    frames = 2

    def tower(self) -> Any:
        fields = merging_fields(intermediate_size=32, temporal_merge_size=self.frames)
        return self.own("Vision", **fields)

    def text(self) -> Any:
        fields = text_fields(
            rope_scaling=m_rope(1, 1, 2),
            moe_intermediate_size=[32, 16],
            moe_k=2,
            moe_num_experts=4,
            moe_num_shared_experts=1,
        )
        return self.own("Text", **fields)

    def fields(self) -> dict[str, Any]:
        return token_fields()

    def span(self, places: Places, video: bool) -> list[int]:
        start, end = (VIDEO_START, VIDEO_END) if video else (START, END)
        return [start, *super().span(places, video)[1:-1], end]

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        super().finish(model, sample)
        around = torch.tensor([START, END, VIDEO_START, VIDEO_END])
        kinds = sample["mm_token_type_ids"]
        edges = torch.isin(sample["input_ids"], around).int()
        sample["moe_mm_token_type_ids"] = torch.maximum(kinds, edges)
