"""Questions in folders: pictures with metadata.jsonl, saved datasets, and LLaVA's JSON, alike."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.digits_vqa.folder import write_questions
from tokenprune.data import Conversations, ImageFolder, SavedDataset, read_data

GOOD = {"file_name": "0000.png", "question": "what", "answer": "that"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_questions(tmp_path / "pictures", 3)
    return tmp_path / "pictures"


def lines(folder: Path, *rows: Any) -> Path:
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(texts), encoding="utf-8")
    return folder


def saved(folder: Path, rows: Any) -> Path:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install it")
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).save_to_disk(folder)
    return folder


def test_the_three_forms_read_alike(folder: Path, tmp_path: Path) -> None:
    data = read_data(folder)
    assert isinstance(data, ImageFolder)
    assert len(data) == 3
    questions = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    turns = [
        [
            {"from": "human", "value": f"<image>\n{row['question']}"},
            {"from": "gpt", "value": row["answer"]},
        ]
        for row in questions
    ]
    rows = [
        {"image": row["file_name"], "conversations": said}
        for row, said in zip(questions, turns, strict=True)
    ]
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    others = [read_data(tmp_path / "llava.json", folder)]
    for row, said in zip(questions, turns, strict=True):
        row["image"] = str(folder / row.pop("file_name"))
        row["said"] = said
    plain = [{k: row[k] for k in ("image", "question", "answer")} for row in questions]
    others.append(read_data(saved(tmp_path / "plain", plain)))
    told = [{"image": row["image"], "conversations": row["said"]} for row in questions]
    others.append(read_data(saved(tmp_path / "told", told)))
    assert [type(other) for other in others] == [Conversations, SavedDataset, SavedDataset]
    for other in others:
        assert len(other) == 3
        for n in range(3):
            assert other[n]["turns"] == data[n]["turns"]
            assert np.array_equal(other[n]["image"], data[n]["image"])


def test_a_question_without_an_answer_is_a_prompt(folder: Path) -> None:
    data = ImageFolder(lines(folder, {"file_name": "0000.png", "question": "what"}, "", GOOD))
    assert [len(data[n]["turns"]) for n in range(2)] == [1, 2]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{", "is not JSON"),
        ([1], "no 'file_name', the path of its picture"),
        ({"question": "what"}, "no 'file_name', the path of its picture"),
        ({"file_name": "0000.png", "text": "what"}, "expected 'question' and 'answer', or"),
        ({**GOOD, "answer": 7}, "answer=7, expected a text"),
        ({"file_name": "0000.png", "conversations": []}, "expected a list of turns"),
    ],
)
def test_a_wrong_line_is_named(folder: Path, row: Any, says: str) -> None:
    with pytest.raises(ValueError, match=f"metadata.jsonl, line 2.*{says}"):
        read_data(lines(folder, GOOD, row))


def test_a_picture_that_cannot_be_read_is_named(folder: Path) -> None:
    data = read_data(lines(folder, {**GOOD, "file_name": "9999.png"}, GOOD))
    with pytest.raises(FileNotFoundError, match=r"line 1: its picture .*9999.png is not there"):
        data[0]
    (folder / "0000.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"line 2: its picture .*0000.png cannot be read"):
        data[1]


def test_what_is_no_data_set_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no .*absent"):
        read_data(tmp_path / "absent")
    with pytest.raises(ValueError, match="is no data set: expected LLaVA's JSON file, a folder"):
        read_data(tmp_path)
    with pytest.raises(ValueError, match=r"metadata.jsonl is empty: expected a JSON object a line"):
        read_data(lines(folder))


def test_a_saved_dataset_of_another_form_is_refused(folder: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is not installed: pip install it")
    picture = str(folder / "0000.png")
    with pytest.raises(ValueError, match=r"has the columns \['image', 'words'\]: expected 'image'"):
        read_data(saved(tmp_path / "columns", [{"image": picture, "words": "what"}]))
    table = datasets.Dataset.from_list([{"image": picture, "question": "what"}])
    datasets.DatasetDict({"test": table, "train": table}).save_to_disk(tmp_path / "splits")
    with pytest.raises(
        ValueError, match=r"the splits \['test', 'train'\]: give one, such as .*test"
    ):
        read_data(tmp_path / "splits")
    with pytest.raises(ValueError, match="row 0: image is a str, expected a picture: cast"):
        read_data(tmp_path / "splits" / "train")[0]


def test_without_datasets_a_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "dataset_info.json").touch()
    with pytest.raises(ImportError, match=r"not installed: pip install 'tokenprune\[data\]'"):
        read_data(tmp_path)


def test_pictures_are_given_in_colour(folder: Path) -> None:
    Image.new("L", (8, 8)).save(folder / "0000.png")
    assert read_data(folder)[0]["image"].mode == "RGB"
