"""Prune LLaVA-1.5 or LLaVA-NeXT: one picture, one question, with all visual tokens and with few.

    python examples/llava.py
    python examples/llava.py llava-hf/llava-1.5-7b-hf --image photo.jpg \\
        --question "What is this?" --max-new-tokens 64

Without arguments it loads the small LLaVA and the picture that lie in this repository. Any other
family whose processor has a chat template works in the same way.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import tokenprune as tp

ROOT = Path(__file__).resolve().parents[1]
SMALL = ROOT / "benchmarks" / "digits_vqa" / "weights" / "llava"


def main() -> None:
    """Answer twice, and draw which visual tokens stay."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", nargs="?", default=SMALL, help="folder or hub id")
    parser.add_argument("--heads", help="folder of trained heads; without, they are calibrated")
    parser.add_argument("--image", type=Path, default=ROOT / "examples" / "digits.png")
    parser.add_argument("--question", default="what color is leftmost")
    parser.add_argument("--keep", type=float, default=0.25, help="share of the visual tokens")
    parser.add_argument("--max-new-tokens", type=int, default=1, help="of the answer")
    parser.add_argument("--out", type=Path, default=Path("out/kept.png"))
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model: Any = AutoModelForImageTextToText.from_pretrained(options.model, dtype=dtype)
    model = model.eval().to(device)
    processor = AutoProcessor.from_pretrained(options.model)
    image = Image.open(options.image).convert("RGB")
    inputs = processor(
        text=prompt(processor, options.question), images=image, return_tensors="pt"
    ).to(device, dtype)

    tp.wrap(model, options.heads)  # no heads: ATP with its defaults
    if options.heads is None:
        # Thresholds that keep this share of this one picture's tokens.
        tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
        tp.calibrate(model, [inputs], options.keep * tokens)

    def answer() -> str:
        found = model.generate(**inputs, max_new_tokens=options.max_new_tokens, do_sample=False)
        return processor.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    with tp.paused(model):
        unpruned = answer()
    pruned, stats = answer(), tp.stats(model)
    print(f"{options.question}\n  {stats.visual_tokens[0]} visual tokens: {unpruned}")
    print(f"  {stats.mean_tokens:.0f} on average over the layers: {pruned}")
    print(f"  cache: {stats.kv_bytes.sum() / stats.kv_bytes_unpruned.sum():.0%} of its bytes")
    print(f"  {tp.draw(image, stats, options.out)}")


def prompt(processor: Any, question: str) -> str:
    """Write the question as the model's chat template does; the small model has none."""
    if processor.chat_template is None:
        return f"{processor.image_token} {question}"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True)


if __name__ == "__main__":
    main()
