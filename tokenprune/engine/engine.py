"""A method at work in a model: what the hooks read, and what is left to be asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.hooks import RemovableHandle

from ..config import MethodConfig
from ..methods.base import Method
from .backends import Backend
from .latest import Latest
from .record import Record

if TYPE_CHECKING:
    from tokenprune.adapters import Adapter

__all__ = ["ATTRIBUTE", "Anatomy", "Engine", "engine_of"]

# The submodule's name on a wrapped model, so the prefix of its parameters in a state dict.
ATTRIBUTE = "tokenprune"


@dataclass(frozen=True)
class Anatomy:
    """What the engine knows of a model, read before it is changed; see `attach.read_anatomy`.

    Attributes
    ----------
    num_layers : int
        Decoder layers.
    backend : Backend
        The attention backend that the user chose.
    causal : bool
        Whether every token of the decoder sees all earlier ones and no others.
    special_ids : frozenset of int
        Ids of text that always stays.
    model_signature, core_signature, layer_signature : inspect.Signature
        Of the forwards of the model, its core and a decoder layer.
    tower_layer : nn.Module, optional
        The attention module of the vision tower that the method asks for.
    """

    num_layers: int
    backend: Backend
    causal: bool
    special_ids: frozenset[int]
    model_signature: inspect.Signature
    core_signature: inspect.Signature
    layer_signature: inspect.Signature
    tower_layer: nn.Module | None


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
    trackers : list of callable
        Called with the `Record` of every prefill with images.
    required_grad : dict, optional
        Name → ``requires_grad`` of the model's parameters before `train_only_heads`.
    handles : list of RemovableHandle
        Of the hooks.
    instance_generate : callable, optional
        A ``generate`` that was on the model's instance before.
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
        self.trackers: list[Callable[[Record], None]] = []
        self.required_grad: dict[str, bool] | None = None
        self.handles: list[RemovableHandle] = []
        self.instance_generate: Callable[..., Any] | None = None


def engine_of(model: object) -> Engine:
    """Return the engine of a wrapped model.

    Raises
    ------
    ValueError
        If it is no model, or not wrapped.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"model is a {type(model).__name__}: expected a model that tokenprune.wrap returned."
        )
    engine = getattr(model, ATTRIBUTE, None)
    if not isinstance(engine, Engine):
        raise ValueError(
            f"This {type(model).__name__} is not wrapped: call tokenprune.wrap(model) first."
        )
    return engine
