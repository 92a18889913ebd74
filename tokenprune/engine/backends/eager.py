"""Eager attention: each modelling file's own function, with masks added to the logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .base import Backend, eager_function

__all__ = ["EagerBackend"]


class EagerBackend(Backend):
    """``eager``: has no causal rule of its own, so a mask is always needed."""

    name = "eager"

    def function(self, module: nn.Module) -> Callable[..., Any]:
        """Return the function of the module's modelling file."""
        return eager_function(module)

    def causal(self, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return the minimum of the dtype where a key is hidden: (1, 1, length, length)."""
        hidden = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype, device=device)
        return hidden.triu(1)[None, None]
