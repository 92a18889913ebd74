"""PyramidDrop, after github.com/Cooperx521/PyramidDrop, llava/model/modeling_llama_pdrop.py.

Read at commit 6444f30: `pdrop_forward`, lines 1220 to 1240, and `pdrop_rank_drop`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotated(states: Tensor, positions: Tensor, base: float = 10000.0) -> Tensor:
    """Turn each pair of a head's numbers by its position: (heads, tokens, width)."""
    half = states.shape[-1] // 2
    angle = positions[:, None] * base ** (-torch.arange(half) / half)
    a, b = states[..., :half], states[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def attention_ahead(layer: Any, hidden: Tensor, positions: Tensor) -> Tensor:
    """Attention of the last token in a layer that has not run: (tokens,), mean over the heads.

    Parameters
    ----------
    layer : LlamaDecoderLayer
    hidden : (tokens, width)
        What the layer will be given.
    positions : int64, (tokens,)
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    split = (len(hidden), -1, attention.head_dim)
    query = attention.q_proj(normed).view(split).transpose(0, 1)
    key = attention.k_proj(normed).view(split).transpose(0, 1)
    key = key.repeat_interleave(len(query) // len(key), dim=0)
    query, key = rotated(query, positions), rotated(key, positions)
    logits = query[:, -1:] @ key.transpose(1, 2) / attention.head_dim**0.5
    return logits.softmax(dim=-1).mean(dim=0)[0]


def alive_of(
    model: Any, hidden: Tensor, visual: Tensor, stages: dict[int, float]
) -> list[list[int]]:
    """Which tokens each decoder layer computes on.

    Parameters
    ----------
    model : LlavaForConditionalGeneration
    hidden : (tokens, width)
        The first layer's input.
    visual : bool, (tokens,)
    stages : dict
        Layer after which tokens go → the share of the picture's that stays.
    """
    language = model.model.language_model
    index = torch.arange(len(hidden))
    total, alive = int(visual.sum()), []
    for n, layer in enumerate(language.layers):
        alive.append(index.tolist())
        embeddings = language.rotary_emb(hidden[None], index[None])
        out = layer(hidden[None], position_embeddings=embeddings, attention_mask=None)
        hidden = (out[0] if isinstance(out, tuple) else out)[0]
        if n in stages:
            received = attention_ahead(language.layers[n + 1], hidden, index)
            shown = visual[index].nonzero()[:, 0]
            best = shown[received[shown].topk(int(total * stages[n])).indices]
            stays = (~visual[index]).nonzero()[:, 0].tolist() + best.tolist()
            hidden, index = hidden[sorted(stays)], index[sorted(stays)]
    return alive
