"""Check the claims of the paper and of this library against the rows."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.store import Row

from .missing import missing

__all__ = ["claims"]

Claim = tuple[str, str, str]
"""What is claimed, whether it "holds", "fails" or is "within error", and the figures."""


def claims(tables: dict[str, list[Row]]) -> Iterator[Claim]:
    """Yield each claim, in order."""
    parts: dict[str, Callable[[list[Row]], Iterator[Claim]]] = {
        "table1": _ahead,
        "tight": _tight,
        "table2": _adaptive,
        "table3": _tuned,
        "ablations": _parts,
        "extensions": _extended,
        "figure2": _depths,
        "layers": _complex,
        "table6": _costs,
    }
    for name, part in parts.items():
        if name in tables:
            yield from part(tables[name])


def _kept(rows: Sequence[Row], **keys: Any) -> dict[int, float]:
    """Return seed → accuracy kept, of the rows with these values."""
    return {
        row["seed"]: row["accuracy_kept"]
        for row in rows
        if "accuracy_kept" in row and all(row.get(k) == v for k, v in keys.items())
    }


def _holds(held: bool) -> str:
    return "holds" if held else "fails"


def _gap(high: dict[int, float], low: dict[int, float]) -> tuple[float, float]:
    """Return the mean over the seeds of one above another, and its standard error."""
    gaps = [high[seed] - low[seed] for seed in sorted(high.keys() & low.keys())]
    error = statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
    return statistics.mean(gaps), error


def _against(claim: str, high: dict[int, float], low: dict[int, float], other: str) -> Claim:
    """Compare two rows, seed by seed on the same questions."""
    gap, error = _gap(high, low)
    verdict = "within error" if abs(gap) <= error else _holds(gap > 0)
    means = [statistics.mean(found.values()) for found in (high, low)]
    figures = f"{means[0]:.1%} against {means[1]:.1%}{other}: {gap:+.1%} ± {error * 100:.1f}"
    return claim, verdict, figures


def _ahead(rows: list[Row]) -> Iterator[Claim]:
    names = {row["method"] for row in rows if not row["method"].startswith("ATP")}
    for block in ("mean", "final"):
        for share in sorted({row["share"] for row in rows}, reverse=True):
            keys = {"block": block, "share": share}
            others = {name: _kept(rows, method=name, **keys) for name in names}
            worth = {n: statistics.mean(kept.values()) for n, kept in others.items() if kept}
            for name in ("ATP", "ATP, learned ranking"):
                ours = _kept(rows, method=name, **keys)
                if ours and worth and not missing(rows, block, share):
                    best = max(worth, key=lambda name: worth[name])
                    claim = f"{name} is ahead of every rival at {share:.0%} {block} tokens"
                    yield _against(claim, ours, others[best], f" ({best})")
    mean = [row for row in rows if row["block"] == "mean"]
    claim = "training the heads is better than calibration alone"
    yield from _pairs(mean, "ATP", "ATP, calibrated only", claim)


def _pairs(rows: list[Row], better: str, worse: str, claim: str) -> Iterator[Claim]:
    for share in sorted({row["share"] for row in rows}, reverse=True):
        high, low = (_kept(rows, method=name, share=share) for name in (better, worse))
        if high.keys() & low.keys():
            yield _against(f"{claim}, {share:.0%}", high, low, "")


def _tight(rows: list[Row]) -> Iterator[Claim]:
    three, eight = "attention ranks, three steps", "attention ranks, eight steps"
    yield from _pairs(rows, eight, three, "eight early steps are better than three")
    claim = "calibration by divergence is better than by count"
    yield from _pairs(rows, f"{eight}, by divergence", eight, claim)
    for steps in ("eight", "three"):
        claim = f"a learned ranking is better than attention's, {steps} steps"
        of_attention = eight if steps == "eight" else three
        yield from _pairs(rows, f"learned ranking, {steps} steps", of_attention, claim)
    learned = "learned ranking, eight steps"
    claim = "adaptive counts are better than fixed ones, with a learned ranking"
    yield from _pairs(rows, learned, f"{learned}, the same counts for every picture", claim)


def _adaptive(rows: list[Row]) -> Iterator[Claim]:
    yield from _pairs(rows, "adaptive", "fixed", "adaptive counts are better than fixed ones")


def _tuned(rows: list[Row]) -> Iterator[Claim]:
    claim = "tuning the language model too is better than heads alone"
    yield from _pairs(rows, "heads and decoder", "heads only", claim)


def _parts(rows: list[Row]) -> Iterator[Claim]:
    without, grids = "without spatial pruning", "spatial pruning, θ_s starts lower"
    yield from _pairs(rows, grids, without, "grids beside the redundant pruning are better")
    for name in dict.fromkeys(row["method"] for row in rows):
        if name not in ("ATP", without, grids):
            yield from _pairs(rows, "ATP", name, f"ATP is better than {name}")


def _extended(rows: list[Row]) -> Iterator[Claim]:
    claim = "tokens that may come back are better than tokens that are gone"
    yield from _pairs(rows, "revival", "ATP", claim)


def _depths(rows: list[Row]) -> Iterator[Claim]:
    def lost(kind: str, depth: int, ratio: float) -> dict[int, float]:
        """Return seed → share of the accuracy that is lost."""

        def of(ratio: float) -> dict[int, float]:
            keys = (kind, depth, ratio)
            found = [r for r in rows if (r["kind"], r["depth"], r["ratio"]) == keys]
            return {row["seed"]: row["accuracy"] for row in found}

        before, after = of(0.0), of(ratio)
        return {seed: 1 - after[seed] / before[seed] for seed in sorted(before)}

    depths = sorted({row["depth"] for row in rows})
    for ratio in (0.8, 0.95):
        for kind in ("fine", "coarse"):
            losses = [lost(kind, depth, ratio) for depth in depths]
            # Each depth against the next: all must fall, and one by more than its error.
            steps = [_gap(a, b) for a, b in itertools.pairwise(losses)]
            falls = all(gap >= -error for gap, error in steps)
            clear = any(gap > error for gap, error in steps)
            verdict = _holds(clear) if falls else "fails"
            if falls and not clear:
                verdict = "within error"
            figures = ", ".join(
                f"layer {depth}: {-statistics.mean(found.values()):+.1%}"
                for depth, found in zip(depths, losses, strict=True)
            )
            claim = f"pruning {ratio:.0%} hurts {kind} questions more in earlier layers"
            yield claim, verdict, figures
        fine, coarse = (lost(kind, depths[0], ratio) for kind in ("fine", "coarse"))
        claim = f"pruning {ratio:.0%} at layer {depths[0]} hurts fine questions more than coarse"
        gap, error = _gap(fine, coarse)
        verdict = "within error" if abs(gap) <= error else _holds(gap > 0)
        means = [-statistics.mean(found.values()) for found in (fine, coarse)]
        yield claim, verdict, f"{means[0]:+.1%} against {means[1]:+.1%}"


def _complex(rows: list[Row]) -> Iterator[Claim]:
    few, many = (
        statistics.mean(row["mean_tokens"] for row in rows if row["digits"] == digits)
        for digits in (1, 6)
    )
    yield (
        "complex pictures keep more tokens than simple ones",
        _holds(many > few),
        f"{many:.1f} against {few:.1f}",
    )


def _costs(rows: list[Row]) -> Iterator[Claim]:
    def of(method: str, name: str, text: int) -> float:
        return next(r[name] for r in rows if r["method"] == method and r["text"] == text)

    even = "144 in every layer"
    saved = 1 - of(even, "kv_bytes", 0) / of("unpruned", "kv_bytes", 0)
    yield "KV cache -75 % at 144 tokens", _holds(abs(saved - 0.75) < 0.005), f"-{saved:.1%}"
    found = {
        (method, text): 1 - of(method, "flops", text) / of("unpruned", "flops", text)
        for method in (even, "complex picture", "simple picture")
        for text in sorted({row["text"] for row in rows})
    }
    figures = ", ".join(f"{m}, {t} text: -{x:.1%}" for (m, t), x in found.items())
    near = any(abs(x - 0.781) < 0.005 for x in found.values())
    yield "FLOPs -78.1 % follow from 144 tokens or from the published counts", _holds(near), figures
