"""Training batches: many questions about one picture in one sequence.

Every question sees the picture and itself only, at the positions it would have alone, so the
model trains on exactly the single questions it is tested on, yet reads each picture once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .dataset import picture_text
from .models.common import RECOGNITION_LAYERS
from .models.tokens import VOCABULARY
from .pictures import COLOURS, Picture
from .questions import askable, question

SLOT = 4
"""Tokens of the longest question."""

BACKGROUND = 10
"""Patch label of "no digit here"."""

_COLOUR_IDS = {name: i for i, name in enumerate(COLOURS)}


@dataclass(frozen=True)
class Packed:
    """Questions about a batch of pictures, as tensors.

    Attributes
    ----------
    ids : torch.Tensor
        Tokens of the questions, ``(pictures, questions * SLOT)``, each padded to a slot.
    last : torch.Tensor
        Place of each question's last token behind the picture, ``(pictures, questions)``.
    answers : torch.Tensor
        Answer tokens, ``(pictures, questions)``.
    """

    ids: torch.Tensor
    last: torch.Tensor
    answers: torch.Tensor


@dataclass(frozen=True)
class Prefix:
    """What stands before the questions, as the decoder gets it.

    Attributes
    ----------
    embeds : torch.Tensor
        ``(pictures, tokens, width)``.
    positions : torch.Tensor
        Position ids, ``(..., tokens)``: M-RoPE has three rows.
    visual : torch.Tensor
        Where the visual tokens are, ``(visual tokens,)``.
    """

    embeds: torch.Tensor
    positions: torch.Tensor
    visual: torch.Tensor


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
            last[row, slot] = slot * SLOT + len(tokens) - 1
            answers[row, slot] = VOCABULARY[asked.answer]
    return Packed(
        torch.from_numpy(ids).flatten(1), torch.from_numpy(last), torch.from_numpy(answers)
    )


class _EnoughError(Exception):
    """The decoder was reached."""


def before_questions(model: Any, processor: Any, pictures: Sequence[Picture]) -> Prefix:
    """Run pictures of one size up to the decoder, prompts without a question."""
    text = picture_text(processor)
    batch = processor(
        text=[text] * len(pictures),
        images=[picture.pixels for picture in pictures],
        return_tensors="pt",
    )
    given: dict[str, Any] = {}

    def stop(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given.update(kwargs)
        raise _EnoughError

    handle = model.model.language_model.register_forward_pre_hook(stop, with_kwargs=True)
    with contextlib.suppress(_EnoughError), handle:
        model.model(**batch)
    embeds, positions = given["inputs_embeds"], given["position_ids"]
    if positions is None:
        positions = torch.arange(embeds.shape[1])[None]
    visual = (batch["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
    return Prefix(embeds, positions, visual)


def layout(prefix: Prefix, questions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the attention mask ``(1, 1, L, L)`` and the position ids ``(..., L)``."""
    before = prefix.embeds.shape[1]
    slot = torch.arange(questions).repeat_interleave(SLOT)
    owner = torch.cat([torch.full((before,), -1), slot])
    length = len(owner)
    seen = (owner[None, :] == -1) | (owner[None, :] == owner[:, None])
    seen &= torch.ones(length, length, dtype=torch.bool).tril()
    mask = torch.zeros(length, length).masked_fill(~seen, torch.finfo(torch.float32).min)
    # Pictures of one size: the same positions in every row.
    following = prefix.positions.max() + 1 + torch.arange(SLOT).repeat(questions)
    following = following.expand(*prefix.positions.shape[:-1], -1)
    return mask[None, None], torch.cat([prefix.positions, following], -1)


@contextlib.contextmanager
def first_layers(model: Any, number: int) -> Iterator[None]:
    """Leave only the decoder's first layers inside the context."""
    decoder = model.model.language_model
    layers = decoder.layers
    decoder.layers = layers[:number]
    try:
        yield
    finally:
        decoder.layers = layers


def recognition_states(model: Any, prefix: Prefix) -> torch.Tensor:
    """Return the visual tokens' hidden states after :data:`RECOGNITION_LAYERS` decoder layers."""
    decoder = model.model.language_model
    with first_layers(model, RECOGNITION_LAYERS):
        out = decoder(inputs_embeds=prefix.embeds, position_ids=prefix.positions, use_cache=False)
    return out.last_hidden_state[:, prefix.visual]


def answer_logits(model: Any, prefix: Prefix, packed: Packed) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits at each question's last token, and the patches' states after those layers.

    Shapes ``(pictures, questions, words)`` and ``(pictures, visual tokens, width)``.
    """
    mask, positions = layout(prefix, packed.last.shape[1])
    embed = model.get_input_embeddings()
    out = model.model.language_model(
        inputs_embeds=torch.cat([prefix.embeds, embed(packed.ids)], 1),
        attention_mask=mask.expand(len(prefix.embeds), -1, -1, -1),
        position_ids=positions,
        use_cache=False,
        output_hidden_states=True,
    )
    hidden = out.last_hidden_state
    last = packed.last + prefix.embeds.shape[1]
    chosen = hidden.gather(1, last[..., None].expand(-1, -1, hidden.shape[-1]))
    return model.lm_head(chosen), out.hidden_states[RECOGNITION_LAYERS][:, prefix.visual]


def patch_labels(
    pictures: Sequence[Picture], rows: int, cols: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return digit and colour labels of a grid over each picture, ``(pictures, rows * cols)``.

    A patch belongs to the digit whose box covers most of it, if that is a tenth or more; the
    labels of the others are 10 (digit) and the number of colours (colour).
    """
    digits = np.full((len(pictures), rows, cols), BACKGROUND, dtype=np.int64)
    colours = np.full((len(pictures), rows, cols), len(COLOURS), dtype=np.int64)
    for row, picture in enumerate(pictures):
        high, wide = picture.pixels.shape[0] / rows, picture.pixels.shape[1] / cols
        left, top = np.arange(cols) * wide, np.arange(rows) * high
        most = np.full((rows, cols), 0.1 * high * wide)
        for digit, colour, (x0, y0, x1, y1) in zip(
            picture.digits, picture.colours, picture.boxes, strict=True
        ):
            across = np.clip(np.minimum(left + wide, x1) - np.maximum(left, x0), 0, wide)
            down = np.clip(np.minimum(top + high, y1) - np.maximum(top, y0), 0, high)
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

    def names(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of the ten digits, ``(pictures, patches, 10)``."""
        return self.digit(F.layer_norm(features, features.shape[-1:]))[..., :BACKGROUND]

    def loss(
        self,
        features: torch.Tensor,
        digits: torch.Tensor,
        colours: torch.Tensor,
        rows: int,
        cols: int,
    ) -> torch.Tensor:
        """Return the sum of the three losses, over a grid's patches line by line.

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
        lines = torch.linspace(-1, 1, rows), torch.linspace(-1, 1, cols)
        grid = torch.stack(torch.meshgrid(*lines, indexing="ij"), -1).reshape(1, rows * cols, 2)
        placed = (self.place(features) - grid).square().mean()
        return ((named + 0.5 * painted) * weight.flatten()).sum() + placed
