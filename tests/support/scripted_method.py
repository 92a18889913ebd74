"""A method that keeps what the test wrote down, so that any kept sets can be had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tokenprune as tp
from tokenprune.methods.base import Method
from tokenprune.methods.context import Context, Selection

from .tiny_llava import IMAGE_TOKEN, Batch

SPARED = (7, 20, 33, 46, 59)
"""Words that a script never drops."""


@dataclass(frozen=True)
class Script:
    """What each module keeps.

    Attributes
    ----------
    keep : bool, (modules, rows, images, height, width)
        Whether each module keeps the token at a place of a row's image.
    words : bool, (modules, rows, places), optional
        Whether it keeps the text token that stands so many places from the row's first. None: no
        text goes.
    revives : bool
        Whether tokens come back.
    """

    keep: Tensor
    words: Tensor | None = None
    revives: bool = False

    def __getitem__(self, index: Any) -> Script:
        words = None if self.words is None else self.words[index]
        return Script(self.keep[index], words, self.revives)

    def all(self, kept: bool) -> Script:
        """The same for every visual token, and all text stays."""
        return Script(torch.full_like(self.keep, kept))


class Scripted(Method):
    """Keeps by a script.

    Parameters
    ----------
    layers : sequence of int
    script : Script, or its `keep`
        A batch with more rows than the script has each of its rows repeated in turn, as `generate`
        expands them.
    needs : sequence of str
        Asked for, and not used.

    Attributes
    ----------
    contexts : list of Context
        What it was shown, since `contexts` was last emptied.
    """

    def __init__(
        self, layers: Sequence[int], script: Script | Tensor, needs: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.follow(script)
        self.needs = frozenset(needs)
        self.contexts: list[Context] = []

    def follow(self, script: Script | Tensor) -> None:
        """Go on by another script."""
        self.script = Script(script) if isinstance(script, Tensor) else script
        self.revives = self.script.revives
        self.spared_ids = None if self.script.words is None else SPARED

    def begin(self, context: Context) -> Tensor:
        """Where each row's first token stands: int64, (batch, 1)."""
        return (context.layout.mask | context.prompt).byte().argmax(dim=1, keepdim=True)

    def select(self, context: Context) -> Selection:
        self.contexts.append(context)
        layout = context.layout
        rows = layout.mask.shape[0]
        script = self.script[context.step]
        row = torch.arange(rows, device=layout.mask.device)[:, None].expand_as(layout.mask)
        row = row // (rows // len(script.keep))
        image, y, x = (place.clamp(min=0) for place in (layout.image, layout.row, layout.col))
        keep = script.keep.to(row.device)[row, image, y, x]
        if script.words is None:
            return Selection(keep=keep)
        places = (context.positions - context.memory).clamp(min=0)
        return Selection(keep=keep, keep_text=script.words.to(row.device)[row, places])


def attach(
    model: Any, layers: Sequence[int], script: Script | Tensor, needs: Sequence[str] = ()
) -> Scripted:
    """Wrap a model with a script."""
    method = Scripted(layers, script, needs)
    tp.wrap(model, method)
    return method


@contextmanager
def scripted(
    model: Any, layers: Sequence[int], script: Script | Tensor, needs: Sequence[str] = ()
) -> Iterator[Scripted]:
    """The model wrapped with a script inside, and unwrapped after."""
    method = attach(model, layers, script, needs)
    try:
        yield method
    finally:
        tp.unwrap(model)


def alive_table(
    row: Batch, layers: Sequence[int], script: Script | Tensor, num_layers: int
) -> Tensor:
    """Which tokens each layer must compute on: bool, (num_layers, length), for an unpadded row.

    Parameters
    ----------
    row : Batch
        Of one row.
    layers : sequence of int
        The layer that each module follows.
    script : Script, or its `keep`
        Of one row.
    num_layers : int
    """
    script = Script(script) if isinstance(script, Tensor) else script
    ids = row["input_ids"][0].cpu()
    visual = ids == IMAGE_TOKEN
    table = torch.ones(num_layers, len(visual), dtype=torch.bool)
    must = torch.zeros_like(visual)
    must[-1] = True  # the next word is read off it
    if "labels" in row:  # likewise each word of an answer, which stays itself
        answer = row["labels"][0].cpu() != -100
        must |= answer
        must[:-1] |= answer[1:]
    for word in SPARED:
        must |= ids == word
    words = torch.ones_like(visual)
    for module, layer in enumerate(layers):
        stays = torch.ones_like(visual)
        stays[visual] = script.keep[module].flatten()[: int(visual.sum())]
        if script.words is not None and visual.any():
            words &= visual | script.words[module][: len(visual)]
        now = (stays & words) | must
        table[layer + 1 :] = now if script.revives else now & table[-1]
    return table.to(row["input_ids"].device)
