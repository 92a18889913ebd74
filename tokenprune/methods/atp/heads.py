"""The threshold heads: ATP's only parameters."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ...layout import VisualLayout

__all__ = ["ThresholdHeads", "cells_of", "lay_on_grid"]


def cells_of(layout: VisualLayout, grid: tuple[int, int]) -> Tensor:
    """Map each token to its cell of one fixed grid: int64, (batch, tokens).

    So one set of heads serves any resolution. Tokens without a place are in one cell past the end.
    """
    rows, cols = grid
    row = layout.row * rows // layout.height.clamp(min=1)
    col = layout.col * cols // layout.width.clamp(min=1)
    return torch.where(layout.mask & (layout.row >= 0), row * cols + col, rows * cols)


def lay_on_grid(values: Tensor, mask: Tensor, cells: Tensor, grid: tuple[int, int]) -> Tensor:
    """Average the tokens in each cell, over all images of the row; zeros where all are gone.

    Tokens without a place are left out; in a row where none has one, every cell holds their mean.

    Parameters
    ----------
    values : float32, (..., batch, tokens)
    mask : bool, (batch, tokens)
        The visual tokens that are there.
    cells : int64, (batch, tokens)
        As `cells_of` gives them.
    grid : (rows, columns)

    Returns
    -------
    Tensor
        float32, (..., batch, rows, columns).
    """
    slots = grid[0] * grid[1] + 1
    weight = mask.to(values.dtype)
    counts = weight.new_zeros(len(mask), slots).scatter_add_(1, cells, weight)
    inside = torch.where(mask, values, 0.0)
    sums = inside.new_zeros(*values.shape[:-1], slots)
    means = sums.scatter_add(-1, cells.expand(values.shape), inside) / counts.clamp(min=1)
    placed = counts[:, :-1].any(dim=1, keepdim=True)
    return torch.where(placed, means[..., :-1], means[..., -1:]).unflatten(-1, grid)


class Affine(nn.Module):
    """A linear layer in float32 that is no nn.Linear.

    PEFT's ``target_modules="all-linear"`` and quantisers replace every nn.Linear of a model.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # Whatever torch's default dtype is: thresholds are decided in single precision.
        drawn = nn.Linear(inputs, outputs, dtype=torch.float32)
        self.weight, self.bias = drawn.weight, drawn.bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Compute inputs·Wᵀ + b."""
        return nn.functional.linear(inputs, self.weight, self.bias)


class ThresholdHeads(nn.Module):
    """Heads that compute both thresholds from the score maps.

    z = Linear(concat(S_self, S_cross)); θ_r = σ(head_r(z)), θ_s = σ(head_s(z)). The paper gives no
    widths, activation or initialisation. Here z passes a GELU unless told otherwise, and the heads
    start at a constant: small weights, and the biases given.

    Parameters
    ----------
    grid : (rows, columns)
        Of the score maps.
    hidden : int
        Width of z.
    start : (float, float)
        Where θ_r and θ_s start, before the sigmoid.
    activation : {"gelu", "none"}
        What z passes.
    """

    def __init__(
        self,
        grid: tuple[int, int],
        hidden: int,
        start: tuple[float, float],
        activation: str = "gelu",
    ) -> None:
        super().__init__()
        self.grid = grid
        self.activation = activation
        self.project = Affine(2 * grid[0] * grid[1], hidden)
        self.heads = Affine(hidden, 2)
        with torch.no_grad():
            self.heads.weight.mul_(0.1)
            self.heads.bias.copy_(torch.tensor(start))

    def forward(self, maps: Tensor, mask: Tensor, cells: Tensor) -> Tensor:
        """Compute the logits of θ_r and θ_s.

        Parameters
        ----------
        maps : float32, (2, batch, tokens)
            S_self and S_cross.
        mask, cells
            As `lay_on_grid` has them.

        Returns
        -------
        Tensor
            float32, (batch, 2).
        """
        flat = rearrange(lay_on_grid(maps, mask, cells, self.grid), "m b r c -> b (m r c)")
        hidden = self.project(flat.to(self.project.weight))
        if self.activation == "gelu":
            hidden = nn.functional.gelu(hidden)
        return self.heads(hidden).to(maps)
