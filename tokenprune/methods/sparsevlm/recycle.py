"""Dropped tokens become fewer: clusters by density peaks, one token each."""

from __future__ import annotations

import torch
from torch import Tensor

from ..pooling import group_means
from ..selecting import highest

__all__ = ["recycled"]

_NEIGHBOURS = 5


def recycled(hidden: Tensor, worth: Tensor, clusters: float) -> tuple[Tensor, Tensor]:
    """Cluster the tokens worth it, and lay each cluster's mean at its centre.

    Density-peak clustering with nearest neighbours: a centre has close neighbours and lies far from
    any token with closer ones.

    Parameters
    ----------
    hidden : (batch, tokens, width)
    worth : bool, (batch, tokens)
        The tokens to cluster.
    clusters : float
        How many clusters, as a share of those; one at least.

    Returns
    -------
    centres : bool, (batch, tokens)
    hidden : (batch, tokens, width)
        With the means at the centres.
    """
    states = hidden.float()
    # Without the matrix-product short cut, which loses what is small beside the norms.
    exact = "donot_use_mm_for_euclid_dist"
    distance = torch.cdist(states, states, compute_mode=exact) / states.shape[-1] ** 0.5
    pair = worth[:, None] & worth[..., None]
    far = distance.masked_fill(~pair, float("inf"))

    near = far.topk(min(_NEIGHBOURS, far.shape[2]), dim=2, largest=False).values
    real = near.isfinite()
    near = torch.where(real, near, 0).square().sum(dim=2) / real.sum(dim=2).clamp(min=1)
    density = -near  # its logarithm: wide states would underflow
    # Equal densities: the earlier token counts as the denser, so that one of them is a peak.
    places = torch.arange(worth.shape[1], device=worth.device)
    denser = density[:, None] > density[..., None]
    denser |= (density[:, None] == density[..., None]) & (places < places[:, None])
    above = far.masked_fill(~denser, float("inf")).amin(dim=2)
    farthest = distance.masked_fill(~pair, 0).amax(dim=2)
    apart = torch.where(above.isfinite(), above, farthest)
    peak = density + apart.clamp(min=1e-30).log()

    members = worth.sum(dim=1, keepdim=True)
    count = (clusters * members).round().clamp(min=1)
    centres = highest(peak, worth, count)
    # A centre is its own; the others join the nearest.
    own = torch.where(centres[:, None], far, float("inf")).argmin(dim=2)
    own = torch.where(centres, places, own)

    means = group_means(hidden, worth, own)
    return centres, torch.where(centres[..., None], means, hidden)
