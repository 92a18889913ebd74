# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train heads on your data
#
# ATP drops visual tokens by two thresholds at each of its steps, and small heads compute the
# thresholds from the attention that the tokens receive. This notebook trains those heads, and
# nothing else, on pictures with questions and answers. It measures what that gives, and saves it.
#
# It runs as it is, on the small LLaVA of this repository. To use your own model and data, change
# the two cells under *Model and data*.

# %% tags=["parameters"]
STEPS = 40  # of training
BATCH = 32  # pictures in a step
CALIBRATION = 128  # pictures to set thresholds on
QUESTIONS = 300  # to measure on
SEED = 0

# %% [markdown]
# ## Model and data
#
# Any model that `tp.supported()` names, in evaluation mode.

# %%
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.recipe import load

torch.manual_seed(SEED)
model, processor = load("llava")

# %% [markdown]
# Data is a list of (image, question, answer). Heads are trained on one part; thresholds are set
# to a budget on another, whose answers are not needed; what is measured on takes part in neither.

# %%
Row = tuple[Image.Image, str, str]


def rows(split: str, number: int, seed: int) -> list[Row]:
    """Draw pictures of handwritten digits, with a question each."""
    drawn = samples(split, number, seed)
    return [(Image.fromarray(s.picture.pixels), s.question.text, s.question.answer) for s in drawn]


train = rows("train", STEPS * BATCH, SEED)
calibrate = rows("train", CALIBRATION, SEED + 1)
test = rows("validation", QUESTIONS, SEED)
test[0][0]

# %% [markdown]
# A batch is what the model's processor makes of them. In training the labels are -100 at the
# prompt, so that the answer alone is learned from, and so that the answer's tokens have no say in
# what is dropped. Here an answer is one token. For a released model, write the prompt by
# `processor.apply_chat_template`.


# %%
def batch(part: Sequence[Row], with_answers: bool = False) -> dict[str, Any]:
    """Make one batch, padded on the left."""
    made = processor(
        text=[f"<image> {q} {a}" if with_answers else f"<image> {q}" for _, q, a in part],
        images=[image for image, _, _ in part],
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    if with_answers:
        labels = torch.full_like(made["input_ids"], -100)
        labels[:, -1] = made["input_ids"][:, -1]
        made["labels"] = labels
    return dict(made)


def batches(data: Sequence[Row], with_answers: bool = False) -> list[dict[str, Any]]:
    """Make batches of all rows."""
    starts = range(0, len(data), BATCH)
    return [batch(data[start : start + BATCH], with_answers) for start in starts]


def accuracy() -> float:
    """Answer the test questions, with tokens dropped if the model is wrapped."""
    right = 0
    for start in range(0, len(test), BATCH):
        part = test[start : start + BATCH]
        found = model.generate(**batch(part), max_new_tokens=1, do_sample=False)
        words = processor.batch_decode(found[:, -1:])
        right += sum(
            word.strip() == answer for word, (_, _, answer) in zip(words, part, strict=True)
        )
    return right / len(test)


print(f"unpruned: {accuracy():.1%}")

# %% [markdown]
# ## Wrap and calibrate
#
# The budget is the mean number of visual tokens over *all* decoder layers; 36 is a quarter of
# this model's 144. `layers` are those after which tokens go. The defaults suit a model of
# billions of parameters; this one recognises digits in its first layers, and its questions read
# them soon after.
#
# Calibration needs no answers and no gradient: it moves the thresholds until the mean is the
# budget. Training then starts at the budget, and learns *which* tokens stay rather than how many.

# %%
tp.wrap(model, tp.ATPConfig(layers=(1, 4, 12), target_tokens=36))
print(tp.calibrate(model, batches(calibrate), 36))
print(f"calibrated: {accuracy():.1%}")

# %% [markdown]
# ## Train
#
# `train_only_heads` freezes the model and returns the heads' parameters. In training nothing is
# dropped: a token below its threshold counts less at later layers, which has a gradient. The loss
# is the model's own, and terms for the budget.

# %%
optimiser = torch.optim.Adam(tp.train_only_heads(model), lr=1e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=STEPS, pct_start=0.3)
model.train()
for step, one in enumerate(batches(train, with_answers=True)):
    model(**one).loss.backward()
    optimiser.step()
    optimiser.zero_grad()
    schedule.step()
    if step % 10 == 0 or step == STEPS - 1:
        print(step, {name: f"{value:.3f}" for name, value in tp.losses(model).items()})
model.eval()

# %% [markdown]
# The heads have changed, so calibrate again; several budgets at once let `set_budget` move
# between them at run time.

# %%
print(tp.calibrate(model, batches(calibrate), [22, 36]))
for budget in (36, 29, 22):
    tp.set_budget(model, budget)
    with tp.track(model) as run:
        found = accuracy()
    print(f"budget {budget}: {found:.1%}, {run.summary()['mean_tokens']:.1f} tokens measured")

# %% [markdown]
# ## Look
#
# The tokens that stay after each step, over the picture.

# %%
tp.set_budget(model, 36)
image, question, answer = test[0]
model.generate(**batch(test[:1]), max_new_tokens=1)
print(f"{question}: {answer}")
print(tp.stats(model))
Image.open(tp.draw(image, tp.stats(model), "kept.png"))

# %% [markdown]
# ## Save and load
#
# One file holds the heads, the configuration and the calibrated budgets. `model.save_pretrained`
# would write the model beside them.

# %%
print(tp.save_heads(model, "heads"))
again, _ = load("llava")
tp.wrap(again, "heads")
tp.set_budget(again, 22)
print(again.tokenprune)
