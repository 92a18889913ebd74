"""Fit the learned ranking: which visual tokens the prompt attends to in the layers to come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..distributed import world_size
from ..engine import base_model_of, engine_of, replaced
from ..methods.atp import ATP
from ..methods.atp.ranking import LearnedRanking
from .attention_to_come import Seen, Watcher
from .budget_arguments import batches_of
from .progress import Progress
from .ranking_network import RankingFit

__all__ = ["fit_ranking"]

_HELD = 10  # one prompt of so many is not fitted to
_MOST_HELD = 100  # that tell how good the fit is
_MEMORY = 2**32  # bytes of hidden states that are fitted to at once


def fit_ranking(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    progress: bool | None = None,
) -> dict[int, tuple[float, float]]:
    """Learn which visual tokens will be attended to, from prompts without labels.

    Runs each prompt once without pruning. At every pruning step it notes what there is to read
    (hidden states, shares of attention, places, the prompt's states) and how much attention the
    prompt's last token pays each visual token in all the layers to come; a small network of each
    step then learns the shares of that attention, starting from the redundant score's. No gradient
    goes through the model. Not in the paper, which ranks by the attention of the layer just run:
    by far the worse guide in early layers, where dropping saves most.

    Some thousand prompts are needed, like those that the model will get. What was calibrated or
    fitted to budgets before is forgotten, since the thresholds then meant other tokens: call
    `calibrate` afterwards, and then `fit_need` if it is used. It begins anew each time.

    Parameters
    ----------
    model : nn.Module
        A model that is wrapped with ``ATPConfig(ranking="learned")``.
    batches : iterable of dict
        Arguments of the model's forward. Labels only tell answers from prompts.
    progress : bool, optional
        Whether to show a bar with the remaining time. None: if standard error is a terminal.

    Returns
    -------
    dict
        Layer of a step → how far the ranking was from the attention to come before and after:
        Kullback-Leibler divergences in nats, on prompts that were not fitted to: a tenth, 100 at
        most.

    Raises
    ------
    ValueError
        If the model is not wrapped with ATP or its ranking is not learned; if there are no batches,
        fewer than ten of their prompts hold an image that is attended to, or the loss is not
        finite. The heads are then as they were.
    RuntimeError
        If several ranks run, or it is called inside a forward of the model.

    Examples
    --------
    >>> config = tp.ATPConfig(layers=(1, 3), target_tokens=20, ranking="learned")
    >>> model = tp.wrap(model, config)
    >>> found = tp.fit_ranking(model, [batch] * 10)
    >>> list(found)
    [1, 3]
    >>> before, after = found[1]
    >>> after < before
    True
    """
    method = _method_of(model)
    own = batches_of(batches)
    rankings = method.rankings
    assert rankings is not None
    modes = {module: module.training for module in model.modules()}
    device = next(rankings.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)  # the same prompts give the same ranking
        fitted = nn.ModuleList(_drawn_like(ranking) for ranking in rankings).to(device)
        try:
            model.eval()
            found = _fit(model, method, fitted, own, progress)
        finally:
            for module, training in modes.items():
                module.training = training
    rankings.load_state_dict(fitted.state_dict())
    method.load_runtime_state({})
    return found


def _method_of(model: nn.Module) -> ATP:
    method = engine_of(model).method
    if not isinstance(method, ATP) or method.rankings is None:
        raise ValueError(
            f"The model is wrapped with {type(method).__name__}, whose ranking is not learned: "
            'expected tokenprune.wrap(model, tokenprune.ATPConfig(ranking="learned")).'
        )
    if (ranks := world_size()) > 1:
        raise RuntimeError(
            f"fit_ranking was called where {ranks} ranks run: fit in one process, save the heads "
            "with tokenprune.save_heads, and load them on every rank."
        )
    return method


def _drawn_like(ranking: nn.Module) -> LearnedRanking:
    assert isinstance(ranking, LearnedRanking)
    return LearnedRanking(ranking.query.weight.shape[1] // 2)


@torch.no_grad()
def _fit(
    model: nn.Module,
    method: ATP,
    rankings: Any,
    batches: list[Mapping[str, Any]],
    progress: bool | None,
) -> dict[int, tuple[float, float]]:
    """Run the prompts and fit to them, as many at a time as memory holds."""
    engine = engine_of(model)
    watcher = Watcher(method, engine.anatomy.num_layers)
    fit = RankingFit(rankings, sum(_rows(batch) for batch in batches))
    shown: list[list[Seen]] = []
    held: list[list[Seen]] = []
    size = count = 0
    with (
        Progress(progress, "Fitting", "batch") as bar,
        replaced(engine, base_model_of(model), watcher),
    ):
        bar.expect(len(batches))
        for batch in batches:
            model(**{**batch, "use_cache": False})
            for prompt in watcher.take():
                if not all(bool(step.to_come.any()) for step in prompt):
                    continue  # an image behind all text
                count += 1
                if count % _HELD == 0 and len(held) < _MOST_HELD:
                    held.append(prompt)
                    continue
                shown.append(prompt)
                size += sum(step.size() for step in prompt)
            if size > _MEMORY:
                bar.note(f"learning from {len(shown)} prompts")
                fit.fit(shown)
                shown, size = [], 0
            bar.advance()
        if not held:
            raise ValueError(
                f"batches hold {count} prompts with an image before text: expected some thousand, "
                f"and no fewer than {_HELD}."
            )
        if shown:
            bar.note(f"learning from {len(shown)} prompts")
            fit.fit(shown)
    return {
        layer: (float(before), float(after))
        for layer, before, after in zip(
            method.layers,
            fit.divergences(held, learned=False),
            fit.divergences(held, learned=True),
            strict=True,
        )
    }


def _rows(batch: Mapping[str, Any]) -> int:
    given = (batch.get(name) for name in ("input_ids", "inputs_embeds"))
    return next((len(value) for value in given if value is not None), 1)
