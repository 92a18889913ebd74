"""What the commands read of a model: its configuration and its processor, never its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from tokenprune.adapters import adapter_for

from ..config import ModelFacts
from ..measure.cost import DecoderShape
from .app import CommandError

__all__ = ["DTYPES", "ReadModel", "facts_of", "not_read", "read_model", "tokens_at"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class ReadModel:
    """A model's configuration, as the commands need it.

    Attributes
    ----------
    family : str
        ``config.model_type``.
    facts : ModelFacts
    shape : DecoderShape
    dtype : str
        Of the key-value cache.
    """

    family: str
    facts: ModelFacts
    shape: DecoderShape
    dtype: str


def read_model(name: str, dtype: str | None = None) -> ReadModel:
    """Read a model's configuration; its layers are built without memory for weights.

    Parameters
    ----------
    name : str
        A folder or hub id.
    dtype : {"float32", "bfloat16", "float16"}, optional
        Of the key-value cache. None: what the configuration says, else bfloat16.

    Raises
    ------
    CommandError
        If there is no configuration, or the model cannot be pruned.
    """
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CommandError(not_read(name, "configuration", error)) from error
    try:
        with torch.device("meta"):
            model: Any = AutoModelForImageTextToText.from_config(config)
        adapter = adapter_for(model)
        adapter.check(model)
    except (ValueError, ImportError) as error:  # a tower may need a package that is not here
        raise CommandError(_first_line(error)) from error
    facts = facts_of(model)
    text = adapter.text_config(model)
    if dtype is None:
        saved = getattr(text, "dtype", None) or getattr(config, "dtype", None)
        saved = str(saved).removeprefix("torch.")
        dtype = saved if saved in DTYPES else "bfloat16"
    return ReadModel(config.model_type, facts, DecoderShape.of(text, DTYPES[dtype]), dtype)


def facts_of(model: Any) -> ModelFacts:
    """Read what a method's configuration is fitted to."""
    adapter = adapter_for(model)
    layers = len(adapter.decoder_layers(model))
    return ModelFacts(
        layers,
        adapter.grid(model),
        adapter.default_layers(layers),
        adapter.first_layer(model),
        getattr(adapter.text_config(model), "hidden_size", None),
    )


def tokens_at(name: str, width: int, height: int) -> int:
    """Count the visual tokens of a picture of this size, by the model's own processor.

    Raises
    ------
    CommandError
        If there is no processor, or it does not say which tokens are an image's.
    """
    try:
        processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise CommandError(
            not_read(name, "processor", error) + " Give --tokens instead of --resolution."
        ) from error
    image = Image.new("RGB", (width, height), "gray")
    token = getattr(processor, "image_token", None)
    number = getattr(processor, "image_token_id", None)
    if token is None:
        raise CommandError(
            f"The processor of {name!r} does not name its image token: give --tokens instead of "
            "--resolution."
        )
    tokenizer = processor.tokenizer
    number = tokenizer.convert_tokens_to_ids(token) if number is None else number
    text = getattr(processor, "boi_token", None) or token  # Gemma 3 replaces the one before it
    ids = processor(text=[text], images=[image], return_tensors="pt")["input_ids"]
    return int((ids == number).sum())


def not_read(name: str, what: str, error: Exception) -> str:
    """Say in a sentence why a model's part was not read."""
    if Path(name).exists():
        return f"No {what} can be read in the folder {name}: {_first_line(error)}"
    return (
        f"{name!r} is no folder here, and the hub gave no {what} of that name: it could not be "
        "reached, or has no such model, or asks for a login (`hf auth login`)."
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
