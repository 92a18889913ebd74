"""What a layer is given: the masks and positions of the tokens that it computes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import keys as cache_keys
from .compact import Survivors, gather_positions
from .masks import causal_float, decode_mask, places_mask, select_mask, soften

if TYPE_CHECKING:
    from .run import Run

__all__ = ["LayerInputs"]


class LayerInputs:
    """The layers' arguments of one pass, each made once per stage.

    Parameters
    ----------
    run : Run
        The pass.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._memo: dict[tuple[Any, ...], tuple[Any, Any]] = {}

    def forget(self) -> None:
        """A new stage begins."""
        self._memo.clear()

    def adapt(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a layer is given: this stage's mask and positions."""
        run = self.run
        softened = run.soft and bool(run.decisions)
        if (
            not softened
            and layer not in run.old_keys
            and (run.stage is None or run.stage.kept is None)
        ):
            return kwargs
        # Layers that are given the same are given the same again: one look-up for each.
        names = ("attention_mask", *filter(_by_token, kwargs))
        given = [kwargs.get(name) for name in names]
        held = run.old_keys.get(layer)
        key = (softened, id(held), *map(id, given))
        ours = self._remember(key, given, lambda: self._ours(layer, kwargs, softened))
        if softened:
            run.replay[layer] = ours["attention_mask"]
        return kwargs | ours

    def _ours(self, layer: int, kwargs: dict[str, Any], softened: bool) -> dict[str, Any]:
        """What a layer is given instead."""
        given, stage = kwargs.get("attention_mask"), self.run.stage
        if softened:
            mask = self._remember(("soft", id(given)), given, lambda: self._softened(given))
        else:
            mask = self._remember(
                ("mask", id(given), id(self.run.old_keys.get(layer))),
                given,
                lambda: self._selected(given, layer),
            )
        taken = {} if stage is None or stage.kept is None else self.positions(kwargs, stage.kept)
        return {"attention_mask": mask, **taken}

    def positions(self, kwargs: dict[str, Any], kept: Survivors) -> dict[str, Any]:
        """Those arguments that have an entry for each token, at some tokens."""
        keeps = self.run.method.keeps_positions
        index = kept.index if keeps else self._first(kept.index.shape[1])
        taken = {}
        for name, value in kwargs.items():
            if value is not None and _by_token(name):
                axis = -1 if name.endswith("_ids") else -2
                taken[name] = self._remember(
                    (name, id(value), id(kept)), (value, kept), _gatherer(value, index, axis)
                )
        return taken

    def _first(self, slots: int) -> Tensor:
        """Where each row's first tokens stand, padding left out: int64, (batch, slots)."""
        assert self.run.first is not None
        mask, present = self.run.first.layout.mask, self.run.first.present
        there = torch.ones_like(mask) if present is None else present
        return (~there).byte().argsort(dim=1, stable=True)[:, :slots]

    def _remember(self, key: tuple[Any, ...], source: Any, make: Callable[[], Any]) -> Any:
        """Make once per stage. The source is held, so that its id stays its own."""
        if key not in self._memo:
            self._memo[key] = (source, make())
        return self._memo[key][1]

    def _softened(self, given: Tensor | None) -> Tensor:
        run = self.run
        assert run.weight is not None
        assert run.first is not None
        if run.backend.startswith("flash"):
            raise ValueError(
                "flash_attention_2 takes no additive mask, which training the heads needs: load "
                'the model with attn_implementation="sdpa" to train, and with flash attention to '
                "run."
            )
        factor = torch.where(run.first.layout.mask, run.weight, 1.0)
        return soften(given, factor, run.method.floor, run.dtype)

    def _selected(self, given: Tensor | None, layer: int) -> Any:
        """The mask over the keys this layer really has."""
        run = self.run
        kept = None if run.stage is None else run.stage.kept
        held = run.old_keys.get(layer)
        if run.past == 0 and (run.plain or given is None):
            assert kept is not None
            # Survivors stand in order with padding behind them: plain causal attention is right.
            if run.backend != "eager":
                return None
            return causal_float(kept.index.shape[1], run.dtype, kept.index.device)
        if given is None:
            # One new token that sees all there is, or flash attention, causal by itself.
            valid = None if held is None else held.valid
            if valid is None:
                return None
            queries = run.length if kept is None else kept.index.shape[1]
            mask = decode_mask(valid, run.cache.get_seq_length(layer) + queries)
            return mask if run.backend.startswith("flash") else mask[:, None, None, :]
        like = kept.index if kept is not None else held.index  # type: ignore[union-attr]
        rows = None if kept is None else kept.index
        rows_valid = None if kept is None else kept.valid
        every = torch.arange(run.length, device=like.device).expand(like.shape[0], -1)
        fresh = every if rows is None else rows
        # The keys this layer is about to have are the mask's columns.
        keys = cache_keys.extend(held, run.past, fresh, rows_valid, run.length)
        return select_mask(given, keys.index, keys.valid, rows, rows_valid)

    def mask_with(self, given: Tensor | None, layer: int, gone: Survivors) -> Tensor:
        """What this stage's tokens would see if some others had their keys behind all that are.

        Returns
        -------
        Tensor
            As `select_mask` gives it, or bool, (batch, 1, queries, keys).
        """
        run = self.run
        assert run.stage is not None
        kept = run.stage.kept
        assert kept is not None
        parts = [cache_keys.columns(run.old_keys.get(layer), run.past, kept.index)]
        parts += [(some.index + run.past, some.valid) for some in (kept, gone)]
        columns = torch.cat([index for index, _ in parts], dim=1)
        valid = torch.cat(
            [torch.ones_like(i, dtype=torch.bool) if v is None else v for i, v in parts], dim=1
        )
        visible = places_mask(kept.index + run.past, columns, valid)
        if given is None or (run.past == 0 and run.plain):
            return visible
        mask = select_mask(given, columns, valid, kept.index, kept.valid)
        # Flash attention's form says nothing of the order.
        return mask if mask.ndim == 4 else visible & mask.bool()[:, None, None]


def _by_token(name: str) -> bool:
    """Whether a layer's argument has an entry for each token."""
    # Some decoders have two kinds of embeddings, for two kinds of layers; some have experts of
    # their own for visual tokens.
    return name.startswith("position_") or name.endswith("_type_ids")


def _gatherer(value: Any, index: Tensor, axis: int) -> Callable[[], Any]:
    def gather() -> Any:
        if isinstance(value, tuple):
            return tuple(gather_positions(v, index, axis) for v in value)
        return gather_positions(value, index, axis)

    return gather
