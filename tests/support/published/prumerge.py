"""PruMerge and PruMerge+, after github.com/42Shawn/LLaVA-PruMerge.

Read at commit 097c041: ``llava/model/multimodal_encoder/clip_encoder.py``, `outlier_dectection`,
`token_prune_merge_advanced` and `token_prune_merge_advanced_plus` with ``if_adaptive=True``, which
its `forward` calls. There 575, here the number of the last token.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def whole_attention(query: Tensor, keys: Tensor) -> Tensor:
    """The class token's attention to the others: (tokens,), of whole queries and keys.

    Parameters
    ----------
    query : (heads · width,)
        Of the class token.
    keys : (1 + tokens, heads · width)
        Its own first.
    """
    return (keys @ query / len(query) ** 0.5).softmax(dim=0)[1:]


def chosen(attention: Tensor, plus: bool) -> list[int]:
    """Return the tokens that stay, in the order in which they go on."""
    values = attention.numpy()
    low, high = np.percentile(values, 25), np.percentile(values, 75)
    ratio = int((values > high + 1.5 * (high - low)).sum()) / len(values)
    top = np.argsort(-values, kind="stable")[: round(len(values) * ratio)].tolist()
    if plus:
        steps = range(0, len(values) - 1, int(int(1 / ratio) / 3))
        top += [t for t in steps if t not in top]
    return top


def merged(
    attention: Tensor, keys: Tensor, features: Tensor, stay: list[int], neighbours: int = 32
) -> Tensor:
    """Return what goes on: each token that stays with its like, and the sum of those that go.

    Parameters
    ----------
    attention : (tokens,)
    keys : (tokens, heads · width)
    features : (tokens, width)
    stay : list of int
    neighbours : int
    """
    unit = keys / keys.norm(dim=1, keepdim=True)
    out = []
    for t in stay:
        others = [o for o in range(len(features)) if o != t]
        near = sorted(others, key=lambda o: -float(unit[t] @ unit[o]))[:neighbours]
        out.append(features[t] + sum(attention[o] * features[o] for o in near))
    gone = [o for o in range(len(features)) if o not in stay]
    out.append(sum((attention[o] * features[o] for o in gone), torch.zeros_like(features[0])))
    return torch.stack(out)
