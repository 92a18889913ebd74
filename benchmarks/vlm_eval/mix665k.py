"""LLaVA's training data (``llava_v1_5_mix665k.json``) as batches with labels at the answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from .prompts import Turn, text_of

__all__ = ["Collator", "Mix665k"]

_ROLES = {"human": "user", "gpt": "assistant"}
_PLACEHOLDER = "<image>"


class Mix665k(Dataset):
    """The conversations about a picture. Those without one do not train the heads: left out.

    Parameters
    ----------
    annotations : path
        A JSON list of ``{"id", "image", "conversations": [{"from": "human", "value": …}, …]}``.
    images : path
        The folder that the ``image`` paths are relative to.

    Raises
    ------
    FileNotFoundError
        If there are no annotations.
    ValueError
        If they are not such a list, or none has a picture.
    """

    def __init__(self, annotations: str | Path, images: str | Path) -> None:
        rows = json.loads(Path(annotations).read_text(encoding="utf-8"))
        if not isinstance(rows, list) or not all("conversations" in row for row in rows):
            raise ValueError(
                f"{annotations}: expected a JSON list of rows with 'conversations', LLaVA's format."
            )
        self.images = Path(images)
        self.rows = [row for row in rows if row.get("image")]
        if not self.rows:
            raise ValueError(f"{annotations}: none of its {len(rows)} rows has an image.")

    def __len__(self) -> int:
        """Return the number of conversations."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Load the picture and the turns of one conversation."""
        row = self.rows[index]
        with Image.open(self.images / row["image"]) as opened:
            image = opened.convert("RGB")
        return {"image": image, "turns": [_turn(row, given) for given in row["conversations"]]}


def _turn(row: dict[str, Any], given: dict[str, str]) -> Turn:
    if given["from"] not in _ROLES:
        raise ValueError(
            f"Row {row.get('id')!r}: a turn from {given['from']!r}, expected 'human' or 'gpt'."
        )
    text = given["value"].replace(_PLACEHOLDER, "").strip()
    content: list[dict[str, str]] = [{"type": "text", "text": text}]
    if _PLACEHOLDER in given["value"]:
        content.insert(0, {"type": "image"})
    return {"role": _ROLES[given["from"]], "content": content}


class Collator:
    """Batches: right padding, labels at the assistant's answers and -100 elsewhere.

    Parameters
    ----------
    processor : ProcessorMixin
    longest : int
        Tokens, pictures included, after which a conversation is cut.
    """

    def __init__(self, processor: Any, longest: int = 2048) -> None:
        self.processor = processor
        self.longest = longest

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate one batch of `Mix665k` rows."""
        texts = [text_of(self.processor, row["turns"], for_answer=False) for row in rows]
        batch = self.processor(
            text=texts,
            images=[row["image"] for row in rows],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        labels = torch.full_like(batch["input_ids"], -100)
        for n, row in enumerate(rows):
            there = int(batch["attention_mask"][n].sum())
            for start, end in self.answers(row["turns"], texts[n], there):
                labels[n, start:end] = batch["input_ids"][n, start:end]
        made = {**batch, "labels": labels}
        for name in ("input_ids", "attention_mask", "labels"):
            made[name] = made[name][:, : self.longest]
        return made

    def answers(self, turns: Sequence[Turn], text: str, length: int) -> list[tuple[int, int]]:
        """Return the spans of the assistant's answers in a row of so many tokens.

        Counted on the text whose placeholders stand for one token, and moved by what the pictures
        add: they all come before the first answer in this format.

        Raises
        ------
        ValueError
            If a picture comes after an answer.
        """

        def count(part: str) -> int:
            return len(self.processor.tokenizer(part)["input_ids"])

        added = length - count(text)
        found: list[tuple[int, int]] = []
        for n, turn in enumerate(turns):
            if turn["role"] != "assistant":
                if found and any(part["type"] == "image" for part in turn["content"]):
                    raise ValueError("A picture after an answer: this format has them first.")
                continue
            start = count(text_of(self.processor, turns[:n], for_answer=True))
            end = count(text_of(self.processor, turns[: n + 1], for_answer=False))
            found.append((start + added, end + added))
        return found
