"""Estimate what a budget leaves and costs, before anything is run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..fields import BEFORE_DECODER
from .cost import DecoderShape

__all__ = ["Estimate", "equal_shares", "least_mean", "step_share"]


def least_mean(layers: tuple[int, ...], num_layers: int, tokens: float) -> float:
    """Return the mean over all layers if the first step dropped every visual token.

    A budget has to be above it: the layers up to the first step compute on all tokens.

    Parameters
    ----------
    layers : tuple of int
        Layers, counted from 0, after which tokens are dropped; -1 is before the first.
    num_layers : int
        Decoder layers.
    tokens : int
        Visual tokens of the prompt.

    Examples
    --------
    >>> least_mean((3, 13, 23), 32, 576)
    72.0
    """
    return (layers[0] + 1) * tokens / num_layers


def step_share(layers: tuple[int, ...], num_layers: int, tokens: float, mean: float) -> float:
    """Compute the share that each step keeps of what it finds, for a mean over all layers.

    Parameters
    ----------
    layers, num_layers, tokens
        As in `least_mean`.
    mean : float
        The budget: visual tokens, mean over all layers.

    Raises
    ------
    ValueError
        If the mean is not above `least_mean`, or above all tokens.

    Examples
    --------
    >>> round(step_share((1, 3), 6, 36, mean=21), 6)
    0.5
    """
    least = least_mean(layers, num_layers, tokens)
    if not least < mean <= tokens:
        raise ValueError(
            f"A budget of {mean:g} of {tokens:g} visual tokens cannot be met: the {layers[0] + 1} "
            f"of {num_layers} layers up to the first step alone cost {least:g} of the mean. "
            f"Expected above {least:g} and at most {tokens:g}."
        )
    steps_before = _steps_before(layers, num_layers)
    low, high = 0.0, 1.0
    for _ in range(60):
        share = (low + high) / 2
        too_many = (tokens * share**steps_before).mean() > mean
        low, high = (low, share) if too_many else (share, high)
    return high


def equal_shares(layers: tuple[int, ...], num_layers: int, tokens: int, mean: float) -> np.ndarray:
    """Compute what each layer computes on if every step keeps the same share of what it finds.

    Parameters
    ----------
    layers, num_layers, tokens, mean
        As in `step_share`.

    Returns
    -------
    int64, (num_layers,)
        Rounded to whole tokens.

    Raises
    ------
    ValueError
        As `step_share`.

    Examples
    --------
    >>> equal_shares((1, 3), 6, 36, mean=21)
    array([36, 36, 18, 18,  9,  9])
    """
    share = step_share(layers, num_layers, tokens, mean)
    return (tokens * share ** _steps_before(layers, num_layers)).round().astype(np.int64)


def _steps_before(layers: tuple[int, ...], num_layers: int) -> np.ndarray:
    return np.searchsorted(layers, np.arange(num_layers), side="left")


@dataclass(frozen=True)
class Estimate:
    """What a prompt costs with so many visual tokens in each layer; nothing is measured.

    Attributes
    ----------
    shape : DecoderShape
        Of the decoder.
    layers : tuple of int
        Layers after which tokens are dropped.
    kept : int64, (num_layers,)
        Visual tokens that each layer computes on.
    tokens : int
        Visual tokens of the prompt.
    text : int
        Its text tokens.

    Examples
    --------
    >>> shape = DecoderShape.of(model.config.get_text_config(), torch.float16)
    >>> kept = equal_shares((1, 3), 6, 36, mean=21)
    >>> Estimate(shape, (1, 3), kept, tokens=36, text=10).kv_bytes
    11904
    """

    shape: DecoderShape
    layers: tuple[int, ...]
    kept: np.ndarray
    tokens: int
    text: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of the prompt's key-value cache."""
        cached = self.kept + self.text
        if self.layers[:1] == (BEFORE_DECODER,):
            cached[0] = self.tokens + self.text  # laid out at full length, see engine/caches.py
        return int(self.shape.kv_bytes(cached).sum())

    @property
    def prefill_flops(self) -> float:
        """FLOPs of the decoder layers on the prompt."""
        return float(self.shape.prefill_flops(self.kept + self.text).sum())
