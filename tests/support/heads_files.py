"""Files of heads written by hand, as the format says and not as the library happens to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

HEADS = "tokenprune_heads.safetensors"
CONFIG = "tokenprune_config.json"
FIRST = "thresholds.0.project.weight"  # a tensor of ATP's

About = dict[str, Any]
Tensors = dict[str, Tensor]


def read(folder: Path) -> tuple[About, Tensors]:
    """What `save_heads` wrote."""
    with safe_open(folder / HEADS, framework="pt") as file:
        return json.loads(file.metadata()["tokenprune"]), load_file(folder / HEADS)


def sha256(text: str, tensors: Tensors) -> str:
    parts = [text.encode()]
    for name, value in sorted(tensors.items()):
        parts.append(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        parts.append(bytes(value.contiguous().reshape(-1).view(torch.uint8).tolist()))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def write(folder: Path, text: str, tensors: Tensors, digest: str | None = None) -> Path:
    """Heads in one file, whatever the JSON text is, with the right digest unless one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = sha256(text, tensors) if digest is None else digest
    metadata = {"format": "pt", "tokenprune": text, "tokenprune_sha256": digest}
    save_file(tensors, folder / HEADS, metadata=metadata)
    return folder


def write_older(folder: Path, about: About, tensors: Tensors) -> Path:
    """Heads in the layout of two files."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / HEADS, metadata={"format": "pt"})
    digest = hashlib.sha256((folder / HEADS).read_bytes()).hexdigest()
    about = {
        **about,
        "tensors": {name: list(value.shape) for name, value in tensors.items()},
        "weights_sha256": digest,
    }
    (folder / CONFIG).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return folder


def edit(folder: Path, change: Callable[[About], Any]) -> None:
    """Change the JSON of heads in one file. The digest is right again."""
    about, tensors = read(folder)
    change(about)
    write(folder, json.dumps(about), tensors)


def edit_text(folder: Path, old: str, new: str) -> None:
    """Replace a part of the JSON's text."""
    about, tensors = read(folder)
    text = json.dumps(about)
    assert text.count(old) == 1, (old, text)
    write(folder, text.replace(old, new), tensors)


def edit_tensors(folder: Path, change: Callable[[Tensors], Any]) -> None:
    """Change the tensors. The digest is right again."""
    about, tensors = read(folder)
    change(tensors)
    write(folder, json.dumps(about), tensors)


def edit_header(folder: Path, change: Callable[[dict[str, Any]], Any], padding: int = 0) -> None:
    """Change the safetensors header, past what its writers would allow."""
    path = folder / HEADS
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    change(header)
    raw = json.dumps(header).encode() + b" " * padding
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + content[end:])
