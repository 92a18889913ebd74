"""Muon in float32, all matrices of one shape orthogonalised in one batched product.

``torch.optim.Muon`` works matrix by matrix in bfloat16, which a processor without bfloat16
units emulates slowly; for a model this small that would cost more than the gradients do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class BatchedMuon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised by Newton-Schulz steps.

    Parameters
    ----------
    params : iterable
        Matrices, or parameter groups of them.
    lr : float
        Learning rate; updates are scaled to a root mean square of 0.2, as AdamW's are.
    momentum : float
        Of the Nesterov momentum.
    weight_decay : float
        Decoupled weight decay.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 5e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every matrix that has a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is not None:
                    by_shape[matrix.shape].append(matrix)
            for shape, matrices in by_shape.items():
                momenta = []
                for matrix in matrices:
                    state = self.state[matrix]
                    if not state:
                        state["momentum"] = torch.zeros_like(matrix)
                    state["momentum"].lerp_(matrix.grad, 1 - group["momentum"])
                    momenta.append(torch.lerp(matrix.grad, state["momentum"], group["momentum"]))
                updates = _orthogonal(torch.stack(momenta))
                scale = group["lr"] * 0.2 * max(shape) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.add_(update, alpha=-scale)
        return loss


def _orthogonal(stack: torch.Tensor, steps: int = 5) -> torch.Tensor:
    a, b, c = _COEFFICIENTS
    tall = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if tall else stack
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if tall else x
