"""The architecture: a CLIP tower of one layer, 64 wide, and a LLaMA decoder of 24, 128 wide.

The tower is weak on purpose. With a tower that names every digit by itself, the question is
answered in the decoder's first layer and all visual tokens can be dropped after it: nothing could
be learned about pruning. Here the decoder's first layers do the recognising, so visual tokens are
needed at depth, and fine questions need them for longer than coarse ones. With 24 layers the three
before the first pruning step cost what the paper's four of 32 do: an eighth of all visual tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from ..pictures import PATCH, SIZE, Size
from .common import LLAVA_CHAT, WEIGHTS, decoder_fields, llava_pictures, llava_processor, save_model
from .tokens import VOCABULARY, save_processor, tokenizer

FOLDER = WEIGHTS / "llava"
"""The committed model."""

SIZES: tuple[Size, ...] = ((SIZE, SIZE),)
"""Widths and heights of the pictures it is trained on."""

GRID = SIZE // PATCH
"""Patches along one side of a picture."""

TOWER_WIDTH = 64
"""Hidden size of the tower."""

PUBLISHED = (
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)
"""Our beginnings of names, and those of published checkpoints."""


def build(decoder_layers: int = 24, seed: int = 0) -> LlavaForConditionalGeneration:
    """Return an untrained model.

    Parameters
    ----------
    decoder_layers : int
        Depth of the language model.
    seed : int
        Seed of the initial weights.

    Returns
    -------
    LlavaForConditionalGeneration
        In float32 with SDPA attention.
    """
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=TOWER_WIDTH,
            intermediate_size=4 * TOWER_WIDTH,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=SIZE,
            patch_size=PATCH,
            hidden_act="gelu",
            projection_dim=TOWER_WIDTH,
        ),
        text_config=LlamaConfig(**decoder_fields(len(VOCABULARY), decoder_layers)),
        image_token_index=VOCABULARY["<image>"],
        image_seq_length=GRID * GRID,
        # The last layer is read, so that none of the few layers is wasted.
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        # A sine grid as the start of the learned positions saves the tower hundreds of steps.
        positions = model.model.vision_tower.get_submodule(
            tower_embeddings(model)
        ).position_embedding
        positions.weight[1:] = 0.3 * sine_grid(GRID, TOWER_WIDTH)
    return model


def tower_embeddings(model: Any) -> str:
    # transformers 4 keeps the embeddings one level deeper than transformers 5.
    names = (name for name, _ in model.model.vision_tower.named_modules())
    return next(name for name in names if name.endswith("embeddings"))


def sine_grid(side: int, width: int) -> torch.Tensor:
    quarter = width // 4
    rates = torch.exp(-torch.arange(quarter) / quarter * 4.0)
    angles = torch.arange(side)[:, None] * rates[None, :] * 1.5
    axis = torch.cat([angles.sin(), angles.cos()], -1)
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, width)


def grid(model: LlavaForConditionalGeneration, size: Size) -> tuple[int, int, torch.Tensor]:
    """Return rows and columns of a picture's patches, and their indices among its visual tokens."""
    return GRID, GRID, torch.arange(GRID * GRID)


def processor() -> LlavaProcessor:
    """Return the processor."""
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(**_PICTURES),
        tokenizer=tokenizer(),
        chat_template=LLAVA_CHAT,
        **_PROCESSOR,
    )


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the model, and its processor, as published LLaVA models are."""
    save_model(model, folder, PUBLISHED)
    pictures = {"image_processor_type": "CLIPImageProcessor", **_PICTURES}
    save_processor(folder, "LlavaProcessor", pictures, _PROCESSOR)
    (folder / "chat_template.jinja").write_text(LLAVA_CHAT, encoding="utf-8")


_PICTURES = llava_pictures(SIZE, {"height": SIZE, "width": SIZE})
_PROCESSOR = llava_processor(PATCH)
