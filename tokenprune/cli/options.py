"""Values of the command line's options, and the options that several commands have."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import typer

from ..fields import layer_numbers

__all__ = [
    "Budget",
    "JsonOption",
    "Layers",
    "LayersOption",
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
