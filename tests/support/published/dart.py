"""DART, after its authors' llava/model/language_model/modeling_llama_self.py.

Read in github.com/xqy1111111/DART, which has the authors' history, at commit d6a5af6:
`get_retained_image_token`. The order of the pivots, there that of a Python set, is given.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def pivots_of(
    keys: Array, visual: list[int], image: int, text: int, norm: int = 1
) -> tuple[list[int], list[int]]:
    """The pivots among the visual tokens, and among all that follow the last of these.

    Parameters
    ----------
    keys : (tokens, heads, width)
        Of one layer, for each query head or each key-value head.
    visual : list of int
        One picture's tokens.
    image, text : int
    norm : int
        The authors': 1.
    """
    size = (np.abs(keys.reshape(len(keys), -1)) ** norm).sum(axis=1)
    after = list(range(visual[-1] + 1, len(keys)))
    first = sorted(visual, key=lambda t: -size[t])[:image]
    second = sorted(after, key=lambda t: -size[t])[:text]
    return first, second


def retained(states: Array, visual: list[int], image: list[int], order: list[int], each: int):
    """The tokens that stay: the visual pivots, and for each pivot in turn the `each` least like it.

    Parameters
    ----------
    states : (tokens, width)
        Of the layer, after the decoder's last norm.
    visual, image : list of int
        The picture's tokens, and which of these are pivots.
    order : list of int
        All pivots, in the order in which they take.
    each : int
    """
    unit = states / np.linalg.norm(states, axis=1, keepdims=True)
    left = [t for t in visual if t not in image]
    stay = list(image)
    for pivot in order:
        closeness = unit[left] @ unit[pivot]
        taken = [left[n] for n in closeness.argsort(kind="stable")[:each]]
        stay += taken
        left = [t for t in left if t not in taken]
    return sorted(stay)
