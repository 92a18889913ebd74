"""Qwen2-VL, small: pictures of four shapes, one token for each 8 x 8 pixels.

It starts from the decoder of the trained LLaVA; its tower is new.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlavaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

from ..pictures import PATCH, Size
from . import llava
from .common import PIXELS, WEIGHTS, WIDTH, copy_shared, decoder_fields, save_model
from .llava_next import SIZES
from .tokens import VOCABULARY as LLAVA
from .tokens import save_processor, tokenizer

__all__ = ["FOLDER", "SIZES", "build", "grid", "processor", "save"]

FOLDER = WEIGHTS / "qwen2_vl"
"""The committed model."""

_RENAMED = {
    "<s>": "<|vision_start|>",
    "<unk>": "<|vision_end|>",
    "<image>": "<|image_pad|>",
}
VOCABULARY = {_RENAMED.get(word, word): n for word, n in LLAVA.items()}
VOCABULARY["<|video_pad|>"] = len(VOCABULARY)

MERGE = 2
"""Patches a side that the tower makes into one token."""


def build(seed: int = 0) -> Qwen2VLForConditionalGeneration:
    """Return the model before its training."""
    torch.manual_seed(seed)
    # Half of a head's 32 dimensions, as pairs: time, height, width.
    rotary = {"type": "mrope", "rope_type": "default", "mrope_section": [4, 6, 6]}
    text = decoder_fields(len(VOCABULARY), 24) | {"bos_token_id": None}
    model = Qwen2VLForConditionalGeneration(
        Qwen2VLConfig(
            text_config={**text, "rope_scaling": rotary, "rope_theta": 10000.0},
            vision_config={
                "depth": 1,
                "embed_dim": 64,
                "hidden_size": WIDTH,
                "num_heads": 4,
                "mlp_ratio": 4,
                "patch_size": PATCH // MERGE,
                "spatial_merge_size": MERGE,
                "temporal_patch_size": 2,
            },
            image_token_id=VOCABULARY["<|image_pad|>"],
            video_token_id=VOCABULARY["<|video_pad|>"],
            vision_start_token_id=VOCABULARY["<|vision_start|>"],
            vision_end_token_id=VOCABULARY["<|vision_end|>"],
            tie_word_embeddings=False,
        )
    )
    trained = LlavaForConditionalGeneration.from_pretrained(llava.FOLDER, dtype=torch.float32)
    copy_shared(model, trained)
    return model


def grid(model: Qwen2VLForConditionalGeneration, size: Size) -> tuple[int, int, torch.Tensor]:
    """Return rows and columns of a picture's tokens, and their indices among its visual tokens."""
    cols, rows = size[0] // PATCH, size[1] // PATCH
    return rows, cols, torch.arange(rows * cols)


def processor() -> Qwen2VLProcessor:
    """Return the processor."""
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**_PICTURES),
        video_processor=Qwen2VLVideoProcessor(**_PICTURES),
        tokenizer=tokenizer(VOCABULARY),
        chat_template=_CHAT,
    )


def save(model: Qwen2VLForConditionalGeneration, folder: Path) -> None:
    """Write the model, and its processor, as published Qwen2-VL models are."""
    save_model(model, folder, (("model.visual.", "visual."), ("model.language_model.", "model.")))
    pictures = {"image_processor_type": "Qwen2VLImageProcessor", **_PICTURES}
    save_processor(folder, "Qwen2VLProcessor", pictures, {}, VOCABULARY)
    (folder / "chat_template.jinja").write_text(_CHAT, encoding="utf-8")


_PICTURES: dict[str, Any] = {
    "do_resize": True,
    **PIXELS,
    "min_pixels": 64 * 64,
    "max_pixels": 160 * 160,
    "patch_size": PATCH // MERGE,
    "temporal_patch_size": 2,
    "merge_size": MERGE,
}
_CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
