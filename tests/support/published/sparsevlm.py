"""SparseVLM, after github.com/Gumpest/SparseVLMs, llava/model/language_model.

Read at commit 26a5f48: ``modelling_sparse_llama.py`` (raters: lines 190 to 195; merging: 272 to
305), ``score.py`` and, in ``utils.py``, `cluster_and_merge`, whose noise is left out.
"""

from __future__ import annotations

import torch
from torch import Tensor


def raters(visual: Tensor, behind: Tensor) -> list[int]:
    """Return which of the text tokens behind the picture rate it.

    Parameters
    ----------
    visual : (visual tokens, width)
    behind : (text tokens, width)
        The decoder's input.
    """
    concern = (visual @ behind.T).softmax(dim=1).mean(dim=0)
    return (concern > concern.mean()).nonzero()[:, 0].tolist()


def pruned(scores: Tensor, states: Tensor, keep: int, share: float = 0.3) -> tuple[list, Tensor]:
    """Return which tokens stay, and what the others become, in order.

    Parameters
    ----------
    scores : (tokens,)
        Mean attention of the raters.
    states : (tokens, width)
    keep : int
    share : float
        Of those that go, the best that are merged.
    """
    stay = scores.topk(min(keep, len(scores) - 1)).indices.tolist()
    gone = [t for t in range(len(scores)) if t not in stay]
    count = int(len(gone) * share) + 1
    best = sorted(scores[gone].topk(count).indices.tolist())
    merge = torch.stack([states[gone[n]] for n in best])
    return sorted(stay), clustered(merge, int(len(merge) / 10) + 1)


def clustered(states: Tensor, clusters: int) -> Tensor:
    """Return the mean of each cluster, the highest peak first: (clusters, width)."""
    count = len(states)
    far = torch.stack([(states - one).norm(dim=1) for one in states]) / states.shape[1] ** 0.5
    density = [
        float((-far[t].sort().values[:clusters].square().mean()).exp()) for t in range(count)
    ]
    peaks = []
    for t in range(count):
        # Two that are each other's nearest are as dense: the earlier goes first, as in ours.
        above = [o for o in range(count) if (density[o], -o) > (density[t], -t)]
        denser = [float(far[t, o]) for o in above]
        peaks.append(min(denser, default=float(far.max())) * density[t])
    centres = sorted(range(count), key=lambda t: -peaks[t])[:clusters]
    groups: dict[int, list[Tensor]] = {centre: [] for centre in centres}
    for t in range(count):
        own = t if t in groups else min(centres, key=lambda o: float(far[o, t]))
        groups[own].append(states[t])
    return torch.stack([torch.stack(group).mean(dim=0) for group in groups.values()])
