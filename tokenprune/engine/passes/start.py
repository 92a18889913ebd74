"""Choose the pass at the first decoder layer, and refuse what cannot be right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...methods.base import Method
from ...releases import verified_releases
from .. import caches
from ..backends import Backend
from .base import Pass
from .decode import DecodePass
from .facts import PassFacts
from .pruning import PruningPass
from .softened import SoftenedPass
from .stage import Stage

__all__ = ["CoreCall", "start_pass"]


@dataclass(frozen=True)
class CoreCall:
    """What a call of the core says of the pass to come.

    Attributes
    ----------
    first : Stage, optional
        Its tokens. None: nothing to prune in it (no image, paused, or decoding).
    soft : bool
        Soften the tokens instead of dropping them.
    causal : bool
        See `PassFacts.causal`.
    patches : int64, (visual tokens,), optional
        See `Adapter.patches`.
    cache : Cache, optional
        That the core was called with.
    candidates : int
        How many tokens behind the prompt assisted decoding proposes.
    """

    first: Stage | None
    soft: bool
    causal: bool
    patches: Tensor | None
    cache: Any
    candidates: int = 0


def start_pass(
    call: CoreCall, method: Method, num_layers: int, backend: Backend, hidden: Tensor, cache: Any
) -> Pass:
    """Return the pass that begins with the first decoder layer.

    Parameters
    ----------
    call : CoreCall
    method : Method
    num_layers : int
    backend : Backend
    hidden : Tensor, (batch, length, width)
        The first layer's input.
    cache : Cache, optional
        Among the first layer's arguments.

    Raises
    ------
    ValueError
        If the cache cannot hold what the pass would leave, or the pass would train on one.
    RuntimeError
        If the decoder runs on something other than the core's inputs, or the cache is not what an
        earlier pass left.
    """
    past = 0 if cache is None else int(cache.get_seq_length())
    if cache is None and call.cache is not None:
        _check_given_cache(call)
    held = caches.load(cache, past)
    if past:
        caches.check_lengths(cache, held, past, hidden.shape[0])
    elif cache is not None:
        caches.forget(cache)  # emptied since, and used again
    if held and not method.keeps_positions:
        raise ValueError(
            "Survivors that are numbered anew (positions='renumbered') leave no right "
            "positions for words that follow on a key-value cache, which transformers counts "
            "by the whole prompt: generate with use_cache=False."
        )
    facts = PassFacts(
        method=method,
        num_layers=num_layers,
        backend=backend,
        causal=call.causal,
        length=hidden.shape[1],
        past=past,
        dtype=hidden.dtype,
        cache=cache,
        held=held,
    )
    if call.first is None:
        return DecodePass(facts)
    _check_prompt(call.first, hidden, past, call.soft)
    if call.soft:
        return SoftenedPass(facts, call.first, call.patches)
    if cache is not None:
        if not past:
            caches.without_windows(cache)
        caches.check_supported(cache, num_layers)
    return PruningPass(facts, call.first, call.patches)


def _check_prompt(first: Stage, hidden: Tensor, past: int, soft: bool) -> None:
    located = first.layout.mask.shape
    if located != hidden.shape[:2]:
        raise RuntimeError(
            f"The decoder runs on {tuple(hidden.shape[:2])} tokens, but the inputs locate "
            f"visual tokens among {tuple(located)}: the decoder was called with "
            "something other than the core's inputs."
        )
    if soft and past:
        raise ValueError(
            f"Training on a key-value cache of {past} positions is not defined for "
            "softened tokens: give the whole sequence in one forward, or call model.eval()."
        )


def _check_given_cache(call: CoreCall) -> None:
    """Refuse a pass whose core has a cache that its layers were not given as such."""
    given = call.cache
    if call.first is None and not caches.load(given, int(given.get_seq_length())):
        return
    raise RuntimeError(
        f"The model was called with a {type(given).__name__}, but its decoder layers were "
        "called without one, or with one that was not recognised: what it holds of each layer "
        f"could not be known. {verified_releases()}: use one of these releases, or run the "
        "prompt inside tokenprune.paused(model)."
    )
