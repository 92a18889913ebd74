"""LLaVA and what is built like it: a tower of one image size, a projector, a decoder."""

from __future__ import annotations

from typing import Any

import torch

from .base import Family, Wanted, family
from .fields import HIDDEN, IMAGE, VIDEO, clip, make, qwen2, sam_fields, tower_fields
from .grids import Places, grid, nowhere
from .padding import Arguments


@family("llava", "LlavaForConditionalGeneration")
class Llava(Family):
    """Images of one size, `side` × `side` tokens each."""

    side = 5

    def tower(self) -> Any:
        return clip(self.side)

    def fields(self) -> dict[str, Any]:
        return {
            "image_token_index": IMAGE,
            "image_seq_length": self.side**2,
            "vision_feature_layer": -1,
        }


@family("vipllava", "VipLlavaForConditionalGeneration")
class VipLlava(Llava):
    def fields(self) -> dict[str, Any]:
        return {
            "image_token_index": IMAGE,
            "image_seq_length": self.side**2,
            "vision_feature_layers": [-1, -2],
        }


@family("video_llava", "VideoLlavaForConditionalGeneration")
class VideoLlava(Llava):
    """A video keeps the class token of each frame; an image does not."""

    videos = True
    sampled_frames = 2
    side = 4

    def fields(self) -> dict[str, Any]:
        return {**super().fields(), "video_token_index": VIDEO}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        if "pixel_values_videos" not in arguments:
            images = arguments.get("pixel_values", arguments.get("pixel_values_images", ()))
            return [grid(self.side, self.side) for _ in images]
        frames = range(arguments["pixel_values_videos"].shape[1])
        side = self.side
        one = [p for f in frames for p in (nowhere(f, side, side), *grid(side, side, f))]
        return [one for _ in arguments["pixel_values_videos"]]


@family("deepseek_vl", "DeepseekVLForConditionalGeneration")
class DeepseekVL(Llava):
    def tower(self) -> Any:
        return make("SiglipVisionConfig", **tower_fields(self.side))

    def fields(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE}


@family("deepseek_vl_hybrid", "DeepseekVLHybridForConditionalGeneration")
class DeepseekVLHybrid(DeepseekVL):
    """Two towers see an image at two resolutions; their tokens are added up place by place."""

    high = 16

    def fields(self) -> dict[str, Any]:
        high = make("SamVisionConfig", **sam_fields(self.high))
        return {"high_res_vision_config": high, **super().fields()}

    def picture(self, wanted: Wanted) -> Arguments:
        picture = super().picture(wanted)
        size = wanted.config.high_res_vision_config.image_size
        picture["high_res_pixel_values"] = wanted.randn(1, 3, size, size)
        return picture


@family("fast_vlm", "FastVlmForConditionalGeneration")
class FastVlm(Llava):
    """The tower is convolutional."""

    side = 4

    def tower(self) -> Any:
        tower = make(
            "TimmWrapperConfig",
            architecture="mobilenetv3_small_050",
            do_pooling=True,
            model_args={},
            num_features=288,
        )
        tower.hidden_size = 288
        return tower

    def text(self) -> Any:
        return qwen2()

    def fields(self) -> dict[str, Any]:
        return {"image_token_index": IMAGE, "image_seq_length": self.side**2}

    def picture(self, wanted: Wanted) -> Arguments:
        size = 32 * self.side
        return {"pixel_values": wanted.randn(1, 3, size, size)}


@family("perception_lm", "PerceptionLMForConditionalGeneration")
class PerceptionLM(Family):
    """Every image of a batch has the same number of tiles; pooled 2 × 2."""

    videos = True
    side = 3

    def tower(self) -> Any:
        size = 8 * self.side
        return make(
            "TimmWrapperConfig",
            architecture="vit_pe_core_large_patch14_336",
            model_args={
                "embed_dim": HIDDEN,
                "num_heads": 2,
                "depth": 2,
                "img_size": (size, size),
                "patch_size": 4,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 0.1,
                "ref_feat_shape": (2 * self.side, 2 * self.side),
            },
        )

    def fields(self) -> dict[str, Any]:
        return {
            "image_token_id": IMAGE,
            "video_token_id": VIDEO,
            "projector_pooling_ratio": 2,
            "vision_use_cls_token": True,
        }

    def picture(self, wanted: Wanted) -> Arguments:
        size = 8 * self.side
        name = "pixel_values_videos" if wanted.video else "pixel_values"
        return {name: wanted.randn(1, 2, 3, size, size)}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        pixels = arguments.get("pixel_values", arguments.get("pixel_values_videos"))
        tiles = torch.empty(0) if pixels is None else pixels.flatten(0, 1)
        return [grid(self.side, self.side) for _ in tiles]
