"""A method that keeps what the test wrote down, so that any kept sets can be had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from tokenprune.adapters import adapter_for
from torch import Tensor

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.engine import Engine
from tokenprune.methods.base import Context, Method, Selection

from .models import IMAGE_TOKEN, Batch


@dataclass(frozen=True)
class ScriptedConfig(MethodConfig):
    method = "scripted"


class Scripted(Method):
    """Keeps by a script.

    Parameters
    ----------
    layers : sequence of int
    script : bool, (modules, rows, images, height, width)
        Whether each module keeps the token at a place of a row's image. A batch with more rows
        than the script has each of its rows repeated in turn, as `generate` expands them.
    needs : sequence of str
        Asked for, and not used.

    Attributes
    ----------
    contexts : list of Context
        What it was shown, since `contexts` was last emptied.
    """

    def __init__(self, layers: Sequence[int], script: Tensor, needs: Sequence[str] = ()) -> None:
        super().__init__()
        self.layers = tuple(layers)
        self.script = script
        self.needs = frozenset(needs)
        self.contexts: list[Context] = []

    def select(self, context: Context) -> Selection:
        self.contexts.append(context)
        layout = context.layout
        rows = layout.mask.shape[0]
        script = self.script[context.module].to(layout.mask.device)
        script = script.repeat_interleave(rows // script.shape[0], dim=0)
        row = torch.arange(rows, device=layout.mask.device)[:, None].expand_as(layout.mask)
        image, y, x = (place.clamp(min=0) for place in (layout.image, layout.row, layout.col))
        return Selection(keep=script[row, image, y, x])


def attach(
    model: Any, layers: Sequence[int], script: Tensor, needs: Sequence[str] = ()
) -> Scripted:
    """Wrap a model with a script, as `tokenprune.wrap` does with its own methods."""
    return attach_method(model, Scripted(layers, script, needs))


def attach_method(model: Any, method: Scripted) -> Scripted:
    """Wrap a model with a method that the library does not have."""
    engine = Engine(method, adapter_for(model), ScriptedConfig())
    engine.train(model.training)
    engine.attach(model)
    return method


@contextmanager
def scripted(
    model: Any, layers: Sequence[int], script: Tensor, needs: Sequence[str] = ()
) -> Iterator[Scripted]:
    """The model wrapped with a script inside, and unwrapped after."""
    method = attach(model, layers, script, needs)
    try:
        yield method
    finally:
        tp.unwrap(model)


def alive_table(row: Batch, layers: Sequence[int], script: Tensor, num_layers: int) -> Tensor:
    """Which tokens each layer must compute on: bool, (num_layers, length), for an unpadded row.

    Parameters
    ----------
    row : Batch
        Of one row.
    layers : sequence of int
        The layer that each module follows.
    script : bool, (modules, images, height, width)
    num_layers : int
    """
    visual = (row["input_ids"][0] == IMAGE_TOKEN).cpu()
    table = torch.ones(num_layers, len(visual), dtype=torch.bool)
    for layer, keep in zip(layers, script, strict=True):
        stays = torch.ones_like(visual)
        stays[visual] = keep.flatten()[: int(visual.sum())]
        stays[-1] = True  # the next word is read off it
        if "labels" in row:  # likewise each word of an answer
            stays[:-1] |= row["labels"][0, 1:].cpu() != -100
        table[layer + 1 :] &= stays
    return table.to(row["input_ids"].device)
