"""What the small models have in common: saving, and a decoder to start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

__all__ = ["decoder_fields", "save_model", "take_over"]

WIDTH = 128
"""Hidden size of the decoder."""

EYES = 4
"""Decoder layers after which the visual tokens are taught to know their digit."""

WEIGHTS = Path(__file__).parents[1] / "weights"
"""Where the committed models are, one folder each."""


def decoder_fields(words: int, layers: int) -> dict[str, Any]:
    """Return the dimensions of every decoder here."""
    return {
        "vocab_size": words,
        "hidden_size": WIDTH,
        "intermediate_size": 344,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def take_over(model: nn.Module, trained: nn.Module) -> None:
    """Copy what a trained model has under the same name; of tables of words, the first rows."""
    known = trained.state_dict()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            found = known.get(name)
            if found is None:
                if name.endswith("_proj.bias"):
                    parameter.zero_()  # the trained decoder has none
            elif found.shape == parameter.shape:
                parameter.copy_(found)
            elif found.shape[1:] == parameter.shape[1:] and "embeddings" not in name:
                parameter[: len(found)] = found


def save_model(model: Any, folder: Path, published: Sequence[tuple[str, str]]) -> None:
    """Write a model's configuration and its weights in float16.

    Parameters
    ----------
    model : PreTrainedModel
        What to save.
    folder : Path
        Where to; made if absent.
    published : sequence of (str, str)
        Beginnings of our names and of those of published checkpoints, the only ones that
        transformers 4 and 5 both read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_diff_dict()
    config.pop("transformers_version", None)
    text = config["text_config"]
    if "mrope_section" in text.get("rope_parameters", {}):
        # In the words of published configurations, which both major versions read.
        rotary = text.pop("rope_parameters")
        text |= {"rope_theta": rotary.pop("rope_theta"), "rope_scaling": rotary}
        config["vision_config"].pop("rope_parameters", None)  # nothing but defaults
    # Stored in half the room, but meant to be loaded and run in float32.
    config |= {"architectures": [type(model).__name__], "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = {}
    for name, value in model.state_dict().items():
        ours, theirs = next((pair for pair in published if name.startswith(pair[0])), ("", ""))
        state[theirs + name.removeprefix(ours)] = value.half().contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
