"""A method at work in a model: what the hooks read, and what is left to be asked for."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..config import MethodConfig
from ..methods.base import Method
from .backends import Backend
from .describe import describe
from .latest import Latest, Streams
from .record import Record
from .wrappers import base_model_of, check_heads

if TYPE_CHECKING:
    from tokenprune.adapters import Adapter

__all__ = ["ATTRIBUTE", "Anatomy", "Engine", "engine_of", "heads_left_out"]

# The submodule's name on a wrapped model, so the prefix of its parameters in a state dict.
ATTRIBUTE = "tokenprune"

_LEFT_OUT: ContextVar[bool] = ContextVar("tokenprune_left_out", default=False)


@dataclass(frozen=True)
class Anatomy:
    """What the engine knows of a model, read before it is changed; see `attach.read_anatomy`.

    Attributes
    ----------
    num_layers : int
        Decoder layers.
    backend : Backend
        The attention backend that the user chose.
    text_config : PretrainedConfig
        Names the backend; the decoder's attention modules read it.
    causal : bool
        Whether every token of the decoder sees all earlier ones and no others.
    special_ids : frozenset of int
        Ids of text that always stays.
    model_signature, core_signature, layer_signature : inspect.Signature
        Of the forwards of the model, its core and a decoder layer.
    first_layer : nn.Module
        Of the decoder.
    tower_layer : nn.Module, optional
        The attention module of the vision tower that the method asks for.
    tower_config : PretrainedConfig, optional
        The one that the attention modules of that tower read.
    """

    num_layers: int
    backend: Backend
    text_config: Any
    causal: bool
    special_ids: frozenset[int]
    model_signature: inspect.Signature
    core_signature: inspect.Signature
    layer_signature: inspect.Signature
    first_layer: nn.Module
    tower_layer: nn.Module | None
    tower_config: Any


class Engine(nn.Module):
    """A method at work in a model. A submodule of the model, so its parameters move with it.

    Parameters
    ----------
    method : Method
    adapter : Adapter
    anatomy : Anatomy
        Of the model.
    config : MethodConfig, optional
        What the method was built from, defaults filled in. None: it was given as it is.

    Attributes
    ----------
    latest : Latest
        Results of each thread's last forward.
    streams : Streams
        Results of calls of ``generate`` with a streamer, in whichever thread they ran.
    trackers : list of callable
        Called with the `Record` of every prefill with images.
    required_grad : dict, optional
        Name → ``requires_grad`` of the model's parameters before `tokenprune.trainable`.
    trains : frozenset of str, optional
        What `tokenprune.trainable` was last given. None: it was not called.
    handles : list of RemovableHandle
        Of the hooks.
    instance_methods : dict
        Name → what was on the model's instance before under the name of a method that is covered
        there, or None.
    warns_without_heads : bool
        Whether loading a state dict without heads warns.
    loss_by_tokens : bool
        Whether the loss that trains is the mean of what the answers' tokens have in the output.
    checkpoints_in : str, optional
        The folder in which a Trainer saves checkpoints that may hold the heads alone.
    """

    def __init__(
        self,
        method: Method,
        adapter: Adapter,
        anatomy: Anatomy,
        config: MethodConfig | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.adapter = adapter
        self.anatomy = anatomy
        self.config = config
        self.latest = Latest()
        self.streams = Streams()
        self.trackers: list[Callable[[Record], None]] = []
        self.required_grad: dict[str, bool] | None = None
        self.trains: frozenset[str] | None = None
        self.handles: list[RemovableHandle] = []
        self.instance_methods: dict[str, Callable[..., Any] | None] = {}
        self.warns_without_heads = True
        self.loss_by_tokens = False
        self.checkpoints_in: str | None = None

    def publish(self, record: Record, streamer: Any = None) -> None:
        """Keep the record of a prefill, of a ``generate`` with this streamer, and hand it on."""
        self.latest.record = record
        self.latest.streams = self.streams.begun if streamer is None else None
        if streamer is not None:
            self.streams.add(streamer, record)
        for tracker in list(self.trackers):
            tracker(record)

    def last_record(self, streamer: Any = None) -> Record:
        """Return the record of this thread's last prefill with an image, or of a streamer's.

        Raises
        ------
        RuntimeError
            If there is none, or it may be another prompt's than the caller means.
        """
        if streamer is not None:
            record = self.streams.record_of(streamer)
            if record is None:
                raise RuntimeError(
                    "No prompt with an image has been run with this streamer: read its first words "
                    "before asking, and give the object that model.generate was given."
                )
            return record
        if self.latest.record is None:
            raise RuntimeError(
                "No prompt with an image has been run in this thread: run the model first. Of a "
                "generate with a streamer in another thread, ask by tokenprune.stats(model, "
                "streamer); what any thread runs, tokenprune.track(model) collects."
            )
        # Who reads a stream is in another thread than its forward passes.
        if self.latest.streams not in (None, self.streams.begun):
            raise RuntimeError(
                "Since this thread's last prompt another thread has begun to generate with a "
                "streamer: ask by tokenprune.stats(model, streamer) if its prompt is meant, or run "
                "the model again in this thread."
            )
        return self.latest.record

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state dict; with nothing of this engine inside `heads_left_out`."""
        if _LEFT_OUT.get():
            return kwargs.get("destination", {})
        return super().state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Warn if a state dict has no heads, which torch ignores if ``strict=False``."""
        super()._load_from_state_dict(state_dict, prefix, *rest)
        found = any(name.startswith(prefix) for name in state_dict)
        if self.warns_without_heads and not found and self.state_dict():
            warnings.warn(
                "The state dict that was loaded has no pruning heads, so the model keeps those "
                "that it has. To load saved ones, call tokenprune.load_heads(model, folder); for "
                "a transformers Trainer that resumes, add tokenprune.TrainerCallback().",
                stacklevel=2,
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Engine:
        """Move the heads as ``to``, ``half`` and others say, and leave them in float32.

        Thresholds are decided in single precision, whatever the model's dtype is.
        """

        def moved(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            if found.dtype == torch.float32 or not found.is_floating_point():
                return found
            return tensor.to(found.device, torch.float32)  # not rounded on the way

        return super()._apply(moved, recurse)

    def __repr__(self) -> str:
        """Say what the method is, its budget and what it kept, instead of listing its modules."""
        family, layers = self.adapter.model_type, self.anatomy.num_layers
        return describe(self.method, self.config, family, layers, self.latest.record)


@contextmanager
def heads_left_out() -> Iterator[None]:
    """Leave the heads out of all state dicts that this thread makes, to save plain models.

    transformers makes them in several places, in its quantisers for example.
    """
    token = _LEFT_OUT.set(True)
    try:
        yield
    finally:
        _LEFT_OUT.reset(token)


def engine_of(model: object) -> Engine:
    """Return the engine of a wrapped model.

    Raises
    ------
    ValueError
        If it is no model, is not wrapped, or PEFT has copied or changed its heads.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model is a {type(model).__name__}: expected a model that tokenprune.wrap returned."
        )
    engine = getattr(base_model_of(model), ATTRIBUTE, None)
    check_heads(engine)
    if not isinstance(engine, Engine):
        raise ValueError(
            f"This {type(model).__name__} is not wrapped: call tokenprune.wrap(model) first."
        )
    return engine
