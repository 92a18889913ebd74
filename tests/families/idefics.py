"""Idefics: the pictures of a row lie along the second dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from .base import Wanted, family
from .fields import BREAK, HIDDEN, IMAGE, make, mistral, text_fields, tower_fields
from .grids import Places, grid, without_place
from .padding import Arguments, along_second, collate
from .tiles import Tiled


@family("idefics3", "Idefics3ForConditionalGeneration")
class Idefics3(Tiled):
    """All pictures of a row along the second dimension, missing ones all zero."""

    between = (BREAK,)
    limits_of_4: ClassVar[dict[str, str]] = {}  # tiles have a dimension of their own

    def text(self) -> Any:
        return make("LlamaConfig", **text_fields())

    def fields(self) -> dict[str, Any]:
        return {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": 0}

    def picture(self, wanted: Wanted) -> Arguments:
        return masked(super().picture(wanted)["pixel_values"][None])

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        return [grid(self.side, self.side) for _ in pictures_of(arguments)]

    def together(self, pictures: Sequence[Arguments], count: int) -> Arguments:
        names = pictures[0] if pictures else ()
        return {name: along_second([one[name] for one in pictures]) for name in names}

    def join_pictures(self, rows: Sequence[Arguments]) -> Arguments:
        example = next((row for row in rows if row), {})
        nothing = {name: torch.zeros_like(values[:, :1]) for name, values in example.items()}
        return collate([row or nothing for row in rows])


def masked(pixels: Tensor) -> Arguments:
    """Pixels, (1, pictures, 3, height, width), and the mask that says that none is padding."""
    mask = torch.ones_like(pixels[:, :, 0], dtype=torch.long)
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


def pictures_of(arguments: Arguments) -> Tensor:
    """The pictures of a prompt, which may have none."""
    return arguments.get("pixel_values", torch.zeros(1, 0))[0]


@family("smolvlm", "SmolVLMForConditionalGeneration")
class SmolVLM(Idefics3):
    """As Idefics3, under another model type."""


@family("idefics2", "Idefics2ForConditionalGeneration")
class Idefics2(Idefics3):
    """A perceiver turns an image of any size into so many tokens without a place."""

    latents = 8

    def tower(self) -> Any:
        return tower_fields(8)

    def text(self) -> Any:
        return mistral()

    def fields(self) -> dict[str, Any]:
        perceiver = {
            "hidden_size": HIDDEN,
            "resampler_n_latents": self.latents,
            "resampler_depth": 1,
            "resampler_n_heads": 2,
            "resampler_head_dim": 8,
            "num_key_value_heads": 1,
        }
        return {"perceiver_config": perceiver, "image_token_id": IMAGE}

    def picture(self, wanted: Wanted) -> Arguments:
        height, width = (4 * wanted.integer(3, 8) for _ in range(2))
        return masked(wanted.randn(1, 1, 3, height, width))

    def places(self, config: Any, arguments: Arguments) -> list[Places]:
        return [without_place(self.latents) for _ in pictures_of(arguments)]
