"""Saved heads: found, opened, and compared with a model before their data is read."""

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

from .config import MethodConfig, shown
from .heads_file import HEADER_LIMIT, Header, digest, read_header, read_tensors
from .methods import METHODS, Method, config_from
from .strict_json import parse_object

__all__ = ["CONFIG", "HEADS", "Heads", "Opened", "named", "open_heads", "parsed", "path_of"]

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
    runtime : dict
    tensors : dict
        As saved, on the CPU, of the shapes that `config` asks for.
    """

    path: Path
    config: MethodConfig
    runtime: dict[str, Any]
    tensors: dict[str, Tensor]

    def check(self, method: Method) -> dict[str, Tensor]:
        """The tensors in the method's dtypes. ValueError if a value is not finite in them."""
        own = method.state_dict()
        cast = {k: v.float().to(own[k].dtype) for k, v in self.tensors.items()}
        bad = [f"{k}: not finite in {v.dtype}" for k, v in cast.items() if not v.isfinite().all()]
        if bad:
            raise ValueError(_listed(bad) + ".")
        return cast

    def load_into(self, method: Method) -> None:
        """Load them into a method that was built from their configuration.

        Raises
        ------
        ValueError
            If a value is not finite, or the runtime state not the method's. Nothing is changed.
        """
        with named(self.path):
            tensors = self.check(method)
            method.load_runtime_state(self.runtime)  # refuses before it changes
        method.load_state_dict(tensors)


@dataclass(frozen=True)
class Opened:
    """A file of heads whose header was read, and parsed.

    Attributes
    ----------
    path : Path
    file : binary file
        At its data.
    header : Header
    about : dict
        The JSON, of whichever layout.
    config : MethodConfig
        The one in it.
    """

    path: Path
    file: BinaryIO
    header: Header
    about: dict[str, Any]
    config: MethodConfig

    def read(self, facts: dict[str, Any], config: MethodConfig | None) -> Heads:
        """Compare what the header and the JSON say with a model, then read the data.

        Raises
        ------
        ValueError
            With the first of these that is wrong: the facts and the configuration, if there is one;
            names, shapes and dtypes of the tensors; the file's length; the SHA-256.
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
                for k in sorted(saved.keys() | mine.keys())
                if saved.get(k) != mine.get(k)
            ]
        # Before a module is built for each of them.
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
    """Read a file of heads up to its data. None: it has no JSON in its metadata."""
    with named(path):
        header = read_header(file)
        if header.about is None:
            return None
        about = _about(header.about)
        return Opened(path, file, header, about, config_from(about["config"]))


def _older(path: Path, file: BinaryIO) -> Opened | None:
    """The same for the layout of two files. None: there is no JSON file beside this one."""
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
    """The heads at a path or hub id, of whichever layout, read up to their data.

    Raises
    ------
    FileNotFoundError
        If there are none.
    ValueError
        If a header or a JSON text is over `HEADER_LIMIT` or not what `save_heads` writes.
    """
    path = _folder(source) / HEADS
    # Twice: a folder of two files, saved to after the first was opened, has lost the second.
    for _ in range(2):
        if not os.path.isfile(path):
            raise FileNotFoundError(
                f"{shown(str(path))} is not there: expected a folder that save_heads wrote."
            )
        with open(path, "rb") as file:  # one file to the end, whatever gets its name meanwhile
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
    """A path, if a string or a path is given; else ValueError."""
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
    """Begin the message of a ValueError with the file's path."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{shown(str(path))}: {error}") from error


def _about(text: str) -> dict[str, Any]:
    """What the JSON says, with a configuration and a runtime state in it."""
    try:
        about = {"runtime": {}, **parse_object(text)}
    except ValueError as error:
        raise ValueError(f"damaged: {error}") from error
    for name in ("config", "runtime"):
        if not isinstance(about.get(name), dict):
            raise ValueError(f"{name}={shown(about.get(name))}: expected what save_heads writes.")
    return about


def _listed(found: list[str], most: int = 8) -> str:
    """The first few of what was found, and how many more there are."""
    more = [f"and {len(found) - most} more"] if len(found) > most else []
    return "; ".join(found[:most] + more)


def _shapes(config: MethodConfig) -> dict[str, list[int]]:
    """The names and shapes of a method's tensors. No memory is taken for them."""
    with torch.device("meta"):
        method = METHODS[config.method][1](config, visual_tokens=1)
    return {name: list(value.shape) for name, value in method.state_dict().items()}
