"""A callback of transformers' Trainer that resumes the pruning, and logs what it does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback as Base

from .engine import Engine, base_model_of, engine_of
from .io import load_heads
from .saved import HEADS
from .saving import cover_save_pretrained

__all__ = ["TrainerCallback"]


class TrainerCallback(Base):
    """Resume the pruning with a Trainer's run, load that of its best checkpoint, and log it.

    The Trainer does not read the heads of a checkpoint: without this callback a resumed run would
    go on with those that the model was wrapped with. Where nothing but heads trains, checkpoints
    hold the heads alone, and the run that resumes starts from the same model as the first one did;
    ``trainer.save_model`` and ``model.save_pretrained`` write the whole model.

    The Trainer's logs get, as means over the batches since the last log, the visual tokens kept by
    a sample over all layers ("tokenprune/kept_tokens"), the loss's terms ("tokenprune/lm" or
    "tokenprune/distill", "tokenprune/atp", "tokenprune/target") and each step's thresholds
    ("tokenprune/layer_1/threshold_0"). Callbacks that report, such as TensorBoardCallback, see them
    if they come after this one: those that ``report_to`` names come before.

    Parameters
    ----------
    resume_from : path, optional
        The checkpoint that the run resumes from. None: the one of that step in ``output_dir``.

    Examples
    --------
    >>> tp.TrainerCallback().resume_from is None
    True
    """

    def __init__(self, resume_from: str | Path | None = None) -> None:
        self.resume_from = resume_from
        self._noted: dict[str, list[Tensor]] = {}

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Expect the Trainer to load state dicts without heads."""
        engine, base = engine_of(kwargs["model"]), base_model_of(kwargs["model"])
        if engine.warns_without_heads:
            engine.warns_without_heads = False
            engine.handles.append(base.register_load_state_dict_post_hook(_expect_none))
        engine.loss_by_tokens = _is_sft(args)
        smooths = getattr(args, "label_smoothing_factor", 0) > 0
        if engine.method.distills and (engine.loss_by_tokens or smooths):
            found = "label_smoothing_factor" if smooths else "TRL's SFTTrainer"
            raise ValueError(
                f'loss="distill" is the model\'s own loss, and {found} has the Trainer compute '
                'another: leave that out, or use ATPConfig(loss="labels").'
            )
        cover_save_pretrained(kwargs["model"])  # a PEFT model's that the Trainer has made

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the heads of the checkpoint, if the run is resumed.

        Raises
        ------
        FileNotFoundError
            If it has none.
        """
        self._noted = {}
        engine_of(kwargs["model"]).checkpoints_in = os.path.abspath(args.output_dir)
        if state.global_step == 0:
            return
        folder = self.resume_from
        if folder is None:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            if not os.path.isfile(folder / HEADS):
                raise FileNotFoundError(
                    f"The run was resumed at step {state.global_step}, and {folder} has no {HEADS}:"
                    " give the checkpoint that it is resumed from, as "
                    "tokenprune.TrainerCallback(resume_from=folder)."
                )
        load_heads(kwargs["model"], folder)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the heads of the best checkpoint, where the Trainer has loaded its model."""
        engine_of(kwargs["model"]).checkpoints_in = None
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            load_heads(kwargs["model"], state.best_model_checkpoint)

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note a batch whose gradients are accumulated."""
        self._note(engine_of(kwargs["model"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the last batch of an optimiser step."""
        self._note(engine_of(kwargs["model"]))

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add what was noted to the logs of training, and to the Trainer's history."""
        logs = kwargs.get("logs")
        if logs is None or "loss" not in logs:  # of an evaluation, or of the end
            return
        means = {name: float(torch.stack(found).mean()) for name, found in self._noted.items()}
        self._noted = {}
        logs.update(means)
        if state.log_history:
            state.log_history[-1].update(means)

    def _note(self, engine: Engine) -> None:
        """Keep the last forward's figures where they are: reading them would wait for a device."""
        losses, record = engine.latest.losses or {}, engine.latest.record
        if losses and "total" not in losses:
            raise ValueError(
                "The Trainer computes the loss itself and gives the model no labels, so the "
                "pruning's terms are not in it, and answers count as prompts: leave out "
                "label_smoothing_factor and compute_loss_func."
            )
        found = {name: value.detach().float() for name, value in losses.items() if name != "total"}
        if record is not None and len(losses) > 2:  # not of a batch without images
            kept = (record.alive() & record.layout.mask).sum(dim=2).float().mean(dim=0)
            found["kept_tokens"] = kept[record.layout.mask.any(dim=1)].mean()
            for decision in record.decisions:
                if decision.thresholds is not None:
                    for n, value in enumerate(decision.thresholds.float().mean(dim=0)):
                        found[f"layer_{decision.layer}/threshold_{n}"] = value
        for name, value in found.items():
            self._noted.setdefault(f"tokenprune/{name}", []).append(value)


def _is_sft(args: Any) -> bool:
    """Return whether TRL's SFTTrainer trains by the mean log-probability of the answers' tokens."""
    trl = sys.modules.get("trl")
    if trl is None or not isinstance(args, trl.SFTConfig):
        return False
    return getattr(args, "loss_type", "nll") == "nll"


def _expect_none(model: nn.Module, keys: Any) -> None:
    """Take a state dict without any of the model's keys for a checkpoint of heads alone."""
    if set(keys.missing_keys) == set(model.state_dict()):
        keys.missing_keys.clear()
