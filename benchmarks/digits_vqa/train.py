"""Train a small model from random weights: how the committed weights were made.

1. ``recognition`` (700 steps of 64 pictures): the tower, the projector and the first four decoder
   layers learn to name the digit, the colour and the place of every patch, read off the visual
   tokens after those layers by a linear head that is thrown away later.
2. ``reading`` (250 steps of 32 pictures): the whole model learns to answer, 16 questions about each
   picture, still held to the patch labels after its fourth layer.
3. ``whole`` (375 steps of 32 pictures): the same with new optimiser states and falling rates. All
   kinds of question are learned but the two that ask whether something is there.
4. ``all`` (160 steps of 32 pictures): without those two, and with the colours of the outermost
   digits on all four sides, while the rates fall to zero.

Matrices are trained with Muon and everything else with AdamW. One run took 60 minutes (10, 14, 25
and 11) on 2 CPU cores that other programs shared.

Training is resumed from ``OUT/state/checkpoint.pt``. Where page faults are dear (in many virtual
machines), ``MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000`` nearly halves the time.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .dataset import samples
from .evaluate import accuracy
from .models import MODELS
from .models.common import RECOGNITION_LAYERS, WIDTH
from .muon import BatchedMuon
from .packing import (
    PatchHead,
    answer_logits,
    before_questions,
    first_layers,
    pack,
    patch_labels,
    recognition_states,
)
from .pictures import Size, compose
from .stages import RECIPES, Stage

log = logging.getLogger(__name__)


LOG_EVERY = 50
"""Steps between two lines of the log."""


def optimizers(model: Any, head: PatchHead, stage: Stage) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices within the layers and AdamW for everything else."""
    parts: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {
        (matrix, tower): [] for matrix in (True, False) for tower in (True, False)
    }
    for name, parameter in model.named_parameters():
        tower = _is_tower(name)
        trained = stage.name != "recognition" or _recognises(name)
        parameter.requires_grad_(trained)
        if trained:
            inner = parameter.ndim == 2 and any(part in name for part in _MATRICES)
            parts[inner, tower].append(parameter)
    parts[False, True] += list(head.parameters())

    def groups(matrix: bool, rate: float) -> list[dict]:
        made = []
        for tower in (True, False):
            if parts[matrix, tower]:
                lr = rate * (stage.tower_rate if tower else 1.0)
                made.append({"params": parts[matrix, tower], "lr": lr, "highest": lr})
        return made

    made: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups(False, stage.adam), betas=(0.9, 0.98), weight_decay=0.0)
    ]
    if matrices := groups(True, stage.muon):
        made.append(BatchedMuon(matrices))
    return made


_MATRICES = (".layers.", ".blocks.", "projector", "merger")


def _is_tower(name: str) -> bool:
    return "vision_tower" in name or "visual" in name


def _recognises(name: str) -> bool:
    if "language_model.layers." in name:
        return int(name.split("language_model.layers.")[1].split(".")[0]) < RECOGNITION_LAYERS
    return _is_tower(name) or "projector" in name


def rate(stage: Stage, step: int) -> float:
    """Return the share of the highest learning rate at a step."""
    done = max(0, step - stage.warm_up) / max(1, stage.steps - stage.warm_up)
    return min((step + 1) / stage.warm_up, 1 - (1 - stage.final) * done)


def losses(
    family: ModuleType,
    model: Any,
    processor: Any,
    head: PatchHead,
    stage: Stage,
    size: Size,
    rng: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the answers' loss and the patches' loss on a fresh batch of pictures of one size."""
    pictures = [compose(rng, "train", stage.digits, size) for _ in range(stage.batch)]
    prefix = before_questions(model, processor, pictures)
    rows, cols, patches = family.grid(model, size)
    labels = patch_labels(pictures, rows, cols)
    if stage.name == "recognition":
        seen = recognition_states(model, prefix)[:, patches]
        return torch.zeros(()), head.loss(seen, *labels, rows, cols)
    packed = pack(rng, pictures, stage.questions, stage.kinds)
    logits, seen = answer_logits(model, prefix, packed)
    answers = F.cross_entropy(logits.flatten(0, 1), packed.answers.flatten())
    return answers, head.loss(seen[:, patches], *labels, rows, cols)


@torch.inference_mode()
def digit_accuracy(
    family: ModuleType, model: Any, processor: Any, head: PatchHead, split: str, n: int = 500
) -> float:
    """Measure the share of digits named rightly by the later half of the digit's patches."""
    size = family.SIZES[0]
    rows, cols, patches = family.grid(model, size)
    rng = np.random.default_rng(12345)
    right = total = 0
    for _ in range(n // 50):
        pictures = [compose(rng, split, size=size) for _ in range(50)]
        prefix = before_questions(model, processor, pictures)
        logits = head.names(recognition_states(model, prefix)[:, patches])
        labels, _ = patch_labels(pictures, rows, cols)
        for row, picture in enumerate(pictures):
            for digit in picture.digits:
                own = logits[row, labels[row] == digit]
                right += int(own[len(own) // 2 :].mean(0).argmax()) == digit
                total += 1
    return right / total


def validate(
    family: ModuleType, model: Any, processor: Any, head: PatchHead, stage: Stage, n: int
) -> dict:
    """Measure on the validation split what the stage trains."""
    model.eval()
    if stage.name == "recognition":
        return {"digit": digit_accuracy(family, model, processor, head, "validation")}
    result = accuracy(model, processor, samples("validation", n, seed=1, sizes=family.SIZES))
    return {
        "overall": round(result["overall"], 4),
        **{kind: round(share, 3) for kind, share in result["kinds"].items()},
    }


def train(
    name: str,
    recipe: tuple[Stage, ...],
    out: Path,
    work: Path,
    seed: int = 0,
    validate_every: int = 125,
) -> Any:
    """Train stage by stage, from the newest checkpoint if there is one.

    Parameters
    ----------
    name : str
        Which of :data:`MODELS`.
    recipe : tuple of Stage
    out : Path
        Where the model is saved at the end.
    work : Path
        Where the checkpoint is kept.
    seed : int
        Seed of the weights and of every batch.
    validate_every : int
        Steps between checkpoints, each with a look at the validation split.

    Returns
    -------
    PreTrainedModel
        The trained model.
    """
    work.mkdir(parents=True, exist_ok=True)
    latest = work / "checkpoint.pt"
    family = MODELS[name]
    model, processor = family.build(seed=seed), family.processor()
    head = PatchHead(WIDTH)
    reached: dict[str, Any] = {"stage": 0, "step": 0}
    if latest.exists():
        reached = torch.load(latest, weights_only=True)
        model.load_state_dict(reached["model"])
        head.load_state_dict(reached["head"])
    for number, stage in enumerate(recipe):
        if number < reached["stage"]:
            continue
        tuned = optimizers(model, head, stage)
        first = reached["step"] if number == reached["stage"] else 0
        if first:
            for optimizer, state in zip(tuned, reached["optimizers"], strict=True):
                optimizer.load_state_dict(state)
        log.info("stage %s from step %d: %s", stage.name, first, json.dumps(asdict(stage)))
        began, sums = time.monotonic(), np.zeros(2)
        for step in range(first, stage.steps):
            model.train()
            for optimizer in tuned:
                for group in optimizer.param_groups:
                    group["lr"] = group["highest"] * rate(stage, step)
            # Every step has its own seed, so a resumed run sees the batches of an unbroken one.
            rng = np.random.default_rng([seed, number, step])
            size = family.SIZES[step % len(family.SIZES)]
            with first_layers(model, stage.layers):
                answers, patches = losses(family, model, processor, head, stage, size, rng)
            share = 1.0 if stage.name == "recognition" else stage.patch_weight
            (answers + share * patches).backward()
            learning = [p for p in model.parameters() if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(learning, 1.0)
            for optimizer in tuned:
                optimizer.step()
                optimizer.zero_grad()
            sums += (answers.item(), patches.item())
            if (step + 1) % LOG_EVERY == 0:
                pace = (time.monotonic() - began) / (step + 1 - first)
                means = sums / LOG_EVERY
                sums[:] = 0
                message = "%s %d: answers %.3f patches %.3f, %.2f s a step"
                log.info(message, stage.name, step + 1, means[0], means[1], pace)
            done = step + 1 == stage.steps
            if done or (step + 1) % validate_every == 0:
                with first_layers(model, stage.layers):
                    n = 2000 if done else 500
                    found = validate(family, model, processor, head, stage, n)
                log.info("%s %d: validation %s", stage.name, step + 1, json.dumps(found))
                state = {
                    "stage": number + done,
                    "step": 0 if done else step + 1,
                    "model": model.state_dict(),
                    "head": head.state_dict(),
                    "optimizers": [optimizer.state_dict() for optimizer in tuned],
                }
                # Renamed when complete, so that an interrupted run can still be resumed.
                torch.save(state, work / "checkpoint.new")
                (work / "checkpoint.new").replace(latest)
    family.save(model.eval(), out)
    return model


def _changed(stage: Stage, changes: list[str]) -> Stage:
    for change in changes:
        where, value = change.split("=")
        name, key = where.split(".")
        if name == stage.name:
            stage = replace(stage, **{key: json.loads(value)})
    return stage


def main() -> None:
    """Train from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="llava")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint, OUT/state by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate-every", type=int, default=125)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="STAGE.FIELD=VALUE",
        help="change a stage, for instance tower.steps=100",
    )
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    train(
        options.model,
        tuple(_changed(stage, options.set) for stage in RECIPES[options.model]),
        options.out,
        options.work or options.out / "state",
        options.seed,
        options.validate_every,
    )


if __name__ == "__main__":
    main()
