"""Which images a call of the core has, and where their placeholder tokens stand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["MODALITIES", "PIXELS", "has_modality", "placeholder_mask"]

MODALITIES = ("image", "video")
# Modality → the arguments that hold its pixels, whatever the family calls them.
PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


def has_modality(inputs: Mapping[str, Any], modality: str) -> bool:
    """Return whether a call of the core has images, or videos.

    Read from which inputs are given, not from their values, so that nothing waits for the device.

    Parameters
    ----------
    inputs : dict
        Arguments of the core's forward, by name.
    modality : str
        "image" or "video".

    Examples
    --------
    >>> import torch
    >>> has_modality({"pixel_values": torch.zeros(1, 3, 8, 8)}, "image")
    True
    >>> has_modality({"input_ids": torch.tensor([[1, 2]])}, "image")
    False
    """
    encoded = inputs.get("mm_encoder_outputs") or {}
    given = (*(inputs.get(name) for name in PIXELS[modality]), encoded.get(modality))
    return any(value is not None for value in given)


def placeholder_mask(core: Any, inputs: Mapping[str, Any], token: int) -> Tensor:
    """Return where the prompt has a placeholder token.

    Parameters
    ----------
    core : nn.Module
        Gives the token's embedding where the prompt is given as embeddings.
    inputs : dict
        Arguments of the core's forward, with ``input_ids`` or ``inputs_embeds``.
    token : int
        The placeholder's id.

    Returns
    -------
    bool, (batch, length)

    Examples
    --------
    >>> import torch
    >>> placeholder_mask(None, {"input_ids": torch.tensor([[1, 99, 99, 2]])}, token=99)
    tensor([[False,  True,  True, False]])
    """
    if inputs.get("input_ids") is not None:
        return inputs["input_ids"] == token
    embeds = inputs["inputs_embeds"]
    vocabulary = core.get_input_embeddings().weight
    if token >= len(vocabulary):
        return torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    embedding = vocabulary[token].to(embeds.device)
    return (embeds == embedding).all(dim=-1)
