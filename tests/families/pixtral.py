"""Pixtral's tower: images of any size, a token each patch or each 2 × 2 of them."""

from __future__ import annotations

from typing import Any

import torch

from .base import Family, Wanted, family
from .fields import BREAK, END, HIDDEN, IMAGE, make, mistral, qwen3, text_fields, tower_fields
from .grids import Places, grid
from .padding import Arguments


@family("llava-pixtral", "LlavaForConditionalGeneration")
class LlavaPixtral(Family):
    """Images of any size; a break token after each row of tokens, after the last an end token."""

    merge = 1
    breaks = True

    def tower(self) -> Any:
        return make("PixtralVisionConfig", **tower_fields(16))

    def text(self) -> Any:
        return mistral()

    def fields(self) -> dict[str, Any]:
        return {
            "image_token_index": IMAGE,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
        }

    def picture(self, wanted: Wanted) -> Arguments:
        cell = wanted.config.vision_config.patch_size * self.merge
        height, width = (cell * wanted.integer(2, 7) for _ in range(2))
        return {
            "pixel_values": wanted.randn(1, 3, height, width),
            "image_sizes": torch.tensor([[height, width]]),
        }

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        cell = config.vision_config.patch_size * self.merge
        sizes = arguments["image_sizes"].tolist() if "image_sizes" in arguments else []
        return [grid(height // cell, width // cell) for height, width in sizes]

    def span(self, places: Places, video: bool) -> list[int]:
        if not self.breaks:
            return super().span(places, video)
        row = [*[IMAGE] * places[0].width, BREAK]
        return [*(row * places[0].height)[:-1], END]


@family("mistral3", "Mistral3ForConditionalGeneration")
class Mistral3(LlavaPixtral):
    merge = 2

    def text(self) -> Any:
        fields = text_fields(sliding_window=None, head_dim=HIDDEN // 4, model_type="mistral")
        return make("MistralConfig", **fields)

    def fields(self) -> dict[str, Any]:
        return {
            "image_token_index": IMAGE,
            "vision_feature_layer": -1,
            "spatial_merge_size": self.merge,
        }


@family("lighton_ocr", "LightOnOcrForConditionalGeneration")
class LightOnOcr(LlavaPixtral):
    merge = 2
    breaks = False

    def text(self) -> Any:
        return qwen3()

    def fields(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "spatial_merge_size": self.merge}
