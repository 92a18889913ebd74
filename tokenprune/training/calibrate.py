"""Calibrate the thresholds to a budget, without gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import nn

from ..checks import require
from ..engine import Engine, engine_of
from ..engine.record import Record
from ..fields import MAX_TOKENS
from ..methods.atp import ATP

__all__ = ["calibrate", "set_budget"]

# A larger shift of the logits saturates every threshold at 0 or 1 in float32.
_LIMIT = 16.0
_STEPS = 24
_CLOSE = 0.003  # relative to the target; less than the difference between two sets of data


def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    target_tokens: float | Sequence[float],
    *,
    max_kept: int | None = None,
) -> dict[float, float]:
    """Shift the thresholds until the mean number of kept tokens meets a budget.

    Bisects a shift of the thresholds' logits that is the same for all samples, so that complex
    images still keep more. Only θ_r is shifted, unless the spatial grids alone keep more than the
    budget: then θ_s is shifted too. With spatial pruning only, θ_s is shifted alone, to the nearest
    of the few levels it has. Needs no labels. Afterwards the model is at the last target;
    `set_budget` sets another.

    Parameters
    ----------
    model : nn.Module
        A model that is wrapped with ATP.
    batches : iterable of dict
        Arguments of the model's forward. Labels are used only to tell answers from prompts.
    target_tokens : float or sequence of float
        Mean visual tokens per image over all layers.
    max_kept : int, optional
        Hard cap: a sample keeps at most this many visual tokens after any pruning step. (One more
        where a prompt ends in a visual token: the last token is always kept.)

    Returns
    -------
    dict
        target → mean measured on `batches`.

    Raises
    ------
    ValueError
        If a target is out of reach: not above what the layers before the first pruning step
        compute, or above all tokens; if there are no batches, or they hold no image; if an argument
        is of another type. The thresholds are then as they were.

    Examples
    --------
    >>> model = tp.wrap(model, tp.ATPConfig(layers=(1, 3), target_tokens=20))
    >>> measured = tp.calibrate(model, [batch], target_tokens=[18, 24])
    >>> {target: round(mean) for target, mean in measured.items()}
    {18.0: 18, 24.0: 24}
    """
    engine, method = _atp_of(model)
    targets, max_kept = _targets(target_tokens), _cap(max_kept)
    batches = _batches(batches)
    before = method.runtime_state()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        method.max_kept = max_kept
        found = _find(model, engine, method, batches, targets)
    except BaseException:
        method.load_runtime_state(before)
        raise
    finally:
        for module, training in modes.items():
            module.training = training
    known = {budget["tokens"]: budget for budget in method.budgets}
    known |= {budget["tokens"]: budget for budget, _ in found}
    method.budgets = [known[tokens] for tokens in sorted(known)]
    method.load_runtime_state({**found[-1][0], "budgets": method.budgets})
    return {budget["tokens"]: measured for budget, measured in found}


def set_budget(model: nn.Module, target_tokens: float) -> None:
    """Set another budget at run time, without data.

    ATP takes the shifts that `calibrate` found; between two calibrated budgets they are
    interpolated, so the mean is then close to the target, not equal to it. Matryoshka takes its
    finest scale with no more tokens than the target.

    Parameters
    ----------
    model : nn.Module
        A model that is wrapped with ATP or Matryoshka.
    target_tokens : float
        Mean visual tokens per image over all layers.

    Raises
    ------
    ValueError
        If nothing was calibrated, the target lies outside the calibrated budgets, or the method's
        budget cannot be changed.

    Examples
    --------
    >>> model = tp.wrap(model, tp.MatryoshkaConfig(stride=1))
    >>> tp.set_budget(model, 9)
    >>> output = model(**batch)
    >>> tp.stats(model).final_tokens
    array([9])
    """
    method = engine_of(model).method
    number = _number(target_tokens)
    if number is None:
        raise ValueError(f"target_tokens={target_tokens!r}: expected a number.")
    method.set_budget(number)


def _number(given: object) -> float | None:
    """Convert a number of any type to float; return None if it is no finite number."""
    if not isinstance(given, Real) or isinstance(given, bool):
        return None
    try:
        number = float(given)
    except OverflowError:  # a whole number of hundreds of digits
        return None
    return number if math.isfinite(number) else None


def _targets(given: Any) -> list[float]:
    several = isinstance(given, Iterable) and not isinstance(given, str | Mapping)
    numbers = [_number(target) for target in (given if several else [given])]
    expected = "a number, or a list of one or more"
    require(bool(numbers) and None not in numbers, "target_tokens", given, expected)
    return [number for number in numbers if number is not None]


def _cap(given: Any) -> int | None:
    if given is None:
        return None
    whole = isinstance(given, Integral) and not isinstance(given, bool)
    cap = int(given) if whole else 0
    require(
        0 < cap <= MAX_TOKENS,
        "max_kept",
        given,
        f"a whole number from 1 to {MAX_TOKENS}, or None",
    )
    return cap


def _batches(given: Any) -> list[Mapping[str, Any]]:
    expected = "dicts of the model's arguments, such as [processor(...), processor(...)]"
    if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
        raise ValueError(
            f"batches is a {type(given).__name__}: expected a list, or another iterable, of "
            f"{expected}."
        )
    batches = list(given)
    if not batches:
        raise ValueError("batches is empty: expected at least one dict of the model's arguments.")
    for n, batch in enumerate(batches):
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"batches[{n}] is a {type(batch).__name__}: expected a dict of the model's "
                "arguments."
            )
        for name in batch:
            if not isinstance(name, str):
                raise ValueError(
                    f"batches[{n}] has the key {name!r}: expected names of arguments of the model."
                )
    return batches


def _atp_of(model: nn.Module) -> tuple[Engine, ATP]:
    engine = engine_of(model)
    if not isinstance(engine.method, ATP):
        raise ValueError(
            f"The model is wrapped with {type(engine.method).__name__}, which has no thresholds to "
            "calibrate: expected ATP."
        )
    return engine, engine.method


def _find(
    model: nn.Module, engine: Engine, method: ATP, batches: list[Any], targets: list[float]
) -> list[tuple[dict[str, Any], float]]:
    """Find for each target the budget that meets it, and measure its mean."""

    def count(redundant: float, spatial: float) -> float:
        method.shifts = [redundant, spatial]
        return _mean_tokens(model, engine, batches)

    most, least = count(-_LIMIT, -_LIMIT), count(_LIMIT, _LIMIT)
    grids_alone = count(_LIMIT, 0.0)
    found = []
    for target in targets:
        if not least < target <= most:
            raise ValueError(
                f"target_tokens={target}: on these batches more than {least:.1f} (the layers "
                f"before the first step, and what is never dropped) and up to {most:.1f} can be "
                "reached."
            )
        if "redundant" not in method.config.prunings:
            _, spatial, measured = _bisect(lambda shift: count(0.0, shift), target)
            shifts = [0.0, spatial]
        else:
            spatial = 0.0
            if grids_alone > target:
                # Thin out the grids first, then fill up.
                spatial, _, _ = _bisect(lambda shift: count(_LIMIT, shift), target)

            def beside_grids(shift: float, grids: float = spatial) -> float:
                return count(shift, grids)

            _, redundant, measured = _bisect(beside_grids, target)
            shifts = [redundant, spatial]
        budget = {"tokens": target, "shifts": shifts, "max_kept": method.max_kept}
        found.append((budget, measured))
    return found


def _bisect(count: Callable[[float], float], target: float) -> tuple[float, float, float]:
    """Find where a decreasing count meets a target.

    Returns
    -------
    tuple
        A shift at which the count is at most the target, the shift at which it is closest to it,
        and the count there.
    """
    low, high = -_LIMIT, _LIMIT
    # Most shifts lie within ±1: probe there first.
    probes = [-1.0, 1.0]
    best, best_count = 0.0, float("inf")
    for _ in range(_STEPS):
        inside = [shift for shift in probes if low < shift < high]
        shift = inside[0] if inside else (low + high) / 2
        found = count(shift)
        if abs(found - target) < abs(best_count - target):
            best, best_count = shift, found
        if abs(found - target) <= _CLOSE * target:
            break
        low, high = (shift, high) if found > target else (low, shift)
    return (best if best_count <= target else high), best, best_count


@torch.no_grad()
def _mean_tokens(model: nn.Module, engine: Engine, batches: list[Any]) -> float:
    """Measure the visual tokens per image, mean over all layers and all rows with images."""
    kept, images = 0.0, 0.0

    def count(record: Record) -> None:
        nonlocal kept, images
        visual = record.layout.mask
        kept += float((record.alive() & visual).sum()) / record.num_layers
        images += float((record.layout.image.amax(dim=1) + 1).sum())

    engine.trackers.append(count)
    try:
        for batch in batches:
            model(**{**batch, "use_cache": False})
    finally:
        engine.trackers.remove(count)
    if not images:
        raise ValueError("batches hold no image: expected prompts with images.")
    return kept / images
