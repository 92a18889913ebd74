"""What a wrapped model cannot do: refused before anything is computed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..arguments import bind

__all__ = ["check_generate", "check_not_exported", "check_text_alone"]

# Others, such as "hybrid", are what the release makes of them: see `caches.check_supported`.
_RIGID_CACHES = ("static", "offloaded_static", "offloaded", "quantized", "paged")


def check_not_exported() -> None:
    """Check that no ``torch.export`` runs.

    Raises
    ------
    RuntimeError
        If it does.
    """
    # torch 2.6 has no `is_exporting`; a hook that is not compiled is run under it by export alone.
    if getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)():
        raise RuntimeError(
            "A wrapped model cannot be exported with torch.export: how many tokens stay is decided "
            "by their values, while the model runs. Call tokenprune.unwrap(model) first."
        )


def check_generate(generate: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Check what ``generate`` was given together with images.

    Parameters
    ----------
    generate : callable
        The model's own.
    arguments : mapping
        Name → value. What is not among them is read from the generation configuration, the one
        among them or the model's.

    Raises
    ------
    ValueError
        If the prompt is to be run in chunks, since a chunk's forward cannot know what the later
        text asks of it; or a cache is named whose layers cannot differ in length.
    """
    size = _setting("prefill_chunk_size", generate, arguments)
    if size:
        raise ValueError(
            f"prefill_chunk_size={size}: which visual tokens stay is decided by the whole prompt, "
            "and a chunk of it is run without knowing the rest. Leave prefill_chunk_size out, or "
            "generate inside tokenprune.paused(model)."
        )
    kind = _setting("cache_implementation", generate, arguments)
    if kind in _RIGID_CACHES:
        raise ValueError(
            f"cache_implementation={kind!r} cannot hold a different number of keys per layer: "
            "expected transformers.DynamicCache() with plain layers. Leave cache_implementation "
            "out, or generate inside tokenprune.paused(model)."
        )


def _setting(name: str, generate: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Return a setting of generation, as ``generate`` finds it; None: it is not set."""
    own = getattr(getattr(generate, "__self__", None), "generation_config", None)
    configs = (arguments.get("generation_config"), own)
    found = (arguments.get(name), *(getattr(config, name, None) for config in configs))
    return next((value for value in found if value), None)


def check_text_alone(
    generate_batch: Callable[..., Any],
    placeholders: set[int],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Check that no prompt of ``generate_batch``, which takes token ids alone, has images.

    Parameters
    ----------
    generate_batch : callable
        The model's own.
    placeholders : set of int
        The ids that stand for images and videos.
    args, kwargs
        What it was called with.

    Raises
    ------
    ValueError
        If a prompt has a placeholder.
    """
    prompts: Iterable[Iterable[int]] = (
        bind(inspect.signature(generate_batch), args, kwargs).get("inputs") or ()
    )
    if any(placeholders & {*ids} for ids in prompts):
        raise ValueError(
            "generate_batch (continuous batching) takes token ids without images, and these "
            "prompts have placeholders of images: the model would answer without seeing any. "
            "Use model.generate."
        )
