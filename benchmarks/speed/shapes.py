"""The models that are timed: true dimensions, random weights made on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

__all__ = ["CPU", "SHAPES", "Shape", "build", "inputs"]

_IMAGE, _VOCABULARY = 31999, 32000


@dataclass(frozen=True)
class Shape:
    """The dimensions of a LLaVA.

    Attributes
    ----------
    name : str
    layers, width, mlp, heads : int
        Of the decoder.
    kv_heads : int, optional
        Fewer heads of keys and values. None: as many.
    side : int
        Visual tokens along a side of a picture.
    images : int
        Pictures in a prompt, or tiles of one.
    before, after : int
        Text tokens on each side of the picture.
    tower_layers, tower_width : int
        Of the vision tower, CLIP's; its patches are 14 pixels wide.
    prune_after : tuple of int
        The layers after which ATP prunes.
    """

    name: str
    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int | None = None
    side: int = 24
    images: int = 1
    before: int = 35
    after: int = 29
    tower_layers: int = 24
    tower_width: int = 1024
    prune_after: tuple[int, ...] = (3, 13, 23)

    @property
    def visual(self) -> int:
        """Count the visual tokens of a prompt."""
        return self.images * self.side**2

    @property
    def length(self) -> int:
        """Count the tokens of a prompt."""
        return self.before + self.visual + self.after


_CPU = Shape("llava-16x1024", layers=16, width=1024, mlp=2816, heads=16, prune_after=(1, 6, 11))
CPU = replace(_CPU, tower_layers=12, tower_width=384)
"""Half of LLaVA-1.5's depth, pruned after the same shares of it."""

_LLAVA = Shape("llava-1.5-7b", layers=32, width=4096, mlp=11008, heads=32)
_NEXT = replace(_LLAVA, name="llava-next-7b", images=5)  # 2880 tokens
_QWEN = Shape(
    "qwen2-vl-7b",
    layers=28,
    width=3584,
    mlp=18944,
    heads=28,
    kv_heads=4,
    side=32,  # of a picture of 896 pixels a side
    prune_after=(2, 11, 20),
)
SHAPES = {shape.name: shape for shape in (CPU, _LLAVA, _NEXT, _QWEN)}
"""By name. Dimensions are the models' own; all are built as a LLaVA with CLIP's tower."""


def build(shape: Shape, device: str, dtype: torch.dtype, attention: str = "sdpa") -> Any:
    """Build the model with random weights, in evaluation mode."""
    vision = CLIPVisionConfig(
        hidden_size=shape.tower_width,
        intermediate_size=4 * shape.tower_width,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=shape.tower_width // 64,
        image_size=14 * shape.side,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=_VOCABULARY,
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads or shape.heads,
        max_position_embeddings=32768,
        # Random weights must not end an answer early.
        eos_token_id=None,
        pad_token_id=0,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=_IMAGE,
        image_seq_length=shape.visual,
        vision_feature_layer=-2,
    )
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(before)
    model.set_attn_implementation(attention)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    model.generation_config.suppress_tokens = [_IMAGE]
    return model.eval()


def inputs(shape: Shape, batch: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Draw a batch of rows of one length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, _IMAGE, (batch, shape.length), generator=generator)
    ids[:, shape.before : shape.before + shape.visual] = _IMAGE
    pixels = torch.randn(
        batch * shape.images, 3, 14 * shape.side, 14 * shape.side, generator=generator
    )
    return {
        "input_ids": ids.to(device),
        "attention_mask": torch.ones_like(ids, device=device),
        "pixel_values": pixels.to(device, dtype),
    }
