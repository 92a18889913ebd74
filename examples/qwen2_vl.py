"""Prune Qwen2-VL, Qwen2.5-VL or Qwen3-VL: a picture at its own size, by FastV without training.

    python examples/qwen2_vl.py
    python examples/qwen2_vl.py Qwen/Qwen2-VL-7B-Instruct photo.jpg "What is this?"

Without arguments it loads the small Qwen2-VL and the picture that lie in this repository.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from qwen_vl_utils import process_vision_info
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenprune as tp

ROOT = Path(__file__).resolve().parents[1]
SMALL = str(ROOT / "benchmarks" / "digits_vqa" / "weights" / "qwen2_vl")


def main(
    folder: str = SMALL,
    picture: str = str(ROOT / "examples" / "digits.png"),
    question: str = "what color is leftmost",
) -> None:
    """Answer a question about a picture, pruned without training by FastV's rule."""
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # Sides in whole tokens: 28 pixels for the released models, 8 for the small one.
    patch = processor.image_processor.patch_size
    images, _ = process_vision_info(messages, image_patch_size=patch)
    inputs = processor(text=[text], images=images, do_resize=False, return_tensors="pt")

    # After the eighth layer, a quarter of the tokens; other methods take the same place.
    tp.wrap(model, tp.FastVConfig(layer=7, keep=0.25))
    new_tokens = 1 if folder == SMALL else 64
    found = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    stats = tp.stats(model)
    answer = processor.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(f"{question}\n  {stats.mean_tokens:.0f} of {stats.visual_tokens[0]} tokens: {answer}")


if __name__ == "__main__":
    main(*sys.argv[1:])
