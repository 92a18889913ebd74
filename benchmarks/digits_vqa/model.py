"""The architecture: a CLIP tower of one layer, 64 wide, and a LLaMA decoder of 24, 128 wide.

The tower is weak on purpose. With a tower that names every digit by itself, the question is
answered in the decoder's first layer and all visual tokens can be dropped after it: nothing could
be learned about pruning. Here the decoder's first layers do the recognising, so visual tokens are
needed at depth, and fine questions need them for longer than coarse ones. With 24 layers the three
before the first module cost what the paper's four of 32 do: an eighth of all visual tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from .pictures import PATCH, SIZE
from .processing import IMAGE_ID, PAD_ID, VOCABULARY, save_processor

GRID = SIZE // PATCH
"""Patches along one side of a picture."""

WIDTH = 128
"""Hidden size of the decoder."""

TOWER_WIDTH = 64
"""Hidden size of the tower."""

EYES = 4
"""Decoder layers after which the visual tokens are taught to know their digit."""


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
        text_config=LlamaConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=WIDTH,
            intermediate_size=344,
            num_hidden_layers=decoder_layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            pad_token_id=PAD_ID,
            bos_token_id=VOCABULARY["<s>"],
            eos_token_id=VOCABULARY["</s>"],
        ),
        image_token_index=IMAGE_ID,
        image_seq_length=GRID * GRID,
        # The last layer is read, so that none of the few layers is wasted.
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        # A sine grid as the start of the learned positions saves the tower hundreds of steps.
        positions = model.model.vision_tower.get_submodule(_embeddings(model)).position_embedding
        positions.weight[1:] = 0.3 * _sine_grid(GRID, TOWER_WIDTH)
    return model


def _embeddings(model: LlavaForConditionalGeneration) -> str:
    # transformers 4 keeps the embeddings one module deeper than transformers 5.
    names = (name for name, _ in model.model.vision_tower.named_modules())
    return next(name for name in names if name.endswith("embeddings"))


def _sine_grid(side: int, width: int) -> torch.Tensor:
    quarter = width // 4
    rates = torch.exp(-torch.arange(quarter) / quarter * 4.0)
    angles = torch.arange(side)[:, None] * rates[None, :] * 1.5
    axis = torch.cat([angles.sin(), angles.cos()], -1)
    rows = axis[:, None, :].expand(side, side, -1)
    columns = axis[None, :, :].expand(side, side, -1)
    return torch.cat([rows, columns], -1).reshape(side * side, width)


_PUBLISHED = (
    ("model.vision_tower.vision_model.", "vision_tower.vision_model."),
    ("model.vision_tower.", "vision_tower.vision_model."),
    ("model.multi_modal_projector.", "multi_modal_projector."),
    ("model.language_model.", "language_model.model."),
    ("lm_head.", "language_model.lm_head."),
)


def save(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Write the model in float16, and its processor, as published LLaVA models are.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
        What to save.
    folder : Path
        Where to; made if absent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_diff_dict()
    config.pop("transformers_version", None)
    # Stored in half the room, but meant to be loaded and run in float32.
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    # The names of published checkpoints, the only ones that transformers 4 and 5 both read.
    state = {
        _published(name): value.half().contiguous() for name, value in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    save_processor(folder)


def _published(name: str) -> str:
    for ours, theirs in _PUBLISHED:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name
