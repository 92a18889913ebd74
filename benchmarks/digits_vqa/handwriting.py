"""The digit images, split once and for all before anything else looks at them."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLITS = ("train", "validation", "held_out")

_SPLIT_SEED = 20240607


@lru_cache(maxsize=1)
def _split() -> dict[str, np.ndarray]:
    labels = load_digits().target
    everything = np.arange(len(labels))
    rest, held_out = train_test_split(
        everything, test_size=0.2, stratify=labels, random_state=_SPLIT_SEED
    )
    train, validation = train_test_split(
        rest, test_size=0.125, stratify=labels[rest], random_state=_SPLIT_SEED
    )
    return {
        "train": np.sort(train),
        "validation": np.sort(validation),
        "held_out": np.sort(held_out),
    }


@lru_cache(maxsize=len(SPLITS))
def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the handwritten digits of one split.

    Parameters
    ----------
    split : str
        ``"train"`` (70 %), ``"validation"`` (10 %) or ``"held_out"`` (20 %); stratified by
        digit, the same on every machine.

    Returns
    -------
    images : numpy.ndarray
        Float32 array of shape ``(n, 8, 8)``, ink in 0..1.
    labels : numpy.ndarray
        Integer array of shape ``(n,)``.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, got {split!r}")
    digits = load_digits()
    chosen = _split()[split]
    images = (digits.images[chosen] / 16.0).astype(np.float32)
    labels = digits.target[chosen].astype(np.int64)
    # The cache hands the same arrays to every caller, so nobody may write into them.
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels


@lru_cache(maxsize=len(SPLITS))
def by_digit(split: str) -> tuple[np.ndarray, ...]:
    """Return, for each digit 0..9, the row numbers of its images in ``load(split)``."""
    labels = load(split)[1]
    return tuple(np.flatnonzero(labels == digit) for digit in range(10))
