"""The tokens that layers compute on, from one pruning step to the next."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...layout import VisualLayout
from ..survivors import Survivors

__all__ = ["Stage", "first_stage"]


@dataclass(frozen=True)
class Stage:
    """The tokens that the layers between two pruning steps compute on.

    Attributes
    ----------
    kept : Survivors, optional
        Which of the pass's positions they are. None: all.
    layout : VisualLayout
    prompt : bool, (batch, tokens)
        Text of the prompt, whose queries count in a score; answers are not among it.
    present : bool, (batch, tokens), optional
        False at padding. None: no padding.
    read : bool, (batch, tokens)
        Where a next token is read off: these stay, whatever they are.
    text : bool, (batch, tokens)
        Text of the prompt that a method may drop.
    """

    kept: Survivors | None
    layout: VisualLayout
    prompt: Tensor
    present: Tensor | None
    read: Tensor
    text: Tensor

    def everything(self) -> Tensor:
        """Return where tokens are: bool, (batch, tokens), False at padding."""
        return torch.ones_like(self.layout.mask) if self.present is None else self.present

    def first_positions(self, slots: int) -> Tensor:
        """Return the positions of each row's first tokens, without padding: int64, (batch, slots).

        Survivors that are numbered anew get these.
        """
        return (~self.everything()).byte().argsort(dim=1, stable=True)[:, :slots]

    def after_dropping(self, kept: Survivors) -> Stage:
        """Return the stage of those of this one's tokens that survive."""
        prompt, read, text = (
            part.gather(1, kept.index) for part in (self.prompt, self.read, self.text)
        )
        if kept.valid is not None:
            prompt, read, text = prompt & kept.valid, read & kept.valid, text & kept.valid
        return Stage(
            kept=kept if self.kept is None else self.kept.followed_by(kept),
            layout=self.layout.gather(kept.index, kept.valid),
            prompt=prompt,
            present=kept.valid,
            read=read,
            text=text,
        )


def first_stage(
    layout: VisualLayout,
    attention_mask: Any,
    labels: Tensor | None,
    prompt_length: int | None,
    special: Tensor | None,
) -> Stage:
    """Return the stage of all tokens of a pass.

    Parameters
    ----------
    layout : VisualLayout
    attention_mask : (batch, seen), optional
        As the core was given it; one of another form says nothing of padding.
    labels : int64, (batch, length), optional
        Positions other than -100 are answers, which no score may depend on.
    prompt_length : int, optional
        Positions from here on are answers, likewise.
    special : bool, (batch, length), optional
        Text that no method may drop. None: all of it.
    """
    shape = layout.mask.shape
    present = None
    if getattr(attention_mask, "ndim", None) == 2:
        present = attention_mask[:, -shape[1] :].bool().to(layout.mask.device)
        layout = replace(layout, mask=layout.mask & present)
    there = layout.mask.new_ones(shape) if present is None else present
    prompt = there & ~layout.mask
    last = (torch.arange(shape[1], device=there.device) * there).argmax(1)
    read = torch.zeros_like(there).scatter(1, last[:, None], True)
    if labels is not None and labels.shape == shape:
        answer = labels.to(prompt.device) != -100
        prompt = prompt & ~answer
        read[:, :-1] |= answer[:, 1:] & there[:, :-1]
    if prompt_length is not None:
        prompt[:, prompt_length:] = False
        read[:, prompt_length - 1] |= there[:, prompt_length - 1]
    text = torch.zeros_like(prompt)
    if special is not None:
        # A row without pictures would not be pruned on its own either.
        text = prompt & ~read & ~special & layout.mask.any(dim=1, keepdim=True)
    return Stage(None, layout, prompt, present, read, text)
