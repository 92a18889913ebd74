"""What the paper claims, asked of the rows."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

__all__ = ["claims"]

Row = dict[str, Any]
Claim = tuple[str, bool, str]


def claims(tables: dict[str, list[Row]]) -> Iterator[Claim]:
    """Each claim, whether the means bear it out, and the figures."""
    parts: dict[str, Callable[[list[Row]], Iterator[Claim]]] = {
        "table1": _ahead,
        "table2": _adaptive,
        "table3": _tuned,
        "ablations": _parts,
        "figure2": _depths,
        "layers": _complex,
        "table6": _costs,
    }
    for name, part in parts.items():
        if name in tables:
            yield from part(tables[name])


def _kept(rows: Sequence[Row], **keys: Any) -> float | None:
    found = [
        row["accuracy_kept"]
        for row in rows
        if "accuracy_kept" in row and all(row.get(k) == v for k, v in keys.items())
    ]
    return statistics.mean(found) if found else None


def _ahead(rows: list[Row]) -> Iterator[Claim]:
    names = {row["method"] for row in rows if not row["method"].startswith("ATP")}
    for share in sorted({row["share"] for row in rows}, reverse=True):
        keys = {"block": "mean", "share": share}
        ours = _kept(rows, method="ATP", **keys)
        others = {name: _kept(rows, method=name, **keys) for name in names}
        real = {name: kept for name, kept in others.items() if kept is not None}
        assert ours is not None
        best = max(real, key=lambda name: real[name])
        figures = f"ATP {ours:.1%}, next {best} {real[best]:.1%}"
        yield f"ATP is ahead of every rival at {share:.0%} mean tokens", ours > real[best], figures


def _pairs(rows: list[Row], better: str, worse: str, claim: str) -> Iterator[Claim]:
    for share in sorted({row["share"] for row in rows}, reverse=True):
        high, low = (_kept(rows, method=name, share=share) for name in (better, worse))
        if high is not None and low is not None:
            yield f"{claim}, {share:.0%}", high > low, f"{high:.1%} against {low:.1%}"


def _adaptive(rows: list[Row]) -> Iterator[Claim]:
    yield from _pairs(rows, "adaptive", "fixed", "adaptive counts are better than fixed ones")


def _tuned(rows: list[Row]) -> Iterator[Claim]:
    claim = "tuning the language model too is better than heads alone"
    yield from _pairs(rows, "heads and decoder", "heads only", claim)


def _parts(rows: list[Row]) -> Iterator[Claim]:
    for name in dict.fromkeys(row["method"] for row in rows):
        if name != "ATP":
            yield from _pairs(rows, "ATP", name, f"ATP is better than {name}")


def _depths(rows: list[Row]) -> Iterator[Claim]:
    def lost(kind: str, depth: int, ratio: float) -> float:
        def mean(r: float) -> float:
            return statistics.mean(
                row["accuracy"]
                for row in rows
                if (row["kind"], row["depth"], row["ratio"]) == (kind, depth, r)
            )

        return 1 - mean(ratio) / mean(0.0)

    depths = sorted({row["depth"] for row in rows})
    for kind in ("fine", "coarse"):
        losses = [lost(kind, depth, 0.8) for depth in depths]
        figures = ", ".join(f"layer {d}: -{x:.1%}" for d, x in zip(depths, losses, strict=True))
        falls = all(a >= b for a, b in itertools.pairwise(losses))
        yield f"pruning 80 % hurts {kind} questions more in earlier layers", falls, figures
    fine, coarse = (lost(kind, depths[0], 0.8) for kind in ("fine", "coarse"))
    figures = f"-{fine:.1%} against -{coarse:.1%} at layer {depths[0]}"
    yield "fine questions suffer more than coarse ones", fine > coarse, figures


def _complex(rows: list[Row]) -> Iterator[Claim]:
    few, many = (
        statistics.mean(row["mean_tokens"] for row in rows if row["digits"] == digits)
        for digits in (1, 6)
    )
    yield (
        "complex pictures keep more tokens than simple ones",
        many > few,
        f"{many:.1f} against {few:.1f}",
    )


def _costs(rows: list[Row]) -> Iterator[Claim]:
    def of(method: str, name: str, text: int) -> float:
        return next(r[name] for r in rows if r["method"] == method and r["text"] == text)

    even = "144 in every layer"
    saved = 1 - of(even, "kv_bytes", 0) / of("unpruned", "kv_bytes", 0)
    yield "KV cache -75 % at 144 tokens", abs(saved - 0.75) < 0.005, f"-{saved:.1%}"
    found = {
        (method, text): 1 - of(method, "flops", text) / of("unpruned", "flops", text)
        for method in (even, "complex picture", "simple picture")
        for text in sorted({row["text"] for row in rows})
    }
    figures = ", ".join(f"{m}, {t} text: -{x:.1%}" for (m, t), x in found.items())
    near = any(abs(x - 0.781) < 0.005 for x in found.values())
    yield "FLOPs -78.1 % follow from 144 tokens or from the published counts", near, figures
