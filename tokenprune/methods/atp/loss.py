"""The budget: L = L_ntp + λ_atp·L_atp + λ_target·L_target."""

from __future__ import annotations

from torch import Tensor

from ..context import Trace

__all__ = ["atp_loss", "target_loss"]


def _mean_over_rows(values: Tensor, visual_tokens: Tensor) -> Tensor:
    """Average over the rows that have an image."""
    has = (visual_tokens > 0).float()
    return (values * has).sum() / has.sum().clamp(min=1)


def atp_loss(trace: Trace) -> Tensor:
    """Compute L_atp = Σ_l (N_l / N_v)·l over the steps, l their depth from 1.

    Deep tokens cost more.
    """
    depths = trace.counts.new_tensor([n + 1.0 for n in trace.layers])
    shares = trace.counts / trace.visual_tokens.clamp(min=1)
    return _mean_over_rows((shares * depths[:, None]).sum(dim=0), trace.visual_tokens)


def target_loss(trace: Trace, target_share: float, unit: str) -> Tensor:
    """Compute L_target = |N − N_target|, N the mean count over all decoder layers.

    N is the mean over the rows with images as well, so that simple pictures may take less and
    complex ones more; the target is a share of the visual tokens.

    Parameters
    ----------
    trace : Trace
    target_share : float
        N_target as a share of the visual tokens.
    unit : {"share", "tokens"}
        Whether the result is divided by the number of visual tokens.
    """
    excess = trace.mean_tokens() - target_share * trace.visual_tokens
    if unit == "share":
        excess = excess / trace.visual_tokens.clamp(min=1)
    return _mean_over_rows(excess, trace.visual_tokens).abs()
