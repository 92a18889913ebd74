# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Compare methods on your model
#
# Twelve pruning methods run in one engine, so they can be compared on your own model and data at
# the same budget, without training. Beside them stand the baselines that a method must beat:
# random tokens, an even grid, a smaller picture.
#
# It runs as it is, on the small LLaVA of this repository. To use your own model and data, change
# the cell under *Model and data*.

# %% tags=["parameters"]
SHARE = 0.25  # of the visual tokens, mean over the layers
QUESTIONS = 300  # to measure on
CALIBRATION = 128  # prompts, for the one method that is calibrated
SEED = 0

# %% [markdown]
# ## Model and data
#
# Data is a list of (image, question, answer); `batch` makes of a part of it what the model is
# called with. For a released model, write the prompt by `processor.apply_chat_template`.

# %%
import time
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.recipe import load

torch.manual_seed(SEED)
model, processor = load("llava")
Row = tuple[Image.Image, str, str]


def rows(split: str, number: int, seed: int) -> list[Row]:
    """Draw pictures of handwritten digits, with a question each."""
    drawn = samples(split, number, seed)
    return [(Image.fromarray(s.picture.pixels), s.question.text, s.question.answer) for s in drawn]


def batch(part: Sequence[Row]) -> dict[str, Any]:
    """Make one batch of prompts, padded on the left."""
    return dict(
        processor(
            text=[f"<image> {question}" for _, question, _ in part],
            images=[image for image, _, _ in part],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
    )


test = rows("validation", QUESTIONS, SEED)

# %% [markdown]
# ## One budget for all
#
# Methods count their tokens at other places: after one layer, after several, before the first.
# What a prefill costs goes by the mean over *all* layers, so that is made equal. `kept_after`
# says how many tokens a method may keep that drops once, after a layer.

# %%
total = model.config.image_seq_length
depth = model.config.text_config.num_hidden_layers
mean = SHARE * total


def kept_after(layer: int) -> int:
    """Return how many tokens a method keeps after a layer if the mean over all is the budget."""
    return round((depth * mean - (layer + 1) * total) / (depth - layer - 1))


methods: dict[str, Any] = {
    "ATP, calibrated": tp.ATPConfig(layers=(1, 4, 12), target_tokens=mean),
    "FastV": tp.FastVConfig(layer=1, keep=kept_after(1)),
    "ID-Selection": tp.IDSelectionConfig(layer=1, keep=kept_after(1)),
    "DivPrune": tp.DivPruneConfig(keep=SHARE),
    "VisionZip": tp.VisionZipConfig(keep=SHARE),
    "random, same layer": tp.RandomConfig(layers=(1,), keep=kept_after(1)),
    "random, before the decoder": tp.RandomConfig(layers=(-1,), keep=SHARE),
    "even grid": tp.UniformConfig(keep=SHARE),
    "smaller picture": tp.DownsampleConfig(keep=SHARE),
}

# %% [markdown]
# VisionZip and PruMerge read the class token of a CLIP tower: they need LLaVA-1.5, LLaVA-NeXT or
# VipLLaVA, and `wrap` refuses other models with that reason.
#
# ## Measure


# %%
def measure() -> tuple[float, float]:
    """Answer the test questions: share of right answers, and seconds a question."""
    right, started = 0, time.perf_counter()
    for start in range(0, len(test), 32):
        part = test[start : start + 32]
        found = model.generate(**batch(part), max_new_tokens=1, do_sample=False)
        words = processor.batch_decode(found[:, -1:])
        right += sum(
            word.strip() == answer for word, (_, _, answer) in zip(words, part, strict=True)
        )
    return right / len(test), (time.perf_counter() - started) / len(test)


unpruned, seconds = measure()
table = Table("method", title=f"{len(test)} questions, {SHARE:.0%} of {total} tokens")
for heading in ("accuracy kept", "mean tokens", "last layer", "cache", "ms a question"):
    table.add_column(heading, justify="right")
table.add_row("unpruned", "100.0%", str(total), str(total), "100%", f"{1e3 * seconds:.1f}")
prompts = [batch(rows("train", CALIBRATION, SEED + 1))]
for name, config in methods.items():
    tp.wrap(model, config)
    if isinstance(config, tp.ATPConfig):
        tp.calibrate(model, prompts, mean)
    with tp.track(model) as run:
        accuracy, seconds = measure()
    tp.unwrap(model)
    summary = run.summary()
    table.add_row(
        name,
        f"{accuracy / unpruned:.1%}",
        f"{summary['mean_tokens']:.1f}",
        f"{summary['final_tokens']:.1f}",
        f"{summary['kv_bytes'] / summary['kv_bytes_unpruned']:.0%}",
        f"{1e3 * seconds:.1f}",
    )
Console(width=100).print(table)

# %% [markdown]
# Times are of this machine, and on a model this small the pruning costs as much as it saves; what
# grows with the model is the share of the cache and of the operations. The order of the methods
# is this model's, too: it recognises digits in its first layers, so whatever drops tokens before
# those drops them unread. [The reproduction](../../docs/reproduction.md) has all methods, three
# seeds and error bars.
#
# A method of your own takes part once it is registered: [adding a
# method](../../docs/adding_a_method.md).
