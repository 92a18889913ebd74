"""Freeze all parameters but the heads'."""

from __future__ import annotations

from torch import nn

from ..engine import ATTRIBUTE, engine_of

__all__ = ["train_only_heads"]


def train_only_heads(model: nn.Module) -> list[nn.Parameter]:
    """Freeze all parameters of the model but those of the pruning heads, in place.

    `unwrap` restores every parameter's ``requires_grad``.

    Parameters
    ----------
    model : nn.Module
        A wrapped model.

    Returns
    -------
    list of nn.Parameter
        The heads' parameters, for the optimiser.

    Raises
    ------
    ValueError
        If the model is not wrapped, or its method has no parameters.

    Examples
    --------
    >>> model = tp.wrap(model, tp.ATPConfig(layers=(1, 3), target_tokens=20))
    >>> optimizer = torch.optim.Adam(tp.train_only_heads(model), lr=1e-3)
    >>> trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    >>> all(name.startswith("tokenprune.") for name in trainable)
    True
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
