"""A tiny model with random weights, to see pruning at work without a download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

__all__ = ["LAYERS", "SIDE", "inputs_of", "sample_picture", "tiny_llava"]

SIDE = 12  # rows and columns of visual tokens
LAYERS = 8
_PATCH = 8
_IMAGE_TOKEN = 63


def tiny_llava() -> Any:
    """Build a LLaVA of 8 decoder layers and 144 visual tokens, the same one each time."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE * _PATCH,
        patch_size=_PATCH,
    )
    text = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        initializer_range=0.2,  # attention that differs from token to token
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=_IMAGE_TOKEN, image_seq_length=144
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(config).eval()


def inputs_of(picture: Image.Image) -> tuple[Image.Image, dict[str, torch.Tensor]]:
    """Return the picture as the model sees it, and the arguments of a forward with it."""
    seen = picture.convert("RGB").resize((SIDE * _PATCH, SIDE * _PATCH))
    pixels = torch.from_numpy(np.array(seen)).permute(2, 0, 1)[None].float() / 127.5 - 1
    ids = torch.tensor([[1, *[_IMAGE_TOKEN] * SIDE**2, 5, 6, 7, 8]])
    return seen, {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
    }


def sample_picture() -> Image.Image:
    """Draw three coloured shapes on a bright ground."""
    picture = Image.new("RGB", (336, 336), (236, 230, 218))
    pen = ImageDraw.Draw(picture)
    pen.ellipse((40, 50, 150, 160), fill=(214, 69, 65))
    pen.rectangle((190, 80, 300, 170), fill=(52, 120, 190))
    pen.polygon([(170, 210), (110, 310), (240, 310)], fill=(60, 150, 90))
    return picture
