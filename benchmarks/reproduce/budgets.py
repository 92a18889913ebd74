"""Each method's configuration for a budget, by arithmetic on its counts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import tokenprune as tp
from tokenprune.config import MethodConfig

from .positions import renumbered
from .setting import LAYERS

__all__ = ["at_mean", "fastv_at", "with_final"]


# Those whose authors number survivors anew, without gaps.
AUTHORS_RENUMBER = (
    tp.PyramidDropConfig,
    tp.PruMergeConfig,
    tp.VisionZipConfig,
    tp.DivPruneConfig,
    tp.CDPrunerConfig,
    tp.MatryoshkaConfig,
)


def solve(share: Callable[[float], float], wanted: float) -> float | None:
    """Find the x in (0, 1) at which a rising function has a value. None: there is none."""
    low, high = 1e-6, 1 - 1e-6
    if not share(low) <= wanted <= share(high):
        return None
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(middle) < wanted else (low, middle)
    return (low + high) / 2


def staged(layers: tuple[int, ...], depth: int) -> Callable[[float], float]:
    """Return the mean share of the tokens as a function of the share that each stage keeps."""
    ends = (*layers, depth - 1)
    lengths = [layers[0] + 1, *(b - a for a, b in itertools.pairwise(ends))]

    def mean(ratio: float) -> float:
        return sum(n * ratio**stage for stage, n in enumerate(lengths)) / depth

    return mean


def fastv_at(layer: int, share: float, total: int, depth: int) -> int | None:
    """Return how many tokens FastV keeps after a layer for a mean share. None: out of reach."""
    keep = (depth * share - (layer + 1)) * total / (depth - layer - 1)
    return round(keep) if keep >= 1 else None


def at_mean(share: float, total: int, depth: int) -> dict[str, MethodConfig | None]:
    """Configure each method so that its mean over all layers is a share. None: out of reach."""
    places = tp.PyramidDropConfig.default_depths
    quarters = tuple(round(depth * share_of_depth) - 1 for share_of_depth in places)
    configs = _before(share, total)
    few = fastv_at(1, share, total, depth)
    configs["FastV"] = None if few is None else tp.FastVConfig(layer=1, keep=few)
    configs["ID-Selection"] = None if few is None else tp.IDSelectionConfig(layer=1, keep=few)
    configs["DART"] = None if few is None else tp.DARTConfig(layer=1, keep=few, norm=1)
    for name, layers in (("PyramidDrop", quarters), ("PyramidDrop, ATP's layers", LAYERS)):
        ratio = solve(staged(layers, depth), share)
        made = None if ratio is None else tp.PyramidDropConfig(layers=layers, keep=ratio)
        configs[name] = made
    return _both_positions(configs)


def with_final(share: float, total: int, depth: int) -> dict[str, MethodConfig | None]:
    """Configure each method so that it ends with a share of the tokens."""
    keep = round(share * total)
    configs = {
        **_before(share, total),
        "FastV": tp.FastVConfig(layer=1, keep=keep),
        "ID-Selection": tp.IDSelectionConfig(layer=1, keep=keep),
        "DART": tp.DARTConfig(layer=1, keep=keep, norm=1),
        "PyramidDrop": tp.PyramidDropConfig(
            layers=tuple(round(depth * place) - 1 for place in tp.PyramidDropConfig.default_depths),
            keep=share ** (1 / 3),
        ),
        "PyramidDrop, ATP's layers": tp.PyramidDropConfig(layers=LAYERS, keep=share ** (1 / 3)),
    }
    return _both_positions(configs)


def _both_positions(configs: dict[str, MethodConfig | None]) -> dict[str, MethodConfig | None]:
    """Add each method with survivors renumbered whose authors run it so."""
    added = {
        renumbered(name): dataclasses.replace(config, positions="renumbered")
        for name, config in configs.items()
        if isinstance(config, AUTHORS_RENUMBER)
    }
    return {**configs, **added}


def _before(share: float, total: int) -> dict[str, MethodConfig | None]:
    """Configure the methods that drop before the first layer: the mean is the final count."""
    keep = round(share * total)
    # Of the nested scales, the one there is at a quarter.
    nested = tp.MatryoshkaConfig(stride=2) if share == 0.25 else None
    return {
        "random, before the decoder": tp.RandomConfig(layers=(-1,), mean_tokens=share * total),
        "uniform grid": tp.UniformConfig(keep=share),
        "down-sampled": tp.DownsampleConfig(keep=share),
        "Matryoshka (not trained for it)": nested,
        "PruMerge": tp.PruMergeConfig(keep=keep),
        "PruMerge+": tp.PruMergeConfig(keep=keep, plus=True),
        "VisionZip": tp.VisionZipConfig(keep=keep),
        "DivPrune": tp.DivPruneConfig(keep=keep),
        "CDPruner": tp.CDPrunerConfig(keep=keep),
        "CDPruner, θ = 0.5": tp.CDPrunerConfig(keep=keep, theta=0.5),
    }
