"""VisionZip, after github.com/dvlab-research/VisionZip, visionzip/clip_encoder.py.

Read at commit 3151f6d: `CLIPVisionTower_VisionZip.forward`, without its class token.
"""

from __future__ import annotations

import torch
from torch import Tensor


def visionzip(
    attention: Tensor, metric: Tensor, features: Tensor, dominant: int, contextual: int
) -> Tensor:
    """Return what goes on: dominant tokens as they stood, then contextual ones.

    Parameters
    ----------
    attention : (tokens,)
        From the class token.
    metric : (tokens, width)
        The mean of the heads' keys.
    features : (tokens, width)
    dominant, contextual : int
    """
    first = sorted(attention.topk(dominant).indices.tolist())
    rest = [t for t in range(len(features)) if t not in first]
    step = max(1, len(rest) // contextual) if contextual else 1
    targets = rest[::step][:contextual]
    unit = metric / metric.norm(dim=1, keepdim=True)
    joined: dict[int, list[Tensor]] = {t: [] for t in targets}
    for t in rest:
        if targets and t not in targets:
            joined[max(targets, key=lambda o: float(unit[t] @ unit[o]))].append(features[t])
    out = [features[t] for t in first]
    for target, others in joined.items():
        mean = torch.stack(others).mean(dim=0) if others else 0
        out.append(features[target] + mean)
    return torch.stack(out)
