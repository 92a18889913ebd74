"""Fit what each prompt needs: the least budget at which its answer stays the unpruned one's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import require
from ..distributed import all_gather, together
from ..engine import engine_of, paused
from ..methods.atp import ATP
from ..methods.atp.need import Need
from .budget_arguments import batches_of
from .counting import Counting
from .divergence import next_tokens
from .need_network import fit_network
from .price import PRICE_COUNTS, MissedError, meet_by_price, value_of
from .progress import Progress

__all__ = ["fit_need"]

_HELD = 5  # one batch of so many is not fitted to


def fit_need(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    progress: bool | None = None,
) -> dict[float, float]:
    """Give each prompt a budget of its own, fitted on prompts without labels.

    Runs the prompts unpruned and at each budget that `calibrate` left, and notes whether the next
    token stays the unpruned model's: the first token of the answer alone. A small network then
    learns P(enough | budget) from what is known after the layer ``need_layer``: the prompt's hidden
    states and the score maps. No gradient goes through the model. Each prompt then has, from that
    layer on, the budget with the highest P(enough) − price·budget; before it all have the shifts
    of the mean. One fit serves every mean: the prices at which the mean is each of the budgets,
    but those at the ends, are found here, `calibrate` finds others, and `set_budget` goes between.
    Not in the paper, whose thresholds never see the prompt's states.

    Some thousand prompts are needed. It can be called again; what was chosen from stays the same.
    In training forwards all prompts have the mean's shifts. Over several ranks it is one fit on
    the prompts of all.

    Parameters
    ----------
    model : nn.Module
        A model that is wrapped with ATP, with `need_layer` set, and calibrated to three budgets or
        more of one kind.
    batches : iterable of dict
        Arguments of the model's forward, without labels; best several, of which each fifth is used
        for the prices and to end the fit.
    progress : bool, optional
        Whether to show a bar with the remaining time. None: if standard error is a terminal.

    Returns
    -------
    dict
        target → mean measured on the batches that were not fitted to, without the targets that no
        price meets there. The model is at the last.

    Raises
    ------
    ValueError
        If the model is not wrapped with ATP, has no `need_layer` or too few budgets; if there are
        no batches, they hold no image, or hold labels; if no price meets any target. The heads are
        then as they were.
    RuntimeError
        If another rank raised.

    Examples
    --------
    >>> config = tp.ATPConfig(layers=(1, 3), target_tokens=20, need_layer=1)
    >>> model = tp.wrap(model, config)
    >>> budgets = tp.calibrate(model, [batch], [14, 18, 22, 26])
    >>> list(tp.fit_need(model, [batch]))
    [18.0, 22.0]
    """
    with together():
        method, need = _need_of(model)
        own = batches_of(batches)
        for number, batch in enumerate(own):
            name, unlabeled = f"batches[{number}]", "labels" not in batch
            require(unlabeled, name, sorted(batch), "no labels: prompts alone")
        ladder = method.ladder or _ladder(method)
    before = method.runtime_state()
    weights = {name: value.clone() for name, value in need.state_dict().items()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with Progress(progress, "Fitting", "batch") as bar:
            held = [n for n in range(len(own)) if n % _HELD == 0]
            counting = Counting(model, own, bar)
            targets = [value_of(rung) for rung in ladder[1:-1]]
            counting.expect(1 + len(ladder) + math.ceil(PRICE_COUNTS * len(targets) / _HELD))
            method.price = None
            features, enough, is_held = _observe(counting, method, need, ladder, set(held))
            # The shifts stand in the state for the steps before the choice.
            method.load_runtime_state({**before, "price": None, "budgets": (), "ladder": ladder})
            fit_network(need, features, enough, is_held)
            counting = Counting(model, [own[n] for n in held], bar)
            found, missed = [], None
            for n, target in enumerate(targets):
                later = PRICE_COUNTS * (len(targets) - n - 1)
                try:
                    found.append(meet_by_price(counting, method, target, later))
                except MissedError as error:
                    missed = error
            if not found and missed is not None:
                raise missed
    except BaseException:
        need.load_state_dict(weights)
        method.load_runtime_state(before)
        raise
    finally:
        need.seen = None
        for module, training in modes.items():
            module.training = training
    budgets = [budget for budget, _ in found]
    method.load_runtime_state({**method.runtime_state(), "budgets": budgets})
    return {value_of(budget): measured for budget, measured in found}


def _need_of(model: nn.Module) -> tuple[ATP, Need]:
    method = engine_of(model).method
    if not isinstance(method, ATP) or method.need is None:
        raise ValueError(
            f"The model is wrapped with {type(method).__name__}, and nothing there reads what a "
            "prompt needs: expected ATP with need_layer set, as in "
            "tokenprune.wrap(model, tokenprune.ATPConfig(need_layer=...))."
        )
    return method, method.need


def _ladder(method: ATP) -> list[dict[str, Any]]:
    """Return the calibrated budgets of one unit; ValueError if they are too few."""
    tokens = [budget for budget in method.budgets if "tokens" in budget]
    shares = [budget for budget in method.budgets if "share" in budget]
    ladder = tokens or shares
    if len(ladder) < 3 or (tokens and shares):
        raise ValueError(
            f"{len(tokens)} budgets in tokens and {len(shares)} as shares are calibrated: expected "
            "three or more, of one kind, to choose from. Call tokenprune.calibrate(model, batches, "
            "[..]) first, with targets below and above the means that you want."
        )
    return ladder


def _observe(
    counting: Counting, method: ATP, need: Need, ladder: list[dict[str, Any]], held: set[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the prompts of all ranks unpruned and at each budget.

    Returns
    -------
    features : float16, (budgets, prompts, features)
        As they are at each of the budgets, whose first steps differ.
    enough : bool, (prompts, budgets)
        Whether the next token is the unpruned model's.
    is_held : bool, (prompts,)
        Whether the prompt is of a batch that is held.
    """
    unpruned: dict[int, Tensor] = {}
    rows: dict[int, Tensor] = {}
    seen: dict[tuple[int, int], Tensor] = {}
    same: dict[tuple[int, int], Tensor] = {}
    records: list[Any] = []
    need.seen = []

    def teach(number: int, output: Any) -> None:
        unpruned[number] = next_tokens(counting.batches[number], output).argmax(dim=1)

    with paused(engine_of(counting.model)):
        counting.run(teach)
    trackers = engine_of(counting.model).trackers
    keep = records.append
    trackers.append(keep)
    try:
        for rung, budget in enumerate(ladder):
            method.shifts, method.max_kept = budget["shifts"], budget["max_kept"]

            def note(number: int, output: Any, rung: int = rung) -> None:
                assert need.seen is not None
                if need.seen:  # a batch with images
                    has = records[-1].layout.mask.any(dim=1)
                    answers = next_tokens(counting.batches[number], output).argmax(dim=1)
                    same[number, rung] = (answers == unpruned[number])[has].cpu()
                    seen[number, rung] = need.seen[-1][has.to(need.seen[-1].device)].half().cpu()
                    rows[number] = torch.full((int(has.sum()),), number in held)
                need.seen.clear()
                records.clear()

            counting.run(note)
            need.seen.clear()
    finally:
        trackers.remove(keep)
    numbers, rungs = sorted(rows), range(len(ladder))
    none = torch.zeros(0, len(need.mean), dtype=torch.float16)
    states = [torch.cat([none, *(seen[n, k] for n in numbers)]) for k in rungs]
    answered = [torch.cat([none[:, 0].bool(), *(same[n, k] for n in numbers)]) for k in rungs]
    of_held = torch.cat([none[:, 0].bool(), *(rows[n] for n in numbers)])
    own = torch.stack(states), torch.stack(answered, dim=1), of_held
    told = all_gather(own)
    features = torch.cat([part for part, _, _ in told], dim=1)
    if not features.shape[1]:
        raise ValueError("batches hold no image: expected prompts with images.")
    return (
        features,
        torch.cat([part for _, part, _ in told]),
        torch.cat([part for _, _, part in told]),
    )
