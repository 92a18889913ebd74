"""One forward pass of a wrapped core: the state that lives from its start to its end."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import attention_received
from ..layout import VisualLayout
from ..methods.base import Context, Method, Received, Selection, Tower, Trace
from . import keys as cache_keys
from .attention import backend_of
from .caches import check_supported, widen_first_layer, without_windows
from .compact import Survivors, gather_hidden, gather_positions, scatter_hidden, survivors
from .frames import TowerPass
from .masks import causal_float, decode_mask, select_mask, soften, to_4d
from .queries import query_group
from .record import Decision, Record
from .tower import read_tower

__all__ = ["Run", "Stage"]


@dataclass(frozen=True)
class Stage:
    """The tokens that the layers between two modules compute on.

    Attributes
    ----------
    kept : Survivors, optional
        Which of the pass's positions they are. None: all.
    layout : VisualLayout
    prompt : bool, (batch, tokens)
        Text that may speak in a score.
    present : bool, (batch, tokens), optional
        False at padding. None: no padding.
    read : bool, (batch, tokens)
        Where a next token is read off: these stay, whatever they are.
    """

    kept: Survivors | None
    layout: VisualLayout
    prompt: Tensor
    present: Tensor | None
    read: Tensor


class Run:
    """The state of one forward pass of the core.

    Parameters
    ----------
    method : Method
    num_layers : int
        Decoder layers.
    attention : str
        The registered name of the attention backend.
    layout : VisualLayout, optional
        None: nothing to prune in this pass (no image, paused, or decoding).
    attention_mask : (batch, seen) or 4-D, optional
        As the core was given it.
    labels : int64, (batch, length), optional
        Positions other than -100 are answers: they never speak in a score.
    prompt_length : int, optional
        Positions from here on are answers, likewise.
    soft : bool
        Soften the tokens instead of dropping them.
    causal : bool
        Whether the decoder's own rule is causal and nothing else (no sliding window).
    """

    def __init__(
        self,
        method: Method,
        num_layers: int,
        attention: str,
        layout: VisualLayout | None,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        prompt_length: int | None,
        soft: bool,
        causal: bool,
    ) -> None:
        self.method = method
        self.num_layers = num_layers
        self.backend = backend_of(attention)
        self.soft = soft
        self.closed = False
        self.past = 0
        self.length = 0
        self.dtype = torch.float32
        self.cache: Any = None
        self.old_keys: dict[int, cache_keys.LayerKeys] = {}
        self.new_keys: dict[int, cache_keys.LayerKeys] = {}
        self.stage: Stage | None = None
        self.decisions: list[Decision] = []
        self.counts: list[Tensor] = []
        self.weight: Tensor | None = None
        self.replay: dict[int, Tensor] = {}
        # Layer → its output as it was, the survivors before it, the survivors after it, and what
        # those became if the method changed them.
        self.drops: dict[int, tuple[Any, Survivors | None, Survivors, Tensor | None]] = {}
        self.memory: Any = None
        self.tower: Tower | None = None
        self._received: dict[int, dict[str, Received]] = {}
        self._memo: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        # The rule of the tokens' order is causal and nothing else: a 2-D mask only says padding.
        self.plain = causal and (attention_mask is None or attention_mask.ndim == 2)
        self.present: Tensor | None = None
        self.layout = layout
        if layout is not None:
            self._begin(layout, attention_mask, labels, prompt_length)

    def _begin(
        self,
        layout: VisualLayout,
        attention_mask: Tensor | None,
        labels: Tensor | None,
        prompt_length: int | None,
    ) -> None:
        shape = layout.mask.shape
        if attention_mask is not None and attention_mask.ndim == 2:
            self.present = attention_mask[:, -shape[1] :].bool().to(layout.mask.device)
            layout = replace(layout, mask=layout.mask & self.present)
        prompt = ~layout.mask
        if self.present is not None:
            prompt = prompt & self.present
        present = layout.mask.new_ones(shape) if self.present is None else self.present
        last = (torch.arange(shape[1], device=present.device) * present).argmax(1)
        read = torch.zeros_like(present).scatter(1, last[:, None], True)
        if labels is not None and labels.shape == shape:
            answer = labels.to(prompt.device) != -100
            prompt = prompt & ~answer
            read[:, :-1] |= answer[:, 1:] & present[:, :-1]
        if prompt_length is not None:
            prompt[:, prompt_length:] = False
            read[:, prompt_length - 1] |= present[:, prompt_length - 1]
        self.layout = layout
        self.stage = Stage(None, layout, prompt, self.present, read)
        self.weight = layout.mask.float()
        self.visual_tokens = layout.counts()

    # -- before a layer ------------------------------------------------------------------------

    def enter_first_layer(self, hidden: Tensor, cache: Any) -> None:
        """Look at the cache before anything is written to it."""
        self.length = hidden.shape[1]
        self.dtype = hidden.dtype
        self.cache = cache
        self.past = 0 if cache is None else int(cache.get_seq_length())
        self.old_keys = cache_keys.load(cache, self.past)
        self.new_keys = dict(self.old_keys)
        if self.old_keys:
            cache_keys.check_cache(cache, self.old_keys, self.past, hidden.shape[0])
        elif cache is not None:
            cache_keys.forget(cache)  # emptied since, and used again
        if self.layout is None:
            return
        if self.layout.mask.shape != hidden.shape[:2]:
            raise RuntimeError(
                f"The decoder runs on {tuple(hidden.shape[:2])} tokens, but the inputs locate "
                f"visual tokens among {tuple(self.layout.mask.shape)}: the decoder was called with "
                "something other than the core's inputs."
            )
        if self.soft and self.past:
            raise ValueError(
                f"Training on a key-value cache of {self.past} positions is not defined for "
                "softened tokens: give the whole sequence in one forward, or call model.eval()."
            )
        if cache is not None and not self.soft:
            if not self.past:
                without_windows(cache)
            check_supported(cache, self.num_layers)

    def begin(self, hidden: Tensor, tower: TowerPass | None) -> Tensor:
        """Let the method look at the first layer's input, and drop there if it does so early."""
        if self.stage is None:
            return hidden
        if self.method.tower_layer is not None:
            if tower is None:
                raise RuntimeError(
                    f"{type(self.method).__name__} chooses by the vision tower's attention, but "
                    "the tower did not run in this call: give pixel_values to the model or to "
                    "generate, not features made before."
                )
            self.tower = read_tower(tower, self.stage.layout)
        # Autocast would run the method in half precision.
        with torch.autocast(hidden.device.type, enabled=False):
            self.memory = self.method.begin(self._context(-1, -1, self.stage, hidden))
        return self.decide(0, -1, hidden) if self.method.layers[0] < 0 else hidden

    def after_first_layer(self) -> None:
        """Give the first layer's cache its full length back, zeros where a token never was.

        transformers reads the number of tokens seen, and so the next positions, off this layer.
        """
        if self.cache is None or -1 not in self.drops:
            return
        kept = self.drops[-1][2]
        widen_first_layer(self.cache, kept, self.length)
        self.new_keys[0] = cache_keys.widened(self.old_keys.get(0), self.past, kept, self.length)
        cache_keys.store(self.cache, self.new_keys)

    def adapt(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a layer is given: this stage's mask and positions."""
        kept = None if self.stage is None else self.stage.kept
        given = kwargs.get("attention_mask")
        softened = self.soft and bool(self.decisions)
        if kept is None and layer not in self.old_keys and not softened:
            return kwargs
        kwargs = dict(kwargs)
        if softened:
            mask = self._remember(("soft", id(given)), given, lambda: self._softened(given))
            self.replay[layer] = mask
        else:
            mask = self._remember(
                ("mask", id(given), id(self.old_keys.get(layer))),
                given,
                lambda: self._selected(given, layer),
            )
        kwargs["attention_mask"] = mask
        if kept is not None:
            index = kept.index if self.method.keeps_positions else self._first(kept.index.shape[1])
            for name, value in kwargs.items():
                # Some decoders have two kinds of embeddings, for two kinds of layers; some have
                # experts of their own for visual tokens.
                if name.startswith("position_") or name.endswith("_type_ids"):
                    axis = -1 if name.endswith("_ids") else -2
                    if value is not None:
                        kwargs[name] = self._remember(
                            (name, id(value)), value, _gatherer(value, index, axis)
                        )
        return kwargs

    def _first(self, slots: int) -> Tensor:
        """Where each row's first tokens stand, padding left out: int64, (batch, slots)."""
        assert self.layout is not None
        mask = self.layout.mask
        there = torch.ones_like(mask) if self.present is None else self.present
        return (~there).byte().argsort(dim=1, stable=True)[:, :slots]

    def _remember(self, key: tuple[Any, ...], source: Any, make: Callable[[], Any]) -> Any:
        """Make once per stage. The source is held, so that its id stays its own."""
        if key not in self._memo:
            self._memo[key] = (source, make())
        return self._memo[key][1]

    def _softened(self, given: Tensor | None) -> Tensor:
        assert self.weight is not None
        assert self.layout is not None
        if self.backend.startswith("flash"):
            raise ValueError(
                "flash_attention_2 takes no additive mask, which training the heads needs: load "
                'the model with attn_implementation="sdpa" to train, and with flash attention to '
                "run."
            )
        factor = torch.where(self.layout.mask, self.weight, 1.0)
        return soften(given, factor, self.method.floor, self.dtype)

    def _selected(self, given: Tensor | None, layer: int) -> Any:
        """The mask over the keys this layer really has."""
        kept = None if self.stage is None else self.stage.kept
        held = self.old_keys.get(layer)
        if self.past == 0 and (self.plain or given is None):
            assert kept is not None
            # Survivors stand in order with padding behind them: plain causal attention is right.
            if self.backend != "eager":
                return None
            return causal_float(kept.index.shape[1], self.dtype, kept.index.device)
        if given is None:
            # One new token that sees all there is, or flash attention, causal by itself.
            valid = None if held is None else held.valid
            if valid is None:
                return None
            queries = self.length if kept is None else kept.index.shape[1]
            mask = decode_mask(valid, self.cache.get_seq_length(layer) + queries)
            return mask if self.backend.startswith("flash") else mask[:, None, None, :]
        like = kept.index if kept is not None else held.index  # type: ignore[union-attr]
        rows = None if kept is None else kept.index
        rows_valid = None if kept is None else kept.valid
        every = torch.arange(self.length, device=like.device).expand(like.shape[0], -1)
        fresh = every if rows is None else rows
        # The keys this layer is about to have are the mask's columns.
        keys = cache_keys.extend(held, self.past, fresh, rows_valid, self.length)
        return select_mask(given, keys.index, keys.valid, rows, rows_valid)

    # -- inside a layer ------------------------------------------------------------------------

    @torch.no_grad()
    def observe(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scaling: float | None,
        softcap: float | None,
    ) -> None:
        """Compute what the method asked of this layer's attention, if it did."""
        layer = getattr(module, "layer_idx", None)
        if self.stage is None or self.closed or layer not in self.method.layers:
            return
        if not self.method.needs:
            return
        assert self.weight is not None
        names = sorted(self.method.needs)
        groups = [query_group(name, self._here(self.weight), self.stage.prompt) for name in names]
        weights = torch.cat(groups, dim=1).detach()
        mask = to_4d(mask, query.shape[2], key.shape[2])
        total, seen_by = attention_received(query, key, weights, mask, scaling, softcap)
        own = query.shape[2]  # of the keys, the last are this pass's own tokens
        answers = (total[..., -own:], seen_by[..., -own:], weights.sum(dim=2))
        sizes = [group.shape[1] for group in groups]
        by_group = zip(*(a.split(sizes, dim=1) for a in answers), strict=True)
        self._received[layer] = {
            name: Received(*(a if name == "each" else a.squeeze(1) for a in of_group))
            for name, of_group in zip(names, by_group, strict=True)
        }

    def _here(self, weight: Tensor) -> Tensor:
        """A weight over the pass's positions, read at this stage's tokens."""
        assert self.stage is not None
        kept = self.stage.kept
        if kept is None:
            return weight
        return weight.gather(1, kept.index) * self.stage.layout.mask

    # -- after a layer -------------------------------------------------------------------------

    def decide(self, module: int, layer: int, hidden: Tensor) -> Tensor:
        """Let the method decide after a layer, and act on it."""
        stage = self.stage
        if stage is None or self.weight is None:
            return hidden
        if self.method.needs and layer >= 0 and layer not in self._received:
            raise RuntimeError(
                f"The attention of decoder layer {layer} was not seen: its attention "
                "implementation was changed after tokenprune.wrap. Call tokenprune.unwrap(model), "
                "change it, and wrap again."
            )
        context = self._context(module, layer, stage, hidden)
        # Autocast would run the thresholds in half precision.
        with torch.autocast(hidden.device.type, enabled=False):
            selection = self.method.select(context)
        if self.soft:
            self._soften(layer, stage, selection)
            return hidden
        return self._drop(layer, stage, selection, hidden)

    def _context(self, module: int, layer: int, stage: Stage, hidden: Tensor) -> Context:
        assert self.weight is not None
        every = torch.arange(self.length, device=hidden.device).expand(hidden.shape[0], -1)
        return Context(
            module=module,
            layer=layer,
            layout=stage.layout,
            weight=self._here(self.weight).detach(),
            prompt=stage.prompt,
            received=self._received.pop(layer, {}),
            hidden_states=hidden,
            positions=every if stage.kept is None else stage.kept.index,
            memory=self.memory,
            tower=self.tower if layer < 0 else None,
        )

    def _soften(self, layer: int, stage: Stage, selection: Selection) -> None:
        assert self.weight is not None
        assert selection.mask is not None
        # Out of place: earlier masks are in the graph.
        self.weight = self.weight * torch.where(stage.layout.mask, selection.mask, 0.0)
        self._memo.clear()
        self.counts.append(self.weight.sum(dim=1))
        alive = selection.keep | ~stage.layout.mask
        if self.decisions:
            alive = alive & self.decisions[-1].alive(alive)
        self.decisions.append(Decision(layer, alive, selection.thresholds))

    def _drop(self, layer: int, stage: Stage, selection: Selection, hidden: Tensor) -> Tensor:
        visual = stage.layout.mask
        present = visual.new_ones(visual.shape) if stage.present is None else stage.present
        alive = (present & (selection.keep | ~visual)) | stage.read
        changed = hidden if selection.hidden_states is None else selection.hidden_states
        counts = alive.sum(dim=1)
        dropped = (present & ~alive).any()
        bad = dropped.new_zeros(()) if selection.scores is None else _any_nan(selection, visual)
        # The one transfer to the host that dropping needs.
        facts = torch.stack([counts.amax(), counts.amin(), dropped.long(), bad.long()]).tolist()
        most, fewest, any_dropped, any_bad = facts
        if any_bad:
            raise FloatingPointError(
                f"The scores after decoder layer {layer} are NaN: the model's hidden states are "
                "NaN or overflow in this precision. Try bfloat16 or float32."
            )
        if not any_dropped:
            self.decisions.append(Decision(layer, None, selection.thresholds))
            return changed
        kept = survivors(alive, most, ragged=most != fewest)
        every = kept if stage.kept is None else stage.kept.then(kept)
        prompt, read = (part.gather(1, kept.index) for part in (stage.prompt, stage.read))
        if kept.valid is not None:
            prompt, read = prompt & kept.valid, read & kept.valid
        layout = stage.layout.gather(kept.index, kept.valid)
        after = Stage(every, layout, prompt, kept.valid, read)
        gathered = gather_hidden(changed, kept.index)
        self.stage = after
        self._memo.clear()
        self.decisions.append(Decision(layer, every, selection.thresholds))
        merged = None if selection.hidden_states is None else gathered
        self.drops[layer] = (weakref.ref(hidden), stage.kept, every, merged)
        self._note_keys(layer, every)
        return gathered

    def _note_keys(self, layer: int, kept: Survivors) -> None:
        """Note on the cache which keys the layers after `layer` are about to get."""
        if self.cache is None:
            return
        made: dict[int, cache_keys.LayerKeys] = {}  # layers that held the same share the answer
        for later in range(layer + 1, self.num_layers):
            held = self.old_keys.get(later)
            if id(held) not in made:
                made[id(held)] = cache_keys.extend(
                    held, self.past, kept.index, kept.valid, self.length
                )
            self.new_keys[later] = made[id(held)]
        cache_keys.store(self.cache, self.new_keys)

    def close(self) -> None:
        """The pass is over. What runs now, runs again for a backward pass."""
        self.closed = True

    # -- at the end ----------------------------------------------------------------------------

    def leave_last_layer(self, hidden: Tensor) -> Tensor:
        """Hidden states at full length again, zeros where tokens were dropped."""
        if self.stage is None or self.stage.kept is None:
            return hidden
        return scatter_hidden(hidden, self.stage.kept, self.length)

    def full_length(self, hidden_states: tuple[Any, ...]) -> tuple[Any, ...]:
        """Collected hidden states, each at full length; entry n is the input of layer n."""
        kept: Survivors | None = None
        full = []
        for n, hidden in enumerate(hidden_states):
            if n - 1 in self.drops:
                raw, before, kept, merged = self.drops[n - 1]
                if hidden is not None and raw() is hidden:
                    # This release collects a layer's output before our hook: drop here too.
                    if merged is None and before is not None:
                        hidden = scatter_hidden(hidden, before, self.length)
                    hidden = gather_hidden(hidden, kept.index) if merged is None else merged
            # The last one has been through `leave_last_layer`.
            if hidden is not None and kept is not None and n < self.num_layers:
                hidden = scatter_hidden(hidden, kept, self.length)
            full.append(hidden)
        return tuple(full)

    def trace(self) -> Trace:
        """What the softened pass counted."""
        return Trace(
            self.visual_tokens.float(),
            torch.stack(self.counts),
            self.method.layers,
            self.num_layers,
        )

    def record(self) -> Record | None:
        """What this pass did, for the statistics. None: it had nothing to decide."""
        if self.layout is None:
            return None
        return Record(self.layout, self.present, tuple(self.decisions), self.num_layers)


def _any_nan(selection: Selection, visual: Tensor) -> Tensor:
    assert selection.scores is not None
    return (selection.scores.isnan() & visual).any()


def _gatherer(value: Any, index: Tensor, axis: int) -> Callable[[], Any]:
    def gather() -> Any:
        if isinstance(value, tuple):
            return tuple(gather_positions(v, index, axis) for v in value)
        return gather_positions(value, index, axis)

    return gather
