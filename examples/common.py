"""What the short examples share: the command line, a model that is there, a picture to look at."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

# The small models and their data live beside the library, not in it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.models import MODELS


def arguments(about: str, family: str) -> argparse.Namespace:
    """Read the command line; without a hub id it is the small model and a held-out picture."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("model", nargs="?", help="folder or hub id; default: the small model")
    parser.add_argument("--heads", help="folder of trained heads")
    parser.add_argument("--image", type=Path, help="a picture of your own")
    parser.add_argument("--question", default="what color is leftmost")
    parser.add_argument("--keep", type=float, default=0.25, help="share of the visual tokens")
    parser.add_argument("--out", type=Path, default=Path("out/kept.png"))
    options = parser.parse_args()
    options.small = options.model is None
    options.model = options.model or MODELS[family].FOLDER
    if options.image is None:
        size = MODELS[family].SIZES[-1]
        drawn = samples("held_out", 1, 0, digits=(5, 5), sizes=(size,))[0]
        options.image = Image.fromarray(drawn.picture.pixels)
    else:
        options.image = Image.open(options.image).convert("RGB")
    return options


def load(folder: str | Path) -> tuple[Any, Any]:
    """The model and its processor, on the GPU in bfloat16 if there is one."""
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda else torch.float32
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)
        processor = AutoProcessor.from_pretrained(folder)
    except OSError as error:
        raise SystemExit(
            f"{folder} cannot be loaded: give a folder with a model, or the id of one on a hub "
            f"that this machine can reach.\n{error}"
        ) from error
    return model.eval().to("cuda" if cuda else "cpu"), processor


def show(model: Any, processor: Any, inputs: Any, options: argparse.Namespace) -> None:
    """Answer with every visual token and with few, and draw which ones stayed."""
    inputs = inputs.to(model.device, model.dtype)
    asked = {"max_new_tokens": 1 if options.small else 64, "do_sample": False}
    tp.wrap(model, options.heads)
    tokens = int((inputs["input_ids"] == model.config.image_token_id).sum())
    if options.heads is None:
        # No trained heads: thresholds that keep so much of this one picture.
        tp.calibrate(model, [inputs], options.keep * tokens)

    def answer() -> str:
        words = model.generate(**inputs, **asked)[0, inputs["input_ids"].shape[1] :]
        return processor.decode(words, skip_special_tokens=True)

    with tp.paused(model):
        whole = answer()
    pruned, stats = answer(), tp.stats(model)
    print(f"{options.question}\n  {tokens} visual tokens: {whole}")
    print(f"  {stats.mean_tokens:.0f} on average over the layers: {pruned}")
    print(f"  cache: {stats.kv_bytes.sum() / stats.kv_bytes_unpruned.sum():.0%} of its bytes")
    print(f"  {tp.draw(options.image, stats, options.out)}")
