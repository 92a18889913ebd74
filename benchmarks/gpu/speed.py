"""The speed benchmark at a 7B model's full dimensions, on random weights, at batch 1, 8 and 32."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.speed import inference, overhead, scoring
from benchmarks.speed.kept import kept_of
from benchmarks.speed.memory import peak_bytes
from benchmarks.speed.shapes import SHAPES, Shape, build, inputs
from benchmarks.speed.timing import Variant, interleaved
from benchmarks.speed.variants import core, features_once
from tokenprune.kernels.received import _fused_works

from .device import release
from .results import Job

__all__ = ["ROUNDS", "measure", "shape_of"]

ROUNDS = {1: 15, 8: 7, 32: 4}
"""Batch → rounds, each of which runs every variant once."""

_DTYPE = torch.bfloat16
_NEW_TOKENS = 16
_FAR = 0.12  # how far ATP's logits may be from the oracle's, as tests/support/tolerance.py has it
_PIECES = ("memory", "prefill", "pruner", "decode")


def shape_of(job: Job) -> Shape:
    """Return the dimensions that the step is named after, or tiny ones to try the command."""
    shape = SHAPES[job.step.removeprefix("speed-")]
    if not job.tiny:
        return shape
    decoder: dict[str, Any] = {
        "layers": 5,
        "width": 32,
        "mlp": 32,
        "heads": 4,
        "prune_after": (0, 1, 3),
    }
    prompt: dict[str, Any] = {
        "side": 4,
        "before": 4,
        "after": 3,
        "tower_layers": 2,
        "tower_width": 64,
    }
    kv_heads = 2 if shape.kv_heads else None
    return replace(shape, name=f"{shape.name}, tiny", kv_heads=kv_heads, **decoder, **prompt)


def measure(job: Job) -> dict[str, Any]:
    """Measure batch by batch, noting what runs out of memory.

    Returns
    -------
    dict
        What `benchmarks.speed` writes of a shape, as far as it is measured here, and for each batch
        ``memory`` (peak bytes on top of the weights, bytes of the cache), ``pruner`` and
        ``decode``. ``out_of_memory``: what was tried, and torch's message. ``left_out``: what is
        not measured yet.
    """
    return Speed(job).measure()


class Speed:
    """One run."""

    def __init__(self, job: Job) -> None:
        self.job, self.device, self.shape = job, job.device, shape_of(job)
        self.rounds = dict.fromkeys(ROUNDS, 1) if job.tiny else ROUNDS
        left = [f"b{size} {piece}" for size in ROUNDS for piece in _PIECES]
        self.found: dict[str, Any] = {
            "command": f"python -m benchmarks.gpu --only {job.step} --device {job.device}"
            + " --tiny" * job.tiny,
            "shape": self.shape.name,
            "dimensions": asdict(self.shape),
            "dtype": str(_DTYPE).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "environment": environment(),
            "out_of_memory": {},
            "left_out": [*left, "overheads"],
            "wrong": [],
            "prefill": {},
            "batches": {},
        }

    def measure(self) -> dict[str, Any]:
        """Measure everything."""
        start = time.perf_counter()
        self.model = build(self.shape, self.device, _DTYPE)
        layers = len(self.model.model.language_model.layers)
        self.note(
            build_s=time.perf_counter() - start,
            weight_bytes=sum(p.nbytes for p in self.model.parameters()),
            layers=layers,
            full_depth=layers == SHAPES[self.job.step.removeprefix("speed-")].layers,
            scoring=self.scored_by(),
        )
        for size in self.rounds:
            self.attempt(f"b{size}", partial(self.batch, size))
            # What ran out of memory is not left for later.
            self.found["left_out"] = [
                name for name in self.found["left_out"] if not name.startswith(f"b{size} ")
            ]
            self.note()
            if size == 1:
                self.attempt("overheads", self.overheads)
                self.done("overheads")
        return self.found

    def scored_by(self) -> str:
        """Return which kernel computes attention received in this model."""
        width = self.shape.width // self.shape.heads
        device = self.model.device
        return "triton" if _fused_works(device, _DTYPE, width, None) else "plain torch"

    def note(self, **values: Any) -> None:
        """Add results, and save all."""
        self.found.update(values)
        self.job.save(self.found)

    def done(self, name: str) -> None:
        """Mark a piece as measured."""
        self.found["left_out"].remove(name)
        self.note()

    def attempt(self, name: str, work: Callable[[], Any]) -> Any:
        """Do something. Return None, and note it, where memory does not suffice."""
        try:
            return work()
        except torch.OutOfMemoryError as error:
            self.found["out_of_memory"][name] = str(error).split("\n")[0]
        finally:
            release(self.device)
        return None

    def batch(self, size: int) -> None:
        """Measure all pieces at one batch size, with the variants that fit."""
        model, shape, device, rounds = self.model, self.shape, self.device, self.rounds[size]
        batch = inputs(shape, size, device, _DTYPE)
        kept = kept_of(shape, size, device, ragged=size > 1)
        variants = core(model, shape, kept)
        del variants["ATP, full map"]  # seconds and gigabytes
        here = self.found["batches"][f"b{size}"] = {}
        forward = partial(inference.forward, model, batch)

        def piece(name: str, work: Callable[[], Any]) -> Any:
            result = self.attempt(f"b{size} {name}", work)
            if result is not None:
                here[name] = result
            self.done(f"b{size} {name}")
            return result

        with features_once(model, batch):
            piece("memory", partial(self.memory, size, variants, forward))
            fit = {name: variant for name, variant in variants.items() if name in here["memory"]}
            if not fit:
                return
            prefill = piece(
                "prefill",
                lambda: inference.against_oracle(interleaved(fit, forward, rounds, device)),
            )
            if prefill is not None:
                self.found["prefill"][f"b{size}"] = here.pop("prefill")
            if "ATP" in fit:
                piece(
                    "pruner",
                    lambda: scoring.split(model, shape, kept, forward, min(rounds, 5), device),
                )
        tokens = 2 if self.job.tiny else _NEW_TOKENS
        decode = partial(inference.decode, model, batch, fit, tokens, min(rounds, 3), device)
        took = piece("decode", decode)
        if took is not None:
            took["tokens_per_s"] = {n: size / took[f"{n.lower()}_s"] for n in fit}
        if size == 1:
            # Where `benchmarks.speed` has them.
            self.note(**{name: here[name] for name in ("pruner", "decode") if name in here})

    def memory(
        self, size: int, variants: Mapping[str, Variant], forward: Callable[[], Any]
    ) -> dict[str, Any]:
        """Measure each variant's peak memory and cache; compare ATP's work with the oracle's."""
        found: dict[str, Any] = {}
        last: dict[str, tuple[Tensor, list[int]]] = {}

        def once(name: str) -> None:
            with variants[name]():
                out = forward()  # what is built or chosen at the first call is not the work's
                lengths = [layer.keys.shape[2] for layer in inference.cache_of(out).layers]
                # The last row has the most tokens, and so no padding at its end.
                last[name] = out.logits[-1, -1].float().cpu(), lengths
                cache = inference.cache_bytes(inference.cache_of(out))
                del out
                found[name] = {"kv_bytes": cache, "peak_bytes": peak_bytes(forward, self.device)}

        for name in variants:
            self.attempt(f"b{size} {name}", partial(once, name))
        if {"oracle", "ATP"} <= found.keys():
            (logits, lengths), (expected, expected_lengths) = last["ATP"], last["oracle"]
            off = ((logits - expected).norm() / expected.norm()).item()
            found["ATP"]["logits_off_oracle"] = off
            if lengths != expected_lengths:
                self.found["wrong"].append(
                    f"b{size}: cache of {lengths}, oracle's {expected_lengths}"
                )
            if not off <= _FAR:  # NaN too
                self.found["wrong"].append(
                    f"b{size}: ATP's logits are off the oracle's by {off:.3g}"
                )
        return found

    def overheads(self) -> None:
        """Measure what wrapping and scoring cost, by a paused model and by one layer."""
        kept = kept_of(self.shape, 1, self.device, ragged=False)
        rounds = 1 if self.job.tiny else 20
        given = (self.model, self.shape, kept, rounds, self.device)
        slower, noise = overhead.paused_overhead(*given)
        self.note(paused_overhead=slower, paused_spread=noise)
        memory = scoring.memory(self.shape, 1, self.device, _DTYPE)
        self.note(scoring_extra_bytes=memory["scoring"], scoring_extra_share=memory["share"])
