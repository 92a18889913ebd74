"""Gradient checkpointing: the layers run a second time in the backward pass.

In some releases of transformers the checkpoint is around the layer's call, hooks included; in
others around its forward only. Where hooks run again, the pass they belonged to is over, and they
must give the layer the mask that it had the first time.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.modeling_layers import GradientCheckpointingLayer

from .backends import Backend

__all__ = ["check", "check_dropping", "kept_tensors", "mask_again", "remember"]

# Position embeddings of a pass → its mask at each layer. The recomputation is given the very same
# embeddings, and nothing else that it is given tells one pass from another.
_MASKS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def check(layer: nn.Module, backend: Backend) -> None:
    """Refuse the checkpointing that cannot carry the masks' gradient.

    Raises
    ------
    ValueError
        If the layer is checkpointed with ``use_reentrant=True``, or under a backend that has no
        such gradient then.
    """
    if not (getattr(layer, "gradient_checkpointing", False) and layer.training):
        return
    if not backend.checkpoints:
        raise ValueError(
            f"Under gradient checkpointing {backend.name} has no right gradient of the masks that "
            "the heads are trained by: call model.gradient_checkpointing_disable(), or load the "
            'model with attn_implementation="sdpa".'
        )
    function = getattr(layer, "_gradient_checkpointing_func", None)
    if getattr(function, "keywords", {}).get("use_reentrant", True) is not False:
        raise ValueError(
            "Gradient checkpointing with use_reentrant=True loses the gradient of the masks: call "
            'model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": '
            "False})."
        )


# Whether the checkpoint is around the layer's call, hooks included, as before transformers 5.23,
# or around its forward only.
HOOKS_RUN_AGAIN = "__call__" in vars(GradientCheckpointingLayer)


def check_dropping(layer: nn.Module) -> None:
    """Refuse to drop tokens for real under a checkpoint whose second run would not drop them.

    Raises
    ------
    ValueError
        If the layer is checkpointed and this release runs hooks again.
    """
    checkpointed = getattr(layer, "gradient_checkpointing", False) and layer.training
    if checkpointed and HOOKS_RUN_AGAIN and torch.is_grad_enabled():
        raise ValueError(
            f"Gradient checkpointing of transformers {transformers.__version__} runs a layer's "
            "hooks again, where tokens are gone already: call "
            "model.gradient_checkpointing_disable() to train under this method, or use "
            "transformers 5.23 or newer. (Training ATP's heads works with either.)"
        )


def remember(masks: dict[int, Tensor], kwargs: dict[str, Any]) -> None:
    """Note where a pass will put its masks."""
    embeddings = kwargs.get("position_embeddings")
    if embeddings is not None:
        _MASKS[embeddings[0]] = masks


def mask_again(
    layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """In a recomputation, the arguments with the mask of the first time; else None."""
    embeddings = kwargs.get("position_embeddings")
    if embeddings is None or not _MASKS:
        return None
    masks = _MASKS.get(embeddings[0])
    if masks is None or layer not in masks:
        return None
    return args, {**kwargs, "attention_mask": masks[layer]}


def kept_tensors() -> AbstractContextManager[Any]:
    """Keep what our hooks save for the backward pass: a checkpoint would not compute it again."""
    if not torch.is_grad_enabled():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_detached, _same)


def _detached(tensor: Tensor) -> Tensor:
    # With its history, a result saved by the function that made it (a sigmoid's) would hold that
    # function, and the function it: memory that only a backward pass gives back.
    return tensor.detach()


def _same(tensor: Tensor) -> Tensor:
    return tensor
