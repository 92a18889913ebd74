"""A pruning method as the command line names it: ``atp=heads``, ``fastv:layer=2:keep=25%``."""

from __future__ import annotations

import ast
import dataclasses
import re
from typing import Any, NoReturn

import typer

from .app import CommandError

__all__ = ["MethodOption", "check", "read_method", "wrap_by"]


@dataclasses.dataclass(frozen=True)
class MethodOption:
    """A method's name, and the folder of its heads or the fields of its configuration.

    Examples
    --------
    >>> read_method("fastv:layer=2:keep=25%").fields
    {'layer': 2, 'keep': 0.25}
    >>> read_method("atp=out/heads").heads
    'out/heads'
    """

    text: str
    name: str
    heads: str | None
    fields: dict[str, Any]

    def __str__(self) -> str:
        """Return what was typed."""
        return self.text


def read_method(text: str) -> MethodOption:
    """Read ``NAME=FOLDER``, or a name with fields, ``NAME:FIELD=VALUE:…``."""
    if found := re.fullmatch(r"(\w+)=(.+)", text):
        return MethodOption(text, found[1], found[2], {})
    name, *parts = text.split(":")
    fields = {}
    for part in parts:
        field, equals, value = part.partition("=")
        if not field or not equals:
            raise typer.BadParameter(
                f"{text!r}: expected atp=FOLDER, or a name with fields, fastv:layer=2:keep=25%."
            )
        fields[field] = _value(value)
    return MethodOption(text, name, None, fields)


def _value(text: str) -> Any:
    if "," in text:
        return tuple(_value(part) for part in text.split(",") if part)
    if re.fullmatch(r"\d+(\.\d+)?%", text):
        return float(text[:-1]) / 100
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text


def check(method: MethodOption, with_budget: bool) -> None:
    """Refuse a method that cannot be meant, before a model is loaded.

    Raises
    ------
    typer.BadParameter
        If the name or a field is not known, a value is not what the field takes, heads are missing,
        or the budget is given twice.
    """
    from ..methods import METHODS

    def refuse(why: str) -> NoReturn:
        raise typer.BadParameter(f"{method}: {why}", param_hint="'--method'")

    if method.name not in METHODS:
        refuse(f"expected one of {', '.join(sorted(METHODS))}.")
    if method.heads is not None:
        return
    if method.name == "atp":
        refuse(
            "expected the folder of trained or calibrated heads, atp=FOLDER, which `tokenprune "
            "calibrate` and `tokenprune train` write."
        )
    kind = METHODS[method.name][0]
    if unknown := sorted(method.fields.keys() - _names(kind)):
        known = ", ".join(sorted(_names(kind)))
        refuse(f"{', '.join(unknown)} is no field of {kind.__name__}: expected some of {known}.")
    try:
        kind(**method.fields)
    except ValueError as error:
        refuse(str(error))
    if with_budget and "keep" in method.fields:
        refuse("give its keep or --budget, not both.")


def wrap_by(model: Any, method: MethodOption, tokens: float, budget: float | None = None) -> None:
    """Wrap a model with a method that was checked, at a budget.

    Parameters
    ----------
    model : PreTrainedModel
        Not wrapped.
    method : MethodOption
    tokens : float
        Visual tokens of a prompt, on average.
    budget : float, optional
        Mean over all layers. Saved heads are set to it. Where a configuration has a field ``keep``,
        every step keeps the same share. None: as saved or configured.

    Raises
    ------
    CommandError, ValueError
        If the heads are another method's, or the model or the method cannot meet the budget. The
        model is then not wrapped.
    """
    from ..api import unwrap, wrap
    from ..measure.estimate import step_share
    from ..methods import METHODS
    from ..training import set_budget
    from .model import facts_of

    kind = METHODS[method.name][0]
    by_share = method.heads is None and "keep" in _names(kind)
    if method.heads is not None:
        wrap(model, method.heads)
    else:
        config = kind(**method.fields)
        if budget is not None and by_share:
            facts = facts_of(model)
            layers = config.fitted(facts).pruning_layers()
            share = step_share(layers, facts.num_layers, tokens, budget)
            config = kind(**{**method.fields, "keep": share})
        wrap(model, config)
    try:
        found = model.tokenprune.config.method
        if found != method.name:
            raise CommandError(f"--method {method}: the heads there are those of {found}.")
        if budget is not None and not by_share:
            set_budget(model, budget)
    except (CommandError, ValueError):
        unwrap(model)
        raise


def _names(kind: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}
