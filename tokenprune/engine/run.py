"""One forward pass of a wrapped core: the state that lives from its start to its end."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from ..methods.base import Context, Method, Selection, Tower, Trace
from ..releases import verified_releases
from . import caches
from . import keys as cache_keys
from .arguments import cache_in
from .attention import backend_of
from .compact import Survivors, gather_hidden, scatter_hidden, survivors
from .finite import count_not_finite, raise_if_not_finite
from .frames import TowerPass
from .inputs import LayerInputs
from .observer import Observer
from .record import Decision, Record
from .revival import Departed, all_again
from .stage import Stage
from .tower import read_tower

__all__ = ["Run"]


class Run:
    """The state of one forward pass of the core.

    Parameters
    ----------
    method : Method
    num_layers : int
        Decoder layers.
    attention : str
        The registered name of the attention backend.
    first : Stage, optional
        The pass's tokens. None: nothing to prune in it (no image, paused, or decoding).
    soft : bool
        Soften the tokens instead of dropping them.
    plain : bool
        Whether the rule of the tokens' order is causal and nothing else: no window, and a mask that
        only says padding.
    patches : int64, (visual tokens,), optional
        See `Adapter.patches`.
    given_cache : Cache, optional
        The cache that the core was called with.
    """

    def __init__(
        self,
        method: Method,
        num_layers: int,
        attention: str,
        first: Stage | None,
        soft: bool,
        plain: bool,
        patches: Tensor | None = None,
        given_cache: Any = None,
    ) -> None:
        self.method = method
        self.num_layers = num_layers
        self.backend = backend_of(attention)
        self.soft = soft
        self.closed = False
        self.past = 0
        self.length = 0
        self.dtype = torch.float32
        self.given_cache = given_cache
        self.cache: Any = None
        self.old_keys: dict[int, cache_keys.LayerKeys] = {}
        self.new_keys: dict[int, cache_keys.LayerKeys] = {}
        self.decisions: list[Decision] = []
        self.counts: list[Tensor] = []
        self.replay: dict[int, Tensor] = {}
        # Layer → its output as it was, the survivors before it, the survivors after it, and what
        # those became if the method changed them.
        self.drops: dict[int, tuple[Any, Survivors | None, Survivors, Tensor | None]] = {}
        self.memory: Any = None
        self.patches = patches
        self.tower: Tower | None = None
        # They know the pass weakly: what it holds is freed at its end, not by the next collection
        # of cycles, which running out of a device's memory does not set off.
        self.inputs = LayerInputs(weakref.proxy(self))
        self.observer = Observer(weakref.proxy(self))
        self.departed: Departed | None = None
        self.plain = plain
        self.first = self.stage = first
        self.weight = None if first is None else first.layout.mask.float()

    # -- before a layer ------------------------------------------------------------------------

    def enter_first_layer(self, hidden: Tensor, cache: Any) -> None:
        """Look at the cache before anything is written to it."""
        self.length = hidden.shape[1]
        self.dtype = hidden.dtype
        self.cache = cache
        self.past = 0 if cache is None else int(cache.get_seq_length())
        if cache is None and self.given_cache is not None:
            self._check_given_cache()
        self.old_keys = caches.load(cache, self.past)
        self.new_keys = dict(self.old_keys)
        if self.past:
            caches.check_lengths(cache, self.old_keys, self.past, hidden.shape[0])
        elif cache is not None:
            caches.forget(cache)  # emptied since, and used again
        if self.old_keys and not self.method.keeps_positions:
            raise ValueError(
                "Survivors that are numbered anew (preserve_positions=False) leave no right "
                "positions for words that follow on a key-value cache, which transformers counts "
                "by the whole prompt: generate with use_cache=False."
            )
        if self.first is None:
            return
        located = self.first.layout.mask.shape
        if located != hidden.shape[:2]:
            raise RuntimeError(
                f"The decoder runs on {tuple(hidden.shape[:2])} tokens, but the inputs locate "
                f"visual tokens among {tuple(located)}: the decoder was called with "
                "something other than the core's inputs."
            )
        if self.soft and self.past:
            raise ValueError(
                f"Training on a key-value cache of {self.past} positions is not defined for "
                "softened tokens: give the whole sequence in one forward, or call model.eval()."
            )
        if cache is not None and not self.soft:
            if not self.past:
                caches.without_windows(cache)
            caches.check_supported(cache, self.num_layers)

    def _check_given_cache(self) -> None:
        """Refuse a pass whose core has a cache that its layers were not given as such."""
        given = self.given_cache
        if self.first is None and not caches.load(given, int(given.get_seq_length())):
            return
        raise RuntimeError(
            f"The model was called with a {type(given).__name__}, but its decoder layers were "
            "called without one, or with one that was not recognised: what it holds of each layer "
            f"could not be known. {verified_releases()}: use one of these releases, or run the "
            "prompt inside tokenprune.paused(model)."
        )

    def check_cache_was_seen(self, output: Any) -> None:
        """Refuse a pass that dropped tokens while the model filled a cache that was not seen.

        Parameters
        ----------
        output : ModelOutput or tuple
            The core's.

        Raises
        ------
        RuntimeError
            If such a cache is among it.
        """
        values = output.values() if isinstance(output, dict) else output
        filled = cache_in(values) if isinstance(output, dict | tuple) else None
        if filled is None or filled is self.cache or not self.drops:
            return
        if filled.get_seq_length():
            raise RuntimeError(
                f"The model filled a {type(filled).__name__} that its decoder layers were not "
                "given in a way that is known here, so it does not know which tokens were "
                f"dropped. {verified_releases()}: use one of these releases, call the model with "
                "use_cache=False, or run the prompt inside tokenprune.paused(model)."
            )

    @property
    def leaves_alone(self) -> bool:
        """Whether no layer but the first is given anything else than without us."""
        return self.first is None and not self.old_keys

    def begin(self, hidden: Tensor, tower: TowerPass | None) -> Tensor:
        """Let the method look at the first layer's input, and drop there if it does so early."""
        if self.stage is None:
            return hidden
        if self.method.tower_layer is not None and tower is None:
            raise RuntimeError(
                f"{type(self.method).__name__} chooses by the vision tower's attention, but the "
                "tower did not run in this call: give pixel_values to the model or to generate, "
                "not features made before."
            )
        # Autocast would run the method in half precision.
        with torch.autocast(hidden.device.type, enabled=False):
            if tower is not None:
                self.tower = read_tower(tower, self.stage.layout, self.patches)
            self.memory = self.method.begin(self._context(-1, -1, self.stage, hidden))
        return self.decide(0, -1, hidden) if self.method.layers[0] < 0 else hidden

    def after_first_layer(self) -> None:
        """Give the first layer's cache its full length back, zeros where a token never was.

        transformers reads the number of tokens seen, and so the next positions, off this layer.
        """
        if self.cache is None or -1 not in self.drops:
            return
        kept = self.drops[-1][2]
        caches.widen_first_layer(self.cache, kept, self.length)
        self.new_keys[0] = cache_keys.widened(self.old_keys.get(0), self.past, kept, self.length)
        caches.store(self.cache, self.new_keys)

    def enter_layer(self, layer: int, module: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        """What a layer is given."""
        self.observer.enter_layer(layer, module, kwargs)
        return self.inputs.adapt(layer, kwargs)

    # -- after a layer -------------------------------------------------------------------------

    def decide(self, module: int, layer: int, hidden: Tensor) -> Tensor:
        """Let the method decide after a layer, and act on it."""
        stage, states = self.stage, hidden
        if stage is None or self.first is None:
            return hidden
        if self.method.needs and layer >= 0 and layer not in self.observer.received:
            raise RuntimeError(
                f"The attention of decoder layer {layer} was not seen: its attention "
                "implementation was changed after tokenprune.wrap. Call tokenprune.unwrap(model), "
                "change it, and wrap again."
            )
        if self.departed is not None:
            stage, states = all_again(self.first, stage, hidden, self.departed)
        context = self._context(module, layer, stage, states)
        # Autocast would run the thresholds in half precision.
        with torch.autocast(hidden.device.type, enabled=False):
            selection = self.method.select(context)
        if self.soft:
            self._soften(layer, stage, selection)
            return hidden
        return self._drop(layer, stage, selection, states, hidden)

    def _context(self, module: int, layer: int, stage: Stage, hidden: Tensor) -> Context:
        assert self.weight is not None
        every = torch.arange(self.length, device=self.weight.device).expand(hidden.shape[0], -1)
        weight = stage.layout.mask.float() if self.method.revives else stage.weight_of(self.weight)
        return Context(
            module=module,
            layer=layer,
            layout=stage.layout,
            weight=weight.detach(),
            prompt=stage.prompt,
            text=stage.text,
            received=self.observer.received.pop(layer, {}),
            hidden_states=hidden.to(self.weight.device),
            positions=every if stage.kept is None else stage.kept.index,
            memory=self.memory,
            tower=self.tower if layer < 0 else None,
        )

    def _soften(self, layer: int, stage: Stage, selection: Selection) -> None:
        assert self.weight is not None
        assert selection.mask is not None
        # Out of place: earlier masks are in the graph.
        mask = torch.where(stage.layout.mask, selection.mask, 0.0)
        self.weight = mask if self.method.revives else self.weight * mask
        self.inputs.forget()
        self.counts.append(self.weight.sum(dim=1))
        alive = selection.keep | ~stage.layout.mask
        if self.decisions and not self.method.revives:
            alive = alive & self.decisions[-1].alive(alive)
        self.decisions.append(Decision(layer, alive, selection.thresholds))

    def _drop(
        self, layer: int, stage: Stage, selection: Selection, states: Tensor, hidden: Tensor
    ) -> Tensor:
        """Go on with what stays of a stage, whose tokens have these states."""
        visual = stage.layout.mask
        present = visual.new_ones(visual.shape) if stage.present is None else stage.present
        stays = selection.keep | ~visual
        if selection.keep_text is not None:
            stays = stays & (selection.keep_text | ~stage.text)
        alive = (present & stays) | stage.read
        changed = states
        if selection.hidden_states is not None:
            changed = selection.hidden_states.to(states.device)
        # The one transfer to the host that dropping needs: the least and the most of each count.
        counts = {"alive": alive.sum(dim=1), "dropped": (present & ~alive).sum(dim=1)}
        counts |= count_not_finite(changed, selection, visual)
        if self.method.revives:
            gone = visual & ~alive
            counts["gone"] = gone.sum(dim=1)
        if stage.layout.complete is not None:
            counts["partial"] = (~stage.layout.complete).long().expand(len(visual))
        ends = torch.stack(torch.aminmax(torch.stack(list(counts.values())), dim=1), dim=1)
        found = dict(zip(counts, ends.tolist(), strict=True))
        fewest, most = found["alive"]
        if any(found.get("partial", ())):
            raise ValueError(
                "The visual tokens of this call are not those of whole images: was the prompt cut "
                "into chunks? Which of them stay is decided by the whole prompt: run it in one "
                "call, or inside tokenprune.paused(model)."
            )
        raise_if_not_finite(found, layer, self.method)
        if not any(found["dropped"]) and stage is self.stage:
            self.decisions.append(Decision(layer, None, selection.thresholds))
            return changed
        kept = survivors(alive, most, ragged=most != fewest)
        before = None if self.stage is None else self.stage.kept
        self.stage = stage.survived_by(kept)
        every = self.stage.kept
        assert every is not None
        gathered = gather_hidden(changed, kept.index)
        if self.method.revives:
            fewest_gone, most_gone = found["gone"]
            left = survivors(gone, most_gone, most_gone != fewest_gone) if most_gone else None
            self.departed = Departed(left, changed)
        self.inputs.forget()
        self.decisions.append(Decision(layer, every, selection.thresholds))
        merged = None if changed is hidden else gathered
        self.drops[layer] = (weakref.ref(hidden), before, every, merged)
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
        caches.store(self.cache, self.new_keys)

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
        assert self.first is not None
        return Trace(
            self.first.layout.counts().float(),
            torch.stack(self.counts),
            self.method.layers,
            self.num_layers,
        )

    def record(self) -> Record | None:
        """What this pass did, for the statistics. None: it had nothing to decide."""
        if self.first is None:
            return None
        return Record(self.first.layout, self.first.present, tuple(self.decisions), self.num_layers)
