"""Questions about pictures in folders: pictures with ``metadata.jsonl``, and saved datasets."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from ..checks import shown
from .conversations import Conversations, conversation
from .prompts import Turn

__all__ = ["ImageFolder", "SavedDataset", "read_data"]

_METADATA = "metadata.jsonl"
_COLUMNS = "'question' and 'answer', or LLaVA's 'conversations'"


class ImageFolder(Dataset[dict[str, Any]]):
    """Pictures in a folder, and questions about them in its ``metadata.jsonl``.

    As the `imagefolder` format of `datasets`. An item is ``{"image": PIL.Image.Image in RGB,
    "turns": list of Turn}``, what the collators take. Pictures are read when they are asked for.

    Parameters
    ----------
    folder : path
        With ``metadata.jsonl``, a JSON object a line: ``file_name``, the path of a picture in the
        folder; ``question``, and ``answer`` where it is known, or LLaVA's ``conversations``.

    Raises
    ------
    FileNotFoundError
        If there is no such file. For an item: if its picture is not there.
    ValueError
        If a line is of another form. For an item: if its picture cannot be read.

    Examples
    --------
    >>> from PIL import Image
    >>> from tokenprune.data import ImageFolder
    >>> Image.new("RGB", (64, 64)).save(folder / "cat.png")
    >>> line = '{"file_name": "cat.png", "question": "What is it?", "answer": "A cat"}'
    >>> _ = (folder / "metadata.jsonl").write_text(line)
    >>> data = ImageFolder(folder)
    >>> len(data), data[0]["turns"][1]["content"][0]["text"]
    (1, 'A cat')
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder) / _METADATA
        self.rows: list[tuple[str, Path, list[Turn]]] = []
        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            where = f"{path}, line {n}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{where} is not JSON ({error}).") from error
            if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
                raise ValueError(f"{where}: no 'file_name', the path of its picture.")
            self.rows.append((where, Path(folder) / row["file_name"], _turns(row, where)))
        if not self.rows:
            raise ValueError(f"{path} is empty: expected a JSON object a line, with {_COLUMNS}.")

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read the picture of one question; return it with the turns."""
        where, path, turns = self.rows[index]
        try:
            with Image.open(path) as opened:
                return {"image": opened.convert("RGB"), "turns": turns}
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{where}: its picture {path} is not there.") from error
        except OSError as error:  # not a picture, or a truncated one
            raise ValueError(f"{where}: its picture {path} cannot be read ({error}).") from error


class SavedDataset(Dataset[dict[str, Any]]):
    """A dataset that ``save_to_disk`` of `datasets` wrote, with a column ``image``.

    Beside it, columns ``question`` and ``answer``, or LLaVA's ``conversations``. Items are those of
    `ImageFolder`.

    Parameters
    ----------
    folder : path
        Of one split.

    Raises
    ------
    ImportError
        If `datasets` is not installed.
    ValueError
        If it holds several splits, or the columns are others. For an item: if it is of another
        form.

    Examples
    --------
    ::

        table = datasets.load_dataset("lmms-lab/POPE", split="test")
        table.save_to_disk("pope")
        data = SavedDataset("pope")
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            datasets = import_module("datasets")
        except ImportError as error:
            raise ImportError(
                f"{folder} holds a dataset of the package `datasets`, which is not installed: pip "
                "install 'tokenprune[data]'. Pictures with a metadata.jsonl, or LLaVA's JSON, can "
                "be read without it."
            ) from error
        self.folder = Path(folder)
        self.table = datasets.load_from_disk(str(folder))
        if isinstance(self.table, dict):
            splits = sorted(self.table)
            raise ValueError(
                f"{folder} holds the splits {splits}: give one, such as {self.folder / splits[0]}."
            )
        columns = set(self.table.column_names)
        if "image" not in columns or not columns & {"question", "conversations"}:
            raise ValueError(
                f"{folder} has the columns {sorted(columns)}: expected 'image', and {_COLUMNS}."
            )

    def __len__(self) -> int:
        """Return the number of questions."""
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Read one question and its picture."""
        row = self.table[index]
        where = f"{self.folder}, row {index}"
        if not isinstance(row["image"], Image.Image):
            raise ValueError(
                f"{where}: image is a {type(row['image']).__name__}, expected a picture: cast the "
                "column to datasets.Image()."
            )
        return {"image": row["image"].convert("RGB"), "turns": _turns(row, where)}


def read_data(path: str | Path, images: str | Path | None = None) -> Dataset[dict[str, Any]]:
    """Read questions about pictures in any of the three forms.

    Parameters
    ----------
    path : path
        A JSON file, LLaVA's (`Conversations`); a folder with ``metadata.jsonl`` (`ImageFolder`), or
        one that ``save_to_disk`` of `datasets` wrote (`SavedDataset`).
    images : path, optional
        Of LLaVA's JSON: the folder that the paths of pictures are relative to. None: the one the
        JSON lies in.

    Raises
    ------
    FileNotFoundError
        If there is nothing at `path`.
    ValueError, ImportError
        If it is of no such form; as the three classes.

    Examples
    --------
    >>> from PIL import Image
    >>> from tokenprune.data import read_data
    >>> Image.new("RGB", (64, 64)).save(folder / "cat.png")
    >>> line = '{"file_name": "cat.png", "question": "What is it?"}'
    >>> _ = (folder / "metadata.jsonl").write_text(line)
    >>> type(read_data(folder)).__name__
    'ImageFolder'
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}: expected a data set, a file or a folder.")
    if path.is_file():
        return Conversations(path, images)
    if (path / _METADATA).is_file():
        return ImageFolder(path)
    if (path / "dataset_info.json").is_file() or (path / "dataset_dict.json").is_file():
        return SavedDataset(path)
    raise ValueError(
        f"{path} is no data set: expected LLaVA's JSON file, a folder with {_METADATA}, or one "
        "that save_to_disk of `datasets` wrote."
    )


def _turns(row: dict[str, Any], where: str) -> list[Turn]:
    """Read the turns in the columns of one row."""
    if row.get("conversations") is not None:
        return conversation(row["conversations"], where)
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str):
        raise ValueError(f"{where} has {shown(sorted(row))}: expected {_COLUMNS}.")
    turns: list[Turn] = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    ]
    if answer is not None:
        if not isinstance(answer, str):
            raise ValueError(f"{where}: answer={shown(answer)}, expected a text.")
        turns.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return turns
