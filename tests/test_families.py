"""The invariants, over every family: tiny models with random weights, the family's own inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenprune.adapters import adapter_for
from torch import Tensor

import tokenprune as tp
from tokenprune.fields import BEFORE_DECODER

from .families import FAMILIES, Family
from .families.sweep import Case, Patterned, built, has_tower, logits, over, present
from .support.config_strategies import has_tower_needs, layered_configs
from .support.tolerance import assert_close
from .support.wrapping import hooks_of, wrapped


@over(4)
def test_everything_kept_is_the_model_itself(name: str, family: Family, case: Case) -> None:
    """Invariant 1, bit for bit, `generate` included; and nothing is left after `unwrap`."""
    model = built(name)
    batch = family.join(model, case.samples(family, model), "left")
    asked = {"max_new_tokens": 3, "do_sample": False}
    before, words = logits(model, batch), model.generate(**copy.copy(batch), **asked)
    keys, config, hooks = list(model.state_dict()), model.config.to_json_string(), hooks_of(model)
    method = Patterned(case.method(model).layers, 2.0, case.seed)
    with wrapped(model, method):
        assert torch.equal(logits(model, batch), before)
        assert torch.equal(model.generate(**copy.copy(batch), **asked), words)
    assert list(model.state_dict()) == keys
    assert model.config.to_json_string() == config
    assert hooks_of(model) == hooks


@over(6)
def test_equals_the_masked_model(name: str, family: Family, case: Case) -> None:
    """Invariants 2, 4: dropping is masking the dropped keys of all later layers."""
    model = built(name, "eager")
    samples = case.samples(family, model)
    batch = family.join(model, samples, case.padding)
    method = case.method(model)
    layers = adapter_for(model).decoder_layers(model)
    alive = torch.ones(len(layers), *batch["input_ids"].shape, dtype=torch.bool)
    for row, sample in enumerate(samples):
        alive[:, row, present(batch, row)] = method.alive(family, model, sample, len(layers))
    expected = masked(model, layers, batch, alive)
    with wrapped(model, method):
        actual = logits(model, batch)
        stats = tp.stats(model) if any(case.images) else None
    for row in range(len(samples)):
        seen = present(batch, row) & alive[-1, row]
        assert_close(actual[row, seen], expected[row, seen], f"row {row}")
        if stats is not None:
            assert stats.alive[:, row].tolist() == (alive[:, row] & present(batch, row)).tolist()


def masked(model: Any, layers: Any, batch: Any, alive: Tensor) -> Tensor:
    """The model at full length; each layer's mask hides what is gone, but not from itself.

    The state of what is gone stays as it is.
    """

    def hide(n: int) -> Callable[..., Any]:
        def hook(_: Any, args: Any, kwargs: Any) -> Any:
            mask = kwargs["attention_mask"]
            itself = torch.eye(mask.shape[-1], dtype=torch.bool)
            gone = ~alive[n][:, None, None, :] & ~itself
            shown = mask.expand(len(alive[n]), -1, -1, -1)
            return args, {
                **kwargs,
                "attention_mask": shown.masked_fill(gone, torch.finfo(mask.dtype).min),
            }

        return hook

    def freeze(n: int) -> Callable[..., Any]:
        def hook(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            after = torch.where(alive[n][..., None], after, before)
            return (after, *output[1:]) if isinstance(output, tuple) else after

        return hook

    handles = [
        layer.register_forward_pre_hook(hide(n), with_kwargs=True) for n, layer in enumerate(layers)
    ] + [layer.register_forward_hook(freeze(n), with_kwargs=True) for n, layer in enumerate(layers)]
    try:
        return logits(model, batch)
    finally:
        for handle in handles:
            handle.remove()


@over(2)
def test_the_gone_are_scored_as_if_there(name: str, family: Family, case: Case) -> None:
    """One layer after they went they are what they would be: so is the attention they receive."""
    model = built(name)
    batch = family.join(model, case.samples(family, model), case.padding)
    first = max(0, case.method(model).layers[0])
    found = {}
    for share in (2.0, case.share):
        needs = ("prompt",)
        method = Patterned((first, first + 1), share, case.seed, revives=True, needs=needs)
        with wrapped(model, method):
            logits(model, batch)
        layout = method.contexts[-1].layout
        found[share] = method.contexts[-1].received["prompt"]
    for part in ("total", "seen_by"):
        kept, gone = (getattr(found[share], part)[layout.mask] for share in (2.0, case.share))
        assert_close(gone, kept, part)


@over(4, limit="rows")
def test_a_row_of_a_batch_is_the_row_alone(name: str, family: Family, case: Case) -> None:
    """Invariant 3, with ATP: its scores and thresholds too."""
    model = built(name)
    samples = case.samples(family, model)
    batch = family.join(model, samples, case.padding)
    method = case.method(model)
    with wrapped(model, method):
        together = logits(model, batch)
        for row, sample in enumerate(samples):
            alone = logits(model, sample)[0]
            seen = torch.ones(len(alone), dtype=torch.bool)
            if case.images[row]:
                seen = torch.from_numpy(tp.stats(model).alive[-1, 0])
            assert_close(together[row, present(batch, row)][seen], alone[seen], f"row {row}")


@over(3)
def test_generate(name: str, family: Family, case: Case) -> None:
    """Invariant 5: cached is uncached, and a row is the row alone, images of all sizes."""
    generates(family, case)


@over(2, limit="beams")
def test_beams(name: str, family: Family, case: Case) -> None:
    """The same with beams and several answers a prompt."""
    if case.video and "video beams" in family.limits:
        case = replace(case, video=False)
    generates(family, case, num_beams=2, num_return_sequences=2)


def generates(family: Family, case: Case, **asked: int) -> None:
    model = built(family.name)
    samples = case.samples(family, model)
    batch = family.join(model, samples, "left")
    asked = {"max_new_tokens": 3, "do_sample": False, **asked}

    def words(use_cache: bool) -> Tensor:
        return model.generate(**copy.copy(batch), **asked, use_cache=use_cache)

    # Some models' beams are others without a cache, unpruned too: several images to a row.
    consistent = "uncached" not in family.limits
    if consistent and "num_beams" in asked:
        consistent = torch.equal(words(True), words(False))
    with wrapped(model, case.method(model)):
        cached = words(True)
        if consistent:
            assert torch.equal(cached, words(False))
        if "rows" in family.limits:
            return
        copies = len(cached) // len(samples)
        for row, sample in enumerate(samples):
            alone = model.generate(**copy.copy(sample), **asked)
            mine = cached[row * copies : (row + 1) * copies]
            assert torch.equal(mine[:, -3:], alone[:, -3:])


@over(4)
def test_every_token_knows_its_place(name: str, family: Family, case: Case) -> None:
    """The layout against a construction that reads the family's own code."""
    model = built(name)
    samples = [s for s, n in zip(case.samples(family, model), case.images, strict=True) if n]
    for sample in samples:
        with wrapped(model, case.method(model)):
            logits(model, sample)
            stats = tp.stats(model)
        if not family.knows_places(sample):
            assert (stats.row == -1).all()
            continue
        found = {
            position: (
                int(stats.row[0, position]),
                int(stats.col[0, position]),
                *map(int, stats.grid[0, position]),
            )
            for position in stats.visual[0].nonzero()[0].tolist()
        }
        expected = {p: (r, c, h, w) for p, _, r, c, h, w in family.geometry(model, sample)}
        assert found.keys() == expected.keys()
        for position, place in expected.items():
            if place[:2] == (-1, -1):
                assert found[position][:2] == (-1, -1)
            else:
                assert found[position] == place


@over(2)
def test_training_teaches_the_heads_and_nothing_else(name: str, family: Family, case: Case) -> None:
    """Invariants 6 and 7."""
    model = FAMILIES[name].build()
    batch = family.join(model, case.samples(family, model), "right")
    labels = torch.full_like(batch["input_ids"], -100)
    for row in range(len(labels)):
        # Any word: some families give none to the words of a picture.
        labels[row, present(batch, row).nonzero().flatten()[-2:]] = 3
    rows, cols = adapter_for(model).grid(model)
    first = adapter_for(model).first_layer(model)
    target = 0.9 * rows * cols
    tp.wrap(model, tp.ATPConfig(layers=(first + 1,), target_tokens=target, start_spatial=0.0))
    heads = tp.train_only_heads(model)
    model.train()
    out = model(**batch, labels=labels)
    assert out.logits.shape[:2] == labels.shape
    assert out.loss.isfinite()
    out.loss.backward()
    for parameter in heads:
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0
    assert sum(p.grad is not None for p in model.parameters()) == len(heads)


@over(1)
def test_a_ranking_comes_closer_to_the_attention_to_come(
    name: str, family: Family, case: Case
) -> None:
    """On the prompts that it was fitted to, drawn over and over."""
    model = built(name)
    samples = [s for s, n in zip(case.samples(family, model), case.images, strict=True) if n]
    batch = family.join(model, samples, "left")
    first = adapter_for(model).first_layer(model)
    rows, cols = adapter_for(model).grid(model)
    target = 0.9 * rows * cols
    with wrapped(model, tp.ATPConfig(layers=(first,), target_tokens=target, ranking="learned")):
        for before, after in tp.fit_ranking(model, [batch] * 16).values():
            assert after < before


@over(1)
def test_every_method(name: str, family: Family, case: Case) -> None:
    """Each decides for a row as for the row alone, and generates with a cache as without."""
    model = built(name)
    samples = [s for s, n in zip(case.samples(family, model), case.images, strict=True) if n]
    batch = family.join(model, samples, "left")
    first = adapter_for(model).first_layer(model)
    asked = {"max_new_tokens": 2, "do_sample": False}
    rows, cols = adapter_for(model).grid(model)
    for config in layered_configs(first, 0.9 * rows * cols):
        refused = None
        if has_tower_needs(config) and not has_tower(model):
            refused = r"patches are not the visual tokens|adds image features"
        elif first and BEFORE_DECODER in config.pruning_layers():
            refused = "this decoder adds image features"
        if refused:
            with pytest.raises(ValueError, match=refused):
                tp.wrap(model, config)
            continue
        tp.wrap(model, config)
        try:
            together = logits(model, batch)
            stats = tp.stats(model)
            assert (stats.final_tokens <= stats.visual_tokens).all()
            cached = model.generate(**copy.copy(batch), **asked)
            if "uncached" not in family.limits:
                bare = model.generate(**copy.copy(batch), **asked, use_cache=False)
                assert torch.equal(cached, bare), config
            for row, sample in enumerate(() if "rows" in family.limits else samples):
                alone = logits(model, sample)[0, -1]
                last = present(batch, row).nonzero()[-1, 0]
                assert_close(together[row, last], alone, f"{config.method}, row {row}")
        finally:
            tp.unwrap(model)
