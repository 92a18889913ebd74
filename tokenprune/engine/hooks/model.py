"""Around the whole model: a call begins and ends, ``generate`` runs, the loss gets its terms."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .. import calls
from ..arguments import bind
from ..attention import observe_changed
from ..engine import ATTRIBUTE, Engine
from ..passes import SoftenedPass
from ..wrappers import check_heads
from .base import Hooks
from .refused import check_generate, check_not_exported, check_text_alone
from .teacher import divergence, teach

__all__ = ["ModelHooks"]


class ModelHooks(Hooks):
    """The hooks of the top-level model, and what covers its ``generate``."""

    @torch.compiler.disable
    def before(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a call."""
        check_not_exported()
        engine = self.engine
        calls.pop(engine)  # an interrupt may have left one
        if getattr(model, "_is_replica", False):
            raise RuntimeError(
                "torch.nn.DataParallel runs copies of the model on several devices, and pruning is "
                "at work in one only: start one process for each device (torchrun, accelerate "
                "launch), or let the process see one alone (CUDA_VISIBLE_DEVICES=0)."
            )
        trains = engine.training and engine.method.trainable and torch.is_grad_enabled()
        if trains:
            check_heads(getattr(model, ATTRIBUTE, None))
        given = bind(engine.anatomy.model_signature, args, kwargs)
        images = engine.adapter.has_images(given)
        tower_layer = engine.anatomy.tower_layer
        lesson = None
        if trains and images and engine.method.distills and not calls.is_paused(engine):
            lesson = teach(engine, model, given)
        labels = given.get("labels")
        calls.push(calls.Call(engine, tower_layer, labels=labels, images=images, lesson=lesson))

    @torch.compiler.disable
    def after(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        """End the call, and add the method's terms to the loss of a training forward.

        transformers' Trainer divides the loss by the items of all the batches that it accumulates,
        and so gives each batch its share of the language model's loss. The terms get the same one.
        """
        engine = self.engine
        call = calls.newest(engine)
        calls.pop(engine)
        if output is None or call is None or call.core is None or not call.core.soft:
            return None
        if calls.is_paused(engine):
            return None
        finished = call.finished
        trace = finished.trace() if isinstance(finished, SoftenedPass) else None
        share = _share(call.labels, kwargs.get("num_items_in_batch"))
        terms = {}
        if trace is None:
            engine.method.without_images()
        else:
            terms = engine.method.losses(replace(trace, weight=share))
        _warn_if_frozen(engine)
        extra = sum((value * weight for value, weight in terms.values()), torch.zeros(()))
        if not terms:
            # A batch without images teaches the heads nothing, but its loss must have a gradient.
            extra = sum((0 * p.sum() for p in engine.parameters()), extra)
        losses = {name: value for name, (value, _) in terms.items()}
        if engine.method.distills:
            return self._distilled(call, output, extra, share, losses)
        if call.labels is None:
            engine.latest.losses = losses
            return None
        lm = output[0]
        _add_to_tokens(output, extra, engine.loss_by_tokens)
        total = lm + (extra * share).to(lm.device, lm.dtype)
        engine.latest.losses = {"lm": lm, **losses, "total": total}
        return _with_loss(output, total)

    def _distilled(
        self,
        call: calls.Call,
        output: Any,
        extra: Tensor,
        share: float | Tensor,
        losses: dict[str, Tensor],
    ) -> Any:
        """Return the output with the divergence from the teacher, and the terms, as its loss."""
        labelled, lesson = call.labels is not None, call.lesson
        # A batch without images is answered by teacher and pupil alike.
        value = extra * 0 if lesson is None else divergence(lesson, output, labelled)
        total = (value + extra.to(value.device)) * share
        self.engine.latest.losses = {"distill": value, **losses, "total": total}
        return _with_loss(output, total) if labelled else _with_new_loss(output, total)

    def generate(self, generate: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model's ``generate``, whose arguments are known to the calls inside."""
        engine = self.engine
        # The signature is not kept with the others: it cannot be pickled.
        arguments = bind(inspect.signature(generate), args, kwargs)
        images = not calls.is_paused(engine) and engine.adapter.has_images(arguments)
        if images:
            check_generate(generate, arguments)
            if arguments.get("streamer") is not None:
                engine.streams.begin()
        observe_changed(engine, required=images)  # images may be encoded before the first forward
        # Some releases leave the images out of what an assistant sees; the main model has the say.
        assists = getattr(arguments.get("generation_config"), "is_assistant", False)
        arrive = images and not assists
        with calls.generating(engine, engine.anatomy.tower_layer, arguments, arrive):
            return generate(*args, **kwargs)

    def generate_batch(
        self, placeholders: set[int], generate: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Run the model's ``generate_batch``, if its prompts are text."""
        if not calls.is_paused(self.engine):
            check_text_alone(generate, placeholders, args, kwargs)
        return generate(*args, **kwargs)


def _share(labels: Tensor | None, items: Any) -> float | Tensor:
    """Return the share of a batch's answers in all items of its optimiser step, if these are given.

    Parameters
    ----------
    labels : int64, (batch, length), optional
    items : int or Tensor, optional
        As transformers' Trainer gives ``num_items_in_batch``: one number, or one for each device.
    """
    if labels is None or items is None:
        return 1.0
    answers = (labels[..., 1:] != -100).sum()
    return answers / torch.as_tensor(items, device=labels.device).max().clamp(min=1)


def _with_loss(output: Any, loss: Tensor) -> Any:
    if isinstance(output, tuple):
        return (loss, *output[1:])
    output["loss"] = loss
    return output


def _with_new_loss(output: Any, loss: Tensor) -> Any:
    """Return an output that has no loss with one, before everything else in it."""
    if isinstance(output, tuple):
        return (loss, *output)
    return type(output)(**{**output, "loss": loss})


def _add_to_tokens(output: Any, extra: Tensor, wanted: bool) -> None:
    """Add the terms to each answer token's loss, where TRL's trainers read that alone.

    Whatever they divide the sum over tokens by, the terms then have the batch's share.
    """
    log_probs, mask = getattr(output, "log_probs", None), getattr(output, "label_mask", None)
    if log_probs is None or mask is None:
        return
    if wanted:
        output["log_probs"] = log_probs - extra.to(log_probs.device, log_probs.dtype) * mask
    else:
        warnings.warn(
            "TRL computes its loss from log-probabilities, so the pruning's terms are not in it, "
            "and heads train without a budget. Give SFTTrainer a tokenprune.TrainerCallback(); in "
            "other trainers, add tokenprune.losses(model) to the loss.",
            stacklevel=2,
        )


def _warn_if_frozen(engine: Engine) -> None:
    """Warn where heads are trained on that are frozen, and nobody asked for it."""
    wanted = engine.trains is None or "heads" in engine.trains
    parameters = list(engine.parameters())
    if wanted and parameters and not any(p.requires_grad for p in parameters):
        warnings.warn(
            "The pruning heads are frozen in this training forward: peft.get_peft_model, for "
            "instance, freezes whatever it did not add. Call tokenprune.trainable(model, "
            '"heads", "lora"), or tokenprune.trainable(model, "lora") to leave them frozen.',
            stacklevel=2,
        )
