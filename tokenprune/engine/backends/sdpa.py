"""``torch.nn.functional.scaled_dot_product_attention``, with a look at its log-sum-exp."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .base import Backend

__all__ = ["LogSumExp", "SdpaBackend"]


class SdpaBackend(Backend):
    """``sdpa``: masks are optional, and the fused kernels leave their log-sum-exp."""

    name = "sdpa"

    def attend(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor | None]:
        """See `Backend.attend`."""
        with LogSumExp() as left:
            output = self.call(*args, **kwargs)
        return output, left.lse


class LogSumExp(TorchDispatchMode):
    """Record, inside the context, the log-sum-exp that a fused attention kernel returns.

    ``scaled_dot_product_attention`` throws it away; the scores would have to compute it again.

    Attributes
    ----------
    lse : float32, (batch, heads, queries), optional
        Of the last kernel that ran. None: none that leaves one.
    """

    lse: Tensor | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and look at what it returns."""
        kwargs = kwargs or {}
        if func is torch.ops.aten.scaled_dot_product_attention.default:
            # Under `torch.inference_mode` the composite operation arrives undecomposed, and the
            # kernel that it chooses would not be dispatched through this mode.
            with self:
                return func.decompose(*args, **kwargs)
        output = func(*args, **kwargs)
        if func in _LEAVE_LSE:
            query, lse = args[0], output[1]
            self.lse = lse if lse.shape == query.shape[:3] else None
        return output


# Query first in, log-sum-exp second out; some leave it empty when no gradient is asked for.
_LEAVE_LSE = (
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
)
