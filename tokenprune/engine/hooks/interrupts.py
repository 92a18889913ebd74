"""Interrupts in the middle of a call: torch runs a module's hooks after an Exception only.

A KeyboardInterrupt, SystemExit or cancelled task skips them, and the call would stay on the stack
with all that its pass holds. So the forward of the model and of its core is wrapped, on the
instance, by one that ends the call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

import torch
from torch import nn

from .. import calls

__all__ = ["guard", "unguard"]


def guard(module: nn.Module, owner: object, core_alone: bool) -> None:
    """End the owner's call when an interrupt ends the module's forward.

    Parameters
    ----------
    module : nn.Module
        The model, or its core.
    owner : Engine
    core_alone : bool
        Which calls: those of the core on its own, or those of the model.
    """
    forward = module.forward
    # Its signature stays the forward's own, which is read by generate and by transformers' Trainer.
    module.forward = update_wrapper(partial(_forward, forward, owner, core_alone), forward)


def unguard(module: nn.Module) -> None:
    """Undo `guard`. A forward that somebody has wrapped since is left as it is."""
    ours = vars(module).get("forward")
    if not isinstance(ours, partial) or ours.func is not _forward:
        return
    forward = ours.args[0]
    del module.forward
    if module.forward != forward:  # it was on the instance before, as accelerate's are
        module.forward = forward


# Not compiled itself; what it calls is.
@torch.compiler.disable(recursive=False)
def _forward(
    forward: Callable[..., Any], owner: object, core_alone: bool, *args: Any, **kwargs: Any
) -> Any:
    try:
        return forward(*args, **kwargs)
    except Exception:
        raise  # torch runs the hooks, which end the call
    except BaseException:
        call = calls.newest(owner)
        if call is not None and call.core_alone == core_alone:
            calls.pop(owner)
        raise
