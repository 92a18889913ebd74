"""Contexts made by hand, and what a rule written out in plain Python is compared by."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from tokenprune.config import ModelFacts
from tokenprune.layout import VisualLayout
from tokenprune.methods import build
from tokenprune.methods.context import Context, Received, Tower

from .tiny_llava import IMAGE

HEIGHT, WIDTH, WIDE = 4, 6, 5
FACTS = ModelFacts(32, (HEIGHT, WIDTH), (3, 13, 23))
seeds = st.integers(0, 2**20)


def layout_of(rows: Sequence[Sequence[int | str]]) -> VisualLayout:
    """Rows of text and pictures, padded at the end."""
    parts = [[[p == IMAGE] * (HEIGHT * WIDTH if p == IMAGE else int(p)) for p in r] for r in rows]
    flat = [[x for part in row for x in part] for row in parts]
    length = max(map(len, flat))
    mask = torch.tensor([row + [False] * (length - len(row)) for row in flat])
    return VisualLayout.from_grids(mask, HEIGHT, WIDTH)


def context_of(seed: int, rows: Sequence[Sequence[int | str]], layer: int = 0) -> Context:
    generator = torch.Generator().manual_seed(seed)
    layout = layout_of(rows)
    batch, length = layout.mask.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    there = torch.tensor([sum(HEIGHT * WIDTH if p == IMAGE else int(p) for p in r) for r in rows])
    prompt = ~layout.mask & (torch.arange(length) < there[:, None])
    texts = int(prompt.sum(1).max())
    own = torch.arange(texts)[:, None] < prompt.sum(1)[:, None, None]
    each = draw(batch, texts, length) * own
    ones = torch.ones(batch, length)
    return Context(
        step=0,
        layer=layer,
        layout=layout,
        weight=layout.mask.float(),
        prompt=prompt,
        text=torch.zeros_like(prompt),
        received={
            "last": Received(draw(batch, length), ones, ones[:, 0]),
            "each": Received(each, torch.ones(batch, texts, length), torch.ones(batch, texts)),
        },
        hidden_states=torch.randn(batch, length, WIDE, generator=generator),
        positions=torch.arange(length).expand(batch, -1),
        memory=prompt & (draw(batch, length) < 0.7),
        tower=Tower(
            draw(batch, length) ** 4,
            draw(batch, length) ** 4,
            torch.randn(batch, length, 2, 3, generator=generator),
        ),
    )


ROWS = [(2, IMAGE, 3), (1, IMAGE, IMAGE, 2), (4, IMAGE, 6)]


def visual_of(context: Context, row: int) -> list[int]:
    return context.layout.mask[row].nonzero()[:, 0].tolist()


def kept(keep: Tensor, context: Context, row: int) -> list[int]:
    return [t for t in visual_of(context, row) if keep[row, t]]


def by_rows(config, context: Context):
    """What the method selects, and each row's number and visual tokens."""
    selection = build(config.fitted(FACTS), FACTS).select(context)
    for row in range(len(ROWS)):
        yield selection, row, visual_of(context, row)


def best(scores: dict[int, float], count: int) -> list[int]:
    return sorted(sorted(scores, key=lambda t: (-scores[t], t))[:count])


def cosine(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float(a @ b / (a.norm() * b.norm()))


def check_means(selection, context: Context, row: int, cells: dict[int, tuple]) -> None:
    """One token a cell, the first, holding the mean."""
    found = kept(selection.keep, context, row)
    firsts = [min(t for t in cells if cells[t] == cell) for cell in set(cells.values())]
    assert found == sorted(firsts)
    for t in found:
        members = [context.hidden_states[row, o] for o in cells if cells[o] == cells[t]]
        wanted = torch.stack(members).double().mean(0)
        torch.testing.assert_close(
            selection.hidden_states[row, t].double(), wanted, rtol=0, atol=1e-6
        )
