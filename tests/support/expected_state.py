"""What a wrapped model should be and do, kept in plain values beside it.

The state machine of `test_state_machine` changes both and compares. What is known of the library
here is its public interface, and that a kept set is the method's own business: what follows from it
is the reference decoder's.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.engine import ATTRIBUTE, engine_of
from tokenprune.saved import tensors_of

from .config_strategies import merges, merges_between_layers
from .ragged_batches import alive_of
from .reference_decoder import Reference
from .strategies import LAYERS
from .tiny_llava import Batch, row_alone
from .tolerance import assert_close
from .wrapping import config_of, hooks_of

__all__ = ["Conversation", "Plain", "Row", "Settings", "Surface", "draws_as"]


@dataclass(repr=False)
class Settings:
    """What a wrapped model was told.

    Attributes
    ----------
    config : MethodConfig
        With the model's defaults filled in.
    heads : dict of str to Tensor
    runtime : dict
        The knob's position and the calibrated budgets.
    """

    config: MethodConfig
    heads: dict[str, Tensor]
    runtime: dict[str, Any]

    def __repr__(self) -> str:
        """Short, for Hypothesis to print."""
        return f"<settings of {self.config.method}>"

    @classmethod
    def of(cls, model: Any) -> Settings:
        """As they stand in a wrapped model, copied."""
        method = engine_of(model).method
        heads = {name: value.clone() for name, value in tensors_of(method).items()}
        return cls(engine_of(model).config, heads, copy.deepcopy(method.runtime_state()))

    def assert_in(self, model: Any) -> None:
        """The wrapped model has these settings, bit for bit."""
        found = Settings.of(model)
        assert found.config == self.config
        assert found.runtime == self.runtime
        assert found.heads.keys() == self.heads.keys()
        for name, value in self.heads.items():
            assert found.heads[name].dtype == value.dtype, name
            assert torch.equal(found.heads[name], value), f"{name} has moved"


@dataclass
class Surface:
    """What of a model can be seen from outside: hooks, attributes, configuration, modes."""

    hooks: dict[Any, Any]
    attributes: dict[str, set[str]]
    config: str
    names: set[str]

    @classmethod
    def of(cls, model: Any) -> Surface:
        """As it is now."""
        attributes = {name: set(vars(module)) for name, module in model.named_modules()}
        counts = {place: len(hooks) for place, hooks in hooks_of(model).items()}
        return cls(counts, attributes, config_of(model), set(model.state_dict()))


@dataclass
class Row:
    """One row of a conversation.

    Attributes
    ----------
    embeds : float64, (tokens, width)
    alive : bool, (layers, tokens)
        Which tokens each layer has.
    """

    embeds: Tensor
    alive: Tensor

    def add(self, more: Row) -> Row:
        """With more tokens behind."""
        alive = torch.cat([self.alive, more.alive], dim=1)
        return Row(torch.cat([self.embeds, more.embeds]), alive)

    def without(self, tokens: int) -> Row:
        """Without the last tokens."""
        left = len(self.embeds) - tokens
        return Row(self.embeds[:left], self.alive[:, :left])


@dataclass(repr=False)
class Conversation:
    """A key-value cache, and what it should hold.

    Attributes
    ----------
    cache : Cache
    mask : int64, (rows, seen)
    rows : list of Row, optional
        None: a method merged tokens where the reference cannot follow.
    whole : int
        Positions at its end of which no layer lacks any.
    doubtful : bool
        Something was done to the cache that the engine cannot follow: it may refuse to go on.
    """

    cache: Any
    mask: Tensor
    rows: list[Row] | None
    whole: int
    doubtful: bool = False

    def __repr__(self) -> str:
        """Short, for Hypothesis to print."""
        return f"<{len(self.mask)} rows of {self.mask.shape[1]}, the last {self.whole} whole>"

    def __deepcopy__(self, memo: dict[int, Any]) -> Conversation:
        rows = None if self.rows is None else list(self.rows)
        cache = copy.deepcopy(self.cache, memo)
        return Conversation(cache, self.mask.clone(), rows, self.whole, self.doubtful)


@dataclass
class Plain:
    """The plain model.

    Attributes
    ----------
    twin : nn.Module
        The same weights, never wrapped.
    settings : Settings, optional
        None: not wrapped.
    pauses : list
        Those entered, outermost first.
    """

    twin: Any
    settings: Settings | None = None
    pauses: list[AbstractContextManager[None]] = field(default_factory=list)
    frozen: bool = False
    training: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def prunes(self) -> bool:
        """Whether prompts are pruned now."""
        return self.settings is not None and not self.pauses

    def fresh(self, model: Any) -> Any:
        """A model made from nothing but these values, which must do what `model` does."""
        fresh = copy.deepcopy(self.twin)
        if not self.prunes:
            return fresh
        assert self.settings is not None
        tp.wrap(fresh, self.settings.config)
        method = engine_of(fresh).method
        method.load_state_dict({**method.state_dict(), **self.settings.heads})
        method.load_runtime_state(copy.deepcopy(self.settings.runtime))
        draws_as(fresh, model)
        return fresh.train(self.training)

    def alive(self, model: Any, batch: Batch) -> Tensor:
        """What each layer computed on of the last prompt: bool, (layers, batch, length)."""
        if not self.prunes:
            present = batch["attention_mask"].bool()
            return present.expand(LAYERS, *present.shape)
        return alive_of(model, batch)

    def dropped_nothing(self, model: Any, batch: Batch) -> bool:
        """Whether every layer computed on the whole of the last prompt."""
        return bool((self.alive(model, batch) | ~batch["attention_mask"].bool()).all())

    @property
    def config(self) -> MethodConfig | None:
        """Of the method that prunes now."""
        return self.settings.config if self.settings is not None and self.prunes else None

    @property
    def merges(self) -> bool:
        """Whether what is dropped now goes into what is kept."""
        config = self.config
        return config is not None and (merges(config) or merges_between_layers(config))

    def rows(self, model: Any, batch: Batch, out: Any) -> list[Row] | None:
        """What each row of a prompt should have become; None where the reference cannot tell."""
        config = self.config
        if config is not None and merges_between_layers(config):
            return None
        reference, alive = Reference(self.twin), self.alive(model, batch)
        rows = []
        for n in range(len(batch["input_ids"])):
            there = batch["attention_mask"][n].bool()
            embeds = reference.embed(row_alone(batch, n))
            if config is not None and merges(config):
                embeds = out.hidden_states[0][n, there].to(embeds)
            rows.append(Row(embeds, alive[:, n, there]))
        return rows

    def assert_logits(self, logits: Tensor, rows: list[Row] | None, mask: Tensor) -> None:
        """The logits of the newest tokens are the reference's.

        Parameters
        ----------
        logits : (rows, new, vocabulary)
        rows : list of Row, optional
            The new tokens included. None: nothing is known but that logits are finite.
        mask : int64, (rows, new)
        """
        assert logits[mask.bool()].isfinite().all()
        if rows is None:
            return
        reference = Reference(self.twin)
        for n, row in enumerate(rows):
            there = mask[n].bool()
            new = int(there.sum())
            wanted = reference.run(row.embeds, row.alive).logits[-new:]
            read = row.alive[-1, -new:]
            assert_close(logits[n, there][read], wanted[read], f"row {n}")


def draws_as(model: Any, other: Any) -> None:
    """Let a model's random method draw next what another's will."""
    source = getattr(getattr(other, ATTRIBUTE).method, "_generator", None)
    if source is not None:
        getattr(model, ATTRIBUTE).method._generator.set_state(source.get_state())
