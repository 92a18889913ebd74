"""Key-value bytes and prefill FLOPs, from measured token counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["DecoderShape"]


@dataclass(frozen=True)
class DecoderShape:
    """The dimensions that a decoder layer's cost depends on.

    Attributes
    ----------
    width : int
        Of the hidden states.
    heads, kv_heads : int
        Attention heads, and those of keys and values.
    head_width : int
        Of one head.
    mlp_width : int
        Of the MLP's hidden layer.
    bytes_per_value : int
        Of the key-value cache.

    Examples
    --------
    >>> shape = DecoderShape.of(model.config.get_text_config(), torch.float16)
    >>> shape.kv_bytes(np.array([10, 100]))
    array([ 640, 6400])
    """

    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    bytes_per_value: int

    @classmethod
    def of(cls, text_config: Any, dtype: torch.dtype) -> DecoderShape:
        """Read the dimensions from a text configuration.

        Parameters
        ----------
        text_config : PretrainedConfig
            Of the decoder.
        dtype : torch.dtype
            Of the key-value cache.
        """
        heads = text_config.num_attention_heads
        head_width = getattr(text_config, "head_dim", None) or text_config.hidden_size // heads
        return cls(
            width=text_config.hidden_size,
            heads=heads,
            kv_heads=getattr(text_config, "num_key_value_heads", None) or heads,
            head_width=head_width,
            mlp_width=text_config.intermediate_size,
            bytes_per_value=dtype.itemsize,
        )

    def kv_bytes(self, tokens: np.ndarray) -> np.ndarray:
        """Compute the bytes of keys and values of so many tokens in one layer's cache.

        Parameters
        ----------
        tokens : int, any shape

        Returns
        -------
        int64, same shape
        """
        return 2 * tokens.astype(np.int64) * self.kv_heads * self.head_width * self.bytes_per_value

    def prefill_flops(self, tokens: np.ndarray) -> np.ndarray:
        """Compute the floating-point operations of one layer on so many tokens.

        A multiply-add counts as two. Projections, gated MLP, and both attention products over the
        full square, as operator-level counters do (a causal kernel does half of that). Norms and
        rotary embeddings are left out.

        Parameters
        ----------
        tokens : int, any shape

        Returns
        -------
        float64, same shape
        """
        n = tokens.astype(np.float64)
        query = self.width * self.heads * self.head_width
        key_value = 2 * self.width * self.kv_heads * self.head_width
        mlp = 3 * self.width * self.mlp_width
        attention = 2 * self.heads * self.head_width
        return 2 * n * (2 * query + key_value + mlp) + 2 * n**2 * attention
