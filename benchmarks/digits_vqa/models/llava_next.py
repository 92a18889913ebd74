"""LLaVA-NeXT, small: tiles of 48 x 48 pixels, pictures of four shapes.

It starts from the trained LLaVA: its tower, projector and decoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenprune.adapters.llava_next import tile_grid
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

from ..pictures import PATCH, Size
from . import llava
from .common import (
    LLAVA_CHAT,
    WEIGHTS,
    copy_shared,
    decoder_fields,
    llava_pictures,
    llava_processor,
    save_model,
)
from .tokens import VOCABULARY, save_processor, tokenizer

FOLDER = WEIGHTS / "llava_next"
"""The committed model."""

SIZES: tuple[Size, ...] = ((96, 96), (144, 96), (96, 144), (128, 64))
"""Widths and heights of the pictures it is trained on."""

TILE = 48
"""Side of a tile in pixels: 6 x 6 patches."""

SIDE = TILE // PATCH
_PINPOINTS = [[rows * TILE, cols * TILE] for rows, cols in ((1, 2), (2, 1), (2, 2), (2, 3), (3, 2))]


def build(seed: int = 0) -> LlavaNextForConditionalGeneration:
    """Return the model before its training."""
    torch.manual_seed(seed)
    trained: Any = LlavaForConditionalGeneration.from_pretrained(llava.FOLDER, dtype=torch.float32)
    tower = trained.config.vision_config.to_dict() | {"image_size": TILE}
    model = LlavaNextForConditionalGeneration(
        LlavaNextConfig(
            vision_config=CLIPVisionConfig(**tower),
            text_config=LlamaConfig(**decoder_fields(len(VOCABULARY), 24)),
            image_token_index=VOCABULARY["<image>"],
            image_grid_pinpoints=_PINPOINTS,
            image_seq_length=SIDE * SIDE,
            vision_feature_layer=-1,
            vision_feature_select_strategy="default",
            tie_word_embeddings=False,
        )
    )
    copy_shared(model, trained)
    old, new = (
        m.model.vision_tower.get_submodule(llava.tower_embeddings(m)).position_embedding.weight
        for m in (trained, model)
    )
    with torch.no_grad():
        # A tile stands where the middle of the LLaVA's picture stood: neighbours stay neighbours.
        first = (llava.GRID - SIDE) // 2
        positions = torch.arange(llava.GRID**2).view(llava.GRID, llava.GRID)
        middle = positions[first : first + SIDE, first : first + SIDE].flatten()
        new.copy_(torch.cat([old[:1], old[1:][middle]]))
        model.model.image_newline.normal_(std=0.02)
    return model


def grid(model: LlavaNextForConditionalGeneration, size: Size) -> tuple[int, int, torch.Tensor]:
    """Return rows and columns of a picture's tiles, and their indices among its visual tokens."""
    rows, cols = tile_grid(model.config, [size[1], size[0]])
    # The base view comes first, and a newline ends each row.
    lines = SIDE * SIDE + torch.arange(rows)[:, None] * (cols + 1)
    return rows, cols, (lines + torch.arange(cols)).flatten()


def processor() -> LlavaNextProcessor:
    """Return the processor."""
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessor(**_PICTURES),
        tokenizer=tokenizer(),
        chat_template=LLAVA_CHAT,
        **_PROCESSOR,
    )


def save(model: LlavaNextForConditionalGeneration, folder: Path) -> None:
    """Write the model, and its processor, as published LLaVA-NeXT models are."""
    save_model(model, folder, (*llava.PUBLISHED, ("model.image_newline", "image_newline")))
    pictures = {"image_processor_type": "LlavaNextImageProcessor", **_PICTURES}
    save_processor(folder, "LlavaNextProcessor", pictures, _PROCESSOR)
    (folder / "chat_template.jinja").write_text(LLAVA_CHAT, encoding="utf-8")


_PICTURES = llava_pictures(
    TILE, {"shortest_edge": TILE}, image_grid_pinpoints=_PINPOINTS, do_pad=True
)
_PROCESSOR = llava_processor(PATCH)
