"""Values of the command line's options, and the options that several commands have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from ..fields import layer_numbers
from .method import MethodOption, read_method

__all__ = [
    "BatchOption",
    "Budget",
    "BudgetsOption",
    "DataArgument",
    "DeviceOption",
    "Dtype",
    "DtypeOption",
    "ImagesOption",
    "JsonOption",
    "Layers",
    "LayersOption",
    "MethodsOption",
    "ModelArgument",
    "Resolution",
    "ResolutionOption",
    "TokensOption",
    "budget",
]


@dataclass(frozen=True)
class Budget:
    """A number of visual tokens, or a share of a prompt's own.

    Examples
    --------
    >>> quarter = budget("25%")
    >>> str(quarter), quarter.of(576), budget("144").of(576)
    ('25%', 144.0, 144.0)
    """

    text: str

    def __str__(self) -> str:
        """Return what was typed."""
        return self.text

    def of(self, tokens: float) -> float:
        """Return the budget in tokens.

        Parameters
        ----------
        tokens : float
            Visual tokens of the prompt.
        """
        if self.text.endswith("%"):
            return float(self.text[:-1]) / 100 * tokens
        return float(self.text)


class Resolution(NamedTuple):
    """Width and height in pixels."""

    width: int
    height: int


class Dtype(str, Enum):
    """Dtypes of weights and of caches."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Layers(tuple[int, ...]):
    """Decoder layers, counted from 0, after which tokens are dropped; -1 is before the first."""

    __slots__ = ()


def budget(text: str | Budget) -> Budget:
    """Read a budget; defaults are read already."""
    if isinstance(text, Budget):
        return text
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?%?", text) or not float(text.rstrip("%")):
        raise typer.BadParameter(f"{text!r}: expected tokens (144) or a share (25%).")
    return Budget(text)


def _resolution(text: str) -> Resolution:
    found = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if not found or not int(found[1]) or not int(found[2]):
        raise typer.BadParameter(f"{text!r}: expected width and height, as in 1280x960.")
    return Resolution(int(found[1]), int(found[2]))


def _layers(text: str) -> Layers:
    try:
        return Layers(layer_numbers(-1)("layers", [int(part) for part in text.split(",")]))
    except ValueError as error:
        raise typer.BadParameter(f"{text!r}: expected rising numbers, as in 3,13,23.") from error


ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", show_default=False, help="Folder or hub id.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
LayersOption = Annotated[
    Layers | None,
    typer.Option(
        parser=_layers,
        metavar="N,N,…",
        show_default=False,
        help="Drop after these layers, counted from 0. Default: the family's own.",
    ),
]
TokensOption = Annotated[
    int | None,
    typer.Option(
        min=1, show_default=False, help="Visual tokens of the prompt. Default: of an image."
    ),
]
ResolutionOption = Annotated[
    Resolution | None,
    typer.Option(
        parser=_resolution,
        metavar="WxH",
        show_default=False,
        help="Of the picture, whose tokens the model's own processor then counts.",
    ),
]
DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        show_default=False,
        help="LLaVA's JSON file, a folder of pictures with metadata.jsonl, or a saved dataset.",
    ),
]
ImagesOption = Annotated[
    Path | None,
    typer.Option(show_default=False, help="Folder of a JSON file's pictures. Default: its own."),
]
BudgetsOption = Annotated[
    list[Budget],
    typer.Option(
        parser=budget,
        metavar="BUDGET",
        show_default=False,
        help="Visual tokens, mean over all decoder layers: a number (144) or a share (25%). Can be "
        "given again.",
    ),
]
BatchOption = Annotated[int, typer.Option(min=1, help="Questions at a time.")]
DeviceOption = Annotated[
    str | None, typer.Option(show_default=False, help="Default: cuda if there is one, else cpu.")
]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(show_default=False, help="Of the model's weights. Default: as saved."),
]
MethodsOption = Annotated[
    list[MethodOption],
    typer.Option(
        "--method",
        parser=read_method,
        metavar="METHOD",
        show_default=False,
        help="Saved heads (atp=FOLDER), or a name with fields of its configuration "
        "(fastv:layer=2:keep=25%). Can be given again.",
    ),
]
