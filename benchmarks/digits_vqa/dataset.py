"""Samples of the small model's task and their batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .handwriting import SPLITS
from .pictures import SIZE, Picture, Size, compose
from .questions import KINDS, Question, ask, askable


@dataclass(frozen=True)
class Sample:
    """A picture and one question about it."""

    picture: Picture
    question: Question


def samples(
    split: str,
    n: int,
    seed: int,
    digits: tuple[int, int] = (1, 6),
    kinds: Sequence[str] = KINDS,
    sizes: Sequence[Size] = ((SIZE, SIZE),),
) -> list[Sample]:
    """Draw pictures with one question each.

    Parameters
    ----------
    split : str
        Handwriting to use: ``"train"``, ``"validation"`` or ``"held_out"``.
    n : int
        Number of samples.
    seed : int
        The same seed gives the same samples; different splits give different pictures.
    digits : tuple of int
        Smallest and largest number of digits on a picture, at most 7.
    kinds : sequence of str
        Kinds of question.
    sizes : sequence of (int, int)
        Widths and heights of pictures, all equally often.

    Returns
    -------
    list of Sample
        All kinds of question equally often (up to rounding), in mixed order.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split)])
    order = [kinds[i % len(kinds)] for i in range(n)]
    rng.shuffle(order)
    drawn = []
    for n, kind in enumerate(order):
        size = sizes[n % len(sizes)]
        picture = compose(rng, split, digits, size)
        while not askable(picture, (kind,)):
            picture = compose(rng, split, digits, size)
        drawn.append(Sample(picture, ask(rng, picture, (kind,))))
    return drawn


def collate(
    processor: Any,
    samples: Sequence[Sample],
    with_answers: bool,
    padding_side: str = "left",
) -> dict[str, torch.Tensor]:
    """Make one batch of samples.

    Parameters
    ----------
    processor : ProcessorMixin
        Turns pictures and prompts into tensors.
    samples : sequence of Sample
        What to put in the batch.
    with_answers : bool
        Append the answer token to every prompt and add ``labels``, which are -100 everywhere
        but at the answer.
    padding_side : str
        ``"left"`` or ``"right"``; questions differ in length, so there is padding.

    Returns
    -------
    dict of str to torch.Tensor
        What the processor makes (``input_ids``, ``attention_mask``, ``pixel_values`` …) and, with
        answers, ``labels``.
    """
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side must be 'left' or 'right', got {padding_side!r}")
    texts = [f"{picture_text(processor)} {sample.question.text}" for sample in samples]
    if with_answers:
        texts = [
            f"{text} {sample.question.answer}" for text, sample in zip(texts, samples, strict=True)
        ]
    batch = processor(
        text=texts,
        images=[sample.picture.pixels for sample in samples],
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
    )
    made = dict(batch)
    if with_answers:
        made["labels"] = _only_last(made["input_ids"], made["attention_mask"])
    return made


def picture_text(processor: Any) -> str:
    """Return the picture's text in a prompt: the image token, and the vision markers around it."""
    known = processor.tokenizer.get_vocab()
    ends = (f"<|vision_{end}|>" for end in ("start", "end"))
    return processor.image_token.join(end if end in known else "" for end in ends)


def last_positions(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return the position of each row's last token that is not padding."""
    positions = torch.arange(attention_mask.shape[1], device=attention_mask.device)
    return (attention_mask * positions).argmax(-1)


def answer_ids(processor: Any, samples: Sequence[Sample]) -> torch.Tensor:
    """Return the token id of each sample's answer."""
    words = [sample.question.answer for sample in samples]
    return torch.tensor(processor.tokenizer.convert_tokens_to_ids(words))


def _only_last(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    labels = torch.full_like(input_ids, -100)
    rows = torch.arange(len(input_ids))
    last = last_positions(attention_mask)
    labels[rows, last] = input_ids[rows, last]
    return labels
