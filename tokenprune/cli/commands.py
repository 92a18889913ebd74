"""The commands, and the parser of their arguments."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from ..api import stats, supported, wrap
from ..measure.draw import draw
from ..measure.estimate import Estimate, equal_shares, least_mean
from ..methods import PyramidDropConfig
from . import arguments
from . import demo as tiny
from .arguments import tokens_of
from .model import DTYPES, CommandError, ReadModel, read_model, tokens_at

__all__ = ["main"]

_EXAMPLES = """\
examples:
  tokenprune supported
  tokenprune inspect llava-hf/llava-1.5-7b-hf --keep 25%
  tokenprune estimate Qwen/Qwen2.5-VL-7B-Instruct --resolution 1280x960 --keep 50% 25% 200
  tokenprune demo --keep 25% --out kept.png

A budget (--keep) is the mean number of visual tokens over all decoder layers: a number of tokens
(144), or a share of the prompt's (25%). Exit codes: 0 done, 1 it cannot be done, 2 wrong arguments.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Without the program's name. None: those the program was called with.

    Returns
    -------
    int
        The exit code: 0 done, 1 it cannot be done, 2 wrong arguments.

    Examples
    --------
    >>> main(["estimate", str(folder), "--keep", "25%"])
    1
    """
    try:
        options = _parser().parse_args(argv)
    except SystemExit as stop:  # --help, or arguments that argparse has explained
        return int(stop.code or 0)
    try:
        return int(options.run(options))
    except (CommandError, ValueError, OSError) as error:
        say = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        say.print(f"tokenprune {options.command}: {error}")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenprune",
        description="Drop visual tokens inside Hugging Face vision-language models.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, run: Any, about: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=about, description=about)
        made.add_argument("--json", action="store_true", help="print JSON instead of a table")
        made.set_defaults(run=run)
        return made

    command("supported", _supported, "List the verified model families and the methods.")
    inspect = command(
        "inspect", _inspect, "Show where a model drops tokens and what a budget leaves there."
    )
    estimate = command(
        "estimate", _estimate, "Estimate tokens, FLOPs and key-value bytes of a prompt."
    )
    inspect.add_argument(
        "--keep", type=arguments.budget, default="25%", help="budget (default: 25%%)"
    )
    estimate.add_argument(
        "--keep",
        type=arguments.budget,
        nargs="+",
        default=["50%", "25%"],
        help="one or more budgets",
    )
    for made in (inspect, estimate):
        made.add_argument("model", metavar="MODEL", help="folder or hub id; weights are not read")
        size = made.add_mutually_exclusive_group()
        size.add_argument("--tokens", type=arguments.count, help="visual tokens of the prompt")
        size.add_argument(
            "--resolution",
            type=arguments.resolution,
            metavar="WxH",
            help="of the picture, whose tokens the model's processor then counts",
        )
        made.add_argument(
            "--layers",
            type=arguments.layers,
            help="drop after these, from 0 (default: the family's own)",
        )
    estimate.add_argument(
        "--text", type=arguments.count, default=64, help="text tokens (default: 64)"
    )
    estimate.add_argument("--batch", type=arguments.count, default=1, help="prompts (default: 1)")
    estimate.add_argument("--dtype", choices=DTYPES, help="of the cache (default: the model's)")
    shown = command("demo", _demo, "Prune a tiny model with random weights and draw what stays.")
    shown.add_argument("--image", type=Path, help="picture to look at (default: three shapes)")
    shown.add_argument(
        "--keep", type=arguments.budget, default="25%", help="budget (default: 25%%)"
    )
    shown.add_argument("--out", type=Path, default=Path("kept.png"), help="(default: kept.png)")
    return parser


def _supported(options: argparse.Namespace) -> int:
    found = supported()
    if options.json:
        return _print_json(found)
    console = _console()
    for name, members in found.items():
        console.print(f"{name} ({len(members)}):")
        console.print(Padding(", ".join(members), (0, 0, 0, 2)))
    console.print("Other decoder-only families can be tried too: `tokenprune inspect MODEL`.")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    model = read_model(options.model)
    layers, tokens = _prompt(options, model)
    count = model.facts.num_layers
    least = least_mean(layers, count, tokens)
    budget = tokens_of(options.keep, tokens)
    feasible = least < budget <= tokens
    found: dict[str, Any] = {
        "family": model.family,
        "decoder_layers": count,
        "pruning_layers": list(layers),
        "visual_tokens": tokens,
        "budget": budget,
        "least_budget": least,
        "feasible": feasible,
        "stages": _stages(layers, count, tokens, budget) if feasible else [],
    }
    if options.json:
        _print_json(found)
    else:
        _print_stages(found)
    return 0 if feasible else 1


def _stages(
    layers: tuple[int, ...], num_layers: int, tokens: int, budget: float
) -> list[dict[str, int]]:
    kept = equal_shares(layers, num_layers, tokens, budget)
    starts = sorted({0, *(layer + 1 for layer in layers)})
    ends = [*starts[1:], num_layers]
    return [
        {"first_layer": start, "last_layer": end - 1, "visual_tokens": int(kept[start])}
        for start, end in zip(starts, ends, strict=True)
    ]


def _print_stages(found: dict[str, Any]) -> None:
    console, tokens = _console(), found["visual_tokens"]
    console.print(
        f"{found['family']}: {found['decoder_layers']} decoder layers, {tokens} visual tokens, "
        f"steps after layers {', '.join(map(str, found['pruning_layers']))}"
    )
    if not found["feasible"]:
        console.print(
            f"A budget of {found['budget']:g} tokens cannot be met: expected above "
            f"{found['least_budget']:g}, which the layers up to the first step cost alone, and at "
            f"most {tokens}."
        )
        return
    table = _table("layers", "visual tokens", "share")
    for stage in found["stages"]:
        kept = stage["visual_tokens"]
        layers = f"{stage['first_layer']} to {stage['last_layer']}"
        table.add_row(layers, str(kept), f"{kept / tokens:.1%}")
    console.print(table)
    console.print(
        f"A budget of {found['budget']:g} tokens, mean over the layers, can be met (any above "
        f"{found['least_budget']:g}). Shown: every step keeps the same share; a trained model "
        "chooses its own."
    )


def _estimate(options: argparse.Namespace) -> int:
    model = read_model(options.model, options.dtype)
    layers, tokens = _prompt(options, model)
    rows = []
    for budget in ["100%", *options.keep]:
        kept = equal_shares(layers, model.facts.num_layers, tokens, tokens_of(budget, tokens))
        made = Estimate(model.shape, layers, kept, tokens, options.text)
        rows.append(
            {
                "keep": budget,
                "mean_tokens": float(kept.mean()),
                "final_tokens": int(kept[-1]),
                "kv_bytes": made.kv_bytes * options.batch,
                "prefill_flops": made.prefill_flops * options.batch,
            }
        )
    found = {
        "family": model.family,
        "pruning_layers": list(layers),
        "visual_tokens": tokens,
        "text_tokens": options.text,
        "batch": options.batch,
        "dtype": model.dtype,
        "rows": rows,
    }
    if options.json:
        return _print_json(found)
    console = _console()
    console.print(
        f"{model.family}: {tokens} visual and {options.text} text tokens, batch {options.batch}, "
        f"cache in {model.dtype}, steps after layers {', '.join(map(str, layers))}"
    )
    table = _table("keep", "mean tokens", "last layer", "KV cache", "prefill")
    full = rows[0]
    for row in rows:
        cache, flops = row["kv_bytes"], row["prefill_flops"]
        table.add_row(
            row["keep"],
            f"{row['mean_tokens']:.1f}",
            str(row["final_tokens"]),
            f"{cache / 2**20:.1f} MiB ({cache / full['kv_bytes']:.0%})",
            f"{_flops(flops)} ({flops / full['prefill_flops']:.0%})",
        )
    console.print(table)
    console.print("Decoder layers only, every step keeping the same share; nothing was measured.")
    return 0


def _flops(flops: float) -> str:
    return f"{flops / 1e12:.2f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.2f} GFLOP"


def _demo(options: argparse.Namespace) -> int:
    picture = Image.open(options.image) if options.image else tiny.sample_picture()
    seen, inputs = tiny.inputs_of(picture)
    model, tokens = tiny.tiny_llava(), tiny.SIDE**2
    layers = (0, 2, 4)
    kept = equal_shares(layers, tiny.LAYERS, tokens, tokens_of(options.keep, tokens))
    counts = tuple(max(1, int(kept[layer + 1])) for layer in layers)
    wrap(model, PyramidDropConfig(layers=layers, keep=counts))
    model(**inputs)
    found = stats(model)
    path = draw(seen, found, options.out)
    if options.json:
        return _print_json({**found.to_dict(), "picture": str(path)})
    console = _console()
    console.print("A tiny LLaVA with random weights: where tokens go means nothing, the rest does.")
    console.print(repr(found), soft_wrap=True)
    console.print(f"Picture: {path}")
    return 0


def _prompt(options: argparse.Namespace, model: ReadModel) -> tuple[tuple[int, ...], int]:
    """Return the layers after which tokens go, and the prompt's visual tokens."""
    layers = options.layers or model.facts.default_layers
    model.facts.check(layers)
    if options.resolution is not None:
        return layers, tokens_at(options.model, *options.resolution)
    return layers, options.tokens or model.facts.visual_tokens


def _console() -> Console:
    return Console(highlight=False, markup=False)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _print_json(found: Any) -> int:
    _console().print(json.dumps(found, indent=2), soft_wrap=True)
    return 0
