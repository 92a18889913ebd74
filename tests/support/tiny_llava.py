"""Tiny models with random weights, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from tokenprune.engine.arguments import cache_in, cache_parameter

IMAGE = "image"
SIDE = 6
VISUAL_TOKENS = SIDE * SIDE
PAD, BOS, EOS, IMAGE_TOKEN, VOCABULARY = 0, 1, 2, 63, 64
_PATCH = 4

Batch = dict[str, Tensor]
# What a prompt is made of, in order: so many tokens of text, or an image. (4, IMAGE, 3).
Prompt = Sequence[int | str]


def llama_config(layers: int = 2, kv_heads: int = 2, width: int = 32) -> LlamaConfig:
    """The tiny decoder's."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def tiny_llava(
    attn: str = "sdpa",
    dtype: torch.dtype = torch.float32,
    layers: int = 6,
    kv_heads: int = 2,
    device: str = "cpu",
    seed: int = 0,
    width: int = 32,
) -> LlavaForConditionalGeneration:
    """A LLaVA in evaluation mode whose images are 6×6 = 36 tokens, its decoder `width` wide.

    The weights are large enough that attention is far from uniform and dropping any token changes
    the logits by far more than rounding does.
    """
    vision = CLIPVisionConfig(
        hidden_size=width // 2,
        intermediate_size=width,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE * _PATCH,
        patch_size=_PATCH,
        projection_dim=width // 2,
    )
    special: dict[str, Any] = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    config = LlavaConfig(
        vision_config=vision,
        text_config=llama_config(layers, kv_heads, width),
        image_token_index=IMAGE_TOKEN,
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-1,
        **special,
    )
    model = LlavaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            scale = 2.0 if "q_proj" in name or "k_proj" in name else 1.0
            std = scale / parameter[0].numel() ** 0.5
            std = 1.0 if "embed_tokens" in name else std
            parameter.data.normal_(std=std, generator=generator)
    model.set_attn_implementation(attn)
    # An image token among the answer would ask for one more picture where nothing is cached.
    model.generation_config.suppress_tokens = [IMAGE_TOKEN]
    return model.eval().to(device, dtype)


def make_batch(
    prompts: Sequence[Prompt],
    padding: str = "left",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Batch:
    """Prompts of random words and pictures, padded on one side to the longest.

    ``pixel_values`` is left out where there is no image at all.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = []
    images = 0
    for prompt in prompts:
        parts = []
        for part in prompt:
            if part == IMAGE:
                images += 1
                parts.append(torch.full((VISUAL_TOKENS,), IMAGE_TOKEN))
            else:
                words = torch.randint(EOS + 1, IMAGE_TOKEN, (int(part),), generator=generator)
                parts.append(words)
        rows.append(torch.cat(parts))
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), PAD)
    mask = torch.zeros_like(ids)
    for n, row in enumerate(rows):
        where = slice(length - len(row), length) if padding == "left" else slice(len(row))
        ids[n, where] = row
        mask[n, where] = 1
    batch = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
    if images:
        side = SIDE * _PATCH
        pixels = torch.randn(images, 3, side, side, generator=generator)
        batch["pixel_values"] = pixels.to(device, dtype)
    return batch


def row_alone(batch: Batch, row: int) -> Batch:
    """One row of a batch, without its padding, with its own images."""
    there = batch["attention_mask"][row].bool()
    alone = {
        name: values[row : row + 1, there]
        for name, values in batch.items()
        if name != "pixel_values"
    }
    if "pixel_values" in batch:
        counts = (batch["input_ids"] == IMAGE_TOKEN).sum(dim=1) // VISUAL_TOKENS
        first = int(counts[:row].sum())
        if counts[row]:
            alone["pixel_values"] = batch["pixel_values"][first : first + int(counts[row])]
    return alone


def is_text(batch: Batch) -> Tensor:
    """Where text is: bool, (batch, length), neither image tokens nor padding."""
    return (batch["input_ids"] != IMAGE_TOKEN) & batch["attention_mask"].bool()


def with_labels(batch: Batch, answer: int) -> Batch:
    """The batch with its last `answer` text tokens of each row as labels, all else -100.

    A row's first token is never one: there is nothing before it to be read off.
    """
    text = is_text(batch) & (batch["attention_mask"].cumsum(dim=1) > 1)
    from_end = text.flip(1).cumsum(dim=1).flip(1)
    labels = batch["input_ids"].masked_fill(~text | (from_end > answer), -100)
    return {**batch, "labels": labels}


def cache_of(output: Any) -> Any:
    """The key-value cache of a model's output, whatever this release calls it."""
    return cache_in(output.values())


def on_cache(model: Any, cache: Any) -> dict[str, Any]:
    """A key-value cache as an argument of a model, as this release calls it."""
    return {cache_parameter(model.forward): cache}
