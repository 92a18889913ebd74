"""The steps' results as a short table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.store import read
from benchmarks.tables import table

from .steps import STEPS

__all__ = ["render"]


def render(folder: Path) -> str:
    """Write a folder's results as Markdown.

    Raises
    ------
    ValueError
        If no results are there.
    """
    steps = {step.name: read(folder / f"{step.name}.json") for step in STEPS}
    steps = {name: found for name, found in steps.items() if found}
    if not steps:
        raise ValueError(f"{folder} holds no results: expected the --out of an earlier run.")
    parts = [_environment(steps.get("environment", {})), _states(steps)]
    for name, part in (("properties", _properties), ("kernels", _kernels)):
        if "wrong" in steps.get(name, {}):
            parts.append(part(steps[name]))
    speeds = {n: found for n, found in steps.items() if n.startswith("speed-") and "shape" in found}
    if speeds:
        parts.append(_speed(speeds))
    wrong = [
        f"- {name}: {each}" for name, found in steps.items() for each in found.get("wrong", [])
    ]
    if wrong:
        parts.append("**Found wrong**\n\n" + "\n".join(wrong) + "\n")
    return "\n".join(parts)


def _environment(found: dict[str, Any]) -> str:
    if "card" not in found:
        return "Environment: not known.\n"
    card, packages = found["card"], found["packages"]
    memory = f", {card['memory_bytes'] / 2**30:.0f} GiB" if card["memory_bytes"] else ""
    return (
        f"{card['name']}{memory}, driver {card['driver']}, CUDA {found['cuda']}, torch "
        f"{packages['torch']}, transformers {packages['transformers']}, triton "
        f"{packages['triton']}, commit {found['commit']}, {found['date']}"
        f"{', **tiny shapes**' if found['tiny'] else ''}.\n"
    )


def _states(steps: dict[str, dict[str, Any]]) -> str:
    body = [
        [name, found["status"], f"{found.get('seconds', 0):.0f}", found.get("reason", "")]
        for name, found in steps.items()
    ]
    return table(["step", "", "s", ""], body)


def _properties(found: dict[str, Any]) -> str:
    body = [
        [file, *(str(count[name]) for name in ("passed", "failed", "skipped"))]
        for file, count in found["files"].items()
    ]
    skips = [f"- {count} skipped: {reason}" for reason, count in found["skips"].items()]
    return table(["tests", "passed", "failed", "skipped"], body) + "\n".join(["", *skips, ""])


def _kernels(found: dict[str, Any]) -> str:
    """Write a row for each dtype and width of a head, with the times without a mask."""
    rows: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in found["kernels"]:
        rows.setdefault((row["dtype"], row["width"]), []).append(row)
    body = []
    for (dtype, width), masks in rows.items():
        errors = [row["error"] for row in masks if "error" in row]
        right = sum(bool(row.get("right")) for row in masks)
        checked = masks[0].get("not_run", f"{right} of {len(masks)}")
        took: dict[str, Any] = next((row["ms"] for row in masks if row["mask"] == "none"), {})
        body.append(
            [
                f"{dtype}, {width}",
                checked,
                f"{max(errors):.1e}" if errors else "-",
                *(
                    f"{took[name]:.3f}" if name in took else "-"
                    for name in ("triton", "triton, two passes", "plain", "attention")
                ),
                took.get("attention_backend", "-"),
                "-" if took.get("lse_error") is None else f"{took['lse_error']:.1e}",
            ]
        )
    failed = [
        f"- {row['dtype']}, {row['width']}, {row['mask']}: {row['failed']}"
        for row in found["kernels"]
        if "failed" in row
    ]
    head = ["kernels, head", "right", "largest error", "Triton ms", "two passes", "plain torch"]
    head += ["attention", "by", "its lse off by"]
    return table(head, body) + "\n".join(["", *failed, ""])


def _speed(steps: dict[str, dict[str, Any]]) -> str:
    body = []
    for found in steps.values():
        for size, batch in found["batches"].items():
            memory, pruner = batch.get("memory", {}), batch.get("pruner", {})
            prefill, decode = found["prefill"].get(size, {}), batch.get("decode", {})
            tokens = decode.get("tokens_per_s", {})
            body.append(
                [
                    f"{found['shape']}, {size}",
                    *(
                        _number(prefill.get(f"{n}_s"), 1e3, ".1f")
                        for n in ("unpruned", "oracle", "atp")
                    ),
                    _number(prefill.get("speedup"), 1, ".2f"),
                    _number(prefill.get("oracle_ratio"), 1, ".3f"),
                    _number(pruner.get("all"), 1e3, ".2f"),
                    *_both(tokens, 1, ".0f"),
                    *_both({n: m["peak_bytes"] for n, m in memory.items()}, 2**-30, ".2f"),
                    *_both({n: m["kv_bytes"] for n, m in memory.items()}, 2**-20, ".0f"),
                ]
            )
    head = ["prefill, ms", "unpruned", "oracle", "ATP", "speed-up", "oracle ratio", "pruner ms"]
    head += ["tokens/s", "ATP", "peak GiB", "ATP", "cache MiB", "ATP"]
    notes = [
        f"- {found['shape']}, {what}: {message}"
        for found in steps.values()
        for what, message in found["out_of_memory"].items()
    ]
    notes += [
        f"- {found['shape']}: not measured: {', '.join(found['left_out'])}"
        for found in steps.values()
        if found["left_out"]
    ]
    return table(head, body) + "\n".join(["", *notes, ""])


def _both(found: dict[str, float], factor: float, form: str) -> list[str]:
    return [_number(found.get(name), factor, form) for name in ("unpruned", "ATP")]


def _number(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(value * factor, form)
