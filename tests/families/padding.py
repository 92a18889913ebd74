"""Joining the arguments of several prompts, padded to the largest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .fields import PAD

Arguments = dict[str, Tensor]


def collate(rows: Sequence[Arguments]) -> Arguments:
    """Along the first dimension, the others padded with zeros to the largest."""
    joined = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        parts = [row[name] for row in rows if name in row]
        sizes = [max(part.shape[n] for part in parts) for n in range(1, parts[0].ndim)]
        joined[name] = torch.cat([_pad(part, sizes) for part in parts])
    return joined


def along_second(parts: Sequence[Tensor]) -> Tensor:
    """Concatenated along the second dimension, the later ones padded to the largest."""
    return collate([{"x": part.transpose(0, 1)} for part in parts])["x"].transpose(0, 1)


def to_length(row: Tensor, length: int, side: str) -> Tensor:
    """Token ids and the like, (1, length), padded on one side."""
    missing = length - row.shape[1]
    return F.pad(row, (missing, 0) if side == "left" else (0, missing), value=PAD)


def _pad(values: Tensor, sizes: Sequence[int]) -> Tensor:
    missing = [size - has for size, has in zip(sizes, values.shape[1:], strict=True)]
    return F.pad(values, [n for size in reversed(missing) for n in (0, size)])
