"""How much may be in memory at a time."""

from __future__ import annotations

import torch

__all__ = ["room"]

# On a CPU a tile stays in the cores' caches and is little beside a decoder layer's own activations;
# elsewhere few large tiles are launched.
_TILE_BYTES = 7 * 2**16
_ELSEWHERE = 2**28


def room(device: torch.device) -> int:
    """Most float32 numbers in a tile."""
    return (_TILE_BYTES if device.type == "cpu" else _ELSEWHERE) // 4
