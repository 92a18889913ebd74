"""A callback of transformers' Trainer that resumes the pruning."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import TrainerCallback as Base

from .engine import engine_of
from .io import load_heads
from .saved import HEADS

__all__ = ["TrainerCallback"]


class TrainerCallback(Base):
    """Resume the pruning with a Trainer's run, and load that of its best checkpoint.

    Checkpoints hold the plain model, and the heads in a file beside it, which the Trainer does not
    read. Without this callback a resumed run would go on with the heads that the model was wrapped
    with.

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

    def on_init_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Expect the Trainer to load state dicts without heads."""
        engine_of(kwargs["model"]).warns_without_heads = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Load the heads of the checkpoint, if the run is resumed.

        Raises
        ------
        FileNotFoundError
            If it has none.
        """
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
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            load_heads(kwargs["model"], state.best_model_checkpoint)
