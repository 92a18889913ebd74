"""The commands that write heads: ``calibrate`` and ``train``."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from .app import command
from .options import (
    BatchOption,
    BudgetsOption,
    DataArgument,
    DeviceOption,
    DtypeOption,
    ImagesOption,
    JsonOption,
    LayersOption,
    ModelArgument,
)

__all__ = ["calibrate", "train"]


class By(Enum):
    """What the thresholds are chosen by at a budget, as `tokenprune.calibrate` takes it."""

    count = "count"
    divergence = "divergence"


HeadsOption = Annotated[Path, typer.Option(help="Folder to write the heads to.")]
_HEADS = Path("heads")


@command(
    "tokenprune calibrate MODEL pictures --budget 25%",
    "tokenprune calibrate MODEL llava.json --images coco --budget 64 --budget 144 --out heads",
)
def calibrate(
    model: ModelArgument,
    data: DataArgument,
    budget: BudgetsOption,
    out: HeadsOption = _HEADS,
    layers: LayersOption = None,
    images: ImagesOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Questions to use, the first.")] = 64,
    by: Annotated[
        By,
        typer.Option(
            help="By the count alone, or by the divergence from the unpruned model's next token: "
            "slower, better at small budgets."
        ),
    ] = By.count,
    batch: BatchOption = 8,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write heads that meet budgets, without training.

    ATP's heads as they begin, their thresholds set to each budget. Answers are not needed. Where
    there are some, `tokenprune train` trains the heads too.
    """
    from .heads import calibrated

    where = (data, images)
    found = calibrated(
        model, where, budget, layers, samples, by.value, batch, out, device, dtype and dtype.value
    )
    _say_heads(found, as_json)


@command(
    "tokenprune train MODEL llava.json --images coco --budget 25% --steps 1000",
    "tokenprune train MODEL pictures --budget 25% --dtype bfloat16 --batch 4 --accumulate 4",
    "tokenprune train MODEL pictures --budget 25% --resume",
)
def train(
    model: ModelArgument,
    data: DataArgument,
    budget: BudgetsOption,
    out: HeadsOption = _HEADS,
    layers: LayersOption = None,
    images: ImagesOption = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the optimiser.")] = 1000,
    batch: BatchOption = 8,
    accumulate: Annotated[int, typer.Option(min=1, help="Batches in a step.")] = 1,
    rate: Annotated[float, typer.Option(min=1e-9, max=1, help="Highest learning rate.")] = 1e-3,
    longest: Annotated[int, typer.Option(min=1, help="Tokens after which one is cut.")] = 2048,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 200,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")
    ] = False,
    samples: Annotated[
        int, typer.Option(min=1, help="Questions to calibrate on, the last; not trained on.")
    ] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Of the heads and of the data's order.")] = 0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train heads on your questions and answers.

    The model itself stays as it is. Heads are calibrated to the last budget first, so that the loss
    says which tokens stay and not how many, and to each at the end. Checkpoints lie in OUT. Needs
    accelerate: `tokenprune[train]`.
    """
    from .heads import Recipe, trained

    recipe = Recipe(steps, batch, accumulate, rate, longest, save_every, samples, seed)
    found = trained(
        model, (data, images), budget, layers, recipe, out, resume, device, dtype and dtype.value
    )
    _say_heads(found, as_json)


def _say_heads(found: dict[str, Any], as_json: bool) -> None:
    from .output import console, print_json, table

    if as_json:
        return print_json(found)
    total = found["visual_tokens"]
    shown = table("budget", "tokens", "measured", "share")
    for row in found["budgets"]:
        tokens, measured = row["tokens"], row["measured"]
        shown.add_row(row["budget"], f"{tokens:.1f}", f"{measured:.1f}", f"{measured / total:.1%}")
    out = console()
    out.print(
        f"Calibrated on {found['samples']} questions, {total:.1f} visual tokens each. Pruned after "
        f"layers {', '.join(map(str, found['pruning_layers']))}."
    )
    out.print(shown)
    out.print(f"Heads: {found['heads']}", soft_wrap=True)
