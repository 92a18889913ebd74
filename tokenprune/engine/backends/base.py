"""What the engine must know of an attention backend."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..masks import select_mask
from ..survivors import Survivors

__all__ = ["Backend", "eager_function"]


class Backend:
    """An attention backend, by the form of its masks: here those of ``sdpa``.

    A mask is in the form in which the backend's decoder layers get it from transformers: a tensor
    of shape (1 or batch, 1 or heads, queries, keys), bool or added to the logits; None where the
    kernel's own causal rule is enough.

    Attributes
    ----------
    name : str
        As in ``attn_implementation``.
    softens : bool
        Whether a float mask is added to the logits, with a gradient. Training the heads needs it.
    checkpoints : bool
        Whether that gradient is right under gradient checkpointing.
    counts_positions : bool
        Whether windows and blocks of image tokens stay right when tokens are gone. False: the
        kernel counts the tokens that are left.
    left_out : tuple of str
        Arguments that the attention function must not be given once tokens are gone.
    """

    name: str
    softens: bool = True
    checkpoints: bool = True
    counts_positions: bool = True
    left_out: tuple[str, ...] = ()

    def function(self, module: nn.Module) -> Callable[..., Any]:
        """Return the attention function that a module would call without this library."""
        return ALL_ATTENTION_FUNCTIONS[self.name]

    def call(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        **kwargs: Any,
    ) -> Any:
        """Call the attention function as an attention module does, and return what it returns."""
        mask, extra = self.as_arguments(mask, query.shape[1])
        return self.function(module)(module, query, key, value, mask, **kwargs, **extra)

    def as_arguments(self, mask: Any, heads: int) -> tuple[Any, dict[str, Any]]:
        """Return a mask as the function takes it, and the keyword arguments that are part of it."""
        return mask, {}

    def attend(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor | None]:
        """Do as `call` does, and return the log-sum-exp beside the output.

        Returns
        -------
        output
            Of the function.
        lse : float32, (batch, heads, queries), optional
            The logarithm of the sum of each query's exponentiated logits, where the kernel leaves
            it.
        """
        return self.call(*args, **kwargs), None

    def causal(self, length: int, dtype: torch.dtype, device: torch.device) -> Any:
        """Return the mask of a causal decoder over `length` tokens without padding between."""
        return None

    def decoding(self, valid: Tensor, keys: int) -> Any:
        """Return the mask of one new token over cached keys of which some are padding.

        Parameters
        ----------
        valid : bool, (batch, slots)
            False at padding among the first keys.
        keys : int
            All keys; those behind the first `slots` are valid.
        """
        return _with_tail(valid, keys)[:, None, None, :]

    def select(self, mask: Any, columns: Survivors, rows: Survivors | None) -> Any:
        """Return those rows and columns of a mask that are left; see `masks.select_mask`."""
        return select_mask(mask, columns, rows)

    def dense(self, mask: Any, queries: int, keys: int) -> Tensor | None:
        """Return a mask as a tensor of four dimensions, as the scoring kernels read it."""
        return mask


def _with_tail(valid: Tensor, keys: int) -> Tensor:
    """Append True for the keys behind: bool, (batch, keys)."""
    batch, slots = valid.shape
    return torch.cat([valid, valid.new_ones(batch, keys - slots)], dim=1)


def eager_function(module: nn.Module) -> Callable[..., Any]:
    """Return the eager attention function of a module's modelling file.

    Raises
    ------
    ValueError
        If the file has none.
    """
    # Each modelling file has its own eager function and passes it on as the default only.
    for cls in type(module).__mro__:
        found = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if found is not None:
            return found
    raise ValueError(
        f"{type(module).__name__} has no eager attention function beside it: load the model with "
        'attn_implementation="sdpa".'
    )
