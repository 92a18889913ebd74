"""Table 3: heads alone against heads with LoRA and with the whole decoder."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

import tokenprune as tp
from benchmarks.digits_vqa.dataset import samples
from benchmarks.digits_vqa.recipe import BATCH, train

from .setting import (
    LAYERS,
    RATE,
    Setting,
    calibration,
    load,
    measure_held_out,
    open_store,
    processor,
    start,
)

__all__ = ["run"]

TUNED = ("heads only", "heads and LoRA", "heads and decoder")
SHARE = 0.25
"""The budget of the training, and the first of the two that are measured."""


def run(setting: Setting, results: Path, work: Path) -> None:
    """Measure what is missing."""
    store = open_store(results, "table3", setting)
    for seed in setting.seeds:
        for tuned in TUNED:
            wanted = [
                share
                for share in (SHARE, 0.15)
                if store.find(method=tuned, share=share, seed=seed) is None
            ]
            if not wanted:
                continue
            model = tune(tuned, setting, seed)
            total = model.config.image_seq_length
            for share in wanted:
                tp.calibrate(model, list(calibration(setting, seed)), share * total)
                made = partial(measure_held_out, model, setting, seed)
                store.once(made, method=tuned, share=share, seed=seed)


def tune(tuned: str, setting: Setting, seed: int) -> Any:
    """Train what the row says, on the same pictures for the same steps."""
    torch.manual_seed(seed)
    model = load()
    if tuned == "heads and LoRA":
        config = LoraConfig(r=8, lora_alpha=16, target_modules=r".*language_model.*_proj")
        model = get_peft_model(model, config)
    target = SHARE * model.config.image_seq_length
    tp.wrap(model, tp.ATPConfig(layers=LAYERS, target_tokens=target))
    start(model, setting, seed, target)
    groups = [{"params": tp.train_only_heads(model), "lr": RATE}]
    more = {
        "heads only": [],
        "heads and LoRA": [(n, p) for n, p in model.named_parameters() if "lora_" in n],
        "heads and decoder": [
            (n, p) for n, p in model.named_parameters() if "language_model.layers" in n
        ],
    }[tuned]
    for _, parameter in more:
        parameter.requires_grad_(True)
    if more:
        # The whole decoder moves far at a rate that heads and low-rank factors need.
        rate = RATE if "LoRA" in tuned else RATE / 10
        groups.append({"params": [p for _, p in more], "lr": rate})
    train(model, processor(), samples("train", BATCH * setting.steps, seed), groups)
    return model.eval()
