"""Watch the unpruned model: what a learned ranking reads, and the attention it should foresee."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..methods.atp import ATP
from ..methods.atp.ranking import RankingInputs
from ..methods.base import Method
from ..methods.context import Context, Selection

__all__ = ["Seen", "Watcher"]


class Seen(NamedTuple):
    """What one prompt shows at one pruning step, of its n visual tokens.

    Attributes
    ----------
    tokens : float16, (n, features)
    prompt : float16, (states,)
        As in `RankingInputs`.
    score : float32, (n,)
        S_r, raw.
    to_come : float32, (n,)
        Attention that the prompt's last token pays each in the layers to come, summed over these.
    """

    tokens: Tensor
    prompt: Tensor
    score: Tensor
    to_come: Tensor

    def size(self) -> int:
        """Return how many bytes it takes."""
        return sum(part.numel() * part.element_size() for part in self)


class Watcher(Method):
    """Drop nothing, and note what each of ATP's steps would read.

    Parameters
    ----------
    method : ATP
    num_layers : int
        Decoder layers; the last one is not looked at.
    """

    needs = frozenset({"visual", "prompt", "last"})

    def __init__(self, method: ATP, num_layers: int) -> None:
        super().__init__()
        self.layers = tuple(range(method.layers[0], max(num_layers - 1, method.layers[-1] + 1)))
        self.steps = method.layers
        self.maps = method.maps
        self.inputs: list[tuple[RankingInputs, Tensor]] = []
        self.received: list[Tensor] = []
        self.mask: Tensor | None = None

    def select(self, context: Context) -> Selection:
        """Keep every token, and note what is there."""
        mask = self.mask = context.layout.mask
        if context.layer in self.steps:
            maps, score = self.maps(context)
            self.inputs.append((RankingInputs.of(context, maps), score))
        self.received.append(torch.where(mask, context.received["last"].total, 0.0))
        return Selection(keep=mask)

    def take(self) -> list[list[Seen]]:
        """Return what was seen since the last call: for each prompt with images, of each step."""
        mask, inputs, received = self.mask, self.inputs, self.received
        self.mask, self.inputs, self.received = None, [], []
        if mask is None:
            return []
        # What comes after a step: of all the layers behind it.
        to_come = torch.stack(received).flip(0).cumsum(dim=0).flip(0)
        prompts = []
        for row, there in enumerate(mask):
            if not bool(there.any()):
                continue
            steps = []
            for layer, (read, score) in zip(self.steps, inputs, strict=True):
                after = layer - self.layers[0] + 1
                came = to_come[min(after, len(to_come) - 1), row, there]
                states = read.tokens[row, there].half(), read.prompt[row].half()
                steps.append(Seen(*(part.cpu() for part in (*states, score[row, there], came))))
            prompts.append(steps)
        return prompts
