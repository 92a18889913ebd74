"""The threshold heads: the only parameters there are."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from ...layout import VisualLayout

__all__ = ["ThresholdHeads", "lay_on_grid"]


def lay_on_grid(values: Tensor, layout: VisualLayout, grid: tuple[int, int]) -> Tensor:
    """Each token's value at its own place of one fixed grid, zeros where a token is gone.

    One set of heads so serves any resolution: a cell holds the mean of the tokens that fall into
    it, over all images of the row. Tokens without a place are left out; in a row where none has
    one, every cell holds their mean.

    Parameters
    ----------
    values : float32, (batch, tokens)
    layout : VisualLayout
        (batch, tokens).
    grid : (rows, columns)

    Returns
    -------
    Tensor
        float32, (batch, rows, columns).
    """
    rows, cols = grid
    placed = layout.mask & (layout.row >= 0)
    row = layout.row * rows // layout.height.clamp(min=1)
    col = layout.col * cols // layout.width.clamp(min=1)
    # Tokens without a place go to one cell past the end.
    cell = torch.where(placed, row * cols + col, rows * cols)
    sums = values.new_zeros(values.shape[0], rows * cols + 1)
    counts = sums.scatter_add(1, cell, layout.mask.to(values.dtype))
    sums = sums.scatter_add(1, cell, torch.where(layout.mask, values, 0.0))
    means = sums / counts.clamp(min=1)
    means = torch.where(placed.any(dim=1, keepdim=True), means[:, :-1], means[:, -1:])
    return rearrange(means, "b (r c) -> b r c", r=rows)


class ThresholdHeads(nn.Module):
    """z = Linear(concat(S_self, S_cross)); θ_r = σ(head_r(z)), θ_s = σ(head_s(z)).

    The paper gives no widths, activation or initialisation. Here z passes a GELU, and the heads
    start at a constant: small weights, and the biases given.

    Parameters
    ----------
    grid : (rows, columns)
        Of the score maps.
    hidden : int
        Width of z.
    start : (float, float)
        Where θ_r and θ_s start, before the sigmoid.
    """

    def __init__(self, grid: tuple[int, int], hidden: int, start: tuple[float, float]) -> None:
        super().__init__()
        self.grid = grid
        self.project = nn.Linear(2 * grid[0] * grid[1], hidden)
        self.heads = nn.Linear(hidden, 2)
        with torch.no_grad():
            self.heads.weight.mul_(0.1)
            self.heads.bias.copy_(torch.tensor(start))

    def forward(self, self_map: Tensor, cross_map: Tensor, layout: VisualLayout) -> Tensor:
        """Logits of θ_r and θ_s: float32, (batch, 2), from two score maps, (batch, tokens)."""
        maps = torch.stack([lay_on_grid(m, layout, self.grid) for m in (self_map, cross_map)], 1)
        flat = rearrange(maps, "b m r c -> b (m r c)")
        dtype = self.project.weight.dtype
        return self.heads(nn.functional.gelu(self.project(flat.to(dtype)))).float()
