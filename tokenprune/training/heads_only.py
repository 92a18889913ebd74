"""Freeze everything but the heads."""

from __future__ import annotations

from torch import nn

from ..engine import ATTRIBUTE, engine_of

__all__ = ["train_only_heads"]


def train_only_heads(model: nn.Module) -> list[nn.Parameter]:
    """Freeze the model but for the pruning heads, in place.

    `unwrap` gives every parameter its ``requires_grad`` back.

    Returns
    -------
    list of nn.Parameter
        The heads' parameters: give these to the optimiser.

    Raises
    ------
    ValueError
        If the model is not wrapped, or its method has nothing to train.
    """
    engine = engine_of(model)
    heads = list(engine.parameters())
    if not heads:
        raise ValueError(f"{type(engine.method).__name__} has no parameters: nothing to train.")
    if engine.required_grad is None:
        engine.required_grad = {
            name: parameter.requires_grad
            for name, parameter in model.named_parameters()
            if not name.startswith(ATTRIBUTE + ".")
        }
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in heads:
        parameter.requires_grad_(True)
    return heads
