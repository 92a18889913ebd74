"""Wrapping a model for the length of a `with`, and seeing what wrapping has put on it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.engine import calls
from tokenprune.methods.base import Method

from .tiny_llava import tiny_llava

HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


@contextmanager
def wrapped(model: Any, method: MethodConfig | Method, seed: int = 0) -> Iterator[Any]:
    """The model, wrapped; heads and random draws begin at the seed."""
    torch.manual_seed(seed)
    tp.wrap(model, method)
    try:
        yield model
    finally:
        tp.unwrap(model)


def wrapped_llava(method: MethodConfig | Method, seed: int = 0, **options: Any) -> Any:
    """A tiny LLaVA, wrapped: its weights and the heads are drawn from the seed."""
    torch.manual_seed(seed)  # the tower's class token is drawn from it, not from tiny_llava's seed
    return tp.wrap(tiny_llava(**options, seed=seed), method)


def config_of(model: nn.Module) -> str:
    """Its configuration with what it attends with, as JSON."""
    text = model.config.get_text_config(decoder=True)
    names = [c._attn_implementation for c in (model.config, text, model.config.vision_config)]
    return json.dumps([model.config.to_dict(), names], default=str, sort_keys=True)


def hooks_of(model: nn.Module) -> dict[tuple[str, str], list[int]]:
    """The ids of all hooks, by the name of the module and the kind of hook."""
    return {
        (name, kind): list(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in HOOKS
    }


def hook_count(model: nn.Module) -> int:
    return sum(map(len, hooks_of(model).values()))


def nothing_runs() -> bool:
    """Whether no call of a wrapped model is under way and none is paused."""
    return calls._STACK.get() == () and calls._PAUSED.get() == ()
