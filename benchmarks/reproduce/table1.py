"""Table 1: every method at each budget, matched by mean tokens and by final tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.evaluate import accuracy
from benchmarks.store import Store
from tokenprune.config import MethodConfig

from .budgets import at_mean, fastv_at, with_final
from .positions import renumbered
from .setting import (
    LAYERS,
    OutOfReachError,
    Setting,
    atp,
    calibrated,
    calibration,
    load,
    measure_held_out,
    open_store,
    processor,
    ranked,
    row_if_reached,
)

__all__ = ["run"]


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing."""
    store = open_store(results, "table1", setting)
    for seed in setting.seeds:
        for share in setting.shares:
            for block, configs in (("mean", at_mean), ("final", with_final)):
                trained(store, setting, seed, share, block, work)
                plain(store, setting, seed, share, block, configs)
                adaptive(store, setting, seed, share, block)
        best_fastv(store, setting, seed)


def trained(
    store: Store, setting: Setting, seed: int, share: float, block: str, work: Path
) -> None:
    """Measure ATP, trained, ranked and calibrated alone, and random pruning with ATP's counts."""

    def as_begun() -> Any:
        model = load()
        target = 0.25 * model.config.image_seq_length
        return tp.wrap(model, tp.ATPConfig(layers=LAYERS, target_tokens=target))

    def made(start: Callable[[], Any]) -> dict[str, Any]:
        model = start()
        to_budget(model, setting, share, block, seed)
        return measure_held_out(model, setting, seed)

    keys = {"share": share, "block": block, "seed": seed}
    models: dict[str, Callable[[], Any]] = {
        "ATP, learned ranking": partial(ranked, setting, seed, work),
        "ATP, calibrated only": as_begun,
        "ATP": partial(atp, setting, seed, work),
    }
    for name, start in models.items():
        row = row_if_reached(store, partial(made, start), method=name, **keys)
    if row is None:
        return
    after = tuple(row["kept_per_layer"][layer + 1] for layer in LAYERS)
    config = tp.RandomConfig(layers=LAYERS, mean_tokens=after, seed=seed)
    store.once(
        lambda: wrapped(config, setting, seed), method="random, ATP's layers and counts", **keys
    )


def to_budget(model: Any, setting: Setting, share: float, block: str, seed: int) -> None:
    """Calibrate ATP to a mean, or by bisection to a number of final tokens."""
    if block == "mean":
        calibrated(model, setting, seed, share)
        return
    total, batches = model.config.image_seq_length, list(calibration(setting, seed))
    # The same knob that `calibrate` turns, by another count.
    method = model.tokenprune.method
    low, high = -4.0, 4.0
    for _ in range(9):
        shift = (low + high) / 2
        method.shifts = [[shift, 0.0]] * len(method.shifts)
        few = measured(model, batches)["final_tokens"] < share * total
        low, high = (low, shift) if few else (shift, high)


def measured(model: Any, batches: list[dict[str, Any]]) -> dict[str, Any]:
    """Summarise what a model keeps on some batches."""
    with tp.track(model) as run, torch.inference_mode():
        for batch in batches:
            model(**batch)
    return run.summary()


def wrapped(config: MethodConfig, setting: Setting, seed: int) -> dict[str, Any]:
    """Measure one method as configured."""
    model = tp.wrap(load(), config)
    return measure_held_out(model, setting, seed)


def plain(
    store: Store, setting: Setting, seed: int, share: float, block: str, configs: Any
) -> None:
    """Measure the methods whose counts follow from their configuration."""
    shape = load().config
    total, depth = shape.image_seq_length, shape.text_config.num_hidden_layers
    same = at_mean(share, total, depth)
    for name, config in configs(share, total, depth).items():
        if config is None:
            continue
        made = partial(wrapped, config, setting, seed)
        # Before the decoder both budgets are one, measured once.
        before = store.find(method=name, share=share, block="mean", seed=seed)
        if before is not None and config == same.get(name):
            made = partial(dict, before)
        store.once(made, method=name, share=share, block=block, seed=seed)


def adaptive(store: Store, setting: Setting, seed: int, share: float, block: str) -> None:
    """Measure SparseVLM, whose λ is set by bisection on training pictures."""

    def made(positions: str) -> dict[str, Any]:
        model, batches = load(), list(calibration(setting, seed))
        wanted = share * model.config.image_seq_length

        def tokens(scale: float) -> float:
            tp.wrap(model, tp.SparseVLMConfig(scale=scale, positions=positions))
            found = measured(model, batches)[f"{block}_tokens"]
            tp.unwrap(model)
            return found

        low, high = 0.02, 1.0
        if (least := tokens(high)) > 1.02 * wanted:
            raise OutOfReachError(f"{least:.1f} tokens at λ = 1, and {wanted:.1f} are wanted.")
        for _ in range(7):
            scale = (low + high) / 2
            low, high = (low, scale) if tokens(scale) < wanted else (scale, high)
        config = tp.SparseVLMConfig(scale=scale, positions=positions)
        return {"scale": scale, **wrapped(config, setting, seed)}

    keys = {"share": share, "block": block, "seed": seed}
    for name, positions in (("SparseVLM", "kept"), (renumbered("SparseVLM"), "renumbered")):
        row_if_reached(store, partial(made, positions), method=name, **keys)


def best_fastv(store: Store, setting: Setting, seed: int) -> None:
    """Measure FastV after the layer that is best on validation; the paper's is early here."""
    shape = load().config
    total, depth = shape.image_seq_length, shape.text_config.num_hidden_layers
    drawn = samples("validation", min(220, setting.questions), 7)
    name = "FastV, layer chosen on validation"

    def chosen(share: float) -> int:
        tried: dict[int, float] = {}
        for layer in range(8):
            keep = fastv_at(layer, share, total, depth)
            if keep is not None:
                model = tp.wrap(load(), tp.FastVConfig(layer=layer, keep=keep))
                tried[layer] = accuracy(model, processor(), drawn)["overall"]
        return max(tried, key=lambda n: tried[n])

    def made(share: float) -> dict[str, Any]:
        # The choice is of all seeds.
        before = store.find(method=name, share=share, block="mean")
        layer = before["layer"] if before else chosen(share)
        keep = fastv_at(layer, share, total, depth)
        assert keep is not None
        config = tp.FastVConfig(layer=layer, keep=keep)
        return {"layer": layer, **wrapped(config, setting, seed)}

    for share in setting.shares:
        store.once(partial(made, share), method=name, share=share, block="mean", seed=seed)
