"""The budget: L = L_ntp + λ_atp·L_atp + λ_target·L_target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from ...distributed import world_size
from ..context import Trace

__all__ = ["TargetLoss", "atp_loss"]


def atp_loss(trace: Trace) -> Tensor:
    """Compute L_atp = Σ_l (N_l / N_v)·l over the steps, l their depth from 1.

    Deep tokens cost more. The mean is over the rows that have an image.
    """
    depths = trace.counts.new_tensor([n + 1.0 for n in trace.layers])
    shares = trace.counts / trace.visual_tokens.clamp(min=1)
    has = (trace.visual_tokens > 0).float()
    return ((shares * depths[:, None]).sum(dim=0) * has).sum() / has.sum().clamp(min=1)


class _Sums(NamedTuple):
    """Sums over the rows of a step so far, on all ranks, without gradient.

    Attributes
    ----------
    excess : float32, ()
        Of N − N_target.
    rows, weight : float32, ()
        Of the rows that have an image, and of their batches' weights.
    gradients : tuple of (Tensor or None)
        Of this rank's excess, for each parameter.
    values : tuple of Tensor
        The parameters, which the optimiser's step changes.
    versions : tuple of int
        Theirs, which it changes too, where it counts.
    """

    excess: Tensor
    rows: Tensor
    weight: Tensor
    gradients: tuple[Tensor | None, ...]
    values: tuple[Tensor, ...] = ()
    versions: tuple[int, ...] = ()


class TargetLoss:
    """L_target = |N − N_target|, N the mean count over all decoder layers and a step's rows.

    The rows are those with images of one optimiser step, in however many batches and on however
    many ranks of torch.distributed they come, so that simple pictures may take less and complex
    ones more: the mean of a batch of one would push every picture to the same count. The target is
    a share of the visual tokens.

    What a batch returns is the difference that it makes: of the loss over the step's rows with it
    and without it. Over a step the values and the gradients add up to those of one batch. For the
    rows before it, whose graph is gone by then, the gradient of their sum is kept: where a batch
    turns the sign of N − N_target, theirs is turned by it as well. A batch counts as one of the
    step when its backward pass has run, and the step ends when the parameters change or their
    gradients are gone or zeros. FSDP and DeepSpeed keep gradients elsewhere: there each batch, over
    all ranks, is a step of its own.

    Parameters
    ----------
    target_share : float
        N_target as a share of the visual tokens.
    unit : {"share", "tokens"}
        Whether the result is divided by the number of visual tokens.
    over : {"step", "instance"}
        ``instance``: the mean of each row's own |N − N_target|, as the paper's formula is written.
        A batch then returns its rows' mean, whatever others the step has.
    """

    def __init__(self, target_share: float, unit: str, over: str = "step") -> None:
        self.target_share = target_share
        self.unit = unit
        self.over = over
        self._so_far: _Sums | None = None

    def __call__(self, trace: Trace, parameters: Sequence[nn.Parameter] = ()) -> Tensor:
        """Compute a batch's part of the loss, to be averaged over the batches of the step.

        Parameters
        ----------
        trace : Trace
            With `weight`, which is the batch's in that average.
        parameters : sequence of nn.Parameter
            What the counts depend on. Empty: the batch is a step of its own.

        Returns
        -------
        Tensor
            float32, ().
        """
        excess = trace.mean_tokens() - self.target_share * trace.visual_tokens
        if self.unit == "share":
            excess = excess / trace.visual_tokens.clamp(min=1)
        has = (trace.visual_tokens > 0).float()
        if self.over == "instance":
            return (excess.abs() * has).sum() / has.sum().clamp(min=1)
        own = (excess * has).sum()
        weight = torch.as_tensor(trace.weight).to(own).clamp(min=1e-6)
        total, rows, weights = _over_ranks(torch.stack([own.detach(), has.sum(), weight])).unbind()
        mean_weight = weights / world_size()
        # Gradients of ranks are averaged, and multiplied by the rank's weight.
        scale = weights / weight
        now = total + scale * (own - own.detach())
        before = self._before(parameters)
        if before is None:
            loss = (now / rows.clamp(min=1)).abs()
            so_far = _Sums(total, rows, mean_weight, (None,) * len(parameters))
        else:
            past = before.excess + scale * _zero_with_gradient(parameters, before.gradients)
            all_rows, all_weight = before.rows + rows, before.weight + mean_weight
            loss = all_weight * ((past + now) / all_rows.clamp(min=1)).abs()
            loss = (loss - before.weight * (past / before.rows.clamp(min=1)).abs()) / mean_weight
            so_far = _Sums(before.excess + total, all_rows, all_weight, before.gradients)
        if own.requires_grad and parameters and all(p.is_leaf for p in parameters):
            self._remember(own, so_far, parameters)
        return loss

    def without_images(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take part in the sums over ranks for a batch without images."""
        if self.over == "step" and world_size() > 1:
            zeros = torch.zeros(3, device=parameters[0].device)
            total, rows, weights = _over_ranks(zeros).unbind()
            zero = torch.zeros_like(total)
            before = self._before(parameters)
            if before is None:
                before = _Sums(zero, zero, zero, (None,) * len(parameters))
            values, versions = _now(parameters)
            self._so_far = _Sums(
                before.excess + total,
                before.rows + rows,
                before.weight + weights / world_size(),
                before.gradients,
                values,
                versions,
            )

    def _before(self, parameters: Sequence[nn.Parameter]) -> _Sums | None:
        """Return the sums over the step's earlier batches; None if this is its first."""
        so_far = self._so_far
        if so_far is None or tuple(p._version for p in parameters) != so_far.versions:
            return None
        found = [p.grad for p in parameters if p.is_leaf and p.grad is not None]
        if not found:
            return None
        # Fused optimisers change values without a new version, and gradients may be set to zeros.
        pairs = zip(parameters, so_far.values, strict=True)
        same = torch.stack([(p.detach() == value).all() for p, value in pairs]).all()
        if any(gradient is not None for gradient in so_far.gradients):
            same &= torch.stack([gradient.ne(0).any() for gradient in found]).any()
        goes_on = same.float()  # multiplied by, since `if` would wait for the device
        gradients = tuple(None if g is None else g * goes_on for g in so_far.gradients)
        sums = (so_far.excess * goes_on, so_far.rows * goes_on, so_far.weight * goes_on)
        return so_far._replace(excess=sums[0], rows=sums[1], weight=sums[2], gradients=gradients)

    def _remember(self, own: Tensor, so_far: _Sums, parameters: Sequence[nn.Parameter]) -> None:
        """Keep the sums as soon as the backward pass of the batch runs."""
        found = torch.autograd.grad(own, parameters, retain_graph=True, allow_unused=True)
        gradients = tuple(map(_added, so_far.gradients, found))
        values, versions = _now(parameters)
        kept = so_far._replace(gradients=gradients, values=values, versions=versions)

        def keep(_: Tensor) -> None:
            self._so_far = kept

        own.register_hook(keep)


def _now(parameters: Sequence[nn.Parameter]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """Return copies of the parameters, and their versions."""
    return tuple(p.detach().clone() for p in parameters), tuple(p._version for p in parameters)


def _added(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _zero_with_gradient(
    parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]
) -> Tensor:
    """Return 0, whose gradients for the parameters are the ones given."""
    zero = parameters[0].new_zeros(())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            zero = zero + (gradient * (parameter - parameter.detach())).sum()
    return zero


def _over_ranks(values: Tensor) -> Tensor:
    """Sum over the ranks of torch.distributed, in place; they must all come here."""
    if world_size() > 1:
        distributed.all_reduce(values)
    return values
