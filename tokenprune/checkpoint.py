"""Load a checkpoint with heads, with another method, or unpruned, by command-line options."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from .api import wrap
from .config import MethodConfig
from .methods import METHODS
from .training import set_budget

__all__ = ["config_of", "load"]


def config_of(method: str, options: dict[str, Any]) -> MethodConfig:
    """Make a method's configuration from command-line options.

    Parameters
    ----------
    method : str
        Its name: atp, fastv, sparsevlm, …
    options : dict
        Its configuration's fields. Strings are read as Python writes values (``0.5``, ``True``);
        numbers between slashes are a tuple (``3/13/23``).

    Raises
    ------
    ValueError
        If the method or a field is not known, or a value is not what the field takes.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is not known: expected one of {sorted(METHODS)}.")
    kind = METHODS[method][0]
    fields = sorted(field.name for field in dataclasses.fields(kind))
    unknown = sorted(options.keys() - set(fields))
    if unknown:
        raise ValueError(f"{unknown} are no options of {method}: expected some of {fields}.")
    return kind(**{name: _value(given) for name, given in options.items()})


def _value(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    if "/" in given:
        return tuple(_value(part) for part in given.split("/") if part)
    try:
        return ast.literal_eval(given)
    except (SyntaxError, ValueError):
        return given


def load(
    pretrained: str,
    heads: str | None = None,
    method: str | None = None,
    tokens: float | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str = "sdpa",
    device_map: str | None = None,
    **options: Any,
) -> tuple[Any, Any]:
    """Load a model in evaluation mode and its processor, which pads on the left.

    Parameters
    ----------
    pretrained : str
        Path or hub id of the checkpoint.
    heads : str, optional
        Path or hub id of heads that `tokenprune.save_heads` wrote.
    method : str, optional
        Instead of heads, another method's name, with the fields of its configuration as `options`.
        Neither: the model as it is, which the others are measured against.
    tokens : float, optional
        With heads: a budget between those they were calibrated for, see `tokenprune.set_budget`.

    Raises
    ------
    ValueError
        If heads and a method are both given, options without a method, or tokens without heads; or
        as `tokenprune.wrap`.
    """
    if heads and method:
        raise ValueError(f"heads={heads!r} and method={method!r}: give one of them.")
    if options and not method:
        raise ValueError(f"{options}: these are a method's options, and no method is given.")
    if tokens is not None and not heads:
        raise ValueError(f"tokens={tokens} is a budget for heads, and no heads are given.")
    config = config_of(method, options) if method else None
    model = AutoModelForImageTextToText.from_pretrained(
        pretrained, dtype=dtype, attn_implementation=attn_implementation, device_map=device_map
    ).eval()
    processor = AutoProcessor.from_pretrained(pretrained)
    processor.tokenizer.padding_side = "left"
    if config is not None or heads:
        wrap(model, config or heads)
    if tokens is not None:
        set_budget(model, tokens)
    return model, processor
