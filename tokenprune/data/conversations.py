"""Conversations about pictures, as LLaVA's training data has them (``llava_v1_5_mix665k.json``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from ..checks import shown
from .prompts import Turn

__all__ = ["Conversations", "conversation"]

_ROLES = {"human": "user", "gpt": "assistant"}
_PLACEHOLDER = "<image>"


class Conversations(Dataset[dict[str, Any]]):
    """The conversations about a picture in a JSON file; those without one are left out.

    An item is ``{"image": PIL.Image.Image in RGB, "turns": list of Turn}``, what the collators
    take. Pictures are read when they are asked for.

    Parameters
    ----------
    annotations : path
        A JSON list of ``{"image": path, "conversations": [{"from": "human", "value": text},
        {"from": "gpt", "value": text}, …]}``. One ``<image>`` in a conversation, before its first
        answer, says where the picture stands.
    images : path, optional
        The folder that the paths of pictures are relative to. None: the one `annotations` lies in.

    Raises
    ------
    FileNotFoundError
        If there is no such file. For an item: if its picture is not there.
    ValueError
        If it is not such a list, or none of its conversations has a picture. For an item: if its
        picture cannot be read.

    Examples
    --------
    >>> import json
    >>> from PIL import Image
    >>> from tokenprune.data import Conversations
    >>> Image.new("RGB", (64, 64)).save(folder / "cat.png")
    >>> question = {"from": "human", "value": "<image> What is it?"}
    >>> answer = {"from": "gpt", "value": "A cat"}
    >>> row = {"image": "cat.png", "conversations": [question, answer]}
    >>> _ = (folder / "rows.json").write_text(json.dumps([row]))
    >>> data = Conversations(folder / "rows.json")
    >>> len(data), data[0]["image"].size, data[0]["turns"][1]["role"]
    (1, (64, 64), 'assistant')
    """

    def __init__(self, annotations: str | Path, images: str | Path | None = None) -> None:
        self.annotations = Path(annotations)
        self.images = self.annotations.parent if images is None else Path(images)
        try:
            rows = json.loads(self.annotations.read_text(encoding="utf-8"))
        except ValueError as error:  # not JSON, or not UTF-8
            raise ValueError(f"{self.annotations} is not JSON ({error}).") from error
        if not isinstance(rows, list):
            raise ValueError(
                f"{self.annotations} holds a JSON {type(rows).__name__}: expected a list of "
                "conversations, LLaVA's format."
            )
        self.rows: list[tuple[str, Path, list[Turn]]] = []
        for n, row in enumerate(rows):
            where = f"{self.annotations}, entry {n}"
            if not isinstance(row, dict) or "conversations" not in row:
                raise ValueError(f"{where}: no 'conversations', which each has in LLaVA's format.")
            picture = row.get("image")
            if not picture:
                continue
            if not isinstance(picture, str):
                raise ValueError(f"{where}: image={shown(picture)}, expected the path of one.")
            turns = conversation(row["conversations"], where)
            self.rows.append((where, self.images / picture, turns))
        if not self.rows:
            raise ValueError(f"{self.annotations}: none of its {len(rows)} entries has an image.")

    def __len__(self) -> int:
        """Return the number of conversations about a picture."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read the picture of one conversation; return it with the turns."""
        where, path, turns = self.rows[index]
        try:
            with Image.open(path) as opened:
                return {"image": opened.convert("RGB"), "turns": turns}
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{where}: its picture {path} is not there. Paths are relative to {self.images}: "
                "give another folder of images."
            ) from error
        except OSError as error:  # not a picture, or a truncated one
            raise ValueError(f"{where}: its picture {path} cannot be read ({error}).") from error


def conversation(given: Any, where: str) -> list[Turn]:
    """Read LLaVA's form of a conversation about one picture.

    Parameters
    ----------
    given : list of dict
        ``[{"from": "human" or "gpt", "value": text}, …]``.
    where : str
        Begins the messages of errors.

    Raises
    ------
    ValueError
        If it is of another form, or has not exactly one ``<image>``, before the first answer.

    Examples
    --------
    >>> from tokenprune.data import conversation
    >>> conversation([{"from": "human", "value": "<image>\\nWhat is it?"}], "here")
    [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'What is it?'}]}]
    """
    if not isinstance(given, list) or not given:
        raise ValueError(f"{where}: conversations={shown(given)}, expected a list of turns.")
    turns: list[Turn] = []
    for turn in given:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise ValueError(f"{where}: a turn is {shown(turn)}, expected 'from' and 'value'.")
        if turn.get("from") not in _ROLES:
            raise ValueError(
                f"{where}: a turn from {shown(turn.get('from'))}, expected 'human' or 'gpt'."
            )
        text = turn["value"].replace(_PLACEHOLDER, "").strip()
        content: list[dict[str, str]] = [{"type": "text", "text": text}]
        content[:0] = [{"type": "image"}] * turn["value"].count(_PLACEHOLDER)
        turns.append({"role": _ROLES[turn["from"]], "content": content})
    roles = [turn["role"] for turn in turns]
    first = roles.index("assistant") if "assistant" in roles else len(turns)
    before, count = (
        sum(part["type"] == "image" for turn in some for part in turn["content"])
        for some in (turns[:first], turns)
    )
    if before != 1 or count != 1:
        raise ValueError(
            f"{where}: {count} {_PLACEHOLDER} in its turns, {before} of them before the first "
            "answer: expected one, there."
        )
    return turns
