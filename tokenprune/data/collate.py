"""Conversations to batches: for training, with labels at the answers, and as prompts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch

from .prompts import Turn, text_of

__all__ = ["PromptCollator", "TrainingCollator"]

_NO_LABEL = -100  # what transformers' losses leave out


class TrainingCollator:
    """Collate conversations for training: right padding, labels at the assistant's answers.

    Parameters
    ----------
    processor : ProcessorMixin
        The checkpoint's own.
    longest : int
        Tokens, pictures included, after which a conversation is cut.

    Examples
    --------
    As the ``data_collator`` of transformers' Trainer; `Conversations` has the rows::

        Trainer(model, arguments, data_collator=TrainingCollator(processor), train_dataset=data)

    >>> from tokenprune.data import TrainingCollator
    >>> TrainingCollator(processor=None).longest
    2048
    """

    def __init__(self, processor: Any, longest: int = 2048) -> None:
        self.processor = processor
        self.longest = longest

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate one batch of rows, ``{"image": …, "turns": …}`` each.

        Returns
        -------
        dict
            Arguments of the model's forward: what the processor makes, and "labels", int64 of shape
            (rows, length): the token where the assistant speaks, -100 elsewhere.

        Raises
        ------
        ValueError
            If a row has no answer, or a picture after one; or if the chat template writes the
            beginning of a conversation otherwise than the whole.
        """
        texts = [text_of(self.processor, row["turns"], for_answer=False) for row in rows]
        batch = self.processor(
            text=texts,
            images=[row["image"] for row in rows],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        labels = torch.full_like(batch["input_ids"], _NO_LABEL)
        for n, row in enumerate(rows):
            length = int(batch["attention_mask"][n].sum())
            for start, end in self._answers(row["turns"], texts[n], length):
                labels[n, start:end] = batch["input_ids"][n, start:end]
        made = {**batch, "labels": labels}
        whole = labels.shape
        # Whatever the processor makes for each token: masks and token types too.
        for name, values in made.items():
            if values.shape == whole and not values.is_floating_point():
                made[name] = values[:, : self.longest]
        return made

    def _answers(self, turns: Sequence[Turn], text: str, length: int) -> list[tuple[int, int]]:
        """Return the spans of the answers in a row of so many tokens.

        They are counted on the text whose placeholders stand for one token, and moved by what the
        pictures add, which come before the first answer. A token that holds the last character
        before an answer and the first of it, as some tokenizers make, belongs to the answer; one
        that holds the last of an answer and what follows does not.
        """
        tokens = self._tokens(text)
        added = length - len(tokens)

        def position(some: Sequence[Turn], for_answer: bool) -> int:
            part = text_of(self.processor, some, for_answer)
            if not text.startswith(part):
                raise ValueError(
                    f"The chat template writes the beginning of a conversation as {part!r}, and "
                    f"the whole of it as {text!r}, which does not begin so: where the answers are "
                    "cannot be told. Give the processor a template that writes each turn alike."
                )
            pairs = zip(self._tokens(part), tokens, strict=False)
            return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) + added

        found: list[tuple[int, int]] = []
        for n, turn in enumerate(turns):
            if turn["role"] == "assistant":
                start = position(turns[:n], for_answer=True)
                found.append((start, position(turns[: n + 1], for_answer=False)))
            elif found and any(part["type"] == "image" for part in turn["content"]):
                raise ValueError("A picture after an answer: expected it before the first.")
        if not found:
            raise ValueError(f"A conversation without an answer, nothing to learn from: {text!r}.")
        return found

    def _tokens(self, text: str) -> list[int]:
        return self.processor.tokenizer(text)["input_ids"]


class PromptCollator:
    """Collate conversations as prompts: left padding, each up to where its first answer begins.

    For `tokenprune.calibrate` and ``generate``.

    Parameters
    ----------
    processor : ProcessorMixin
        The checkpoint's own.

    Examples
    --------
    >>> from tokenprune.data import PromptCollator
    >>> collate = PromptCollator(processor=None)
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate one batch of rows, ``{"image": …, "turns": …}`` each.

        Returns
        -------
        dict
            Arguments of the model's forward and of ``generate``.
        """
        prompts = [
            list(takewhile(lambda turn: turn["role"] != "assistant", row["turns"])) for row in rows
        ]
        batch = self.processor(
            text=[text_of(self.processor, turns, for_answer=True) for turns in prompts],
            images=[row["image"] for row in rows],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        return dict(batch)
