"""The commands that show what pruning does: ``evaluate``, ``draw`` and ``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .app import command
from .method import MethodOption, check, read_method
from .options import (
    BatchOption,
    Budget,
    BudgetsOption,
    DataArgument,
    DeviceOption,
    DtypeOption,
    ImagesOption,
    JsonOption,
    MethodsOption,
    ModelArgument,
    budget,
)

__all__ = ["draw", "evaluate", "report"]

_NO_BUDGETS: list[Budget] = []
OneMethodOption = Annotated[
    MethodOption,
    typer.Option(
        parser=read_method,
        metavar="METHOD",
        show_default=False,
        help="Saved heads (atp=FOLDER), or a name with fields (fastv:layer=2:keep=25%).",
    ),
]
OneBudgetOption = Annotated[
    Budget | None,
    typer.Option(parser=budget, metavar="BUDGET", show_default=False, help="Default: as saved."),
]
SamplesOption = Annotated[
    int | None, typer.Option(min=1, show_default=False, help="The first. Default: all.")
]


@command(
    "tokenprune evaluate MODEL pictures --method atp=heads --method fastv --budget 25%",
    "tokenprune evaluate MODEL llava.json --method pyramiddrop:layers=7,15:keep=50% --csv a.csv",
)
def evaluate(
    model: ModelArgument,
    data: DataArgument,
    method: MethodsOption,
    budget: BudgetsOption = _NO_BUDGETS,
    images: ImagesOption = None,
    samples: SamplesOption = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 16,
    baselines: Annotated[
        bool, typer.Option(help="Random and down-sampled tokens, as many, beside each method.")
    ] = True,
    batch: BatchOption = 8,
    csv: Annotated[
        Path | None, typer.Option(show_default=False, help="Write the table here too.")
    ] = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare methods on your questions: accuracy, tokens and cost.

    Each method at each budget (without one: as it is saved or configured), the unpruned model, and
    random and down-sampled tokens, as many. Answers are generated greedily and compared with the
    data's first answer of each conversation: exact match and F1 of the words, without case,
    punctuation and articles. Agreement is exact match with the unpruned model.
    """
    for each in method:
        check(each, bool(budget))
    from .compare import Comparison, answers_of
    from .loading import first_rows, load_model
    from .output import print_json, write_csv

    rows = first_rows(data, images, samples)
    expected = answers_of(rows)  # before the model is loaded
    loaded, processor = load_model(model, device, dtype.value if dtype else None)
    made = Comparison(loaded, processor, rows, expected, batch, new_tokens, method)
    left_out = []
    budgets: list[Budget | None] = [*budget] or [None]
    for each in method:
        for wanted in budgets:
            left_out += made.measure(each, wanted, baselines)
    if csv is not None:
        write_csv(csv, made.table)
    if as_json:
        return print_json(
            {"samples": len(expected), "visual_tokens": made.tokens, "rows": made.table}
            | {"left_out": left_out}
        )
    _print_comparison(len(expected), made.tokens, made.table, left_out)


def _print_comparison(
    samples: int, tokens: float, rows: list[dict[str, Any]], left_out: list[str]
) -> None:
    from .output import console, table

    columns = ("method", "budget", "exact", "F1", "agree", "tokens", "cache", "prefill")
    shown, full = table(*columns), rows[0]
    shown.columns[0].justify = "left"
    for row in rows:
        shown.add_row(
            f"  {row['method']}" if row["beside"] else row["method"],
            row["budget"] or "",
            *(f"{row[name]:.1%}" for name in ("exact_match", "token_f1", "agreement")),
            f"{row['mean_tokens']:.1f}",
            f"{row['kv_bytes'] / full['kv_bytes']:.0%}",
            f"{row['prefill_flops'] / full['prefill_flops']:.0%}",
        )
    out = console()
    out.print(f"{samples} questions, {tokens:.1f} visual tokens each")
    out.print(shown)
    out.print(
        "exact, F1: answers right. agree: answers that are the unpruned model's. tokens: visual "
        "ones, mean over layers and questions."
    )
    for line in left_out:
        out.print(f"Not measured: {line}")


@command(
    'tokenprune draw MODEL cat.jpg "What is on the table?" --method atp=heads',
    'tokenprune draw MODEL cat.jpg "What is it?" --method fastv --budget 25% --out kept.png',
)
def draw(
    model: ModelArgument,
    image: Annotated[Path, typer.Argument(metavar="IMAGE", show_default=False, help="A picture.")],
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", show_default=False, help="What is asked of it.")
    ],
    method: OneMethodOption,
    budget: OneBudgetOption = None,
    out: Annotated[Path, typer.Option(help="Picture to write: .png or .jpg.")] = Path("kept.png"),
    new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 16,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Draw which tokens stay for a question, and answer it."""
    check(method, budget is not None)
    from .output import console, print_json
    from .picture import drawn

    found = drawn(
        model, image, question, method, budget, out, new_tokens, device, dtype and dtype.value
    )
    if as_json:
        return print_json(found)
    shown = console()
    shown.print(f"Answer: {found['answer']}   (unpruned: {found['unpruned_answer']})")
    shown.print(found.pop("in_words"), soft_wrap=True)
    shown.print(f"Picture: {found['picture']}", soft_wrap=True)


@command(
    "tokenprune report MODEL pictures --method atp=heads",
    "tokenprune report MODEL llava.json --method fastv --budget 25% --out fastv.html",
)
def report(
    model: ModelArgument,
    data: DataArgument,
    method: OneMethodOption,
    budget: OneBudgetOption = None,
    images: ImagesOption = None,
    samples: SamplesOption = None,
    out: Annotated[Path, typer.Option(help="Page to write: .html.")] = Path("report.html"),
    pictures: Annotated[int, typer.Option(min=1, help="At most so many to look into.")] = 24,
    batch: BatchOption = 8,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write one HTML page about what is kept of your pictures, and why.

    Kept tokens by layer and by sample; the pictures that keep least and most, each to look into:
    what stays after each step, and for every token the reason. It needs no network.
    """
    check(method, budget is not None)
    if out.suffix != ".html":  # before the model is run
        raise typer.BadParameter(
            f"{out}: expected a name that ends in .html.", param_hint="'--out'"
        )
    from .output import console, print_json
    from .pages import reported

    found = reported(
        model,
        data,
        images,
        samples,
        method,
        budget,
        out,
        batch,
        pictures,
        device,
        dtype.value if dtype else None,
    )
    words = found.pop("in_words")
    if as_json:
        return print_json(found)
    shown = console()
    shown.print(words, soft_wrap=True)
    shown.print(f"Report: {found['report']}", soft_wrap=True)
