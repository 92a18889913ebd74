"""The results as one Markdown page with its pictures; nothing in it is typed by hand."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.store import Row
from benchmarks.tables import table

from . import charts
from .cells import budgets, mark, mean, names, of, spread
from .claims import claims
from .missing import not_measured
from .positions import better
from .setting import FULL
from .tight import ROWS

__all__ = ["render"]

_HEAD = """# The paper's tables and figures, reproduced

Written by `python -m benchmarks.reproduce --render docs/reproduction.md` from
`benchmarks/results/`, which `make reproduce` measures: do not edit. {machine}.

ATP-LLaVA (arXiv 2412.00447) reports LLaVA-1.5-7B on seven benchmarks. No released weights were at
hand: here the model is the small LLaVA of `benchmarks/digits_vqa` (24 layers, 144 visual tokens,
{base} of the held-out questions right as it is), its questions are about composed pictures of real
handwriting, and {seeds} seed(s) each have their own training pictures, calibration pictures and
{questions} held-out questions. ATP's heads are trained {steps} steps with everything else frozen.
So these tables say whether the paper's claims hold on a second, much smaller case; they are not its
numbers. ± is one standard error of the mean over the seeds.
"""


def render(results: Path, folder: Path) -> str:
    """Write the page, and its pictures into a folder."""
    tables = {p.stem: json.loads(p.read_text()) for p in sorted(results.glob("*.json"))}
    parts = [_head(tables)]
    for name, part in (
        ("table1", _table1),
        ("tight", _tight),
        ("table2", _table2),
        ("table3", _table3),
        ("ablations", _ablations),
        ("table6", _table6),
        ("figure2", _figure2),
        ("layers", _layers),
        ("extensions", _extensions),
    ):
        if name in tables:
            parts.append(part(tables[name]["rows"], folder))
    parts.append(
        _claims({name: found["rows"] for name, found in tables.items() if "rows" in found})
    )
    return "\n".join(parts)


def _head(tables: dict[str, Any]) -> str:
    first = tables["table1"]
    where = first["environment"]
    base = statistics.mean(
        row["accuracy"] / row["accuracy_kept"] for row in first["rows"] if row["method"] == "ATP"
    )
    machine = (
        f"{where['cores']} CPU cores ({where['processor']}), GPU: {where['gpu']}, "
        f"torch {where['torch']}, transformers {where['transformers']}"
    )
    return _HEAD.format(
        machine=machine,
        base=f"{base:.1%}",
        seeds=len(first["seeds"]),
        questions=first["questions"],
        steps=first["steps"],
    )


def _kinds(rows: Sequence[Row], share: float) -> str:
    found = of(rows, block="mean", share=share)
    kinds = list(found[0]["kinds"])
    body = []
    for name in names(found):
        mine = of(found, method=name)
        cells = [
            f"{statistics.mean(row['kinds'][kind] for row in mine if kind in row['kinds']):.0%}"
            for kind in kinds
        ]
        body.append([name + mark(mine[0]), *cells])
    return table(["method", *(kind.replace("_", " ") for kind in kinds)], body)


def _table1(rows: list[Row], folder: Path) -> str:
    absent = not_measured(rows)
    rows = better(rows)
    shares = sorted({row["share"] for row in rows})
    kinds = 0.25 if 0.25 in shares else shares[0]
    return f"""## Table 1: every method at each budget

Accuracy kept, % of the unpruned model, with (mean tokens over all layers / tokens after the last
layer that drops), of 144. First the budget is the **mean over all layers**:

{budgets(rows, {"block": "mean"})}
The same with the budget as **final tokens**; what keeps early layers whole then computes more:

{budgets(rows, {"block": "final"})}
{absent}† : survivors numbered anew without gaps (`positions="renumbered"`). Methods whose authors
run them so were measured both ways, and the better one stands here; all others keep their
positions.

- : out of the method's reach (PyramidDrop keeps a quarter of the layers whole; FastV's two layers
leave less than a token; Matryoshka's scales have no such number). Methods stand at their papers'
places in proportion to the depth. Two things here are hard on rivals, and say nothing of them on
LLaVA-1.5: the small model recognises digits in its first layers, so what drops before those drops
unread tokens; and its tower's class token was never trained for anything, which is what PruMerge
and VisionZip go by. Matryoshka is meant for models that were trained with it. ATP's learned
ranking has eight steps in early layers and was fitted to {FULL.ranking:,} training pictures without
labels; what each of the two is worth is the next table. All rivals are as they come, fitted to
nothing.

Accuracy by kind of question at {kinds:.0%} mean tokens:

{_kinds(rows, kinds)}"""


def _tight(rows: list[Row], folder: Path) -> str:
    absent = [name for name in ROWS if name not in names(rows)]
    note = f"Not measured yet: {'; '.join(absent)}.\n" if absent else ""
    return f"""## Tight budgets: early steps, and a learned ranking

ATP's heads as they begin, calibrated; the redundant pruning alone. Three steps: after layers 1, 4
and 12, as in table 1; eight: after layers 0, 1, 2, 3, 4, 6, 8 and 12. A learned ranking is fitted
to the unpruned model's attention on {FULL.ranking:,} other training pictures without labels
(`tokenprune.fit_ranking`); the rivals of table 1 are training-free.

{budgets(rows, {})}
{note}"""


def _table2(rows: list[Row], folder: Path) -> str:
    return f"""## Table 2: adaptive against fixed

The same heads, the same mean counts after each step; "fixed" keeps that many of every picture,
those farthest above the thresholds.

{budgets(rows, {})}"""


def _table3(rows: list[Row], folder: Path) -> str:
    return f"""## Table 3: what is tuned

Beside the heads: nothing, LoRA (rank 8) on the decoder's projections, or the whole decoder; the
same pictures and steps, trained at 25 %.

{budgets(rows, {})}"""


def _ablations(rows: list[Row], folder: Path) -> str:
    lost = [f"{r['method']} at {r['share']:.0%}" for r in rows if "unreachable" in r]
    note = "Out of reach: " + ", ".join(sorted(set(lost))) + ".\n" if lost else ""
    return f"""## Tables 4 and 5: what each part contributes

Heads trained anew with each choice. At the defaults no grid stays: θ_s starts at 0.953, above the
ladder's highest score of 0.917, and training leaves it there. So "without spatial pruning" is the
default's pruning by another name; what grids do shows where θ_s starts lower, at 0.731.

{budgets(rows, {})}
{note}"""


def _table6(rows: list[Row], folder: Path) -> str:
    body = []
    for text in sorted({row["text"] for row in rows}):
        full = of(rows, method="unpruned", text=text)[0]
        for row in of(rows, text=text):
            body.append(
                [
                    f"{row['method']}, {text} text tokens",
                    f"{row['mean_tokens']:.1f}",
                    f"{row['kv_bytes'] / 1e6:.1f}",
                    f"{row['kv_bytes'] / full['kv_bytes'] - 1:+.1%}",
                    f"{row['flops'] / 1e12:.3f}",
                    f"{row['flops'] / full['flops'] - 1:+.1%}",
                    f"{abs(row['flops'] / row['flops_closed'] - 1):.1e}",
                ]
            )
    head = ["", "mean tokens", "KV MB", "", "TFLOP", "", "counter against closed form"]
    return f"""## Table 6: what it costs at LLaVA-1.5-7B's dimensions

Layers of LLaMA-7B's shape in float16 on torch's meta device (real shapes, no numbers), at the
paper's per-layer counts: bytes of the cache they filled, operations as torch counts them.

{table(head, body)}
The paper: KV 302 → 75.6 MB (-75 %), FLOPs -78.1 %, CUDA time -38.4 %. Its bytes are those of 576
and of 144 visual tokens in every layer, text left out. Time was not measured: no GPU was at hand.
"""


def _figure2(rows: list[Row], folder: Path) -> str:
    charts.figure2(rows, folder / "figure2.png")
    ratios = sorted({row["ratio"] for row in rows}, reverse=True)
    body = []
    for kind in ("fine", "coarse"):
        for depth in sorted({row["depth"] for row in rows}):
            found = [of(rows, kind=kind, depth=depth, ratio=ratio) for ratio in ratios]
            cells = [spread([row["accuracy"] for row in some]) for some in found]
            body.append([f"{kind}, layer {depth} of 32", *cells])
    return f"""## Figure 2: one layer only

Tokens pruned once, after one layer (the paper's layers 5, 15, 25 of 32 are 4, 11, 19 of 24 here),
ranked by the redundant score. Fine questions need the shape of a digit, coarse ones only colours
and places. Accuracy, %, by the share that goes.

![Accuracy by pruned share, three depths, fine and coarse questions](figure2.png)

{table(["", *(f"{ratio:.0%}" for ratio in ratios)], body)}"""


def _layers(rows: list[Row], folder: Path) -> str:
    charts.layers(rows, folder / "layers.png")
    return """## Tokens in each layer, simple and complex pictures

At a mean of 25 %: pictures of one digit, and of six.

![Tokens in each decoder layer](layers.png)
"""


def _extensions(rows: list[Row], folder: Path) -> str:
    body = []
    seeds = len({row["seed"] for row in rows})
    for name in names(rows):
        for share in sorted({row["share"] for row in rows}, reverse=True):
            found = of(rows, method=name, share=share)
            body.append(
                [
                    f"{name}, {share:.0%}"
                    + ("" if len(found) == seeds else f" ({len(found)} of {seeds} seeds)"),
                    spread([row["accuracy_kept"] for row in found]),
                    f"{mean(found, 'mean_tokens'):.1f} / {mean(found, 'final_tokens'):.1f}",
                    f"{mean(found, 'kv_share'):.1%}",
                    f"{mean(found, 'flops_share'):.1%}",
                ]
            )
    head = ["", "accuracy kept, %", "mean / final tokens", "KV bytes left", "prefill FLOPs left"]
    return f"""## Beyond the paper: tokens that come back, text that goes

Both are options of ATP, off by default. *Revival*: tokens dropped at one step may come back at
the next (heads trained so; the keys that scoring them needs are not in the FLOPs). *Text above x*:
from the second step on, instruction tokens stay whose share-normalised attention from the
prompt's text is above x (the same heads as without). The prompts here have about fifteen text
tokens: on a real model, whose prompts are longer, text is a larger part of what is left.

{table(head, body)}"""


def _claims(tables: dict[str, list[Row]]) -> str:
    body = [
        [claim, verdict if verdict == "holds" else f"**{verdict}**", figures]
        for claim, verdict, figures in claims(tables)
    ]
    return (
        '## The claims here\n\n"Within error": the seeds\' mean difference is smaller than its own '
        "standard error.\n\n" + table(["claim", "", "measured"], body)
    )
