"""A decoder layer's arguments, found by what they are: releases of transformers rename them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..releases import verified_releases

__all__ = [
    "bind",
    "bind_layer",
    "cache_in",
    "cache_parameter",
    "check_placed",
    "hidden_of",
    "is_cache",
    "is_per_token",
    "with_hidden",
    "without_cache",
]


def bind(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return a call's arguments by name, those of ``**kwargs`` among them."""
    try:
        bound = signature.bind_partial(*args, **kwargs).arguments
    except TypeError:
        return kwargs  # the call itself is wrong and raises the same error with a better traceback
    extra = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    return {**bound, **(bound.get(extra[0], {}) if extra else {})}


def bind_layer(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, dict[str, Any]]:
    """Split a decoder layer's arguments into its hidden states and the others, by name.

    Hidden states are the first parameter, whatever its name.
    """
    names = list(signature.parameters)
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    hidden = given.pop(names[0])
    return hidden, given


def is_cache(value: Any) -> bool:
    """Return whether a value is a key-value cache, of transformers or with the same methods."""
    return hasattr(value, "get_seq_length") and hasattr(value, "update")


def cache_in(values: Iterable[Any]) -> Any:
    """Return the first key-value cache among some values, or None.

    Found by type, not by name: up to transformers 5.23 the argument is ``past_key_values``, from
    5.24 on it is ``cache``.
    """
    return next((value for value in values if is_cache(value)), None)


def cache_parameter(forward: Callable[..., Any]) -> str:
    """Return the name under which a forward takes its cache in the installed release.

    Raises
    ------
    ValueError
        If it takes none.
    """
    found = inspect.signature(forward).parameters
    for name in ("cache", "past_key_values"):
        if name in found:
            return name
    raise ValueError(f"no cache among the parameters {', '.join(found)}. {verified_releases()}.")


def without_cache(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a layer's keyword arguments with None in the place of the key-value cache."""
    return {name: None if is_cache(value) else value for name, value in kwargs.items()}


def is_per_token(name: str) -> bool:
    """Return whether a layer's argument of this name has an entry for each token.

    Beside position ids and embeddings (some decoders have two kinds, for two kinds of layers) these
    are the token types that route visual tokens to experts of their own.
    """
    return name.startswith("position_") or name.endswith("_type_ids")


# The mask is chosen by itself; `cache_position` (transformers 4) says where in a static cache to
# write, and a dynamic one ignores it; losses and heads read the others, which some models hand on
# to their layers with all keyword arguments.
_KNOWN = ("attention_mask", "cache_position", "labels", "logits_to_keep", "num_items_in_batch")


def check_placed(called: str, kwargs: Mapping[str, Any], tokens: int | None = None) -> None:
    """Refuse the arguments of a call if a tensor among them is of an unknown kind.

    It could have an entry for each token, and would then have to be gathered with them, or change
    what the attention is.

    Parameters
    ----------
    called : str
        What is called, for the message.
    kwargs : mapping
    tokens : int, optional
        Only tensors with an axis of this length are looked at. None: all.

    Raises
    ------
    ValueError
        Names the argument and the verified releases.
    """
    for name, value in kwargs.items():
        if value is None or name in _KNOWN or is_per_token(name) or is_cache(value):
            continue
        tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
        if any(tokens is None or tokens in tensor.shape for tensor in tensors):
            raise ValueError(
                f"{called} is given a tensor as {name!r}, which is not an argument that this "
                "version of tokenprune knows: tokens cannot be dropped without knowing what it "
                f"says of them. {verified_releases()}: use one of these releases, or run this call "
                "inside tokenprune.paused(model)."
            )


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states in a decoder layer's output, which is a tensor or a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_hidden(output: Any, hidden: Tensor) -> Any:
    """Return a decoder layer's output with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
