"""Heads on disk: safetensors, and JSON that says what they fit."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ._version import __version__
from .config import MethodConfig
from .engine import Engine, engine_of
from .methods import config_from

__all__ = ["load_heads", "read_config", "save_heads"]

_WEIGHTS = "tokenprune_heads.safetensors"
_CONFIG = "tokenprune_config.json"


def save_heads(model: nn.Module, folder: str | Path) -> Path:
    """Write the heads of a wrapped model, and nothing else of it.

    Parameters
    ----------
    model : nn.Module
        Wrapped.
    folder : path
        Made if it is not there. Both files are written whole or not at all.

    Returns
    -------
    Path
        The folder.
    """
    engine = engine_of(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in engine.method.state_dict().items()}
    about = {
        "tokenprune_version": __version__,
        **_facts(model, engine),
        "config": engine.config.to_dict(),
        "runtime": engine.method.runtime_state(),
        "tensors": {k: list(v.shape) for k, v in tensors.items()},
    }
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        save_file(tensors, Path(scratch, _WEIGHTS), metadata={"format": "pt"})
        # Two files cannot be replaced at once: the digest tells whether they belong together.
        about["weights_sha256"] = _digest(Path(scratch, _WEIGHTS))
        Path(scratch, _CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        for name in (_WEIGHTS, _CONFIG):
            os.replace(Path(scratch, name), folder / name)
    return folder


def read_config(source: str | Path) -> MethodConfig:
    """The configuration that heads were saved with.

    Parameters
    ----------
    source : path or hub id
    """
    return config_from(_read(source)[0]["config"])


def load_heads(model: nn.Module, source: str | Path) -> None:
    """Load saved heads into a wrapped model, in place.

    Everything is checked before anything is changed. Nothing is unpickled.

    Parameters
    ----------
    model : nn.Module
        Wrapped with the method that the heads belong to.
    source : path or hub id
        A folder that `save_heads` wrote, or a repository with its files.

    Raises
    ------
    FileNotFoundError
        If there are no heads at `source`.
    ValueError
        If they belong to another method, family or shape, or a file is damaged.
    """
    engine = engine_of(model)
    about, weights = _read(source)
    here = _facts(model, engine)
    there = {name: about.get(name) for name in here}
    differs = [
        f"{k}: saved {there[k]!r}, this model {here[k]!r}"
        for k in here
        if k != "base_model" and there[k] != here[k]
    ]
    config = config_from(about["config"])
    if config != engine.config:
        saved, mine = config.to_dict(), engine.config.to_dict()
        differs += [
            f"config.{k}: saved {saved.get(k)!r}, this model {mine.get(k)!r}"
            for k in sorted(saved.keys() | mine.keys())
            if saved.get(k) != mine.get(k)
        ]
    if differs:
        raise ValueError(
            f"The heads in {source} do not fit this model: " + "; ".join(differs) + ". Unwrap, and "
            f"call tokenprune.wrap(model, {str(source)!r}) on the model they were trained for."
        )
    tensors = _tensors(weights)
    own = engine.method.state_dict()
    wrong = [
        f"{k}: saved {list(tensors[k].shape) if k in tensors else None}, expected {list(v.shape)}"
        for k, v in own.items()
        if k not in tensors or tensors[k].shape != v.shape
    ]
    wrong += [f"{k}: not known" for k in tensors if k not in own]
    bad = [k for k, v in tensors.items() if not v.isfinite().all()]
    wrong += [f"{k}: not finite" for k in bad]
    if wrong:
        raise ValueError(f"The heads in {weights} do not fit: " + "; ".join(wrong) + ".")
    if about.get("weights_sha256") != _digest(weights):
        raise ValueError(
            f"{weights} is damaged, or is not the file that {_CONFIG} beside it was written with "
            "(its SHA-256 differs): save the heads again."
        )
    engine.method.load_runtime_state(about.get("runtime", {}))  # refuses before it changes
    engine.method.load_state_dict(tensors)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _facts(model: Any, engine: Engine) -> dict[str, Any]:
    """What the heads depend on in the model they are for."""
    text = engine.adapter.text_config(model)
    return {
        "base_model": getattr(model.config, "_name_or_path", "") or None,
        "family": model.config.model_type,
        "num_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
    }


def _read(source: str | Path) -> tuple[dict[str, Any], Path]:
    folder = Path(source)
    if not folder.is_dir():
        folder = _from_hub(str(source))
    config, weights = folder / _CONFIG, folder / _WEIGHTS
    for path in (config, weights):
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is not there: expected a folder that tokenprune.save_heads wrote."
            )
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is damaged ({error}): save the heads again.") from error
    if not isinstance(about, dict) or not isinstance(about.get("config"), dict):
        raise ValueError(f"{config} has no configuration: expected what save_heads writes.")
    return about, weights


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[_CONFIG, _WEIGHTS]))
    except Exception as error:  # the hub client raises a dozen kinds
        raise FileNotFoundError(
            f"{name!r} is not a folder here, and no repository of that name could be fetched "
            f"({type(error).__name__}). Check the path; without a network, copy the two files "
            f"{_CONFIG} and {_WEIGHTS} into a folder and give that."
        ) from error


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): save the heads again.") from error
