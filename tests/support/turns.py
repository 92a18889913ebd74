"""What a key-value cache should hold, turn by turn, and the calls that fill one."""

import copy
from typing import Any

import torch
from torch import Tensor

from tokenprune.engine.caches import load

from .reference_decoder import Pass, Reference
from .scripted_method import alive_table
from .strategies import LAYERS, positions
from .tiny_llava import Batch, on_cache
from .tolerance import assert_close


class Turn:
    """One row's tokens so far, and which of them each layer has."""

    def __init__(self, model: Any) -> None:
        self.reference = Reference(model)
        self.embeds: list[Tensor] = []
        self.alive: list[Tensor] = []

    def __deepcopy__(self, _: Any) -> "Turn":
        twin = copy.copy(self)
        twin.embeds, twin.alive = list(self.embeds), list(self.alive)
        return twin

    def add(self, row: Batch, layers: tuple[int, ...], script: Tensor) -> Pass:
        """The pass over all tokens, the row's new ones last."""
        self.embeds.append(self.reference.embed(row))
        self.alive.append(alive_table(row, layers, script, LAYERS))
        return self.now()

    def now(self) -> Pass:
        return self.reference.run(torch.cat(self.embeds), self.table)

    @property
    def table(self) -> Tensor:
        return torch.cat(self.alive, dim=1)


def held(cache: Any, layer: int, mask: Tensor) -> list[Tensor]:
    """Of each row, the slots of a layer's cache that hold a token, as (slot, position) pairs.

    `mask` is the attention mask of all positions; positions are counted in the row without padding.
    """
    past = cache.get_seq_length()
    batch, seen = mask.shape
    known = load(cache, past).get(layer)
    every = torch.arange(seen, device=mask.device).expand(batch, -1)
    if known is None:
        index, valid = every, torch.ones_like(every, dtype=torch.bool)
    else:
        kept, tail = known.kept, every[:, known.origin :]
        ones = torch.ones_like(kept.index, dtype=torch.bool)
        index = torch.cat([kept.index, tail], dim=1)
        valid = torch.cat(
            [ones if kept.valid is None else kept.valid, torch.ones_like(tail).bool()], dim=1
        )
    assert index.shape[1] == cache.layers[layer].keys.shape[2]
    valid = valid & mask.bool().gather(1, index)
    place = (mask.cumsum(dim=1) - 1).gather(1, index)
    return [torch.stack([v.nonzero()[:, 0], p[v]]) for v, p in zip(valid, place, strict=True)]


def assert_cache_is(cache: Any, mask: Tensor, turns: list[Turn]) -> None:
    """Each layer's cache holds exactly the tokens alive there, with the reference's values."""
    for n, turn in enumerate(turns):
        wanted = turn.now()
        for layer in range(LAYERS):
            slot, place = held(cache, layer, mask)[n]
            assert torch.equal(place, turn.table[layer].nonzero()[:, 0]), f"layer {layer}, row {n}"
            for name in ("keys", "values"):
                ours = getattr(cache.layers[layer], name)[n][:, slot]
                theirs = getattr(wanted, name)[layer][:, place]
                assert_close(ours, theirs, f"{name}, layer {layer}, row {n}")


def prefill(model: Any, batch: Batch, **more: Any) -> Any:
    return model(**batch, position_ids=positions(batch["attention_mask"]), use_cache=True, **more)


def step(model: Any, ids: Tensor, mask: Tensor, cache: Any, **more: Any) -> Any:
    """A forward on the cache. `mask` is over all positions, the new ones last."""
    places = positions(mask)[:, -ids.shape[1] :]
    return model(
        input_ids=ids, attention_mask=mask, position_ids=places, **on_cache(model, cache), **more
    )


def grown(mask: Tensor, count: int) -> Tensor:
    return torch.cat([mask, mask.new_ones(mask.shape[0], count)], dim=1)
