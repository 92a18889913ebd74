"""Dropped tokens become fewer: clusters by density peaks, one token each."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pooling import group_means
from ..selecting import highest

__all__ = ["recycled", "share_and_one"]


def share_and_one(share: float, count: Tensor) -> Tensor:
    """Return the whole number in a share of a count, and one more, but no more than the count.

    Parameters
    ----------
    share : float
    count : int64

    Returns
    -------
    int64, as `count`
    """
    # As Python's int(count * share): in double precision.
    return ((share * count.double()).long() + 1).minimum(count)


def recycled(hidden: Tensor, worth: Tensor, clusters: float) -> tuple[Tensor, Tensor, Tensor]:
    """Cluster the tokens worth it, and lay each cluster's mean at its centre.

    Density-peak clustering with nearest neighbours, as many as there are clusters: a centre has
    close neighbours, itself the first, and lies far from any token with closer ones.

    Parameters
    ----------
    hidden : (batch, tokens, width)
    worth : bool, (batch, tokens)
        The tokens to cluster.
    clusters : float
        How many clusters, as a share of those; see `share_and_one`.

    Returns
    -------
    centres : bool, (batch, tokens)
    hidden : (batch, tokens, width)
        With the means at the centres.
    order : int64, (batch, tokens)
        Of the centres, the higher peak first, behind all others.
    """
    states = hidden.float()
    # Without the matrix-product short cut, which loses what is small beside the norms.
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(states, states, compute_mode=exact) / states.shape[-1] ** 0.5
    pair = worth[:, None] & worth[..., None]
    far = distance.masked_fill(~pair, float("inf"))

    count = share_and_one(clusters, worth.sum(dim=1, keepdim=True))
    places = torch.arange(worth.shape[1], device=worth.device)
    near = far.sort(dim=2).values.masked_fill(places >= count[..., None], 0)
    near = near.masked_fill(~worth[..., None], 0).square().sum(dim=2) / count.clamp(min=1)
    density = -near  # its logarithm: wide states would underflow
    # Equal densities: the earlier token counts as the denser, so that one of them is a peak.
    denser = density[:, None] > density[..., None]
    denser |= (density[:, None] == density[..., None]) & (places < places[:, None])
    above = far.masked_fill(~denser, float("inf")).amin(dim=2)
    farthest = distance.masked_fill(~pair, 0).amax(dim=(1, 2))[:, None]
    apart = torch.where(above.isfinite(), above, farthest)
    peak = density + apart.clamp(min=1e-30).log()

    centres = highest(peak, worth, count)
    # A centre is its own; the others join the nearest.
    own = torch.where(centres[:, None], far, float("inf")).argmin(dim=2)
    own = torch.where(centres, places, own)

    means = group_means(hidden, worth, own)
    rank = peak.masked_fill(~centres, float("-inf")).argsort(dim=1, descending=True, stable=True)
    order = (rank.argsort(dim=1) + 1).masked_fill(~centres, 0)
    return centres, torch.where(centres[..., None], means, hidden), order
