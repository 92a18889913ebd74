"""Gemma's vision-language models: images, or whole prompts, see themselves in both directions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from .base import Family, Wanted, family
from .fields import (
    HIDDEN,
    IMAGE,
    LAYERS,
    VIDEO,
    VOCABULARY,
    WINDOW,
    encoder_fields,
    make,
    siglip,
    special_ids,
    text_fields,
)
from .grids import Places, grid
from .llava import FastVlm
from .padding import Arguments

TWO_WINDOWED = (["sliding_attention"] * 2 + ["full_attention"]) * (LAYERS // 3)


@family("gemma3", "Gemma3ForConditionalGeneration")
class Gemma3(Family):
    """The tokens of one image see each other; the tower's grid is pooled 2 × 2."""

    # Words are scaled by the square root of the hidden size.
    embedding = HIDDEN**-0.5
    edged = True
    layer_types: ClassVar[list[str]] = TWO_WINDOWED

    def tower(self) -> Any:
        return siglip(2 * self.side)

    def text(self) -> Any:
        fields = text_fields(
            head_dim=HIDDEN // 4,
            query_pre_attn_scalar=HIDDEN // 4,
            sliding_window=WINDOW,
            layer_types=self.layer_types,
        )
        return self.own("Text", **fields)

    def fields(self) -> dict[str, Any]:
        return {
            "mm_tokens_per_image": self.side**2,
            **special_ids("image_token_index", "boi_token_index", "eoi_token_index"),
        }

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        sample["token_type_ids"] = (sample["input_ids"] == IMAGE).long()


@family("gemma3-full", "Gemma3ForConditionalGeneration")
class Gemma3Full(Gemma3):
    """Without windows, where every layer sees an image in both directions."""

    layer_types = ["full_attention"] * LAYERS


@family("paligemma", "PaliGemmaForConditionalGeneration")
class PaliGemma(Family):
    """The whole prompt sees itself in both directions.

    In transformers 4.57 it answers differently with and without a cache, pruned or not.
    """

    since = 5
    embedding = Gemma3.embedding

    def tower(self) -> Any:
        return siglip(self.side)

    def text(self) -> Any:
        return make("GemmaConfig", **text_fields(head_dim=HIDDEN // 4))

    def fields(self) -> dict[str, Any]:
        return {
            "image_token_index": IMAGE,
            "projection_dim": HIDDEN,
            "hidden_size": HIDDEN,
            "vocab_size": VOCABULARY,
        }

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        sample["token_type_ids"] = torch.zeros_like(sample["input_ids"])


@family("paligemma-gemma2", "PaliGemmaForConditionalGeneration")
class PaliGemma2(PaliGemma):
    attentions = ("eager",)

    def text(self) -> Any:
        fields = text_fields(
            head_dim=HIDDEN // 4, query_pre_attn_scalar=HIDDEN // 4, sliding_window=WINDOW
        )
        return make("Gemma2Config", **fields)


@family("gemma3n", "Gemma3nForConditionalGeneration")
class Gemma3n(FastVlm):
    """Hidden states of the decoder layers have four dimensions; the last layers share keys."""

    refused = "per_layer_input"
    embedding = Gemma3.embedding

    def tower(self) -> Any:
        return self.own(
            "Vision",
            architecture="mobilenetv3_small_050",
            do_pooling=False,
            hidden_size=288,
            vocab_offset=95,
            vocab_size=5,
        )

    def text(self) -> Any:
        fields = text_fields(
            head_dim=HIDDEN // 4,
            sliding_window=WINDOW,
            layer_types=TWO_WINDOWED,
            vocab_size_per_layer_input=VOCABULARY,
            hidden_size_per_layer_input=8,
            num_kv_shared_layers=2,
            laurel_rank=8,
            altup_num_inputs=2,
            activation_sparsity_pattern=[0.0] * LAYERS,
        )
        return self.own("Text", **fields)

    def fields(self) -> dict[str, Any]:
        audio = self.own(
            "Audio",
            vocab_offset=100,
            vocab_size=4,
            **dict.fromkeys(("input_feat_size", "hidden_size"), 16),
            conf_num_attention_heads=2,
            conf_num_hidden_layers=1,
            sscp_conv_channel_size=(8, 8),
        )
        return {
            "audio_config": audio,
            "vision_soft_tokens_per_image": self.side**2,
            **special_ids("image_token_id", "boi_token_id", "eoi_token_id"),
            "audio_token_id": 102,
            "boa_token_id": 101,
            "eoa_token_id": 103,
        }


@family("gemma4", "Gemma4ForConditionalGeneration")
class Gemma4(Family):
    """Patches carry their places; tokens of one image see each other in the windowed layers.

    As the larger ones are; `Gemma4E` is the smaller.
    """

    small: ClassVar[dict[str, int]] = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0}
    embedding = Gemma3.embedding
    edged = True
    most, pool, patch = 16, 2, 4

    def tower(self) -> Any:
        fields = encoder_fields(
            num_key_value_heads=2,
            head_dim=8,
            pooling_kernel_size=self.pool,
            patch_size=self.patch,
            position_embedding_size=64,
        )
        return self.own("Vision", **fields)

    def text(self) -> Any:
        fields = text_fields(
            head_dim=HIDDEN // 4,
            global_head_dim=HIDDEN // 4,
            sliding_window=WINDOW,
            layer_types=TWO_WINDOWED,
            vocab_size_per_layer_input=VOCABULARY,
            use_bidirectional_attention="vision",
            **self.small,
        )
        return self.own("Text", **fields)

    def fields(self) -> dict[str, Any]:
        return {
            "audio_config": None,
            **special_ids("image_token_id", "boi_token_id", "eoi_token_id"),
            "video_token_id": VIDEO,
            "audio_token_id": 94,
        }

    def picture(self, wanted: Wanted) -> Arguments:
        height = wanted.integer(2, 5)
        width = wanted.integer(2, self.most // height)
        patches = self.most * self.pool**2
        rows, columns = self.pool * height, self.pool * width
        where = torch.full((1, patches, 2), -1)
        where[0, : rows * columns] = torch.cartesian_prod(
            torch.arange(rows), torch.arange(columns)
        ).flip(1)
        pixels = torch.rand(1, patches, 3 * self.patch**2, generator=wanted.generator)
        return {"pixel_values": pixels, "image_position_ids": where}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        corners = [where.amax(0) + 1 for where in arguments.get("image_position_ids", ())]
        return [grid(int(y) // self.pool, int(x) // self.pool) for x, y in corners]

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        sample["mm_token_type_ids"] = (sample["input_ids"] == IMAGE).int()


@family("gemma4-e", "Gemma4ForConditionalGeneration")
class Gemma4E(Gemma4):
    """Layers have inputs of their own, and the last share keys."""

    small: ClassVar[dict[str, int]] = {"hidden_size_per_layer_input": 8, "num_kv_shared_layers": 2}
    refused = "per_layer_input"
