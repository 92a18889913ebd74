"""Draw what stays of a picture for a question: what ``tokenprune draw`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..api import stats, unwrap
from ..data import PromptCollator
from ..measure.draw import draw
from .loading import Batches, load_model, mean_visual_tokens
from .method import MethodOption, wrap_by
from .options import Budget

__all__ = ["drawn", "seen"]


def drawn(
    name: str,
    image: Path,
    question: str,
    method: MethodOption,
    budget: Budget | None,
    out: Path,
    new_tokens: int,
    device: str | None,
    dtype: str | None,
) -> dict[str, Any]:
    """Answer a question with the model as it is and pruned, and draw the tokens that stay."""
    with Image.open(image) as opened:
        picture = opened.convert("RGB")
    model, processor = load_model(name, device, dtype)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    rows = [{"image": picture, "turns": [{"role": "user", "content": content}]}]
    (batch,) = Batches(rows, PromptCollator(processor), 1, model.device)

    @torch.no_grad()
    def answer() -> str:
        ids = model.generate(**batch, max_new_tokens=new_tokens, do_sample=False)
        new = ids[:, batch["input_ids"].shape[1] :]
        return processor.batch_decode(new, skip_special_tokens=True)[0].strip()

    before = answer()
    tokens = mean_visual_tokens(model, [batch])
    wrap_by(model, method, tokens, budget.of(tokens) if budget else None)
    after, found = answer(), stats(model)
    unwrap(model)
    path = draw(seen(picture, processor, batch), found, out)
    return {
        "question": question,
        "answer": after,
        "unpruned_answer": before,
        "picture": str(path),
        **found.to_dict(),
        "in_words": repr(found),
    }


def seen(picture: Image.Image, processor: Any, batch: dict[str, torch.Tensor]) -> Image.Image:
    """Return the picture as the model sees it, where the processor makes one of a fixed size.

    Others, which a processor cuts into tiles or patches, keep their aspect.
    """
    pixels = batch.get("pixel_values")
    how = processor.image_processor
    if pixels is None or pixels.shape[:-2] != (1, 3):
        return picture
    values = pixels[0].float().cpu().numpy()
    if getattr(how, "do_normalize", False):
        scale = np.array(how.image_std, dtype=np.float32)[:, None, None]
        values = values * scale + np.array(how.image_mean, dtype=np.float32)[:, None, None]
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0))
