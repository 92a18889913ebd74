"""Interrupts in the middle of a call: torch runs a module's hooks after an Exception only.

A KeyboardInterrupt, SystemExit or cancelled task passes by them, and the call's frame would stay on
the stack with all that its pass holds. So the forward of the model and of its core is covered, on
the instance, by one that takes the frame away.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, update_wrapper
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from . import frames

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["guard", "unguard"]


def guard(module: nn.Module, engine: Engine, alone: bool) -> None:
    """Take the engine's frame off the stack when an interrupt ends the module's forward.

    Parameters
    ----------
    module : nn.Module
        The model, or its core.
    engine : Engine
    alone : bool
        Which frames: those of the core's own calls, or those of the model's.
    """
    forward = module.forward
    # Its signature stays the forward's own, which is read by generate and by transformers' Trainer.
    module.forward = update_wrapper(partial(_forward, forward, engine, alone), forward)


def unguard(module: nn.Module) -> None:
    """Undo `guard`. A forward that somebody has put over ours since is left as it is."""
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
    forward: Callable[..., Any], engine: Engine, alone: bool, *args: Any, **kwargs: Any
) -> Any:
    try:
        return forward(*args, **kwargs)
    except Exception:
        raise  # the hooks see to it
    except BaseException:
        frame = frames.top(engine)
        if frame is not None and frame.alone == alone:
            frames.pop(engine)
        raise
