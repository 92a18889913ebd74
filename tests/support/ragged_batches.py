"""Drawn batches for every method, and how to tell a wrong answer from a rounding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

import tokenprune as tp

from .case_counts import count
from .reference_decoder import Reference
from .strategies import LAYERS, prompts
from .tiny_llava import EOS, IMAGE_TOKEN, PAD, Batch, Prompt, make_batch

__all__ = ["RAGGED", "STEPS", "Ragged", "alive_of", "answer", "assert_best", "at_a_tie"]

NOISE = 1e-5
STEPS = 4  # words of an answer


@dataclass(frozen=True)
class Ragged:
    """A drawn batch."""

    prompts: tuple[Prompt, ...]
    padding: str
    seed: int

    def batch(self, padding: str | None = None, dtype: torch.dtype = torch.float32) -> Batch:
        return make_batch(self.prompts, padding or self.padding, dtype=dtype, seed=self.seed)


RAGGED = st.builds(
    Ragged,
    st.lists(prompts(), min_size=1, max_size=4).map(tuple),
    st.sampled_from(["left", "right"]),
    st.integers(0, 2**16),
)


def alive_of(model: Any, batch: Batch) -> Tensor:
    """What each layer computed on in the last prompt: bool, (layers, batch, length)."""
    present = batch["attention_mask"].bool()
    if "pixel_values" not in batch:
        return present.expand(LAYERS, *present.shape)
    return torch.from_numpy(tp.stats(model).alive.copy())[..., : present.shape[1]]


def answer(words: list[int]) -> list[int]:
    """The words up to the end's token, pads behind: beams fill a row up with that token."""
    said = words[: words.index(EOS) + 1] if EOS in words else words
    return said + [PAD] * (STEPS - len(said))


def at_a_tie(
    outcome: Callable[[Batch], Any], batch: Batch, equal: Callable[[Any, Any], bool]
) -> bool:
    """Whether what comes of a batch changes with noise far below what a decision is worth."""
    if "pixel_values" not in batch:
        return False
    wanted = outcome(batch)
    generator = torch.Generator().manual_seed(0)
    pixels = batch["pixel_values"]
    for _ in range(4):
        noise = NOISE * torch.randn(pixels.shape, generator=generator)
        if not equal(outcome({**batch, "pixel_values": pixels + noise}), wanted):
            count("left out: differs from itself by rounding")
            return True
    return False


def assert_best(reference: Reference, embeds: Tensor, alive: Tensor, words: list[int]) -> None:
    """Each word has the reference's best score, or one that rounding cannot tell from it.

    Parameters
    ----------
    embeds : float64, (tokens, width)
        What the words follow.
    alive : bool, (layers, tokens)
    words : list of int
        Pads after the end's token, or none at all where the first word is a pad.
    """
    said = words[: words.index(PAD)] if PAD in words else words
    ids = torch.tensor(said, dtype=torch.long)
    alive = torch.cat([alive, alive.new_ones(LAYERS, len(said))], dim=1)
    logits = reference.run(torch.cat([embeds, reference.words(ids)]), alive).logits
    logits = logits[-len(said) - 1 : -1].clone()
    logits[:, IMAGE_TOKEN] = -torch.inf  # as the models' generation_config has it
    best = logits.amax(dim=1)
    behind = best - logits.gather(1, ids[:, None])[:, 0]
    assert (behind <= 1e-4 * best.abs()).all(), f"{words} is {behind.tolist()} behind the best"
