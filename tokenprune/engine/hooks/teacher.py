"""The unpruned model as a teacher: what it answers, and how far the softened one is from that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import calls
from ..arguments import cache_in
from ..calls import Call, Lesson
from ..engine import Engine

__all__ = ["divergence", "teach"]

# About the loss, TRL's fused head among it, or about what is returned: the teacher needs neither.
_LEFT_OUT = (
    "fused_lm_head",
    "labels",
    "num_items_in_batch",
    "output_attentions",
    "output_hidden_states",
)


def teach(engine: Engine, model: nn.Module, given: Mapping[str, Any]) -> Lesson:
    """Run the model without pruning, gradient and dropout on a training batch.

    Called before the training forward, so that of the two graphs' memory there is one at a time,
    and by ``model.forward``: what others have hooked to the model's call runs once.

    Parameters
    ----------
    engine : Engine
    model : nn.Module
        The top-level model.
    given : mapping
        The call's arguments, by name.

    Returns
    -------
    Lesson
        Of the positions that answers are predicted from, where labels say which these are;
        otherwise of all text after a row's first visual token.

    Raises
    ------
    ValueError
        If the call has a cache, or the model does not return the logits of every position.
    """
    if cache_in(given.values()) is not None:
        raise ValueError(
            'loss="distill" runs the prompt through the model twice, and this training forward was '
            "given a cache, which holds a prompt once: leave out past_key_values."
        )
    arguments = {n: value for n, value in given.items() if n not in _LEFT_OUT}
    training = [module for module in model.modules() if module.training]
    calls.push(Call(engine))
    try:
        for module in training:
            module.training = False
        with torch.no_grad(), calls.paused(engine):
            output = model.forward(**{**arguments, "use_cache": False})
    finally:
        for module in training:
            module.training = True
        calls.pop(engine)
    where = _taught(engine, model, given)
    return Lesson(where, _logits(output, 0, where)[where])


def divergence(lesson: Lesson, output: Any, labelled: bool) -> Tensor:
    """Compute the mean Kullback-Leibler divergence from the teacher's next-token distributions.

    Parameters
    ----------
    lesson : Lesson
    output : ModelOutput or tuple
        Of the training forward.
    labelled : bool
        Whether a loss comes first in it.

    Returns
    -------
    Tensor
        float32, (), in nats: the mean over the lesson's positions.
    """
    logits = _logits(output, int(labelled), lesson.where)[lesson.where]
    student, teacher = (x.float().log_softmax(dim=-1) for x in (logits, lesson.logits))
    total = nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)
    return total / max(len(student), 1)


def _taught(engine: Engine, model: nn.Module, given: Mapping[str, Any]) -> Tensor:
    """Return the positions that teach: bool, (batch, length)."""
    labels = given.get("labels")
    if labels is not None:
        return nn.functional.pad(labels[:, 1:] != -100, (0, 1))
    adapter = engine.adapter
    visual = adapter.any_of(adapter.core(model), given, sorted(adapter.placeholders(model)))
    there = torch.ones_like(visual)
    mask = given.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        there = mask.to(visual.device).bool()
    return there & ~visual & (visual.cumsum(dim=1) > 0)


def _logits(output: Any, place: int, where: Tensor) -> Tensor:
    """Return an output's logits, which have to be those of every position."""
    logits = output[place] if isinstance(output, tuple) else getattr(output, "logits", None)
    if logits is None or logits.shape[:2] != where.shape:
        found = "no logits" if logits is None else f"logits of shape {tuple(logits.shape)}"
        raise ValueError(
            f'loss="distill" compares logits at positions of {tuple(where.shape)}, and the model '
            f"returned {found}: leave out logits_to_keep, and losses that a trainer fuses into the "
            "model's head (TRL's SFTTrainer, Liger kernels)."
        )
    return logits
