"""Pictures and questions as a folder with ``metadata.jsonl``, for the command line.

python -m benchmarks.digits_vqa.folder pictures --n 100
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from .dataset import Sample, samples
from .handwriting import SPLITS

__all__ = ["write_questions"]


def write_questions(folder: Path, n: int, split: str = "validation", seed: int = 5) -> list[Sample]:
    """Write pictures and their ``metadata.jsonl``.

    Parameters
    ----------
    folder : Path
        Made if absent.
    n, split, seed
        As `samples` takes them.

    Returns
    -------
    list of Sample
        What was written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = samples(split, n, seed)
    lines = []
    for number, sample in enumerate(drawn):
        name = f"{number:04d}.png"
        Image.fromarray(sample.picture.pixels).save(folder / name)
        asked = {"question": sample.question.text, "answer": sample.question.answer}
        lines.append(json.dumps({"file_name": name, **asked}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    return drawn


def main() -> None:
    """Write a folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="validation")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=5)
    options = parser.parse_args()
    write_questions(options.folder, options.n, options.split, options.seed)


if __name__ == "__main__":
    main()
