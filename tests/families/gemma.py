"""Gemma's vision-language models: images, or whole prompts, see themselves in both directions."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from tests.families.base import (
    END,
    HIDDEN,
    IMAGE,
    LAYERS,
    START,
    WINDOW,
    Arguments,
    Family,
    Places,
    grid,
    make,
    text_fields,
    tower_fields,
)


class Gemma3(Family):
    """The tokens of one image see each other; the tower's grid is pooled 2 × 2."""

    name = "gemma3"
    model = "Gemma3ForConditionalGeneration"
    tokens = 4
    # Words are scaled by the square root of the hidden size.
    embedding = HIDDEN**-0.5
    layer_types = (["sliding_attention"] * 2 + ["full_attention"]) * (LAYERS // 3)

    def config(self) -> Any:
        text = text_fields(
            head_dim=HIDDEN // 4,
            query_pre_attn_scalar=HIDDEN // 4,
            sliding_window=WINDOW,
            layer_types=self.layer_types,
        )
        return make(
            "Gemma3Config",
            vision_config=make(
                "SiglipVisionConfig", vision_use_head=False, **tower_fields(2 * self.tokens)
            ),
            text_config=make("Gemma3TextConfig", **text),
            mm_tokens_per_image=self.tokens**2,
            image_token_index=IMAGE,
            boi_token_index=START,
            eoi_token_index=END,
        )

    def picture(
        self, config: Any, generator: torch.Generator, count: int, video: bool
    ) -> Arguments:
        size = config.vision_config.image_size
        return {"pixel_values": torch.randn(1, 3, size, size, generator=generator)}

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        return [grid(self.tokens, self.tokens) for _ in arguments.get("pixel_values", ())]

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        return [START, *super().span(config, places, video), END]

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        sample["token_type_ids"] = (sample["input_ids"] == IMAGE).long()


class Gemma3Full(Gemma3):
    name = "gemma3-full"
    layer_types = ["full_attention"] * LAYERS


class PaliGemma(Gemma3):
    """The whole prompt sees itself in both directions.

    In transformers 4.57 it answers differently with and without a cache, pruned or not.
    """

    name = "paligemma"
    since = 5
    model = "PaliGemmaForConditionalGeneration"

    def config(self) -> Any:
        return make(
            "PaliGemmaConfig",
            vision_config=make(
                "SiglipVisionConfig", vision_use_head=False, **tower_fields(self.tokens)
            ),
            text_config=self.text(),
            image_token_index=IMAGE,
            projection_dim=HIDDEN,
            hidden_size=HIDDEN,
            vocab_size=100,
        )

    def text(self) -> Any:
        return make("GemmaConfig", **text_fields(head_dim=HIDDEN // 4))

    def span(self, config: Any, places: Places, video: bool) -> list[int]:
        return Family.span(self, config, places, video)

    def finish(self, model: PreTrainedModel, sample: Arguments) -> None:
        sample["token_type_ids"] = torch.zeros_like(sample["input_ids"])


class PaliGemma2(PaliGemma):
    name = "paligemma-gemma2"
    attentions = ("eager",)

    def text(self) -> Any:
        text = text_fields(
            head_dim=HIDDEN // 4, query_pre_attn_scalar=HIDDEN // 4, sliding_window=WINDOW
        )
        return make("Gemma2Config", **text)


FAMILIES = [Gemma3(), Gemma3Full(), PaliGemma(), PaliGemma2()]
