"""An engine in a few lines: what ``repr(model.tokenprune)`` says."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..config import MethodConfig
from ..fields import BEFORE_DECODER
from ..methods.base import Method
from .record import Record

__all__ = ["describe", "steps_in_words"]


def describe(
    method: Method,
    config: MethodConfig | None,
    family: str,
    num_layers: int,
    record: Record | None,
) -> str:
    """Say the method, its steps and configuration, its budgets, and what the last prefill kept.

    Parameters
    ----------
    method : Method
    config : MethodConfig, optional
        What the method was built from.
    family : str
        The adapter's ``model_type``; empty where there is no adapter for the family alone.
    num_layers : int
        Decoder layers.
    record : Record, optional
        Of the last prefill; counting its tokens waits for the device.
    """
    where = family or "a model read by its structure"
    steps = f"{steps_in_words(method.layers)} of {num_layers}"
    lines = [f"{type(method).__name__} on {where}: drops visual tokens {steps}"]
    if config is not None:
        lines.append(f"config: {_changed_fields(config)}")
    state = method.runtime_state()
    budgets = state.pop("budgets", None)
    state.pop("ladder", None)  # what a price chooses from: as long as the budgets
    if budgets is not None:
        lines.append(f"budget: {_budgets(budgets, state)}")
    if state:
        now = ", ".join(f"{name}={_rounded(value)}" for name, value in state.items())
        lines.append(f"at run time: {now}")
    if record is not None:
        visual = record.layout.mask
        kept = (record.alive() & visual).sum(dim=2).float().mean(dim=1).tolist()
        total = visual.sum(dim=1).float().mean().item()
        lines.append(
            f"last prefill: kept {sum(kept) / len(kept):.1f} of {total:.1f} visual tokens, mean "
            f"over layers and samples; {kept[-1]:.1f} in the last layer"
        )
    return "\n  ".join(lines)


def steps_in_words(layers: tuple[int, ...]) -> str:
    """Say after which layers, counted from 0, tokens are dropped.

    Examples
    --------
    >>> steps_in_words((-1,)), steps_in_words((1, 3))
    ('before layer 0', 'after layers 1, 3')
    """
    after = [str(layer) for layer in layers if layer != BEFORE_DECODER]
    parts = ["before layer 0"] if BEFORE_DECODER in layers else []
    if after:
        parts.append(f"after layer{'s' * (len(after) > 1)} {', '.join(after)}")
    return " and ".join(parts)


def _changed_fields(config: Any) -> str:
    """Return a configuration's printed form without the fields that have their default."""
    changed = [
        f"{field.name}={getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    ]
    return f"{type(config).__name__}({', '.join(changed)})"


def _budgets(budgets: list[dict[str, Any]], state: dict[str, Any]) -> str:
    if not budgets:
        return "not calibrated: call tokenprune.calibrate"
    counts = ", ".join(f"{budget['tokens']:g}" for budget in budgets if "tokens" in budget)
    shares = ", ".join(f"{budget['share']:.4g}" for budget in budgets if "share" in budget)
    parts = [counts and f"{counts} tokens", shares and f"{shares} of each sample's tokens"]
    now = [_target(budget) for budget in budgets if _is_at(budget, state)]
    at = now[0] if now else "another setting"
    return f"calibrated for {' and '.join(filter(None, parts))}; now at {at}"


def _target(budget: dict[str, Any]) -> str:
    return f"{budget['tokens']:g}" if "tokens" in budget else f"{budget['share']:.4g}"


def _is_at(budget: dict[str, Any], state: dict[str, Any]) -> bool:
    """Return whether the method's state is a calibrated budget's, to four digits."""
    targets = ("tokens", "share")
    settings = {name: value for name, value in budget.items() if name not in targets}
    return all(_rounded(state.get(name)) == _rounded(value) for name, value in settings.items())


def _rounded(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value
