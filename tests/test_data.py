"""Conversations in LLaVA's JSON: what is read and refused, labels at the answers, prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.models.llava import FOLDER
from benchmarks.vlm_eval import local_data
from tokenprune.checkpoint import load
from tokenprune.data import Conversations, PromptCollator, TrainingCollator, text_of

NAMES = ("llava", "llava_next", "qwen2_vl")
ASKED = {"from": "human", "value": "<image>\nwhat"}
ANSWERED = {"from": "gpt", "value": "that"}


@pytest.fixture
def data(tmp_path: Path) -> Conversations:
    local_data.mix665k(tmp_path, samples("validation", 12, 5))
    return Conversations(tmp_path / "llava_v1_5_mix665k.json")


def processor_of(name: str, template: str | None = None) -> Any:
    processor = AutoProcessor.from_pretrained(FOLDER.parent / name)
    if template is not None:
        processor.chat_template = template
    return processor


def answers(row: dict[str, Any]) -> list[str]:
    return [turn["content"][0]["text"] for turn in row["turns"] if turn["role"] == "assistant"]


def file(folder: Path, rows: Any) -> Path:
    path = folder / "rows.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


def test_conversations_about_a_picture_are_read(data: Conversations) -> None:
    assert len(data) == 12  # one more is about no picture
    row = data[0]
    assert row["image"].mode == "RGB"
    roles = [turn["role"] for turn in row["turns"]]
    assert roles == ["user", "assistant", "user", "assistant"]
    kinds = [part["type"] for turn in row["turns"] for part in turn["content"]]
    assert kinds == ["image", "text", "text", "text", "text"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('[{"a": ', r"rows\.json is not JSON \(Expecting value"),
        ({}, r"rows\.json holds a JSON dict: expected a list"),
        ([{"image": "a.png"}], r"rows\.json, entry 0: no 'conversations'"),
        ([{"conversations": [ASKED]}, 7], r"rows\.json, entry 1: no 'conversations'"),
        ([{"conversations": []}], r"none of its 1 entries has an image"),
        ([], r"none of its 0 entries has an image"),
        ([{"image": ["a", "b"], "conversations": [ASKED]}], r"entry 0: image=\['a', 'b'\]"),
        ([{"image": "a", "conversations": []}], r"entry 0: conversations=\[\], expected a list"),
        ([{"image": "a", "conversations": ["what"]}], r"entry 0: a turn is 'what'"),
        ([{"image": "a", "conversations": [{"from": "gpt"}]}], r"expected 'from' and 'value'"),
        (
            [{"image": "a", "conversations": [{"from": "system", "value": "x"}]}],
            r"entry 0: a turn from 'system', expected 'human' or 'gpt'",
        ),
        ([{"image": "a", "conversations": [ANSWERED]}], r"entry 0: 0 <image> in its turns"),
        ([{"image": "a", "conversations": [ASKED, ASKED]}], r"entry 0: 2 <image> in its turns"),
        (
            [{"image": "a", "conversations": [ANSWERED, ASKED]}],
            r"1 <image> in its turns, 0 of them before the first answer",
        ),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Conversations(file(tmp_path, rows))


def test_a_picture_that_is_not_there_is_named(tmp_path: Path) -> None:
    row = {"image": "a.png", "conversations": [ASKED, ANSWERED]}
    path = file(tmp_path, [{"conversations": []}, row])
    with pytest.raises(FileNotFoundError, match=r"entry 1: its picture .*a\.png is not there"):
        Conversations(path)[0]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"entry 1: its picture .*a\.png cannot be read"):
        Conversations(path, tmp_path / "other")[0]
    Image.new("L", (4, 4)).save(tmp_path / "other/a.png")
    assert Conversations(path, tmp_path / "other")[0]["image"].mode == "RGB"


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_the_answers_and_nothing_else(data: Conversations, name: str) -> None:
    """With a chat template (Qwen2-VL's) and without; one round and two."""
    processor = processor_of(name)
    few = [data[n] for n in range(4)]
    batch = TrainingCollator(processor)(few)
    for n, row in enumerate(few):
        assert len(answers(row)) == (2 if n % 3 == 0 else 1)
        said = batch["labels"][n] != -100
        assert torch.equal(batch["labels"][n][said], batch["input_ids"][n][said])
        # Each answer is a run of labels, in order.
        begins = said & ~torch.cat([said.new_zeros(1), said[:-1]])
        assert int(begins.sum()) == len(answers(row))
        words = processor.tokenizer.decode(batch["labels"][n][said], skip_special_tokens=True)
        assert words.split() == answers(row)
        assert not (said & ~batch["attention_mask"][n].bool()).any()


class Pairs:
    """A tokenizer whose tokens are two characters, so that they may reach over a turn's end."""

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [hash(text[n : n + 2]) for n in range(0, len(text), 2)]}


class PairsProcessor:
    """Two characters a token, and three for each picture."""

    tokenizer = Pairs()
    chat_template = None
    image_token = "##"

    def __call__(self, text: list[str], **given: Any) -> dict[str, torch.Tensor]:
        ids = [self.tokenizer(one.replace("##", "######"))["input_ids"] for one in text]
        made = torch.tensor(ids)
        return {"input_ids": made, "attention_mask": torch.ones_like(made)}


def test_a_token_over_an_answers_end_is_no_label() -> None:
    """As LLaMA's tokenizer joins the space after an answer with the next turn's first word."""
    said = ("what", "cat", "an", "dog")
    roles = ("user", "assistant") * 2
    turns = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in zip(roles, said, strict=True)
    ]
    turns[0]["content"].insert(0, {"type": "image"})
    batch = TrainingCollator(PairsProcessor())([{"image": None, "turns": turns}])
    text = "###### what cat an dog"
    tokens = [text[n : n + 2] for n in range(0, len(text), 2)]
    labelled = [
        token
        for token, label in zip(tokens, batch["labels"][0].tolist(), strict=True)
        if label != -100
    ]
    assert labelled == ["t ", "ca", " d", "og"]


def test_a_template_that_rewrites_earlier_turns_is_refused(data: Conversations) -> None:
    """Some leave out of earlier answers what they write in the last."""
    turn = "{{ loop.revindex }} {{ message['content'][-1]['text'] }} "
    template = "{% for message in messages %}" + turn + "{% endfor %}"
    collate = TrainingCollator(processor_of("qwen2_vl", template))
    with pytest.raises(ValueError, match="writes the beginning of a conversation as"):
        collate._answers(data[0]["turns"], text_of(collate.processor, data[0]["turns"], False), 40)


@pytest.mark.parametrize(
    ("order", "message"),
    [((0,), "A conversation without an answer"), ((1, 0), "A picture after an answer")],
)
def test_rows_that_cannot_be_learned_from_are_refused(
    data: Conversations, order: tuple[int, ...], message: str
) -> None:
    row = data[1]
    row["turns"] = [row["turns"][n] for n in order]
    with pytest.raises(ValueError, match=message):
        TrainingCollator(processor_of("llava"))([row])


def test_long_conversations_are_cut(data: Conversations) -> None:
    batch = TrainingCollator(processor_of("llava"), longest=150)([data[0], data[1]])
    assert {batch[n].shape for n in ("input_ids", "attention_mask", "labels")} == {(2, 150)}


@pytest.mark.parametrize("name", NAMES)
def test_prompts_end_where_the_answer_begins(data: Conversations, name: str) -> None:
    processor = processor_of(name)
    few = [data[n] for n in range(4)]
    prompts = PromptCollator(processor)(few)
    whole = TrainingCollator(processor)(few)
    assert prompts.keys() == whole.keys() - {"labels"}
    for n in range(4):
        answer = int((whole["labels"][n] != -100).int().argmax())
        kept = prompts["attention_mask"][n].bool()
        assert kept[-1]  # left padding
        assert torch.equal(prompts["input_ids"][n][kept], whole["input_ids"][n][:answer])


def test_prompts_calibrate(data: Conversations) -> None:
    model, processor = load(str(FOLDER))
    tp.wrap(model, tp.ATPConfig(layers=(1, 4, 12), target_tokens=36))
    batch = PromptCollator(processor)([data[n] for n in range(4)])
    assert tp.calibrate(model, [batch], 36)[36.0] == pytest.approx(36, rel=0.05)
