"""Configurations of the tiny models: token ids, sizes, and the fields of towers and decoders."""

from __future__ import annotations

from typing import Any

import transformers

PAD, BOS, EOS = 0, 1, 2
IMAGE, VIDEO, START, END, BREAK = 99, 98, 97, 96, 95
# Ids from here on are no words: placeholders and what families put around them.
SPECIAL, VOCABULARY = 90, 100
LAYERS, HIDDEN, WINDOW = 6, 32, 12


def make(name: str, *args: Any, **fields: Any) -> Any:
    """An object of a transformers class that this version may not have."""
    return getattr(transformers, name)(*args, **fields)


def special_ids(image: str, start: str, end: str) -> dict[str, int]:
    """The tokens of an image and around it, under the names that a configuration has for them."""
    return {image: IMAGE, start: START, end: END}


def text_fields(**changes: Any) -> dict[str, Any]:
    """A decoder's."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **changes,
    }


def encoder_fields(**changes: Any) -> dict[str, Any]:
    """A small transformer's that is not the decoder."""
    return {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        **changes,
    }


def tower_fields(side: int, patch: int = 4, **changes: Any) -> dict[str, Any]:
    """A vision transformer's of `side` × `side` patches."""
    return encoder_fields(**{"image_size": side * patch, "patch_size": patch, **changes})


def sam_fields(side: int) -> dict[str, Any]:
    """Those of SAM's vision transformer, whose layers attend inside windows but for one."""
    return tower_fields(
        side, output_channels=16, window_size=4, global_attn_indexes=[1], mlp_dim=32
    )


def codebook_fields(**changes: Any) -> dict[str, Any]:
    """A VQ-VAE's, which turns a picture into codes."""
    return {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, **changes}


def clip(side: int) -> Any:
    return make("CLIPVisionConfig", **tower_fields(side, projection_dim=16))


def siglip(side: int) -> Any:
    """Without the head that pools all patches into one."""
    return make("SiglipVisionConfig", vision_use_head=False, **tower_fields(side))


def mistral() -> Any:
    return make("MistralConfig", **text_fields(sliding_window=WINDOW, head_dim=HIDDEN // 4))


def qwen2() -> Any:
    return make("Qwen2Config", **text_fields())


def qwen3() -> Any:
    return make("Qwen3Config", **text_fields(head_dim=HIDDEN // 4))
