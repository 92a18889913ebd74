# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Choose a budget
#
# How many visual tokens does your task need? This notebook computes what budgets would save,
# measures what they cost in accuracy, picks the smallest that costs no more than you allow, and
# looks at which pictures need the most tokens. Nothing is trained: thresholds are calibrated,
# which takes a set of prompts and no answers.
#
# It runs as it is, on the small LLaVA of this repository. To use your own model and data, change
# the cell under *Model and data*.

# %% tags=["parameters"]
BUDGETS = [0.15, 0.2, 0.25, 0.33, 0.5]  # shares of the visual tokens, mean over the layers
LOSS_ALLOWED = 0.02  # of accuracy
QUESTIONS = 300  # to measure on
CALIBRATION = 128  # prompts
SEED = 0

# %% [markdown]
# ## Model and data
#
# Data is a list of (image, question, answer); `batch` makes of a part of it what the model is
# called with. For a released model, write the prompt by `processor.apply_chat_template`.

# %%
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import torch
from PIL import Image

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


prompts = [batch(rows("train", CALIBRATION, SEED + 1))]
test = rows("validation", QUESTIONS, SEED)

# %% [markdown]
# ## What a budget saves
#
# This needs no run: FLOPs and cache bytes follow from counts of tokens. The command `tokenprune
# estimate MODEL --budget 25%` says the same of any model from its configuration alone.

# %%
tp.wrap(model, tp.ATPConfig(layers=(1, 4, 12)))
total = model.config.image_seq_length
budgets = [share * total for share in BUDGETS]
measured = tp.calibrate(model, prompts, budgets)
for budget, mean in measured.items():
    tp.set_budget(model, budget)
    model.generate(**prompts[0], max_new_tokens=1)
    stats = tp.stats(model)
    cache = 1 - stats.kv_bytes.sum() / stats.kv_bytes_unpruned.sum()
    prefill = 1 - stats.prefill_flops.sum() / stats.prefill_flops_unpruned.sum()
    print(
        f"budget {budget:5.1f}: {mean:5.1f} tokens measured, {cache:.0%} of the cache and "
        f"{prefill:.0%} of the prefill's FLOPs saved"
    )

# %% [markdown]
# ## What a budget costs
#
# The same questions at every budget, and unpruned. `tp.track` records what each sample kept.


# %%
def right() -> list[bool]:
    """Answer the test questions: whether each answer is right."""
    hits: list[bool] = []
    for start in range(0, len(test), 32):
        part = test[start : start + 32]
        found = model.generate(**batch(part), max_new_tokens=1, do_sample=False)
        words = processor.batch_decode(found[:, -1:])
        hits += [word.strip() == answer for word, (_, _, answer) in zip(words, part, strict=True)]
    return hits


with tp.paused(model):
    unpruned = sum(right()) / len(test)
print(f"unpruned: {unpruned:.1%}")
accuracy, runs = {}, {}
for budget in budgets:
    tp.set_budget(model, budget)
    with tp.track(model) as runs[budget]:
        accuracy[budget] = sum(right()) / len(test)
    print(f"{budget / total:.0%} of the tokens: {accuracy[budget]:.1%}")

# %% [markdown]
# A difference means little below one standard error, the square root of p(1 − p)/n.

# %%
means = [runs[budget].summary()["mean_tokens"] for budget in budgets]
errors = [(accuracy[b] * (1 - accuracy[b]) / len(test)) ** 0.5 for b in budgets]
figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
axes.errorbar(means, [accuracy[b] for b in budgets], yerr=errors, marker="o", capsize=3)
axes.axhline(unpruned, linestyle="--", color="grey", label="unpruned")
axes.set(xlabel="visual tokens, mean over the layers", ylabel="accuracy")
axes.legend()
figure.savefig("budgets.png", dpi=100)

# %% [markdown]
# ## The choice

# %%
enough = [budget for budget in budgets if accuracy[budget] >= unpruned - LOSS_ALLOWED]
chosen = min(enough, default=max(budgets))
tp.set_budget(model, chosen)
print(f"chosen: {chosen:.0f} of {total} tokens, {accuracy[chosen]:.1%} right")
print(runs[chosen])

# %% [markdown]
# ## Which pictures need the most
#
# Every picture keeps its own number of tokens. If the hardest ones matter to you, look at them: a
# cap (`tp.calibrate(..., max_kept=…)`) bounds what a sample may keep after any step.

# %%
per_picture = runs[chosen].kept().mean(axis=0)
order = per_picture.argsort()
for name, number in (("fewest", order[0]), ("most", order[-1])):
    _, question, answer = test[number]
    print(f"{name}: {per_picture[number]:.1f} tokens for {question!r} ({answer})")

# %%
image = test[order[-1]][0]
model.generate(**batch([test[order[-1]]]), max_new_tokens=1)
Image.open(tp.draw(image, tp.stats(model), "hardest.png"))

# %% [markdown]
# `tp.save_heads(model, "heads")` keeps the calibrated budgets; [training the
# heads](train_heads.py) on your data may buy a smaller one.
