"""Calibrate the thresholds to a budget, without gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..checks import require, shown
from ..distributed import all_gather, is_part, is_sharded, together, whole, world_size
from ..engine import engine_of
from ..methods.atp import ATP
from ..methods.atp.budgets import unit_of
from ..saved import tensors_of
from .bisection import SHIFT_COUNTS, Shifting
from .budget_arguments import batches_of, cap, finite_number, targets
from .counting import Counting
from .divergence import compare_next_tokens, lower_divergence
from .price import PRICE_COUNTS, meet_by_price
from .progress import Progress

__all__ = ["calibrate", "set_budget"]


def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    target_tokens: float | Sequence[float],
    *,
    by: str = "count",
    max_kept: int | None = None,
    progress: bool | None = None,
) -> dict[float, float]:
    """Shift the thresholds until the mean number of kept tokens meets a budget.

    Shifts the thresholds' logits by the same for all samples, so that complex images still keep
    more. By count, one shift of all steps' θ_r and θ_s is bisected; where one grid of the spatial
    pruning would be too much, θ_s leaves it out and θ_r alone fills the rest. By divergence, each
    step's thresholds then get a shift of their own, searched so that at the same budget the next
    token's distribution stays closest to the unpruned model's: a search by coordinates, for which
    some hundred prompts and 10 to 60 times as many forwards are needed. It moves tokens between
    the steps, and is worth most where a budget is tight and the steps are many (docs/training.md).
    Neither needs labels or a gradient; neither is in the paper. Afterwards the model is at the last
    target; `set_budget` sets another.

    Where torch.distributed is initialised, it is one calibration over the batches of all ranks:
    each rank calls it with its own, and all end with the same shifts, those of one process with all
    the batches. Ranks may have different numbers of batches; of a sharded model (FSDP) each needs
    at least one.

    Parameters
    ----------
    model : nn.Module
        A model that is wrapped with ATP.
    batches : iterable of dict
        Arguments of the model's forward. Labels are used only to tell answers from prompts.
    target_tokens : number or sequence of numbers
        Mean visual tokens per image over all layers; or, as a float up to 1, the share of each
        sample's own: 1 is one token, and 1.0 all.
    by : {"count", "divergence"}
        What the thresholds are chosen by at a budget.
    max_kept : int, optional
        Hard cap: a sample keeps at most this many visual tokens after any pruning step. (One more
        where a prompt ends in a visual token: the last token is always kept.)
    progress : bool, optional
        Whether to show a bar with the remaining time. None: if standard error is a terminal.

    Returns
    -------
    dict
        target → mean measured on `batches`, within 2 % of it or within one token of one image.

    Raises
    ------
    ValueError
        If a target is out of reach: not above what the layers before the first pruning step
        compute, or above all tokens; if it cannot be met, as few targets can with the spatial
        pruning's whole grids alone; if there are no batches, or they hold no image; if an argument
        is of another type; if ranks differ in the targets or in the heads. The thresholds are then
        as they were.
    RuntimeError
        If another rank raised.

    Examples
    --------
    >>> model = tp.wrap(model, tp.ATPConfig(layers=(1, 3), target_tokens=20))
    >>> measured = tp.calibrate(model, [batch], target_tokens=[18, 24])
    >>> {target: round(mean) for target, mean in measured.items()}
    {18.0: 18, 24.0: 24}
    """
    with together():
        require(by in ("count", "divergence"), "by", by, "'count' or 'divergence'")
        method = _atp_of(model)
        wanted, most, own = targets(target_tokens), cap(max_kept), batches_of(batches)
        expected = "'count', since each prompt has a budget of its own, which fit_need gave it"
        require(by == "count" or not method.ladder, "by", by, expected)
    _check_ranks(model, method, wanted, most, by)
    before = method.runtime_state()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        method.max_kept = most
        with Progress(progress, "Calibrating", "batch") as bar:
            found = _find(Counting(model, own, bar), method, wanted, by)
    except BaseException:
        method.load_runtime_state(before)
        raise
    finally:
        for module, training in modes.items():
            module.training = training
    known = {_key(budget): budget for budget in method.budgets}
    known |= {_key(budget): budget for budget, _ in found}
    last = found[-1][0]
    state = {name: last.get(name) for name in ("shifts", "max_kept", "price")}
    state |= {"ladder": method.ladder, "budgets": [known[key] for key in sorted(known)]}
    method.load_runtime_state(state)
    return {_key(budget)[1]: measured for budget, measured in found}


def _find(
    counting: Counting, method: ATP, targets: list[int | float], by: str
) -> list[tuple[dict[str, Any], float]]:
    """Find for each target the budget that meets it, as in `ATP.budgets`, and measure its mean.

    Every rank finds the same, since each goes by the mean over all.
    """
    if method.ladder:
        counting.expect(PRICE_COUNTS * len(targets))
        steps = range(len(targets) - 1, -1, -1)
        return [
            meet_by_price(counting, method, target, PRICE_COUNTS * left)
            for target, left in zip(targets, steps, strict=True)
        ]
    if by == "divergence":
        compare_next_tokens(counting)
    shifting = Shifting(counting, method, len(targets))
    for target in targets:
        shifting.check(target)
    found = []
    for n, target in enumerate(targets):
        later = SHIFT_COUNTS * (len(targets) - n - 1)
        shared, count = shifting.meet(target, later)
        if by == "divergence":
            count = lower_divergence(shifting, target, shared, count, later)
        unit = unit_of(target)
        budget = {unit: float(target), "shifts": method.shifts, "max_kept": method.max_kept}
        found.append((budget, count.in_unit(unit)))
    return found


def _key(budget: dict[str, Any]) -> tuple[str, float]:
    """Return a budget's unit and target: shares sort before tokens, and rise."""
    unit = "share" if "share" in budget else "tokens"
    return unit, budget[unit]


def set_budget(model: nn.Module, target_tokens: float) -> None:
    """Set another budget at run time, without data.

    ATP takes the shifts that `calibrate` found; between two calibrated budgets they are
    interpolated, so the mean is then close to the target, not equal to it. Matryoshka takes its
    finest scale with no more tokens than the target.

    Parameters
    ----------
    model : nn.Module
        A model that is wrapped with ATP or Matryoshka.
    target_tokens : number
        Mean visual tokens per image over all layers; or, as a float up to 1, the share of each
        sample's own.

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
    number = finite_number(target_tokens)
    if number is None:
        raise ValueError(f"target_tokens={target_tokens!r}: expected a number.")
    method.set_budget(number)


def _atp_of(model: nn.Module) -> ATP:
    method = engine_of(model).method
    if not isinstance(method, ATP):
        raise ValueError(
            f"The model is wrapped with {type(method).__name__}, which has no thresholds to "
            "calibrate: expected ATP."
        )
    return method


def _check_ranks(
    model: nn.Module, method: ATP, wanted: list[int | float], most: int | None, by: str
) -> None:
    """Check that all ranks calibrate the same heads to the same targets; if not, each raises."""
    if world_size() == 1:
        return
    heads = tensors_of(method).values()
    # Heads among the shards of FSDP's first version or of ZeRO-3 cannot be compared.
    comparable = not is_sharded(model) or any(is_part(value) for value in heads)
    norms = [float(whole(value).double().norm()) for value in heads] if comparable else []
    given = {
        "target_tokens": wanted,
        "max_kept": most,
        "by": by,
        "the configuration": method.config,
        "what was calibrated before": method.budgets,
    }
    told = all_gather((given, norms))
    first, first_norms = told[0]
    for rank, (theirs, _) in enumerate(told):
        for name, value in first.items():
            if theirs[name] != value:
                raise ValueError(
                    f"{name} is {shown(value)} on rank 0 and {shown(theirs[name])} on rank {rank}: "
                    "all ranks are calibrated as one, so every rank needs the same."
                )
    for rank, (_, theirs_norms) in enumerate(told):
        pairs = zip(first_norms, theirs_norms, strict=True)
        # Copies that were trained alike may differ by rounding.
        if not all(math.isclose(*pair, rel_tol=1e-4) for pair in pairs):
            raise ValueError(
                f"The heads of rank {rank} are not those of rank 0, and all ranks are calibrated "
                "as one: set the same seed before tokenprune.wrap, load saved heads, or put the "
                "model in DistributedDataParallel first, which copies rank 0's."
            )
