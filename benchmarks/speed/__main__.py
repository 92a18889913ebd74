"""How fast, against the best possible: the same layers on the same tokens, known in advance.

    python -m benchmarks.speed --json benchmarks/results/speed-cpu.json
    python -m benchmarks.speed --quick --json out.json
    python -m benchmarks.speed --device cuda --shape qwen2-vl-7b --json …
    python -m benchmarks.speed --render docs/performance.md

Kept counts are forced to the paper's, so that the work is the paper's; weights are random, made on
the device.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from benchmarks.store import write
from benchmarks.tables import write_page

from . import inference, overhead, scoring
from .kept import kept_of
from .render import render
from .shapes import CPU, SHAPES, Shape, build, inputs
from .variants import core, features_once, rivals


def measure(quick: bool, device: str, shape: Shape) -> dict[str, Any]:
    """Measure prefill and overheads, and without `quick` the rest."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    model = build(shape, device, dtype)
    rounds, many = 5, 30  # many where a hundredth matters
    batches = (1, 8) if device == "cpu" else (1, 8, 32)
    found: dict[str, Any] = {
        "command": f"python -m benchmarks.speed --device {device} --shape {shape.name}"
        + " --quick" * quick,
        "shape": shape.name,
        "dtype": str(dtype).removeprefix("torch."),
        "device": device,
        "threads": torch.get_num_threads(),
        "environment": environment(),
        "prefill": {},
    }

    def note(name: str, value: Any) -> None:
        found[name] = value
        print(name, json.dumps(value, indent=1), flush=True)

    for size in batches:
        batch, kept = inputs(shape, size, device, dtype), kept_of(shape, size, device, size > 1)
        variants = core(model, shape, kept)
        if quick and size > 1:
            del variants["ATP, full map"]
        few = many if size == 1 else rounds
        found["prefill"][f"b{size}"] = inference.prefill(model, batch, variants, few, device)
        print(f"prefill b{size}", json.dumps(found["prefill"][f"b{size}"], indent=1), flush=True)
    batch, kept = inputs(shape, 1, device, dtype), kept_of(shape, 1, device, ragged=False)
    slower, noise = overhead.paused_overhead(model, shape, kept, 4 * many, device)
    note("paused_overhead", slower)
    note("paused_spread", noise)
    memory = scoring.memory(shape, 1, device, dtype)
    note("scoring_extra_bytes", memory["scoring"])
    note("scoring_extra_share", memory["share"])
    work = partial(inference.forward, model, batch)
    with features_once(model, batch):
        note("pruner", scoring.split(model, shape, kept, work, rounds, device))
    if quick:
        return found
    eight = 8 if device == "cpu" else 32
    note("throughput", inference.throughput(model, shape, eight, 8, device, dtype))
    variants = core(model, shape, kept)
    note("first_token", inference.prefill(model, batch, variants, rounds, device, tower=True))
    others = {**variants, **rivals(model, shape, kept)}
    del others["ATP, full map"]
    note("methods", inference.prefill(model, batch, others, rounds, device, tower=True))
    three = {name: variants[name] for name in ("unpruned", "oracle", "ATP")}
    note("decode", inference.decode(model, batch, three, 16, rounds, device))
    note("end_to_end", inference.end_to_end(model, batch, three, (1, 64, 256), 3, device))
    note("growth", scoring.growth(shape, (24, 36, 48, 68, 96), 3, device, dtype))
    note("training", overhead.training(model, shape, batch, 7, device))
    return found


def main() -> None:
    """Measure, or write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="prefill and overheads: 5 minutes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", choices=SHAPES, help="llava-1.5-7b, on a CPU a smaller one")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--render", type=Path, help="only write the page of the results to a file")
    options = parser.parse_args()
    if options.render:
        write_page(options.render, render(options.results))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    usual = CPU.name if options.device == "cpu" else "llava-1.5-7b"
    found = measure(options.quick, options.device, SHAPES[options.shape or usual])
    if options.json:
        write(options.json, found)


if __name__ == "__main__":
    main()
