"""What a method asked of the attention of its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ..kernels import attention_received
from ..methods.base import Received
from .compact import Survivors, gather_hidden, scatter_hidden
from .masks import to_4d
from .queries import query_group
from .revival import KeysMade, keys_of

if TYPE_CHECKING:
    from .run import Run

__all__ = ["Observer"]


class Observer:
    """The look at attention in one pass.

    Parameters
    ----------
    run : Run
        The pass.

    Attributes
    ----------
    received : dict
        Layer → the attention that its tokens received, by the name of the queries.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.received: dict[int, dict[str, Received]] = {}
        # The mask that the present layer was given, and of the tokens that may come back to it
        # their keys, with who would see them.
        self._given: Tensor | None = None
        self._back: tuple[Tensor, Tensor] | None = None
        self._only_keys = False

    def enter_layer(self, layer: int, module: nn.Module, kwargs: dict[str, Any]) -> None:
        """Look, before a layer runs, at what may come back after it."""
        run = self.run
        self._given, self._back = kwargs.get("attention_mask"), None
        departed = run.departed
        asked = run.method.needs and layer in run.method.layers
        if asked and departed is not None and departed.gone is not None:
            self._back = self._look_back(layer, module, kwargs, departed.gone, departed.states)

    def _look_back(
        self,
        layer: int,
        module: nn.Module,
        kwargs: dict[str, Any],
        gone: Survivors,
        states: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The keys here of tokens that are gone, and who would see them."""
        inputs = self.run.inputs
        given = {**kwargs, **inputs.positions(kwargs, gone)}
        self._only_keys = True
        try:
            key = keys_of(module.forward, gather_hidden(states, gone.index), given)
        finally:
            self._only_keys = False
        return key, inputs.mask_with(self._given, layer, gone)

    def looks_at(self, module: nn.Module, key: Tensor) -> bool:
        """Whether the method asked for this layer's attention."""
        run, layer = self.run, getattr(module, "layer_idx", None)
        if run.stage is None or run.closed or layer not in run.method.layers:
            return False
        if self._only_keys:
            raise KeysMade(key)
        return bool(run.method.needs)

    @torch.no_grad()
    def observe(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        scaling: float | None,
        softcap: float | None,
        lse: Tensor | None,
    ) -> None:
        """Compute what the method asked of a layer's attention, whose log-sum-exp may be known."""
        run, stage = self.run, self.run.stage
        assert stage is not None
        assert run.weight is not None
        names = sorted(run.method.needs)
        here = stage.weight_of(run.weight)
        groups = [query_group(name, here, stage.prompt) for name in names]
        # Layers may be spread over devices; what is ours stays where the inputs are.
        home = run.weight.device
        weights = torch.cat(groups, dim=1).detach().to(query.device)
        own = query.shape[2]  # of the keys, the last are this pass's own tokens
        if self._back is not None:
            others, mask = self._back
            key, lse = torch.cat([key, others], dim=2), None
            own += others.shape[2]
        elif run.soft and run.method.revives:
            mask, lse = self._given, None  # as if nothing were gone
        mask = to_4d(mask, query.shape[2], key.shape[2])
        wanted = None
        # Elsewhere than on a CPU no key is left out: the mask would be launches for nothing.
        if self._back is None and key.device.type == "cpu":
            # Text that may go is asked about as well; earlier turns on the cache are not.
            wanted = stage.layout.mask | stage.text
            wanted = nn.functional.pad(wanted, (key.shape[2] - own, 0)).to(key.device)
        total, seen_by = attention_received(
            query, key, weights, mask, scaling, softcap, lse, wanted
        )
        total, seen_by = total[..., -own:].to(home), seen_by[..., -own:].to(home)
        if run.departed is not None:
            total, seen_by = self._at_full_length(total), self._at_full_length(seen_by)
        answers = (total, seen_by, weights.sum(dim=2).to(home))
        sizes = [group.shape[1] for group in groups]
        by_group = zip(*(a.split(sizes, dim=1) for a in answers), strict=True)
        self.received[layer] = {
            name: Received(*(a if name == "each" else a.squeeze(1) for a in of_group))
            for name, of_group in zip(names, by_group, strict=True)
        }

    def _at_full_length(self, values: Tensor) -> Tensor:
        """Values of the tokens here and then of those gone, at their places: (batch, n, length)."""
        run = self.run
        assert run.stage is not None
        assert run.stage.kept is not None
        assert run.departed is not None
        gone = run.departed.gone
        all_of_them = run.stage.kept if gone is None else run.stage.kept.beside(gone)
        full = scatter_hidden(rearrange(values, "b n t -> b t n"), all_of_them, run.length)
        return rearrange(full, "b t n -> b n t")
