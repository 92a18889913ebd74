"""Run many forward passes with changing shapes and see that memory stays flat.

    python -m tests.support.soak --count 10000

Each method has a model that stays wrapped, one more is wrapped and unwrapped again and again.
Prompts, rows and padding are drawn; of eight passes five are a forward, two a `generate`, and one a
training step where the method trains. After each quarter it counts the tensors alive, what the
engine keeps of passes, and the peak of resident memory. The exit code is 1 if any of them is larger
after the last quarter than after the first, which is warm-up, by more than its bound.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import torch

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.engine.cached_positions import CachedPositions
from tokenprune.engine.calls import Call
from tokenprune.engine.passes import Pass
from tokenprune.engine.record import Record

from .case_counts import count
from .strategies import LAYERS
from .tiny_llava import IMAGE, Prompt, make_batch, tiny_llava, with_labels

__all__ = ["Census", "growth", "soak"]

PROMPTS: tuple[Prompt, ...] = (
    (3, IMAGE, 4),
    (IMAGE,),
    (7,),
    (2, IMAGE, IMAGE, 5),
    (5, IMAGE, 1, IMAGE),
    (9, IMAGE, 2),
)
METHODS: tuple[MethodConfig, ...] = (
    tp.ATPConfig(layers=(0, 2), target_tokens=20),
    tp.ATPConfig(layers=(1, 3), target_tokens=20, revival=True, text_threshold=0.4),
    tp.DivPruneConfig(keep=9),
    tp.FastVConfig(layer=1, keep=0.3),
    tp.PruMergeConfig(plus=True),
    tp.SparseVLMConfig(),
    tp.VisionZipConfig(keep=12),
)
# What the allocator wavers by. A pass that is never let go costs 50 kB and more, 10,000 of them
# fifteen times this.
BOUNDS = {"tensors": 0, "passes": 0, "hooks": 0, "peak_bytes": 32 * 2**20}


@dataclass(frozen=True)
class Census:
    """What is alive."""

    tensors: int
    passes: int  # calls, passes, records and notes on caches, of the engine
    hooks: int  # on all modules
    peak_bytes: int  # the most memory that the process has had

    @classmethod
    def now(cls) -> Census:
        """Count, after a collection."""
        gc.collect()
        things = gc.get_objects()
        kinds = Counter(map(type, things))
        tensors = sum(number for kind, number in kinds.items() if issubclass(kind, torch.Tensor))
        counted = (Call, Pass, Record, CachedPositions)
        passes = sum(number for kind, number in kinds.items() if issubclass(kind, counted))
        modules = [thing for thing in things if issubclass(type(thing), torch.nn.Module)]
        hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        return cls(tensors, passes, hooks, peak)


def growth(taken: list[Census]) -> dict[str, int]:
    """By how much each figure is past its bound, from the first census to the last."""
    first, last = asdict(taken[0]), asdict(taken[-1])
    past = {name: last[name] - first[name] - bound for name, bound in BOUNDS.items()}
    return {name: excess for name, excess in past.items() if excess > 0}


def soak(number: int, seed: int = 0) -> list[Census]:
    """Run so many passes, and take a census after each quarter."""
    draw = random.Random(seed)
    models = [tp.wrap(tiny_llava(layers=LAYERS), method) for method in METHODS]
    changing = tiny_llava(layers=LAYERS)
    taken = []
    for n in range(number):
        which = n % (len(models) + 1)
        if which < len(models):
            one_pass(models[which], draw)
        else:
            tp.wrap(changing, draw.choice(METHODS))
            one_pass(changing, draw)
            tp.unwrap(changing)
        if (n + 1) % (number // 4) == 0:
            for model in models:  # each model's last pass is the same at every census
                with torch.no_grad():
                    model(**make_batch(PROMPTS))
            taken.append(Census.now())
    count("passes", number)
    return taken


def one_pass(model: Any, draw: random.Random) -> None:
    """A forward, a generate or a training step on a drawn batch."""
    prompts = draw.choices(PROMPTS, k=draw.randint(1, 4))
    kind = draw.randrange(8)
    batch = make_batch(prompts, "left" if kind < 2 else draw.choice(["left", "right"]))
    if kind < 2:
        model.generate(**batch, max_new_tokens=3, do_sample=False, pad_token_id=0)
    elif kind == 2 and next(model.tokenprune.parameters(), None) is not None:
        model.train()
        model(**with_labels(batch, 2)).loss.backward()
        model.zero_grad(set_to_none=True)
        model.eval()
    else:
        with torch.no_grad():
            model(**batch)


def main() -> int:
    """Soak, and say what was counted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="forward passes, 160 at least")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.count < 160:
        parser.error(f"--count {options.count}: expected 160 or more, a quarter being warm-up.")
    torch.set_num_threads(1)
    taken = soak(options.count, options.seed)
    for census in taken:
        print(json.dumps(asdict(census)))
    grown = growth(taken)
    print(f"grown past the bounds: {grown}" if grown else "flat")
    return 1 if grown else 0


if __name__ == "__main__":
    raise SystemExit(main())
