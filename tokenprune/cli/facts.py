"""The commands that need no weights: ``supported``, ``inspect``, ``estimate``, ``demo``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .app import command
from .options import (
    Budget,
    Dtype,
    JsonOption,
    Layers,
    LayersOption,
    ModelArgument,
    Resolution,
    ResolutionOption,
    TokensOption,
    budget,
)

if TYPE_CHECKING:
    from .model import ReadModel

__all__ = ["demo", "estimate", "inspect", "supported"]

_BUDGET = "Visual tokens, mean over all decoder layers: a number (144) or a share (25%)."
_QUARTER, _BUDGETS = Budget("25%"), [Budget("50%"), Budget("25%")]
BudgetOption = Annotated[Budget, typer.Option(parser=budget, metavar="BUDGET", help=_BUDGET)]


@command("tokenprune supported")
def supported(as_json: JsonOption = False) -> None:
    """List the verified model families and the methods."""
    from rich.padding import Padding

    from ..api import supported
    from .output import console, print_json

    found = supported()
    if as_json:
        return print_json(found)
    out = console()
    for name, members in found.items():
        out.print(f"{name} ({len(members)}):")
        out.print(Padding(", ".join(members), (0, 0, 0, 2)))
    out.print("Other decoder-only families can be tried too: `tokenprune inspect MODEL`.")


@command(
    "tokenprune inspect llava-hf/llava-1.5-7b-hf --budget 25%",
    "tokenprune inspect Qwen/Qwen2.5-VL-7B-Instruct --resolution 1280x960 --budget 300",
)
def inspect(
    model: ModelArgument,
    budget: BudgetOption = _QUARTER,
    tokens: TokensOption = None,
    resolution: ResolutionOption = None,
    layers: LayersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a budget leaves in each of a model's layers.

    And after which layers tokens go. Reads the model's configuration, not its weights. Exits with 1
    if the budget cannot be met.
    """
    _either(tokens, resolution)
    from ..measure.estimate import equal_shares, least_mean
    from .model import read_model
    from .output import print_json

    read = read_model(model)
    steps, visual = _prompt(model, read, tokens, resolution, layers)
    depth = read.facts.num_layers
    least, target = least_mean(steps, depth, visual), budget.of(visual)
    feasible = least < target <= visual
    stages = []
    if feasible:
        kept = equal_shares(steps, depth, visual, target)
        starts = sorted({0, *(layer + 1 for layer in steps)})
        stages = [
            {"first_layer": start, "last_layer": end - 1, "visual_tokens": int(kept[start])}
            for start, end in zip(starts, [*starts[1:], depth], strict=True)
        ]
    found = {
        "family": read.family,
        "decoder_layers": depth,
        "pruning_layers": list(steps),
        "visual_tokens": visual,
        "budget": target,
        "least_budget": least,
        "feasible": feasible,
        "stages": stages,
    }
    if as_json:
        print_json(found)
    else:
        _print_stages(found)
    if not feasible:
        raise typer.Exit(1)


def _print_stages(found: dict[str, Any]) -> None:
    from .output import console, table

    out, tokens = console(), found["visual_tokens"]
    out.print(
        f"{found['family']}: {found['decoder_layers']} decoder layers, {tokens} visual tokens, "
        f"steps after layers {', '.join(map(str, found['pruning_layers']))}"
    )
    if not found["feasible"]:
        out.print(
            f"A budget of {found['budget']:g} tokens cannot be met: expected above "
            f"{found['least_budget']:g}, which the layers up to the first step cost alone, and at "
            f"most {tokens}."
        )
        return
    shown = table("layers", "visual tokens", "share")
    for stage in found["stages"]:
        kept = stage["visual_tokens"]
        layers = f"{stage['first_layer']} to {stage['last_layer']}"
        shown.add_row(layers, str(kept), f"{kept / tokens:.1%}")
    out.print(shown)
    out.print(
        f"A budget of {found['budget']:g} tokens, mean over the layers, can be met (any above "
        f"{found['least_budget']:g}). Shown: every step keeps the same share; a trained model "
        "chooses its own."
    )


@command(
    "tokenprune estimate llava-hf/llava-1.5-7b-hf --budget 50% --budget 25%",
    "tokenprune estimate Qwen/Qwen2.5-VL-7B-Instruct --resolution 1280x960 --batch 8",
)
def estimate(
    model: ModelArgument,
    budget: Annotated[
        list[Budget],
        typer.Option(parser=budget, metavar="BUDGET", help=f"{_BUDGET} Can be given again."),
    ] = _BUDGETS,
    tokens: TokensOption = None,
    resolution: ResolutionOption = None,
    layers: LayersOption = None,
    text: Annotated[int, typer.Option(min=1, help="Text tokens of the prompt.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Prompts.")] = 1,
    dtype: Annotated[
        Dtype | None,
        typer.Option(show_default=False, help="Of the cache. Default: the model's."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate tokens, FLOPs and cache bytes of a prompt.

    Before anything is trained. Reads the model's configuration, not its weights.
    """
    _either(tokens, resolution)
    from ..measure.estimate import Estimate, equal_shares
    from .model import read_model
    from .output import print_json

    read = read_model(model, dtype.value if dtype else None)
    steps, visual = _prompt(model, read, tokens, resolution, layers)
    rows = []
    for each in [Budget("100%"), *budget]:
        kept = equal_shares(steps, read.facts.num_layers, visual, each.of(visual))
        made = Estimate(read.shape, steps, kept, visual, text)
        rows.append(
            {
                "budget": str(each),
                "mean_tokens": float(kept.mean()),
                "final_tokens": int(kept[-1]),
                "kv_bytes": made.kv_bytes * batch,
                "prefill_flops": made.prefill_flops * batch,
            }
        )
    found = {
        "family": read.family,
        "pruning_layers": list(steps),
        "visual_tokens": visual,
        "text_tokens": text,
        "batch": batch,
        "dtype": read.dtype,
        "rows": rows,
    }
    if as_json:
        return print_json(found)
    _print_costs(found)


def _print_costs(found: dict[str, Any]) -> None:
    from .output import console, table

    out = console()
    out.print(
        f"{found['family']}: {found['visual_tokens']} visual and {found['text_tokens']} text "
        f"tokens, batch {found['batch']}, cache in {found['dtype']}, steps after layers "
        f"{', '.join(map(str, found['pruning_layers']))}"
    )
    shown = table("budget", "mean tokens", "last layer", "KV cache", "prefill")
    full = found["rows"][0]
    for row in found["rows"]:
        cache, flops = row["kv_bytes"], row["prefill_flops"]
        shown.add_row(
            row["budget"],
            f"{row['mean_tokens']:.1f}",
            str(row["final_tokens"]),
            f"{cache / 2**20:.1f} MiB ({cache / full['kv_bytes']:.0%})",
            f"{_flops(flops)} ({flops / full['prefill_flops']:.0%})",
        )
    out.print(shown)
    out.print("Decoder layers only, every step keeping the same share; nothing was measured.")


def _flops(flops: float) -> str:
    return f"{flops / 1e12:.2f} TFLOP" if flops >= 1e12 else f"{flops / 1e9:.2f} GFLOP"


@command("tokenprune demo", "tokenprune demo --image cat.jpg --budget 50% --out kept.png")
def demo(
    image: Annotated[
        Path | None,
        typer.Option(show_default=False, help="Picture to look at. Default: three shapes."),
    ] = None,
    budget: BudgetOption = _QUARTER,
    out: Annotated[Path, typer.Option(help="Picture to write: .png or .jpg.")] = Path("kept.png"),
    as_json: JsonOption = False,
) -> None:
    """Prune a tiny model with random weights, and draw what stays."""
    from PIL import Image

    from ..api import stats, wrap
    from ..measure.draw import draw
    from ..measure.estimate import equal_shares
    from ..methods import PyramidDropConfig
    from . import tiny
    from .output import console, print_json

    picture = Image.open(image) if image else tiny.sample_picture()
    seen, inputs = tiny.inputs_of(picture)
    model, tokens = tiny.tiny_llava(), tiny.SIDE**2
    layers = (0, 2, 4)
    kept = equal_shares(layers, tiny.LAYERS, tokens, budget.of(tokens))
    counts = tuple(max(1, int(kept[layer + 1])) for layer in layers)
    wrap(model, PyramidDropConfig(layers=layers, keep=counts))
    model(**inputs)
    found = stats(model)
    path = draw(seen, found, out)
    if as_json:
        return print_json({**found.to_dict(), "picture": str(path)})
    shown = console()
    shown.print("A tiny LLaVA with random weights: where tokens go means nothing, the rest does.")
    shown.print(repr(found), soft_wrap=True)
    shown.print(f"Picture: {path}")


def _either(tokens: int | None, resolution: Resolution | None) -> None:
    if tokens is not None and resolution is not None:
        raise typer.BadParameter("give --tokens or --resolution, not both.")


def _prompt(
    model: str,
    read: ReadModel,
    tokens: int | None,
    resolution: Resolution | None,
    layers: Layers | None,
) -> tuple[tuple[int, ...], int]:
    """Return the layers after which tokens go, and the prompt's visual tokens."""
    from .model import tokens_at

    steps = layers or read.facts.default_layers
    read.facts.check(steps)
    if resolution is not None:
        return steps, tokens_at(model, *resolution)
    return steps, tokens or read.facts.visual_tokens
