"""Families whose learned queries turn an image into so many tokens without a place."""

from __future__ import annotations

from typing import Any

import torch

from .base import Wanted, family
from .fields import HIDDEN, IMAGE, encoder_fields, make, text_fields, tower_fields
from .grids import Places, without_place
from .llava import Llava
from .padding import Arguments


@family("aria", "AriaForConditionalGeneration")
class Aria(Llava):
    """A cross-attention between an image's patches and the queries."""

    queries = 8

    def tower(self) -> Any:
        return make("Idefics3VisionConfig", **tower_fields(self.side))

    def text(self) -> Any:
        fields = text_fields(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
        return self.own("Text", **fields)

    def fields(self) -> dict[str, Any]:
        patches = {self.side**2: self.queries}
        return {"projector_patch_to_query_dict": patches, "image_token_index": IMAGE}

    def picture(self, wanted: Wanted) -> Arguments:
        picture = super().picture(wanted)
        picture["pixel_mask"] = torch.ones_like(picture["pixel_values"][:, 0], dtype=torch.bool)
        return picture

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        return [without_place(self.queries) for _ in arguments.get("pixel_values", ())]


@family("blip-2", "Blip2ForConditionalGeneration")
class Blip2(Llava):
    """A Q-former."""

    refused = "generate does not call its forward"
    text_beside_images = False
    queries = 8

    def tower(self) -> Any:
        return self.own("Vision", **tower_fields(self.side)).to_dict()

    def text(self) -> Any:
        fields = text_fields(ffn_dim=64, word_embed_proj_dim=HIDDEN, dropout=0.0)
        for name_of_other in ("num_key_value_heads", "intermediate_size"):
            fields.pop(name_of_other)
        return make("OPTConfig", **fields).to_dict()

    def fields(self) -> dict[str, Any]:
        qformer = encoder_fields(
            vocab_size=100,
            cross_attention_frequency=1,
            encoder_hidden_size=16,
            **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
        )
        return {
            "qformer_config": self.own("QFormer", **qformer).to_dict(),
            "num_query_tokens": self.queries,
            "image_token_index": IMAGE,
        }

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        return [without_place(self.queries) for _ in arguments.get("pixel_values", ())]


@family("instructblip", "InstructBlipForConditionalGeneration")
class InstructBlip(Blip2):
    """The Q-former reads a prompt of its own with each image."""

    def picture(self, wanted: Wanted) -> Arguments:
        ids = torch.randint(3, 90, (1, 4), generator=wanted.generator)
        return {
            **super().picture(wanted),
            "qformer_input_ids": ids,
            "qformer_attention_mask": torch.ones_like(ids),
        }
