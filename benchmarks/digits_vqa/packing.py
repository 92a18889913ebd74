"""Training batches: many questions about one picture in one sequence.

Every question sees the picture and itself only, at the positions it would have alone, so the
model trains on exactly the single questions it is tested on, yet reads each picture once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from transformers import LlavaForConditionalGeneration

from .model import EYES, GRID
from .pictures import COLOURS, PATCH, Picture
from .processing import VOCABULARY
from .questions import askable, question

SLOT = 4
"""Tokens of the longest question."""

BACKGROUND = 10
"""Patch label of "no digit here"."""

_PREFIX = 1 + GRID * GRID
_COLOUR_IDS = {name: i for i, name in enumerate(COLOURS)}


@dataclass(frozen=True)
class Packed:
    """Questions about a batch of pictures, as tensors.

    Attributes
    ----------
    ids : torch.Tensor
        Tokens of the questions, ``(pictures, questions * SLOT)``, each padded to a slot.
    last : torch.Tensor
        Place of each question's last token within the sequence, ``(pictures, questions)``.
    answers : torch.Tensor
        Answer tokens, ``(pictures, questions)``.
    """

    ids: torch.Tensor
    last: torch.Tensor
    answers: torch.Tensor


def pack(
    rng: np.random.Generator,
    pictures: Sequence[Picture],
    questions: int,
    asked_kinds: Sequence[str],
) -> Packed:
    """Ask ``questions`` questions about each picture, of any kind equally often."""
    ids = np.zeros((len(pictures), questions, SLOT), dtype=np.int64)
    last = np.zeros((len(pictures), questions), dtype=np.int64)
    answers = np.zeros((len(pictures), questions), dtype=np.int64)
    for row, picture in enumerate(pictures):
        kinds = askable(picture, asked_kinds)
        drawn = (rng.random(questions) * len(kinds)).astype(int)
        for slot, which in enumerate(drawn):
            asked = question(rng, picture, kinds[which])
            tokens = [VOCABULARY[word] for word in asked.text.split()]
            ids[row, slot, : len(tokens)] = tokens
            last[row, slot] = _PREFIX + slot * SLOT + len(tokens) - 1
            answers[row, slot] = VOCABULARY[asked.answer]
    return Packed(
        torch.from_numpy(ids).flatten(1), torch.from_numpy(last), torch.from_numpy(answers)
    )


def pixel_tensor(pictures: Sequence[Picture]) -> torch.Tensor:
    """Return what the processor would make of the pictures."""
    stacked = torch.from_numpy(np.stack([picture.pixels for picture in pictures]))
    return stacked.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def layout(questions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention mask ``(1, 1, L, L)`` and the position ids ``(1, L)``."""
    slot = torch.arange(questions).repeat_interleave(SLOT)
    owner = torch.cat([torch.full((_PREFIX,), -1), slot])
    length = len(owner)
    seen = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = torch.cat([torch.arange(_PREFIX), _PREFIX + torch.arange(SLOT).repeat(questions)])
    return mask[None, None], positions[None]


def visual_features(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return the tower's features of the 144 patches, before the projector."""
    return model.model.vision_tower(pixel_values=pixels).last_hidden_state[:, 1:]


def visual_inputs(model: LlavaForConditionalGeneration, pixels: torch.Tensor) -> torch.Tensor:
    """Return the decoder's input up to the questions, ``(pictures, 145, width)``."""
    start = model.get_input_embeddings()(torch.full((len(pixels), 1), VOCABULARY["<s>"]))
    return torch.cat([start, model.model.multi_modal_projector(visual_features(model, pixels))], 1)


def eyes_only(model: LlavaForConditionalGeneration, visual: torch.Tensor) -> torch.Tensor:
    """Return the patches' hidden states after the decoder's first :data:`EYES` layers."""
    decoder = model.model.language_model
    hidden = decoder.config.num_hidden_layers
    decoder.config.num_hidden_layers = EYES
    try:
        return decoder(inputs_embeds=visual, use_cache=False).last_hidden_state[:, 1:]
    finally:
        decoder.config.num_hidden_layers = hidden


def answer_logits(
    model: LlavaForConditionalGeneration,
    visual: torch.Tensor,
    packed: Packed,
    where: tuple[torch.Tensor, torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits at each question's last token, and the patches' states after the eyes.

    Shapes ``(pictures, questions, words)`` and ``(pictures, 144, width)``.
    """
    mask, positions = where
    embed = model.get_input_embeddings()
    out = model.model.language_model(
        inputs_embeds=torch.cat([visual, embed(packed.ids)], 1),
        attention_mask=mask.expand(len(visual), -1, -1, -1),
        position_ids=positions,
        use_cache=False,
        output_hidden_states=True,
    )
    hidden = out.last_hidden_state
    chosen = hidden.gather(1, packed.last[..., None].expand(-1, -1, hidden.shape[-1]))
    return model.lm_head(chosen), out.hidden_states[EYES][:, 1:_PREFIX]


def patch_labels(pictures: Sequence[Picture]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return digit and colour labels of all patches, each ``(pictures, 144)``.

    A patch belongs to the digit whose box covers most of it, if that is a tenth or more; the
    labels of the others are 10 (digit) and the number of colours (colour).
    """
    digits = np.full((len(pictures), GRID, GRID), BACKGROUND, dtype=np.int64)
    colours = np.full((len(pictures), GRID, GRID), len(COLOURS), dtype=np.int64)
    edges = np.arange(GRID) * PATCH
    for row, picture in enumerate(pictures):
        most = np.full((GRID, GRID), 0.1 * PATCH * PATCH)
        for digit, colour, (x0, y0, x1, y1) in zip(
            picture.digits, picture.colours, picture.boxes, strict=True
        ):
            across = np.clip(np.minimum(edges + PATCH, x1) - np.maximum(edges, x0), 0, PATCH)
            down = np.clip(np.minimum(edges + PATCH, y1) - np.maximum(edges, y0), 0, PATCH)
            area = np.outer(down, across)
            mine = area > most
            most[mine] = area[mine]
            digits[row][mine] = digit
            colours[row][mine] = _COLOUR_IDS[colour]
    return torch.from_numpy(digits).flatten(1), torch.from_numpy(colours).flatten(1)


class PatchHead(torch.nn.Module):
    """Reads digit, colour and place off each patch's features; used in training only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.digit = torch.nn.Linear(width, BACKGROUND + 1)
        self.colour = torch.nn.Linear(width, len(COLOURS) + 1)
        self.place = torch.nn.Linear(width, 2)
        lines = torch.linspace(-1, 1, GRID)
        grid = torch.stack(torch.meshgrid(lines, lines, indexing="ij"), -1)
        self.register_buffer("grid", grid.reshape(1, GRID * GRID, 2), persistent=False)

    def names(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of the ten digits, ``(pictures, 144, 10)``."""
        return self.digit(F.layer_norm(features, features.shape[-1:]))[..., :BACKGROUND]

    def loss(
        self, features: torch.Tensor, digits: torch.Tensor, colours: torch.Tensor
    ) -> torch.Tensor:
        """Return the sum of the three losses.

        Under the causal rule a digit's later patches have seen more of it, so they weigh more.
        """
        features = F.layer_norm(features, features.shape[-1:])
        one_hot = F.one_hot(digits, BACKGROUND + 1).float()
        order = one_hot.cumsum(1) / one_hot.sum(1, keepdim=True).clamp(min=1)
        seen = (order * one_hot).sum(-1)
        weight = torch.where(digits == BACKGROUND, 0.25, seen)
        weight = weight / weight.sum()
        named = F.cross_entropy(
            self.digit(features).flatten(0, 1),
            digits.flatten(),
            reduction="none",
            label_smoothing=0.05,
        )
        painted = F.cross_entropy(
            self.colour(features).flatten(0, 1), colours.flatten(), reduction="none"
        )
        placed = (self.place(features) - self.grid).square().mean()
        return ((named + 0.5 * painted) * weight.flatten()).sum() + placed
