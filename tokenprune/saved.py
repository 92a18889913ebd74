"""Saved heads: find and open them, and compare them with a model before the data is read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .checks import shown
from .config import MethodConfig, ModelFacts
from .distributed import as_parts
from .heads_file import HEADER_LIMIT, Header, digest, read_header, read_tensors
from .methods import Method, build, config_from
from .methods.base import EXTRA_STATE
from .strict_json import parse_object

__all__ = [
    "CONFIG",
    "HEADS",
    "Heads",
    "Opened",
    "named",
    "open_heads",
    "parsed",
    "path_of",
    "tensors_of",
]

HEADS = "tokenprune_heads.safetensors"
CONFIG = "tokenprune_config.json"  # of the older layout


@dataclass(frozen=True)
class Heads:
    """Saved heads that fit a model.

    Attributes
    ----------
    path : Path
        The file they were read from.
    config : MethodConfig
        The method's configuration.
    runtime : dict
        The method's runtime state: calibrated shifts and budgets.
    tensors : dict
        Name → tensor as saved, on the CPU, of the shapes that `config` implies.
    """

    path: Path
    config: MethodConfig
    runtime: dict[str, Any]
    tensors: dict[str, Tensor]

    def check(self, method: Method) -> dict[str, Tensor]:
        """Cast the tensors to the method's dtypes.

        Raises
        ------
        ValueError
            If a value is not finite in its new dtype.
        """
        own = tensors_of(method)
        cast = {k: v.float().to(own[k].dtype) for k, v in self.tensors.items()}
        bad = [f"{k}: not finite in {v.dtype}" for k, v in cast.items() if not v.isfinite().all()]
        if bad:
            raise ValueError(_listed(bad) + ".")
        return cast

    def load_into(self, method: Method) -> None:
        """Load the heads into a method that was built from their configuration.

        Every rank has to call it if the method's parameters are sharded.

        Raises
        ------
        ValueError
            If a value is not finite, or the runtime state does not fit the method. Nothing is then
            changed.
        """
        with named(self.path):
            tensors = self.check(method)
            method.load_runtime_state(self.runtime)  # refuses before it changes
        own = method.state_dict()
        # In one order on all ranks: a file's tensors come in any.
        parts = {name: as_parts(tensors[name], own[name]) for name in sorted(tensors)}
        method.load_state_dict({**own, **parts})


@dataclass(frozen=True)
class Opened:
    """A file of heads whose header was read and parsed.

    Attributes
    ----------
    path : Path
    file : binary file
        Positioned at the data.
    header : Header
    about : dict
        The parsed JSON, of either layout.
    config : MethodConfig
        The configuration in `about`.
    """

    path: Path
    file: BinaryIO
    header: Header
    about: dict[str, Any]
    config: MethodConfig

    def read(self, facts: dict[str, Any], config: MethodConfig | None) -> Heads:
        """Compare the header and the JSON with a model, then read the data.

        Parameters
        ----------
        facts : dict
            What `tokenprune.io.facts_of` returns for the model.
        config : MethodConfig, optional
            The configuration that the saved one must equal.

        Raises
        ------
        ValueError
            For the first of these that is wrong: facts and configuration; names, shapes and dtypes
            of the tensors; the file's length; the SHA-256.
        """
        differs = [
            f"{k}: saved {shown(self.about.get(k))}, this model {here!r}"
            for k, here in facts.items()
            if k != "base_model" and self.about.get(k) != here
        ]
        if config is not None and self.config != config:
            saved, mine = self.config.to_dict(), config.to_dict()
            differs += [
                f"config.{k}: saved {shown(saved.get(k))}, this model {shown(mine.get(k))}"
                # The method first: another one differs in more fields than are listed.
                for k in sorted(saved.keys() | mine.keys(), key=lambda k: (k != "method", k))
                if saved.get(k) != mine.get(k)
            ]
        # Checked before a head is built for each of them: the number comes from the file.
        layers = getattr(self.config, "layers", None) or ()
        if len(layers) >= facts["num_layers"]:
            differs.append(f"config.layers: saved {len(layers)}, this model {facts['num_layers']}")
        if differs:
            raise ValueError(
                f"the heads do not fit this model: {_listed(differs)}. Unwrap, and call "
                "tokenprune.wrap(model, folder) on the model they were trained for."
            )
        if wrong := self.header.differences(_shapes(self.config)):
            raise ValueError(f"the tensors do not fit the configuration: {_listed(wrong)}.")
        tensors, content = read_tensors(self.file, self.header)
        if self.header.about is None:
            whole = self.about.get("weights_sha256") == hashlib.sha256(content).hexdigest()
        else:
            whole = self.header.sha256 == digest(self.header.about, tensors)
        if not whole:
            raise ValueError(
                "damaged, or changed by hand: its SHA-256 differs. Save the heads again."
            )
        return Heads(self.path, self.config, self.about["runtime"], tensors)


def parsed(path: Path, file: BinaryIO) -> Opened | None:
    """Read a file of heads up to its data; return None if its metadata has no JSON."""
    with named(path):
        header = read_header(file)
        if header.about is None:
            return None
        about = _about(header.about)
        return Opened(path, file, header, about, config_from(about["config"]))


def _older(path: Path, file: BinaryIO) -> Opened | None:
    """Read heads of the older layout; return None if there is no JSON file beside this one."""
    with named(path):
        header = read_header(file)
    config = path.with_name(CONFIG)
    try:
        with open(config, "rb") as other:
            text = other.read(HEADER_LIMIT + 1)
    except FileNotFoundError:
        return None
    with named(config):
        if len(text) > HEADER_LIMIT:
            raise ValueError(f"it is longer than {HEADER_LIMIT} bytes, the limit")
        about = _about(text.decode())
        return Opened(path, file, header, about, config_from(about["config"]))


@contextmanager
def open_heads(source: str | Path) -> Iterator[Opened]:
    """Open the heads at a path or hub id, of either layout, and read them up to their data.

    Parameters
    ----------
    source : path or hub id

    Yields
    ------
    Opened

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        If a header or a JSON text is longer than `HEADER_LIMIT` or not what `save_heads` writes.
    """
    path = _folder(source) / HEADS
    # Twice: a save in between turns a folder of two files into one of one.
    for _ in range(2):
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{shown(str(path))} is not there: expected a folder that save_heads wrote."
            )
        with open(path, "rb") as file:  # stays open if another file is renamed to `path`
            opened = parsed(path, file)
            if opened is None:
                file.seek(0)
                opened = _older(path, file)
            if opened is not None:
                yield opened
                return
    raise FileNotFoundError(
        f"{shown(str(path))} has no configuration in its metadata, and {CONFIG} is not beside it: "
        "expected a folder that save_heads wrote."
    )


def path_of(given: Any) -> Path:
    """Return a string or path as a Path; raise ValueError for anything else."""
    if not isinstance(given, str | os.PathLike):
        raise ValueError(f"{shown(given)} is a {type(given).__name__}: expected a path.")
    return Path(given)


def _folder(source: str | Path) -> Path:
    folder = path_of(source)
    if os.path.isdir(folder):
        return folder
    if os.path.isfile(folder):
        raise ValueError(f"{shown(str(folder))} is a file: expected the folder it lies in.")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(source), allow_patterns=[CONFIG, HEADS]))
    except Exception as error:  # the hub client raises a dozen kinds
        raise FileNotFoundError(
            f"{shown(str(source))} is not a folder here, and no repository of that name could be "
            f"fetched ({type(error).__name__}). Check the path; without a network, copy the file "
            f"{HEADS} into a folder and give that."
        ) from error


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Put the file's path before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{shown(str(path))}: {error}") from error


def _about(text: str) -> dict[str, Any]:
    """Parse the JSON text; check that it has a configuration and a runtime state."""
    try:
        about = {"runtime": {}, **parse_object(text)}
    except ValueError as error:
        raise ValueError(f"damaged: {error}") from error
    for name in ("config", "runtime"):
        if not isinstance(about.get(name), dict):
            raise ValueError(f"{name}={shown(about.get(name))}: expected what save_heads writes.")
    return about


def _listed(found: list[str], most: int = 8) -> str:
    """Join the first few of the differences, and say how many more there are."""
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return "; ".join(found[:most] + more)


def _shapes(config: MethodConfig) -> dict[str, list[int]]:
    """Return the names and shapes of a method's tensors, without allocating them."""
    with torch.device("meta"):
        method = build(config, ModelFacts(1, (1, 1), ()))  # shapes hang on the configuration alone
    return {name: list(value.shape) for name, value in tensors_of(method).items()}


def tensors_of(method: Method) -> dict[str, Tensor]:
    """Return the parameters and buffers of a method; its runtime state is saved as JSON."""
    return {k: v for k, v in method.state_dict().items() if k != EXTRA_STATE}
