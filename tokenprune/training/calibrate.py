"""Calibrate the thresholds to a budget, without gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from ..checks import shown
from ..distributed import all_gather, is_part, is_sharded, together, whole, world_size
from ..engine import engine_of
from ..methods.atp import ATP
from ..saved import tensors_of
from .bisection import find_budgets
from .budget_arguments import batches_of, cap, finite_number, targets
from .counting import Counting
from .progress import Progress

__all__ = ["calibrate", "set_budget"]


def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    target_tokens: float | Sequence[float],
    *,
    max_kept: int | None = None,
    progress: bool | None = None,
) -> dict[float, float]:
    """Shift the thresholds until the mean number of kept tokens meets a budget.

    Bisects a shift of the thresholds' logits that is the same for all samples, so that complex
    images still keep more. Only θ_r is shifted, unless the spatial grids alone keep more than the
    budget: then θ_s is shifted too. With spatial pruning only, θ_s is shifted alone, to the nearest
    of the few levels it has. Needs no labels. Afterwards the model is at the last target;
    `set_budget` sets another.

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
    target_tokens : float or sequence of float
        Mean visual tokens per image over all layers.
    max_kept : int, optional
        Hard cap: a sample keeps at most this many visual tokens after any pruning step. (One more
        where a prompt ends in a visual token: the last token is always kept.)
    progress : bool, optional
        Whether to show a bar with the remaining time. None: if standard error is a terminal.

    Returns
    -------
    dict
        target → mean measured on `batches`.

    Raises
    ------
    ValueError
        If a target is out of reach: not above what the layers before the first pruning step
        compute, or above all tokens; if there are no batches, or they hold no image; if an argument
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
        method = _atp_of(model)
        wanted, most, own = targets(target_tokens), cap(max_kept), batches_of(batches)
    _check_ranks(model, method, wanted, most)
    before = method.runtime_state()
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        method.max_kept = most
        with Progress(progress, "Calibrating", "batch") as bar:
            found = find_budgets(Counting(model, own, bar), method, wanted)
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


def _check_ranks(model: nn.Module, method: ATP, wanted: list[float], most: int | None) -> None:
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
