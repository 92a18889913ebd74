"""Around the decoder layers: their masks and positions, the pruning steps, the full length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import calls, recompute
from ..arguments import bind_layer, cache_in, check_placed, hidden_of, with_hidden
from ..passes import Pass, start_pass
from .base import Hooks

__all__ = ["LayerHooks"]


class LayerHooks(Hooks):
    """The hooks of the decoder layers."""

    @torch.compiler.disable
    def before_first(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Start the pass, and give the first layer its input."""
        engine, anatomy = self.engine, self.engine.anatomy
        call = calls.newest(engine)
        if call is None or call.core is None or call.finished is not None:
            return recompute.mask_again(0, args, kwargs)
        hidden, kwargs = bind_layer(anatomy.layer_signature, args, kwargs)
        if call.core.first is not None:
            check_placed("A decoder layer", kwargs, hidden.shape[1])
        cache = cache_in(kwargs.values())
        running = start_pass(
            call.core, engine.method, anatomy.num_layers, anatomy.backend, hidden, cache
        )
        call.running = running
        tower = None
        if anatomy.tower_layer is not None:
            tower = calls.tower_attention(engine, hidden.shape[0])
        hidden = running.begin(module, kwargs, hidden, tower)
        with recompute.kept_tensors():
            kwargs = running.before_layer(0, module, kwargs)
        return (hidden,), kwargs

    @torch.compiler.disable
    def before(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Give a later layer its mask and positions."""
        running = self._running()
        if running is None:
            return recompute.mask_again(layer, args, kwargs)
        if not running.changes_layers:
            return None
        hidden, kwargs = bind_layer(self.engine.anatomy.layer_signature, args, kwargs)
        with recompute.kept_tensors():
            hidden = running.look_ahead(layer, module, kwargs, hidden)
            kwargs = running.before_layer(layer, module, kwargs)
        return (hidden,), kwargs

    @torch.compiler.disable
    def after_first(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Correct the cache of the first layer, where tokens are dropped before it."""
        running = self._running()
        if running is not None:
            running.after_first_layer()

    @torch.compiler.disable
    def after_step(
        self, step: int, layer: int, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> Any:
        """Prune after a layer."""
        running = self._running()
        if running is None:
            return None
        hidden = hidden_of(output)
        with recompute.kept_tensors():
            changed = running.after_step(step, layer, hidden)
        return _replaced(output, hidden, changed)

    @torch.compiler.disable
    def after_last(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """Give the hidden states back at the full length."""
        running = self._running()
        if running is None:
            return None
        hidden = hidden_of(output)
        return _replaced(output, hidden, running.after_last_layer(hidden))

    def _running(self) -> Pass | None:
        call = calls.newest(self.engine)
        return None if call is None else call.running


def _replaced(output: Any, hidden: Tensor, changed: Tensor) -> Any:
    """Return what a hook returns: None leaves the output as it is."""
    return None if changed is hidden else with_hidden(output, changed)
