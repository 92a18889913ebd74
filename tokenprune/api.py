"""Wrap and unwrap models, and read what pruning did."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tokenprune.adapters import adapter_for, verified

from .config import MethodConfig, ModelFacts
from .engine import ATTRIBUTE, Engine, attach, detach, engine_of, read_anatomy
from .engine import paused as engine_paused
from .engine.wrappers import base_model_of, check_not_parallel
from .io import facts_of, read_heads
from .measure.cost import DecoderShape
from .measure.stats import PruneStats
from .measure.track import Tracker
from .methods import METHODS, ATPConfig, Method, build, config_named
from .methods.base import check_method
from .releases import warn_if_newer
from .saving import cover_save_pretrained, uncover_save_pretrained

__all__ = [
    "is_wrapped",
    "losses",
    "paused",
    "stats",
    "supported",
    "track",
    "unwrap",
    "wrap",
]

_log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)


def wrap(model: Model, method: MethodConfig | Method | str | Path | None = None) -> Model:
    """Make a vision-language model drop visual tokens; the model is changed in place.

    Parameters
    ----------
    model : nn.Module
        A transformers model of a supported family (`supported`), or a PEFT model around one.
    method : MethodConfig, Method, path or hub id, optional
        The method's configuration, a method of your own, or saved heads to load. The name of a
        method (`supported`) is its default configuration, unless there is a folder of that name.
        None: `ATPConfig()`.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    ValueError
        If the model is wrapped already, its family or attention backend is not supported, it
        cannot meet the configuration, or there is no method or folder of that name. The model is
        then as it was.
    FileNotFoundError
        If there are no heads at the path or hub id.

    Examples
    --------
    >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
    >>> output = model(**batch)
    >>> tp.stats(model).final_tokens.tolist()
    [9]
    """
    # What PEFT puts around a model can be taken off again: hooks and heads are the model's own.
    given, model = model, base_model_of(model)
    check_not_parallel(given)
    if is_wrapped(model):
        raise ValueError(
            f"This {type(model).__name__} is wrapped already: call tokenprune.unwrap(model) first."
        )
    if hasattr(model, ATTRIBUTE):
        raise ValueError(
            f"This {type(model).__name__} has an attribute {ATTRIBUTE!r} of its own, which is the "
            "name under which the pruning engine is kept: rename it."
        )
    if isinstance(method, str) and not (os.path.exists(method) or set(method) & {"/", os.sep}):
        method = config_named(method)
    warn_if_newer()
    adapter = adapter_for(model)
    adapter.check(model)
    num_layers = len(adapter.decoder_layers(model))
    facts = ModelFacts(
        num_layers,
        adapter.grid(model),
        adapter.default_layers(num_layers),
        adapter.first_layer(model),
        getattr(adapter.text_config(model), "hidden_size", None),
    )
    heads = read_heads(method, facts_of(model, adapter)) if isinstance(method, str | Path) else None
    chosen = heads.config if heads is not None else ATPConfig() if method is None else method
    config: MethodConfig | None = None
    if isinstance(chosen, MethodConfig):
        config = chosen.fitted(facts)
        # Drawn on the CPU, whatever torch's default device is, so that a seed gives the same heads.
        with torch.device("cpu"):
            built = build(config, facts)
    elif isinstance(chosen, Method):
        built = chosen
    else:
        raise ValueError(
            f"method is a {type(method).__name__}: expected a configuration such as ATPConfig(), a "
            "Method, a method's name, the path or hub id of saved heads, or None."
        )
    check_method(built, facts)
    engine = Engine(built, adapter, read_anatomy(model, adapter, built), config)
    weights = (*adapter.decoder_layers(model).parameters(), *model.parameters())
    # Offloaded weights have no device of their own.
    devices = (p.device for p in weights if p.device.type != "meta")
    # Heads stay in float32 beside a half-precision model: thresholds are decided in it.
    engine.to(device=next(devices, torch.device("cpu")), dtype=torch.float32)
    engine.train(model.training)
    if heads is not None:
        heads.load_into(engine.method)
    attach(engine, model)
    cover_save_pretrained(given)
    _log.info("Wrapped %s: %r", type(model).__name__, engine)
    return given


def is_wrapped(model: object) -> bool:
    """Return whether `wrap` has changed this model, and `unwrap` has not changed it back.

    Examples
    --------
    >>> tp.is_wrapped(torch.nn.Linear(1, 1))
    False
    """
    return isinstance(getattr(base_model_of(model), ATTRIBUTE, None), Engine)


def unwrap(model: Model) -> Model:
    """Make a wrapped model bit-exactly what it was, in place.

    Returns
    -------
    nn.Module
        The same object.

    Raises
    ------
    ValueError
        If the model is not wrapped.
    RuntimeError
        If it is called inside a forward or ``generate`` of the model, which is left as it was.

    Examples
    --------
    >>> model = tp.wrap(model)
    >>> tp.is_wrapped(tp.unwrap(model))
    False
    """
    base = base_model_of(model)
    detach(engine_of(model), base)
    uncover_save_pretrained(model)
    _log.info("Unwrapped %s", type(base).__name__)
    return model


def paused(model: nn.Module) -> AbstractContextManager[None]:
    """Pause pruning inside ``with paused(model): ...``, in the thread that enters it; nests.

    Examples
    --------
    >>> before = model(**batch).logits
    >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
    >>> with tp.paused(model):
    ...     output = model(**batch)
    >>> torch.equal(output.logits, before)
    True
    """
    return engine_paused(engine_of(model))


def losses(model: nn.Module) -> dict[str, Tensor]:
    """Return the loss terms of this thread's last training forward, unweighted, with gradient.

    Returns
    -------
    dict
        "lm", "atp", "target" and "total", the last with weights applied: what ``out.loss`` is.
        Without labels, only the budget's terms. With ``ATPConfig(loss="distill")``, labels or not,
        "distill" is in the place of "lm".

    Raises
    ------
    RuntimeError
        If there was no training forward.

    Examples
    --------
    >>> model = tp.wrap(model, tp.ATPConfig(layers=(1, 3), target_tokens=20)).train()
    >>> output = model(**batch, labels=batch["input_ids"])
    >>> terms = tp.losses(model)
    >>> sorted(terms)
    ['atp', 'lm', 'target', 'total']
    >>> torch.equal(terms["total"], output.loss)
    True
    """
    found = engine_of(model).latest.losses
    if found is None:
        raise RuntimeError(
            "No training forward has been run in this thread: call model.train(), then the model "
            "on a batch with images and labels."
        )
    return found


def stats(model: nn.Module, streamer: Any = None) -> PruneStats:
    """Return what this thread's last prefill with an image kept.

    Parameters
    ----------
    model : nn.Module
        A wrapped model.
    streamer : BaseStreamer, optional
        What ``model.generate`` was given, in whichever thread it ran: of that prompt instead.

    Raises
    ------
    RuntimeError
        If there was none; or, without `streamer`, another thread has begun to generate with one
        since: its caller may sit in this thread, and would be given another prompt's statistics.

    Examples
    --------
    >>> model = tp.wrap(model, tp.PyramidDropConfig(layers=(1, 3), keep=0.5))
    >>> output = model(**batch)
    >>> tp.stats(model).kept[:, 0].tolist()
    [36, 36, 18, 18, 9, 9]
    """
    engine = engine_of(model)
    return PruneStats.from_record(engine.last_record(streamer), _shape(model, engine))


@contextmanager
def track(model: nn.Module) -> Iterator[Tracker]:
    """Collect every prefill inside ``with track(model) as run: ...``, in all threads.

    Yields
    ------
    Tracker
        With ``summary()``, ``table()`` and ``to_json()``.

    Examples
    --------
    >>> model = tp.wrap(model, tp.DivPruneConfig(keep=9))
    >>> with tp.track(model) as run:
    ...     output = model(**batch)
    >>> run.summary()["mean_tokens"]
    9.0
    """
    engine = engine_of(model)
    tracker = Tracker(_shape(model, engine))
    engine.trackers.append(tracker.add)
    try:
        yield tracker
    finally:
        engine.trackers.remove(tracker.add)


def _shape(model: nn.Module, engine: Engine) -> DecoderShape:
    model = base_model_of(model)
    # Quantised weights are whole numbers: the cache's dtype is that of the layers' rest.
    weights = engine.adapter.decoder_layers(model).parameters()
    dtype = next(p.dtype for p in weights if p.is_floating_point())
    return DecoderShape.of(engine.adapter.text_config(model), dtype)


def supported() -> dict[str, list[str]]:
    """Return the families that were verified, by ``config.model_type``, and the methods, by name.

    Other decoder-only families of transformers can be wrapped too, by their structure; `wrap` says
    why where it cannot. ``docs/families.md`` has what was verified of each.

    Examples
    --------
    >>> "llava" in tp.supported()["families"], "fastv" in tp.supported()["methods"]
    (True, True)
    """
    return {"families": verified(), "methods": sorted(METHODS)}
