"""Methods that read the layer to come: PyramidDrop against its authors' rule, caches, misuse."""

from __future__ import annotations

import pytest
import torch

import tokenprune as tp

from .support.published import pyramiddrop
from .support.strategies import LAYERS
from .support.tiny_llava import IMAGE, IMAGE_TOKEN, cache_of, make_batch, on_cache, tiny_llava
from .support.tolerance import assert_close
from .support.wrapping import wrapped


class Received(tp.RankingMethod):
    """Keep by the attention of the prompt's last token, in the layer to come, and note it."""

    needs = frozenset({"last", "keys"})
    looks_ahead = True

    def __init__(self, config: tp.RandomConfig) -> None:
        super().__init__(config)
        self.seen: list[tp.Context] = []

    def score(self, context: tp.Context) -> torch.Tensor:
        self.seen.append(context)
        return context.received["last"].total


@pytest.mark.parametrize("seed", range(4))
def test_pyramiddrop_keeps_what_its_authors_do(seed: int) -> None:
    model = tiny_llava(layers=LAYERS, seed=seed)
    batch = make_batch([(4, IMAGE, 3)], seed=seed)
    with torch.no_grad():
        first = model(**batch, output_hidden_states=True).hidden_states[0][0]
        visual = batch["input_ids"][0] == IMAGE_TOKEN
        wanted = pyramiddrop.alive_of(model, first, visual, {0: 0.5, 2: 0.25})
        config = tp.PyramidDropConfig(layers=(0, 2), keep=0.5)
        with wrapped(model, config):
            model(**batch)
            alive = tp.stats(model).alive[:, 0]
    assert [row.nonzero()[0].tolist() for row in alive] == wanted


def test_what_is_seen_is_what_the_layer_computes(attn: str) -> None:
    """In ragged rows, at every step, before the first layer too; and cached words stay right."""
    model = tiny_llava(attn, layers=LAYERS)
    batch = make_batch([(4, IMAGE, 3), (2, IMAGE, 6)])
    method = Received(tp.RandomConfig(layers=(-1, 1), keep=(20, 0.5)))
    keys: dict[int, torch.Tensor] = {}
    layers = model.model.language_model.layers
    for n in (0, 2):
        layers[n].self_attn.k_proj.register_forward_hook(
            lambda _, args, out, n=n: keys.update({n: keys.get(n, out)})
        )
    with wrapped(model, method):
        with torch.no_grad():
            model(**batch)
            stats = tp.stats(model)
        words = model.generate(**batch, max_new_tokens=3, do_sample=False)
        bare = model.generate(**batch, max_new_tokens=3, do_sample=False, use_cache=False)
    assert torch.equal(words, bare)
    assert stats.kept[:, 0].tolist() == [20, 20, *[10] * (LAYERS - 2)]
    for n, context in zip((0, 2), method.seen[:2], strict=True):
        # Rotary embeddings turn a key and leave its length.
        projected = keys[n].unflatten(-1, (2, -1)).transpose(1, 2)
        assert_close(context.keys.norm(dim=-1), projected.norm(dim=-1), f"layer {n}")


def test_a_turn_on_a_cache_sees_the_earlier_ones() -> None:
    model = tiny_llava(layers=LAYERS)
    batch = make_batch([(6, IMAGE, 3)])
    with wrapped(model, tp.PyramidDropConfig(layers=(0, 2), keep=0.3)), torch.no_grad():
        whole = model(**batch).logits
        kept = tp.stats(model).alive[:, 0, 6:]
        earlier = model(input_ids=batch["input_ids"][:, :6], use_cache=True)
        later = {"input_ids": batch["input_ids"][:, 6:], "pixel_values": batch["pixel_values"]}
        again = model(
            **later, attention_mask=batch["attention_mask"], **on_cache(model, cache_of(earlier))
        )
        assert (tp.stats(model).alive[:, 0] == kept).all()
    assert_close(again.logits[:, -3:], whole[:, -3:], "logits")


def test_it_cannot_revive() -> None:
    method = Received(tp.RandomConfig(layers=(1,)))
    method.needs, method.revives = frozenset({"last"}), True
    with pytest.raises(ValueError, match=r"Received\.revives and Received\.looks_ahead are both"):
        tp.wrap(tiny_llava(layers=4), method)
