"""Heads on disk: one safetensors file, whose metadata says what they fit.

The file is ``tokenprune_heads.safetensors``; `heads_file` has its format. Its JSON is an object
with "tokenprune_version"; "base_model", "family", "num_layers" and "hidden_size", what the heads
depend on in the model; "config", the method's configuration; and "runtime", shifts and budgets.

Folders of two files, which earlier versions wrote, load too: there the same JSON, with the other
file's digest as "weights_sha256", is in ``tokenprune_config.json``. Where the safetensors file has
metadata of its own, that file is not read.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._version import __version__
from .atomic import replace_file
from .config import MethodConfig, shown
from .engine import Engine, engine_of
from .heads_file import pack
from .saved import CONFIG, HEADS, Heads, named, open_heads, parsed, path_of

if TYPE_CHECKING:
    from tokenprune.adapters import Adapter

__all__ = ["facts_of", "load_heads", "read_config", "read_heads", "save_heads"]


def save_heads(model: nn.Module, folder: str | Path) -> Path:
    """Write the heads of a wrapped model, in float32, and nothing else of it.

    Parameters
    ----------
    model : nn.Module
        Wrapped.
    folder : path
        Made if it is not there. The file in it is replaced whole or not at all, whoever is killed
        when; any number of processes may save and load at the same time. What a killed one left is
        removed by the next save.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If the model is not wrapped, or `load_heads` would refuse what was written: heads that are
        not finite in float32, for instance. Nothing is then written.
    OSError
        If the folder cannot be made or written; what it held is then as it was.
    """
    engine = engine_of(model)
    config = _config_of(engine)
    path = path_of(folder)
    state = engine.method.state_dict()
    # Copies: training may go on in another thread.
    tensors = {k: v.detach().to("cpu", torch.float32, copy=True) for k, v in state.items()}
    facts = facts_of(model, engine.adapter)
    try:
        runtime = engine.method.runtime_state()
        # On a copy of the module that shares its parameters: another thread may move the budget.
        copy.copy(engine.method).load_runtime_state(runtime)
        said = config.to_dict()
        about = {"tokenprune_version": __version__, **facts, "config": said, "runtime": runtime}
        content = pack(about, tensors)
        opened = parsed(path / HEADS, BytesIO(content))
        assert opened is not None  # `pack` writes the metadata
        opened.read(facts, config).check(engine.method)
    except ValueError as error:
        raise ValueError(
            f"These heads are not saved, since they would not load again: {error}"
        ) from error
    try:
        path.mkdir(parents=True, exist_ok=True)
        replace_file(path / HEADS, content)
    except OSError as error:
        raise OSError(
            error.errno,
            f"The heads cannot be written to {shown(str(path))} ({error.strerror}): expected a "
            "folder that can be written, or a path where one can be made.",
        ) from error
    with suppress(OSError):
        (path / CONFIG).unlink()
    return path


def load_heads(model: nn.Module, source: str | Path) -> None:
    """Load saved heads into a wrapped model, in place.

    Everything is checked before anything is changed, and before memory is taken: that the header is
    no longer than 1 MiB, and JSON without repeated keys, NaN or infinity; that family, depth, width
    and configuration are the model's; that the tensors named in the header have the configuration's
    names and shapes and a dtype of float16, bfloat16, float32 or float64; that the file is as long
    as its header says. Then the SHA-256 of the JSON and the tensors, and that every value is finite
    in the dtype it is loaded as. Nothing is unpickled.

    Parameters
    ----------
    model : nn.Module
        Wrapped with the method that the heads belong to.
    source : path or hub id
        A folder that `save_heads` wrote, or a repository with its file.

    Raises
    ------
    FileNotFoundError
        If there are no heads at `source`.
    ValueError
        If the model is not wrapped, the heads belong to another method, family or shape, or a file
        is damaged or not what `save_heads` writes. The model is then as it was.
    """
    engine = engine_of(model)
    facts = facts_of(model, engine.adapter)
    read_heads(source, facts, _config_of(engine)).load_into(engine.method)


def _config_of(engine: Engine) -> MethodConfig:
    if engine.config is None:
        raise ValueError(
            f"The model was wrapped with a {type(engine.method).__name__} as it is, and nothing "
            "says how to build it again: to save and load heads, register it with "
            "tokenprune.register_method and wrap the model with its configuration."
        )
    return engine.config


def read_config(source: str | Path) -> MethodConfig:
    """The configuration that heads were saved with. Only the file's header is read.

    Parameters
    ----------
    source : path or hub id

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_heads`.
    """
    with open_heads(source) as opened:
        return opened.config


def read_heads(
    source: str | Path, facts: dict[str, Any], config: MethodConfig | None = None
) -> Heads:
    """Read saved heads for a model; see `load_heads` for what is checked, in which order.

    Parameters
    ----------
    source : path or hub id
    facts : dict
        What `facts_of` says of the model.
    config : MethodConfig, optional
        What theirs must be.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_heads`.
    """
    with open_heads(source) as opened, named(opened.path):
        return opened.read(facts, config)


def facts_of(model: Any, adapter: Adapter) -> dict[str, Any]:
    """What heads depend on in the model they are for."""
    text = adapter.text_config(model)
    return {
        "base_model": getattr(model.config, "_name_or_path", "") or None,
        "family": model.config.model_type,
        "num_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
    }
