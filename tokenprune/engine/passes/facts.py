"""What is known when the first decoder layer is called, and does not change until the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...methods.base import Method
from ..backends import Backend
from ..cached_positions import CachedPositions

__all__ = ["PassFacts"]


@dataclass(frozen=True)
class PassFacts:
    """The unchanging facts of one pass.

    Attributes
    ----------
    method : Method
    num_layers : int
        Decoder layers.
    backend : Backend
        The attention backend that the user chose.
    causal : bool
        Whether the rule of the tokens' order is causal and nothing else: no window, and a mask that
        only says padding.
    length : int
        Tokens of each row, padding among them.
    past : int
        Positions that the cache has seen before.
    dtype : torch.dtype
        Of the hidden states.
    cache : Cache, optional
    held : mapping
        Decoder layer → the positions it holds of an earlier pass that dropped some. A layer not
        named holds all.
    """

    method: Method
    num_layers: int
    backend: Backend
    causal: bool
    length: int
    past: int
    dtype: torch.dtype
    cache: Any
    held: Mapping[int, CachedPositions]
