"""CDPruner, after github.com/Theia-4869/CDPruner, llava/model/llava_arch.py.

Read at commit 9541616: `encode_images`. The similarity with text is given, since the authors take
it from CLIP's towers; the greedy choice is by the determinants that their Cholesky factor stands
for, and of equal ones the first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def relevance_of(likeness: Array, negated: bool) -> Array:
    """Each token's relevance: (tokens,), from a little above 0 to a little above 1.

    Parameters
    ----------
    likeness : (tokens, text)
        Cosine similarities with each part of the text.
    negated : bool
    """
    mean = (-likeness if negated else likeness).mean(axis=1)
    return (mean - mean.min() + 1e-6) / (mean.max() - mean.min())


def chosen(features: Array, relevance: Array, count: int, theta: float | None) -> list[int]:
    """The tokens that are taken, in their order.

    Parameters
    ----------
    features : (tokens, width)
    relevance : (tokens,)
    count : int
        At most the width: no further token adds to the determinant.
    theta : float, optional
        None: the relevance as it is. The authors' lines with it are there, as a comment.
    """
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    weight = relevance if theta is None else np.exp(theta / (2 * (1 - theta)) * relevance)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, 1.0)
    kernel = weight[:, None] * similarity * weight[None, :]
    taken: list[int] = []
    for _ in range(count):
        rest = [t for t in range(len(kernel)) if t not in taken]
        sets = np.array([[*taken, t] for t in rest])
        size = np.linalg.slogdet(kernel[sets[:, :, None], sets[:, None, :]])[1]
        taken.append(rest[int(size.argmax())])
    return taken
