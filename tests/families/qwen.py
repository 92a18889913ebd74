"""Qwen's vision-language models: patches of any resolution merged 2 × 2, rotary M-RoPE."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from .base import Family, Wanted, family
from .fields import (
    END,
    HIDDEN,
    IMAGE,
    START,
    VIDEO,
    WINDOW,
    encoder_fields,
    make,
    qwen2,
    special_ids,
    text_fields,
    tower_fields,
)
from .grids import Places, frame_grids
from .padding import Arguments

MERGE, PATCH = 2, 4


def merging_fields(**changes: Any) -> dict[str, Any]:
    """Those of a tower whose patches are merged."""
    return {
        "depth": 2,
        "hidden_size": 16,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": MERGE,
        **changes,
    }


def m_rope(*sections: int, **changes: Any) -> dict[str, Any]:
    """Rotary embeddings of three kinds of positions, so many channels each."""
    return {"rope_type": "default", "mrope_section": list(sections), **changes}


@family("qwen2_vl", "Qwen2VLForConditionalGeneration")
class Qwen2VL(Family):
    videos = True
    edged = True
    # Frames in one patch of the tower.
    temporal = 2
    # Frames of the grid that one token of a video stands for.
    frames = 1

    def tower(self) -> Any:
        return merging_fields(
            embed_dim=16, hidden_size=HIDDEN, mlp_ratio=2, temporal_patch_size=self.temporal
        )

    def text(self) -> Any:
        return text_fields(rope_scaling={"type": "mrope", "mrope_section": [2, 1, 1]})

    def fields(self) -> dict[str, Any]:
        ids = special_ids("image_token_id", "vision_start_token_id", "vision_end_token_id")
        return {**ids, "video_token_id": VIDEO}

    def picture(self, wanted: Wanted) -> Arguments:
        frames = self.frames * wanted.integer(2, 3) if wanted.video else 1
        most = 4 if wanted.video else 7
        height, width = (MERGE * wanted.integer(2, most) for _ in range(2))
        pixels, thw = (
            ("pixel_values_videos", "video_grid_thw")
            if wanted.video
            else ("pixel_values", "image_grid_thw")
        )
        return {
            pixels: wanted.randn(frames * height * width, *self.patch()),
            thw: torch.tensor([[frames, height, width]]),
        }

    def patch(self) -> tuple[int, ...]:
        return (3 * self.temporal * PATCH**2,)

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        grids = [*arguments.get("image_grid_thw", ()), *arguments.get("video_grid_thw", ())]
        return [
            frame_grids(max(1, frames // self.frames), height // MERGE, width // MERGE)
            for frames, height, width in (thw.tolist() for thw in grids)
        ]

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        ids = sample["input_ids"]
        sample["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()


@family("qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration")
class Qwen25VL(Qwen2VL):
    def tower(self) -> Any:
        return merging_fields(
            out_hidden_size=HIDDEN,
            intermediate_size=32,
            temporal_patch_size=self.temporal,
            window_size=2 * MERGE * PATCH,
            fullatt_block_indexes=[1],
        )

    def picture(self, wanted: Wanted) -> Arguments:
        picture = super().picture(wanted)
        if wanted.video:
            picture["second_per_grid_ts"] = torch.tensor([0.5])
        return picture


@family("qwen3_vl", "Qwen3VLForConditionalGeneration")
class Qwen3VL(Qwen2VL):
    """Features of inner vision layers are added in the first decoder layers.

    Each frame of a video stands between its own start and end tokens.
    """

    def tower(self) -> Any:
        return merging_fields(
            depth=3,
            out_hidden_size=HIDDEN,
            intermediate_size=32,
            temporal_patch_size=self.temporal,
            num_position_embeddings=16,
            deepstack_visual_indexes=[0, 1],
        )

    def text(self) -> Any:
        scaling = m_rope(2, 1, 1, mrope_interleaved=True)
        return text_fields(head_dim=HIDDEN // 4, rope_scaling=scaling)

    def span(self, places: Places, video: bool) -> list[int]:
        if not video:
            return super().span(places, video)
        frames = 1 + max(place.unit for place in places)
        one = [START, *[VIDEO] * (len(places) // frames), END]
        stamp = [3, 4]
        return [token for _ in range(frames) for token in (*stamp, *one)]


@family("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration")
class Qwen3VLMoe(Qwen3VL):
    def text(self) -> Any:
        return {
            **super().text(),
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "decoder_sparse_step": 1,
        }


@family("paddleocr_vl", "PaddleOCRVLForConditionalGeneration")
class PaddleOcrVL(Qwen2VL):
    """One frame a patch; patches row by row, merged after the tower."""

    videos = False
    temporal = 1

    def tower(self) -> Any:
        return tower_fields(8, PATCH, spatial_merge_size=MERGE)

    def text(self) -> Any:
        return text_fields(head_dim=HIDDEN // 4, rope_scaling=m_rope(2, 1, 1))

    def patch(self) -> tuple[int, ...]:
        return (3, PATCH, PATCH)


@family("video_llama_3", "VideoLlama3ForConditionalGeneration")
class VideoLlama3(Qwen2VL):
    """Each image says itself how far its tokens are merged."""

    temporal = 1

    def tower(self) -> Any:
        return self.own("Vision", **encoder_fields(patch_size=PATCH))

    def text(self) -> Any:
        return qwen2()

    def fields(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "video_token_id": VIDEO}

    def picture(self, wanted: Wanted) -> Arguments:
        picture = super().picture(wanted)
        name = "video_merge_sizes" if wanted.video else "image_merge_sizes"
        picture[name] = torch.tensor([MERGE])
        return picture


@family("exaone4_5", "Exaone4_5_ForConditionalGeneration")
class Exaone45(Qwen25VL):
    """Positions are counted in one dimension; every fourth layer attends to everything."""

    def tower(self) -> Any:
        return self.own("Vision", num_key_value_heads=1, **super().tower())

    def text(self) -> Any:
        text = text_fields(sliding_window=WINDOW, sliding_window_pattern=4, head_dim=HIDDEN // 4)
        return make("Exaone4Config", **text)

    def fields(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "video_token_id": VIDEO}


@family("hyperclovax_vision_v2", "HyperCLOVAXVisionV2ForConditionalGeneration")
class HyperClovaX(Qwen25VL):
    def tower(self) -> Any:
        return make("Qwen2_5_VLVisionConfig", **super().tower())

    def text(self) -> Any:
        return make("HyperCLOVAXConfig", **text_fields(head_dim=HIDDEN // 4))

    def fields(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "video_token_id": VIDEO}
