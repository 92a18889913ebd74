"""Small datasets in the true formats, so that everything runs without a download.

Writes a folder in which ``datasets.load_dataset("lmms-lab-encoder/POPE")`` and the others find a
few composed pictures of handwriting, with the columns that lmms-eval's tasks read, and LLaVA's own
training format (``llava_v1_5_mix665k.json`` beside its pictures):

    python -m benchmarks.vlm_eval.local_data out/vlm_eval

It shows that everything runs, not how good a model is: the questions have only the benchmarks'
form.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from benchmarks.digits_vqa.dataset import Sample, samples

__all__ = ["write"]

_OWNER = "lmms-lab-encoder"


def picture(sample: Sample) -> dict[str, Any]:
    """Encode a sample's picture as `datasets` stores one."""
    png = io.BytesIO()
    Pillow.fromarray(sample.picture.pixels).save(png, "png")
    return {"bytes": png.getvalue(), "path": None}


def save(folder: Path, rows: Sequence[dict[str, Any]], split: str, config: str = "default") -> None:
    """Write one split of one configuration, and its entry in the dataset card."""
    from datasets import Dataset, Image, List  # a dependency of lmms-eval; training needs none

    name = f"{config}/{split}-00000-of-00001.parquet"
    made = Dataset.from_list(list(rows))
    if "image" in rows[0]:
        several = isinstance(rows[0]["image"], list)
        made = made.cast_column("image", List(Image()) if several else Image())
    (folder / config).mkdir(parents=True, exist_ok=True)
    made.to_parquet(folder / name)
    card = folder / "README.md"
    known = json.loads(card.read_text().split("\n")[1]) if card.exists() else {"configs": []}
    known["configs"].append({"config_name": config, "data_files": [{"split": split, "path": name}]})
    card.write_text(f"---\n{json.dumps(known)}\n---\n")  # JSON is YAML


def write(folder: Path, count: int = 8) -> None:
    """Write all datasets, `count` questions each.

    Parameters
    ----------
    folder : Path
        Must not hold such data yet.
    """
    drawn = samples("validation", count, 5)
    home = folder / _OWNER
    images = [picture(sample) for sample in drawn]
    yes_no = [
        {"question_id": str(n), "question": f"is there a {n} ?", "image": image}
        | {"answer": "yes" if n in s.picture.digits else "no"}
        for n, (s, image) in enumerate(zip(drawn, images, strict=True))
    ]
    save(home / "POPE", [{**row, "category": "random"} for row in yes_no], "test")
    pairs = [
        {**row, "question_id": f"{n // 2}.png", "category": "existence", "answer": answer}
        for n, (row, answer) in enumerate(zip(yes_no, ["Yes", "No"] * count, strict=False))
    ]
    save(home / "MME", pairs, "test")
    questions = [{"question": s.question.text, "answer": s.question.answer} for s in drawn]
    gqa = [{**row, "id": str(n), "imageId": str(n)} for n, row in enumerate(questions)]
    save(home / "GQA", gqa, "testdev", "testdev_balanced_instructions")
    stored = [{"id": str(n), "image": image} for n, image in enumerate(images)]
    save(home / "GQA", stored, "testdev", "testdev_balanced_images")
    answered = [
        {"question": row["question"], "question_id": n, "image": image}
        | {"answers": [{"answer": row["answer"], "answer_id": k} for k in range(10)]}
        for n, (row, image) in enumerate(zip(questions, images, strict=True))
    ]
    save(home / "VQAv2", answered, "validation")
    counted = [(s.question.text, str(len(s.picture.digits))) for s in drawn]
    letters = "ABCD"
    choices = ["1", "2", "3", "4"]
    science = [
        {"question": text, "choices": choices, "answer": n % 4, "hint": "", "image": image}
        for n, ((text, _), image) in enumerate(zip(counted, images, strict=True))
    ]
    save(home / "ScienceQA", science, "test", "ScienceQA-IMG")
    seed = [
        {"question": text, "question_id": str(n), "answer": letters[n % 4], "data_type": "image"}
        | {f"choice_{letter.lower()}": c for letter, c in zip(letters, choices, strict=True)}
        | {"image": [image]}
        for n, ((text, _), image) in enumerate(zip(counted, images, strict=True))
    ]
    save(home / "SEED-Bench", seed, "test")
    bench = [
        {"index": n, "question": text, "hint": "nan", "answer": letters[n % 4], "image": image}
        | {"category": "counting", "L2-category": "counting", "source": "here", "split": "dev"}
        | dict(zip(letters, choices, strict=True))
        for n, ((text, _), image) in enumerate(zip(counted, images, strict=True))
    ]
    save(home / "MMBench", bench, "dev", "en")
    digits = [{**row, "image": image} for row, image in zip(questions, images, strict=True)]
    save(folder / "digits", digits, "test")
    mix665k(folder, drawn)


def mix665k(folder: Path, drawn: Sequence[Sample]) -> None:
    """Write LLaVA's training format: turns, and pictures by path; some rows are text only."""
    (folder / "coco").mkdir(parents=True, exist_ok=True)
    rows = []
    for n, sample in enumerate(drawn):
        name = f"coco/{n:012d}.png"
        (folder / name).write_bytes(picture(sample)["bytes"])
        turns = [
            {"from": "human", "value": f"<image>\n{sample.question.text}"},
            {"from": "gpt", "value": sample.question.answer},
        ]
        if n % 3 == 0:  # a second round, as many rows there have
            turns += [
                {"from": "human", "value": sample.question.text},
                {"from": "gpt", "value": sample.question.answer},
            ]
        rows.append({"id": f"{n:012d}", "image": name, "conversations": turns})
    rows.append({"id": "text", "conversations": rows[0]["conversations"][2:]})
    text = json.dumps(rows, indent=1) + "\n"
    (folder / "llava_v1_5_mix665k.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=8)
    options = parser.parse_args()
    write(options.folder, options.count)


if __name__ == "__main__":
    main()
