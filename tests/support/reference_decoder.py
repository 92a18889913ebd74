"""The independent reference: a LLaMA decoder from its maths, full length, with masked keys.

It shares nothing with the engine. Every token has its place in every layer; one that was dropped
after layer l is hidden as a key from all other tokens in the layers past l, and its own state stays
as it is, until it comes back if it does. What the tokens that are there compute is then what a
decoder without the others computes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .tiny_llava import EOS, IMAGE_TOKEN, PAD, Batch


@dataclass(frozen=True)
class Pass:
    """One row's pass over `length` tokens.

    Attributes
    ----------
    inputs : list of (length, width), one per layer
        What each layer is given.
    keys, values : list of (kv_heads, length, head width), one per layer
        Keys after the rotary embedding.
    last : (length, width)
        After the final norm.
    logits : (length, vocabulary)
    """

    inputs: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    last: Tensor
    logits: Tensor


class Reference:
    """The decoder of a LLaVA model, in `dtype`."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.float64) -> None:
        self.model = model
        self.dtype = dtype
        self.config = model.config.text_config
        self.weights = {name: p.detach().to(dtype) for name, p in model.named_parameters()}

    def embed(self, row: Batch) -> Tensor:
        """The decoder's input for one unpadded row: (length, width)."""
        core = self.model.model
        ids = row["input_ids"]
        with torch.no_grad():
            embeds = core.language_model.embed_tokens(ids)[0].clone()
            if "pixel_values" in row:
                seen = core.vision_tower(row["pixel_values"], output_hidden_states=True)
                features = core.multi_modal_projector(seen.hidden_states[-1][:, 1:])
                embeds[ids[0] == IMAGE_TOKEN] = features.flatten(0, 1)
        return embeds.to(self.dtype)

    def words(self, ids: Tensor) -> Tensor:
        """The decoder's input for words: (length, width)."""
        return self.weights["model.language_model.embed_tokens.weight"][ids]

    def run(self, embeds: Tensor, alive: Tensor, rule: Tensor | None = None) -> Pass:
        """All layers.

        Parameters
        ----------
        embeds : (length, width)
        alive : bool, (layers, length)
            Which tokens are keys of each layer.
        rule : bool, (length, length), optional
            Which keys each query may see at all. None: causal.
        """
        length = embeds.shape[0]
        device = embeds.device
        if rule is None:
            rule = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        # A dropped token sees itself, so that its own row is a number. Nobody reads it.
        itself = torch.eye(length, dtype=torch.bool, device=device)
        hidden = embeds
        inputs, keys, values = [], [], []
        for n in range(self.config.num_hidden_layers):
            inputs.append(hidden)
            name = f"model.language_model.layers.{n}."
            visible = (rule & alive[n][None, :]) | itself
            normed = self._norm(hidden, name + "input_layernorm.weight")
            attended, key, value, _ = self._attention(normed, name + "self_attn.", visible)
            keys.append(key)
            values.append(value)
            between = hidden + attended
            normed = self._norm(between, name + "post_attention_layernorm.weight")
            gate = nn.functional.silu(self._linear(normed, name + "mlp.gate_proj"))
            up = self._linear(normed, name + "mlp.up_proj")
            after = between + self._linear(gate * up, name + "mlp.down_proj")
            hidden = torch.where(alive[n][:, None], after, hidden)
        last = self._norm(hidden, "model.language_model.norm.weight")
        return Pass(inputs, keys, values, last, self._linear(last, "lm_head"))

    def attention(self, hidden: Tensor, layer: int, visible: Tensor) -> Tensor:
        """What each token attends to in a layer, mean over the heads: (length, length).

        Parameters
        ----------
        hidden : (length, width)
            The layer's input.
        visible : bool, (length, length)
            Which keys each query sees.
        """
        name = f"model.language_model.layers.{layer}."
        normed = self._norm(hidden, name + "input_layernorm.weight")
        return self._attention(normed, name + "self_attn.", visible)[3]

    def greedy(self, embeds: Tensor, alive: Tensor, steps: int) -> list[int]:
        """The next words, without a cache; all layers see them. Pads after the end's token."""
        words: list[int] = []
        for _ in range(steps):
            scores = self.run(embeds, alive).logits[-1].clone()
            scores[IMAGE_TOKEN] = -torch.inf  # as the models' generation_config has it
            words.append(int(scores.argmax()))
            if words[-1] == EOS:
                return words + [PAD] * (steps - len(words))
            new = self.words(torch.tensor([words[-1]], device=embeds.device))
            embeds = torch.cat([embeds, new])
            alive = torch.cat([alive, alive.new_ones(alive.shape[0], 1)], dim=1)
        return words

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.weights[name + ".weight"].T

    def _norm(self, x: Tensor, name: str) -> Tensor:
        mean_square = x.square().mean(dim=-1, keepdim=True)
        return x / (mean_square + self.config.rms_norm_eps).sqrt() * self.weights[name]

    def _attention(self, x: Tensor, name: str, visible: Tensor) -> tuple[Tensor, ...]:
        """What it adds, its keys, its values, and the map."""
        heads, kv_heads = self.config.num_attention_heads, self.config.num_key_value_heads
        width = self.config.hidden_size // heads

        def split(tensor: Tensor, count: int) -> Tensor:
            return tensor.view(-1, count, width).transpose(0, 1)

        query = _rotate(split(self._linear(x, name + "q_proj"), heads), self._theta())
        key = _rotate(split(self._linear(x, name + "k_proj"), kv_heads), self._theta())
        value = split(self._linear(x, name + "v_proj"), kv_heads)
        shared = heads // kv_heads
        logits = query @ key.repeat_interleave(shared, 0).transpose(1, 2) / width**0.5
        weights = logits.masked_fill(~visible, -torch.inf).softmax(dim=-1)
        mixed = weights @ value.repeat_interleave(shared, 0)
        merged = mixed.transpose(0, 1).reshape(x.shape[0], -1)
        return self._linear(merged, name + "o_proj"), key, value, weights.mean(dim=0)

    def _theta(self) -> float:
        parameters = getattr(self.config, "rope_parameters", None)
        return parameters["rope_theta"] if parameters else self.config.rope_theta


def _rotate(x: Tensor, theta: float) -> Tensor:
    """Rotary embedding at positions 0, 1, …: (heads, length, width)."""
    length, width = x.shape[1:]
    place = torch.arange(length, dtype=x.dtype, device=x.device)
    half = torch.arange(0, width, 2, dtype=x.dtype, device=x.device)
    angle = place[:, None] * theta ** (-half / width)
    first, second = x.chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
