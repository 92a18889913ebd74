"""The spatial score: which uniform 2-D samplings of its image a token belongs to."""

from __future__ import annotations

import torch
from torch import Tensor

from ...layout import VisualLayout

__all__ = ["spatial_score"]


def spatial_score(
    layout: VisualLayout, strides: tuple[int, ...], sample_weight: float, temporal: bool = False
) -> Tensor:
    """Compute the spatial score S_s = 1 − R·λ_sample.

    R is the least rate of the uniform grids that pick the token; S_s is 0 where none does. The grid
    of stride s picks the rows and columns divisible by s, so at rate 1/s². All grids share their
    origin: one whose stride is a multiple of another's is nested in it. The higher the threshold
    θ_s, the sparser the grid that stays. Places are the token's own, in its own image, so dropping
    other tokens changes nothing ("spatial augmented pruning", arXiv 2412.00447).

    Parameters
    ----------
    layout : VisualLayout
        (batch, tokens).
    strides : tuple of int
    sample_weight : float
        λ_sample.
    temporal : bool
        Whether the grid of stride s picks frames divisible by s only, so at rate 1/s³ of a video.

    Returns
    -------
    Tensor
        float32, (batch, tokens); 0 at text and at visual tokens without a place.
    """
    placed = layout.mask & (layout.row >= 0)
    # What divides all of a token's places divides their greatest common divisor; 0 is in all grids.
    common = torch.gcd(layout.row, layout.col)
    if temporal:
        common = torch.gcd(common, layout.frame)
    score = torch.zeros(placed.shape, dtype=torch.float32, device=placed.device)
    for stride in sorted(strides):  # dense first, so that the sparsest grid has the last word
        rate = 1 / stride ** (3 if temporal else 2)
        score = torch.where(common % stride == 0, 1 - sample_weight * rate, score)
    return torch.where(placed, score, 0.0)
