"""Shared by the small models: the decoder's dimensions, processors' settings, saving."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

__all__ = [
    "LLAVA_CHAT",
    "PIXELS",
    "RECOGNITION_LAYERS",
    "WEIGHTS",
    "WIDTH",
    "copy_shared",
    "decoder_fields",
    "llava_pictures",
    "llava_processor",
    "save_model",
]

WIDTH = 128
"""Hidden size of the decoder."""

RECOGNITION_LAYERS = 4
"""The first decoder layers, after which visual tokens are trained to name their digit."""

PIXELS: dict[str, Any] = {
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "do_convert_rgb": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""Settings of every image processor here: bicubic, and values from -1 to 1."""

LLAVA_CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
"""The chat template of a LLaVA: the parts of all messages, in order."""

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


def copy_shared(model: nn.Module, trained: nn.Module) -> None:
    """Copy the parameters of the same name from a trained model; of embeddings, the first rows."""
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


def llava_pictures(side: int, size: dict[str, int], **own: Any) -> dict[str, Any]:
    """Return the settings of an image processor for square pictures or tiles.

    Parameters
    ----------
    side : int
        Of a picture or tile, in pixels.
    size : dict
        The processor's ``size``.
    **own
        Settings of this model only.
    """
    return {
        "do_resize": True,
        "size": size,
        **own,
        "do_center_crop": False,
        "crop_size": {"height": side, "width": side},
        **PIXELS,
    }


def llava_processor(patch: int) -> dict[str, Any]:
    """Return the settings of a LLaVA's processor."""
    return {
        "image_token": "<image>",
        "patch_size": patch,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }


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
        own, other = next((pair for pair in published if name.startswith(pair[0])), ("", ""))
        state[other + name.removeprefix(own)] = value.half().contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
