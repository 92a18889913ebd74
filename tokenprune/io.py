"""Save and load heads: one safetensors file, whose metadata says what model they fit.

The file is ``tokenprune_heads.safetensors``; `heads_file` has its format. Its JSON is an object
with "tokenprune_version"; "base_model", "family", "num_layers" and "hidden_size" of the model; the
method's configuration as "config"; and as "runtime" its calibrated shifts and budgets.

Folders of two files, which earlier versions wrote, load too: the same JSON is then in
``tokenprune_config.json``, with the other file's digest as "weights_sha256". It is not read where
the safetensors file has metadata of its own.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ._version import __version__
from .atomic import replace_file
from .checks import shown
from .config import MethodConfig
from .distributed import is_first, is_part, together, whole
from .engine import Engine, base_model_of, engine_of
from .heads_file import pack
from .saved import CONFIG, HEADS, Heads, named, open_heads, parsed, path_of, tensors_of

if TYPE_CHECKING:
    from tokenprune.adapters import Adapter

__all__ = ["facts_of", "load_heads", "read_config", "read_heads", "save_heads"]


def save_heads(model: nn.Module, folder: str | Path) -> Path:
    """Save the heads of a wrapped model, in float32, and nothing else of the model.

    Of a model whose heads are sharded (FSDP2), every rank has to call it: rank 0 writes, and the
    others wait until it has. Otherwise one rank is enough.

    Parameters
    ----------
    model : nn.Module
        A wrapped model.
    folder : path
        Created if it does not exist. The file in it is replaced atomically: any number of processes
        may save and load at the same time, and one that is killed leaves the old file or the new
        one. Its temporary file is removed by the next save.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If the model is not wrapped, or `load_heads` would refuse the file, for instance for heads
        that are not finite in float32. Nothing is then written.
    OSError
        If the folder cannot be created or written; its content is then unchanged.
    RuntimeError
        If the heads are sharded and rank 0 could not write them, on the other ranks.

    Examples
    --------
    >>> model = tp.wrap(model, tp.ATPConfig(layers=(1, 3), target_tokens=20))
    >>> saved = tp.save_heads(model, folder / "heads")
    >>> [path.name for path in saved.iterdir()]
    ['tokenprune_heads.safetensors']
    """
    engine = engine_of(model)
    path = path_of(folder)
    content, sharded = _packed(model, engine, path)
    # A rank alone may save what it has whole: any number of them write the same.
    with together() if sharded else nullcontext():
        if is_first() or not sharded:
            _write(path, content)
    return path


def _packed(model: Any, engine: Engine, path: Path) -> tuple[bytes, bool]:
    """Build the file for `path`, check that it would load, and say whether heads are sharded."""
    config = _config_of(engine)
    facts = facts_of(model, engine.adapter)
    try:
        runtime = engine.method.runtime_state()
        # On a copy that shares its parameters: another thread may set another budget.
        copy.copy(engine.method).load_runtime_state(runtime)
        state = tensors_of(engine.method)
        sharded = any(is_part(value) for value in state.values())
        state = {name: whole(value) for name, value in state.items()}
        # Copies: another thread may go on training.
        tensors = {k: v.detach().to("cpu", torch.float32, copy=True) for k, v in state.items()}
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
    return content, sharded


def _write(path: Path, content: bytes) -> None:
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


def load_heads(model: nn.Module, source: str | Path) -> None:
    """Load saved heads into a wrapped model, in place.

    Everything is checked before the model is changed. First, before memory is allocated: the header
    is at most 1 MiB of JSON without duplicate keys, NaN or infinity; family, depth, width and
    configuration are the model's; the tensors have the configuration's names and shapes and are
    float16, bfloat16, float32 or float64; the file is as long as its header says. Then: the SHA-256
    of the JSON and the tensors is right, and every value is finite in the dtype it is loaded as.
    Nothing is unpickled. Every rank has to call it if the heads are sharded (FSDP2).

    Parameters
    ----------
    model : nn.Module
        A model that is wrapped with the method of the heads.
    source : path or hub id
        A folder that `save_heads` wrote, or a repository with its file.

    Raises
    ------
    FileNotFoundError
        If there are no heads at `source`.
    ValueError
        If the model is not wrapped, the heads belong to another method, family or shape, or a file
        is damaged or not what `save_heads` writes. The model is then as it was.

    Examples
    --------
    >>> config = tp.ATPConfig(layers=(1, 3), target_tokens=20)
    >>> other = tp.wrap(copy.deepcopy(model), config)
    >>> saved = tp.save_heads(tp.wrap(model, config), folder / "heads")
    >>> tp.load_heads(other, saved)
    """
    engine = engine_of(model)
    facts = facts_of(model, engine.adapter)
    sharded = any(is_part(value) for value in tensors_of(engine.method).values())
    with together() if sharded else nullcontext():
        heads = read_heads(source, facts, _config_of(engine))
    heads.load_into(engine.method)


def _config_of(engine: Engine) -> MethodConfig:
    if engine.config is None:
        raise ValueError(
            f"The model was wrapped with a {type(engine.method).__name__} as it is, and nothing "
            "says how to build it again: to save and load heads, register it with "
            "tokenprune.register_method and wrap the model with its configuration."
        )
    return engine.config


def read_config(source: str | Path) -> MethodConfig:
    """Read the configuration that heads were saved with, from the file's header alone.

    Parameters
    ----------
    source : path or hub id

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_heads`.

    Examples
    --------
    >>> model = tp.wrap(model, tp.ATPConfig(layers=(1, 3), target_tokens=20))
    >>> read_config(tp.save_heads(model, folder / "heads")).layers
    (1, 3)
    """
    with open_heads(source) as opened:
        return opened.config


def read_heads(
    source: str | Path, facts: dict[str, Any], config: MethodConfig | None = None
) -> Heads:
    """Read saved heads for a model; `load_heads` says what is checked, in which order.

    Parameters
    ----------
    source : path or hub id
    facts : dict
        What `facts_of` returns for the model.
    config : MethodConfig, optional
        The configuration that the saved one must equal.

    Raises
    ------
    FileNotFoundError, ValueError
        As `load_heads`.
    """
    with open_heads(source) as opened, named(opened.path):
        return opened.read(facts, config)


def facts_of(model: Any, adapter: Adapter) -> dict[str, Any]:
    """Return what heads depend on in a model: its family, depth and width."""
    model = base_model_of(model)
    text = adapter.text_config(model)
    return {
        "base_model": getattr(model.config, "_name_or_path", "") or None,
        "family": model.config.model_type,
        "num_layers": text.num_hidden_layers,
        "hidden_size": text.hidden_size,
    }
