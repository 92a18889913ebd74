"""The measured figures as one page; nothing in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import table

from .predict import predicted
from .shapes import SHAPES, Shape

__all__ = ["render"]

_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_HEAD = """# Performance

Written by `python -m benchmarks.speed --render docs/performance.md` from
`benchmarks/results/speed-*.json`, each measured by the command beside it: do not edit.

The yardstick is the **oracle**: the same unwrapped model on the same tokens in each layer, known in
advance, with no scores, no decision and no wait for the device; hidden states and position
embeddings are picked by indices made before the clock starts. *Oracle ratio* is its time over
ATP's: 1 is the best there can be. Weights are random; ATP computes its scores, heads and thresholds
in full, and what is then kept is forced to the paper's counts (143, 109 and 21 of 576 tokens after
its three steps, the simple picture's 106, 81 and 19 in the lightest row of a ragged batch), so
that the work is the paper's. Variants take turns within a round; figures are medians over rounds,
ratios medians of the rounds' ratios, ± half of the range between the quartiles, which is how much
the machine wavers: the median of 30 rounds (5 at batch 8) is surer than one of them.
"""


def render(results: Path) -> str:
    """Write the page of a folder's results."""
    read = {
        path: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(results.glob("speed-*.json"))
    }
    parts = [_HEAD]
    if all(found["device"] == "cpu" for found in read.values()):
        parts.append("Not measured yet: anything on a GPU.\n")
    parts += [_machine(path, found) for path, found in read.items()]
    measured = {found["shape"] for found in read.values()}
    others = [shape for name, shape in SHAPES.items() if name not in measured]
    if others:
        parts.append(_counted(others))
    return "\n".join(parts)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def _bytes(value: float) -> str:
    return f"{value / 2**20:.2f} MiB"


def _machine(path: Path, found: dict[str, Any]) -> str:
    where, shape = found["environment"], SHAPES[found["shape"]]
    machine = where["gpu"] if found["device"] != "cpu" else where["processor"]
    parts = [
        f"## {machine}\n",
        f"`{path.name}`, by `{found['command']} --json …`:\n"
        f"{shape.name} ({shape.layers} layers of {shape.width}, MLP {shape.mlp}, "
        f"{shape.visual} visual and {shape.before + shape.after} text tokens, pruned after layers "
        f"{', '.join(map(str, shape.prune_after))}), {found['dtype']}, "
        f"{found['threads']} CPU threads, torch {where['torch']}, "
        f"transformers {where['transformers']}.\n",
        _prediction(shape, found),
        _goals(found),
        _prefill(found),
    ]
    for name, part in (
        ("methods", _methods),
        ("decode", _decode),
        ("throughput", _throughput),
        ("end_to_end", _end_to_end),
        ("growth", _growth),
    ):
        if name in found:
            parts.append(part(found[name]))
    parts += [_pruner(found), _overheads(found)]
    return "\n".join(parts)


def _prediction(shape: Shape, found: dict[str, Any]) -> str:
    expected = predicted(shape, _VALUE_BYTES[found["dtype"]])
    return (
        f"**Counted before anything was measured**: {expected['flops']:.1%} of the decoder's "
        f"prefill operations are left and {expected['kv']:.1%} of the cache, so a prefill can be "
        f"{expected['speedup']:.2f} times as fast where products are all; scoring adds "
        f"{expected['scoring']:.2%} of operations to that.\n"
    )


def _counted(shapes: Sequence[Shape]) -> str:
    """Write what is known of shapes that were not measured."""
    body = []
    for shape in shapes:
        expected = predicted(shape, 2)
        body.append(
            [
                shape.name,
                str(shape.length),
                f"{expected['speedup']:.2f}",
                f"{_bytes(expected['kv_bytes'] / expected['kv'])} → {_bytes(expected['kv_bytes'])}",
                f"{expected['scoring']:.2%}",
                _bytes(expected["scoring_bytes"]),
            ]
        )
    head = ["", "prompt tokens", "speed-up at most", "cache of a prompt", "scoring", "it moves"]
    return (
        "## Counted, not measured\n\n"
        "Shapes that wait for a machine, in 16 bits, at the same shares of kept tokens: the "
        "prefill's speed-up where products are all, the operations that scoring adds to what is "
        "left, and the bytes that all pruning steps together move for it. A GPU moves those in "
        "microseconds: there the pruner should cost what its small launches do.\n\n"
        + table(head, body)
    )


def _goals(found: dict[str, Any]) -> str:
    """Set the figures beside the project's goals."""
    cpu, rows = found["device"] == "cpu", found["prefill"]
    size = "b1" if cpu else "b8"
    goals = [
        ("oracle ratio, batch 1", rows["b1"]["oracle_ratio"], "≥", 0.97 if cpu else 0.95),
        ("oracle ratio, batch 8, ragged", rows["b8"]["oracle_ratio"], "≥", 0.95 if cpu else 0.97),
        (f"speed-up, batch {size[1:]}", rows[size]["speedup"], "≥", 2.5),
        ("a paused model, slower by", found["paused_overhead"], "≤", 0.01),
        ("scoring's memory, of the layer's", found["scoring_extra_share"], "≤", 0.02),
    ]
    if "training" in found:
        goals.append(("training step, of the unwrapped", found["training"]["ratio"], "≤", 1.3))
    if not cpu:
        goals.append(("the pruner alone, ms", 1e3 * found["pruner"]["all"], "≤", 1.0))
    body = []
    for name, value, sign, limit in goals:
        met = value >= limit if sign == "≥" else value <= limit
        body.append([name, f"{sign} {limit:g}", f"{value:.3f}", "yes" if met else "**no**"])
    return table(["goal", "limit", "here", "met"], body)


def _prefill(found: dict[str, Any]) -> str:
    head = ["prefill", "unpruned", "oracle", "ATP", "oracle ratio", "speed-up", "ATP by full map"]
    body = []
    first = (
        {"first token, tower included, batch 1": found["first_token"]}
        if ("first_token" in found)
        else {}
    )
    rows = {f"batch {name[1:]}": row for name, row in found["prefill"].items()} | first
    for name, row in rows.items():
        full = row.get("atp_full_map_s")
        body.append(
            [
                name,
                *(
                    f"{_seconds(row[f'{key.lower()}_s'])} ± {row['spread'][key]:.0%}"
                    for key in ("unpruned", "oracle", "ATP")
                ),
                f"**{row['oracle_ratio']:.3f}** ± {row['oracle_ratio_spread']:.3f}",
                f"{row['speedup']:.2f}",
                "-" if full is None else _seconds(full),
            ]
        )
    return table(head, body)


def _methods(row: dict[str, Any]) -> str:
    body = [
        [name, _seconds(row[f"{name.lower().replace(', ', '_').replace(' ', '_')}_s"])]
        for name in row["spread"]
    ]
    return (
        "Other methods, time to first token at batch 1, at the same mean of tokens where they "
        "can:\n\n" + (table(["", "time"], body))
    )


def _throughput(found: dict[str, Any]) -> str:
    body = [
        [name, str(row["rows"]), f"{row['prompts_per_s']:.2f}", f"{row['tokens_per_s']:.1f}"]
        for name, row in found.items()
        if name != "budget_bytes"
    ]
    return (
        f"The largest batch whose cache of prompts fits into {_bytes(found['budget_bytes'])}, "
        "measured once:\n\n"
        + table(["", "rows", "prompts a second", "decoded tokens a second"], body)
    )


def _decode(row: dict[str, Any]) -> str:
    return (
        f"Each decoded token: unpruned {_seconds(row['unpruned_s'])}, oracle "
        f"{_seconds(row['oracle_s'])}, ATP {_seconds(row['atp_s'])} "
        f"(oracle ratio {row['oracle_ratio']:.3f}).\n"
    )


def _end_to_end(rows: dict[str, Any]) -> str:
    body = [
        [
            new_tokens,
            *(_seconds(row[f"{name}_s"]) for name in ("unpruned", "oracle", "atp")),
            f"{row['oracle_ratio']:.3f}",
            f"{row['speedup']:.2f}",
        ]
        for new_tokens, row in rows.items()
    ]
    head = ["`generate`, new tokens", "unpruned", "oracle", "ATP", "oracle ratio", "speed-up"]
    return table(head, body)


def _growth(found: dict[str, Any]) -> str:
    body = [
        [
            str(row["visual_tokens"]),
            _seconds(row["scoring_s"]),
            _seconds(row["attention_s"]),
            _seconds(row["layer_s"]),
            f"{row['scoring_s'] / row['layer_s']:.1%}",
            _bytes(row["scoring_bytes"]),
            f"{row['scoring_bytes'] / row['layer_bytes']:.1%}",
        ]
        for row in found["rows"]
    ]
    powers = found["exponents"]
    head = [
        "visual tokens",
        "scoring",
        "attention",
        "decoder layer",
        "scoring of it",
        "scoring's memory",
        "of the layer's",
    ]
    return (
        "Scoring at one pruning step against one unpruned decoder layer on as many tokens:\n\n"
        + table(head, body)
        + f"\nTime grows as the tokens to the {powers['scoring_s']:.2f} (attention itself "
        f"{powers['attention_s']:.2f}, layer {powers['layer_s']:.2f}), memory to the "
        f"{powers['scoring_bytes']:.2f} (layer {powers['layer_bytes']:.2f}).\n"
    )


def _pruner(found: dict[str, Any]) -> str:
    row = found["pruner"]
    parts = ", ".join(f"{name} {_seconds(row[name])}" for name in row if name != "all")
    share = row["all"] / found["prefill"]["b1"]["atp_s"]
    return (
        f"The pruner alone, all pruning steps, batch 1: {_seconds(row['all'])}, {share:.1%} of the "
        f"prefill ({parts}). The oracle gathers too. **What limits it now** is "
        f"{max((n for n in row if n != 'all'), key=row.__getitem__)}: "
        f"{row['scores'] / row['all']:.0%} of the pruner's time is scores.\n"
    )


def _overheads(found: dict[str, Any]) -> str:
    text = (
        f"A wrapped, paused model takes {found['paused_overhead']:+.1%} ± "
        f"{found['paused_spread']:.1%} longer for a single token. Scoring needs "
        f"{_bytes(found['scoring_extra_bytes'])} at its peak, {found['scoring_extra_share']:.2%} "
        "of what the decoder layer before it does.\n"
    )
    if "training" in found:
        row = found["training"]
        text += (
            f"\nA training step of the heads takes {row['ratio']:.2f} times the forward and "
            f"backward pass of the unwrapped model whose gradient goes as far down "
            f"({_seconds(row['heads_s'])} and {_seconds(row['unpruned_s'])}).\n"
        )
    return text
