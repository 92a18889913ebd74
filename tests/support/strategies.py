"""What Hypothesis draws: batches, layers, and what is kept after each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from .reference_decoder import Pass, Reference
from .scripted_method import Script, alive_table
from .tiny_llava import IMAGE, SIDE, Batch, Prompt, make_batch, row_alone, tiny_llava

LAYERS = 5
MAX_IMAGES = 2
PLACES = 128  # more than any prompt here has tokens


@dataclass(frozen=True)
class Case:
    """A batch and a script for it.

    Attributes
    ----------
    shares : tuple of tuple of float
        For each module and row, the share of the tokens that it keeps.
    words : float, optional
        The share of the text that each module keeps. None: all text stays.
    revives : bool
        Whether tokens come back.
    """

    prompts: tuple[Prompt, ...]
    padding: str
    layers: tuple[int, ...]
    shares: tuple[tuple[float, ...], ...]
    seed: int
    words: float | None = None
    revives: bool = False

    @property
    def rows(self) -> int:
        return len(self.prompts)

    def batch(self, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Batch:
        return make_batch(self.prompts, self.padding, device, dtype, self.seed)

    def script(self) -> Script:
        """What is kept."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (len(self.layers), self.rows, MAX_IMAGES, SIDE, SIDE)
        shares = torch.tensor(self.shares)[:, :, None, None, None]
        keep = torch.rand(shape, generator=generator) < shares
        if self.words is None:
            return Script(keep, revives=self.revives)
        places = torch.rand(len(self.layers), self.rows, PLACES, generator=generator)
        return Script(keep, places < self.words, self.revives)


def texts(least: int = 1) -> st.SearchStrategy[int]:
    return st.integers(least, 9)


def prompts(image: bool | None = None) -> st.SearchStrategy[Prompt]:
    """Text around up to two images. `image`: whether there must be one, or may be none."""
    with_image = st.one_of(
        st.tuples(texts(), st.just(IMAGE), texts()),
        st.tuples(texts(), st.just(IMAGE), texts(), st.just(IMAGE), texts()),
        st.tuples(texts(), st.just(IMAGE), st.just(IMAGE), texts()),
        st.tuples(st.just(IMAGE), texts()),
        st.tuples(texts(), st.just(IMAGE)),
        st.just((IMAGE,)),
    )
    without = st.tuples(texts())
    return {None: st.one_of(with_image, without), True: with_image, False: without}[image]


@st.composite
def cases(draw: st.DrawFn, rows: int = 3, image: bool | None = None) -> Case:
    """Up to `rows` rows."""
    drawn = tuple(draw(st.lists(prompts(image), min_size=1, max_size=rows)))
    after = st.lists(st.integers(-1, LAYERS - 2), min_size=1, max_size=3, unique=True)
    layers = tuple(sorted(draw(after)))
    share = st.sampled_from([0.0, 0.15, 0.5, 0.9, 1.0])
    shares = tuple(tuple(draw(share) for _ in drawn) for _ in layers)
    padding = draw(st.sampled_from(["left", "right"]))
    words = draw(st.sampled_from([None, 0.0, 0.5]))
    seed = draw(st.integers(0, 2**16))
    return Case(drawn, padding, layers, shares, seed, words, draw(st.booleans()))


@cache
def model_of(attn: str = "sdpa", device: str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
    """One model for all examples of a test: wrap it, and unwrap it again."""
    return tiny_llava(attn, dtype, layers=LAYERS, device=device)


def positions(mask: Tensor) -> Tensor:
    """Position ids as `generate` makes them: the first word of each row is at 0."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def reference_rows(
    model: Any, batch: Batch, layers: Sequence[int], script: Script | Tensor
) -> list[tuple[Tensor, Tensor, Pass]]:
    """For each row: where its tokens stand in the batch, which are alive, and its pass."""
    reference = Reference(model)
    found = []
    for n in range(batch["input_ids"].shape[0]):
        row = row_alone(batch, n)
        alive = alive_table(row, layers, script[:, n], model.config.text_config.num_hidden_layers)
        where = batch["attention_mask"][n].nonzero()[:, 0]
        found.append((where, alive, reference.run(reference.embed(row), alive)))
    return found
