"""Train ATP's heads on LLaVA's own data, on as many GPUs as ``torchrun`` or ``accelerate`` gives.

All arguments of transformers' TrainingArguments are understood; the checkpoint stays as it is, and
what is saved is the heads and the optimizer's state alone.

    torchrun --nproc-per-node 8 -m tokenprune.recipes.mix665k \
        --pretrained llava-hf/llava-1.5-7b-hf --annotations llava_v1_5_mix665k.json --images . \
        --output_dir out/heads --per_device_train_batch_size 8 --bf16 --logging_steps 10 \
        --save_steps 500

``--resume_from_checkpoint out/heads/checkpoint-500`` goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Subset
from transformers import HfArgumentParser, Trainer, TrainingArguments, set_seed

from ..api import wrap
from ..checkpoint import config_of, load
from ..data import Conversations, TrainingCollator
from ..io import load_heads, save_heads
from ..training import calibrate, train_only_heads

__all__ = ["HeadsTrainer", "Recipe", "run"]


@dataclass
class Recipe:
    """What is trained, on what."""

    pretrained: str = field(metadata={"help": "checkpoint, by path or hub id"})
    annotations: str = field(metadata={"help": "llava_v1_5_mix665k.json, or its like"})
    images: str = field(metadata={"help": "folder that its image paths are relative to"})
    options: list[str] = field(
        default_factory=list, metadata={"help": "ATPConfig's fields: layers=3/13/23 temperature=10"}
    )
    tokens: list[float] = field(
        default_factory=list, metadata={"help": "budgets to calibrate for; none: target_tokens"}
    )
    calibration: int = field(
        default=256, metadata={"help": "conversations to calibrate on, the last of the data"}
    )
    longest: int = field(default=2048, metadata={"help": "tokens of a conversation"})


class HeadsTrainer(Trainer):
    """Saves and loads the heads, not the model around them."""

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        save_heads(self.accelerator.unwrap_model(self.model), _folder(self.args, output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_heads(self.accelerator.unwrap_model(model or self.model), resume_from_checkpoint)


def run(recipe: Recipe, arguments: TrainingArguments) -> Path:
    """Calibrate, train, calibrate again and save; return the folder with the heads."""
    set_seed(arguments.seed)
    arguments.remove_unused_columns = False
    arguments.ddp_find_unused_parameters = False  # each batch has pictures
    dtype = torch.bfloat16 if arguments.bf16 else torch.float32
    model, processor = load(recipe.pretrained, dtype=dtype)
    config = config_of("atp", dict(option.split("=", 1) for option in recipe.options))
    wrap(model.to(arguments.device), config)
    train_only_heads(model)
    data = Conversations(recipe.annotations, recipe.images)
    collate = TrainingCollator(processor, recipe.longest)
    apart = len(data) - min(recipe.calibration, len(data) // 2)
    size = arguments.per_device_train_batch_size
    batches = [
        {
            name: values.to(arguments.device)
            for name, values in collate([data[n] for n in rows]).items()
        }
        for rows in batched(range(apart, len(data)), size)
    ]
    target = model.tokenprune.config.target_tokens  # with the default filled in
    if not arguments.resume_from_checkpoint:
        # Training starts at the budget: the loss then says which tokens stay, not how many.
        calibrate(model, batches, target)
    trainer = HeadsTrainer(
        model=model,
        args=arguments,
        train_dataset=Subset(data, range(apart)),
        data_collator=collate,
    )
    trainer.train(resume_from_checkpoint=arguments.resume_from_checkpoint)
    calibrate(model, batches, recipe.tokens or target)
    trainer.save_model()
    return _folder(arguments)


def _folder(arguments: TrainingArguments, given: str | None = None) -> Path:
    folder = given or arguments.output_dir
    assert folder is not None
    return Path(folder)


def batched(rows: range, size: int) -> list[range]:
    """Split rows into groups of a size."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def main() -> None:
    """Read the command line and run."""
    kinds: Any = (Recipe, TrainingArguments)
    recipe, arguments = HfArgumentParser(kinds).parse_args_into_dataclasses()
    run(recipe, arguments)


if __name__ == "__main__":
    main()
