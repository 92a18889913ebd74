"""The safetensors file of saved heads; the header is read and checked before the data.

The format: tensors in safetensors, and in the header's ``__metadata__``

- ``tokenprune``: a JSON object that says what model the heads fit; see `tokenprune.io`;
- ``tokenprune_sha256``: SHA-256, in hexadecimal, of that JSON text in UTF-8 followed by, for each
  tensor in the order of the names, a line ``name dtype [shape]`` (as torch prints them) and its
  bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .checks import is_whole, shown
from .strict_json import parse_object

__all__ = ["HEADER_LIMIT", "Header", "digest", "pack", "read_header", "read_tensors"]

# In bytes, for a header or the JSON of the older layout: 50 times that of a calibrated model.
HEADER_LIMIT = 2**20

# Dtypes that heads may have, by safetensors' names, and the bytes of a value.
_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}

_ABOUT, _DIGEST = "tokenprune", "tokenprune_sha256"


@dataclass(frozen=True)
class Header:
    """The header of a file of heads, before its data.

    Attributes
    ----------
    about, sha256 : str, optional
        The metadata that `pack` writes: JSON text and digest. None in the older layout, or in a
        file that holds no heads.
    tensors : dict
        Name → safetensors' dtype (str) and shape (list of ints from 0), not yet compared with the
        file's size.
    raw : bytes
        The file up to its data.
    """

    about: str | None
    sha256: str | None
    tensors: dict[str, tuple[str, list[int]]]
    raw: bytes

    def differences(self, expected: dict[str, list[int]]) -> list[str]:
        """List what is wrong with the tensors' names, shapes and dtypes, without reading data."""
        wrong = []
        for name, shape in expected.items():
            dtype, saved = self.tensors.get(name, (None, None))
            if saved != shape:
                wrong.append(f"{name}: saved {shown(saved)}, expected {shape}")
            elif dtype not in _BYTES:
                wrong.append(f"{name}: dtype {shown(dtype)}, expected one of {sorted(_BYTES)}")
        return wrong + [f"{shown(k)}: not known" for k in self.tensors if k not in expected]


def pack(about: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """Build the content of a file of heads.

    Parameters
    ----------
    about : dict
        JSON types; no NaN or infinity.
    tensors : dict
        Name → tensor, on the CPU, contiguous.

    Returns
    -------
    bytes

    Raises
    ------
    ValueError
        If `about` holds NaN or infinity.

    Examples
    --------
    >>> from io import BytesIO
    >>> content = pack({"family": "llava"}, {"weight": torch.zeros(2)})
    >>> read_header(BytesIO(content)).tensors
    {'weight': ('F32', [2])}
    """
    text = json.dumps(about, allow_nan=False)
    metadata = {"format": "pt", _ABOUT: text, _DIGEST: digest(text, tensors)}
    return save(tensors, metadata=metadata)


def digest(text: str, tensors: dict[str, Tensor]) -> str:
    """Compute the SHA-256 of the JSON text and the tensors; see the top of this file."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_header(file: BinaryIO) -> Header:
    """Read the header of a safetensors file, at most `HEADER_LIMIT` bytes.

    Parameters
    ----------
    file : binary file
        At its begin; afterwards at its data.

    Raises
    ------
    ValueError
        If the header is longer than the limit or than the file, is not the JSON that safetensors
        writes, or gives a tensor no dtype or no shape.
    """
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8:
        raise ValueError(f"damaged: it ends after {len(start)} bytes")
    if length > HEADER_LIMIT:
        raise ValueError(f"its header has {length} bytes, and the limit is {HEADER_LIMIT}")
    raw = file.read(length)
    if len(raw) < length:
        raise ValueError(f"damaged: its header says {length} bytes and ends after {len(raw)}")
    try:
        values = parse_object(raw.decode())
    except ValueError as error:
        raise ValueError(f"damaged: its header is no safetensors header ({error})") from error
    metadata = values.pop("__metadata__", {})
    strings = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not strings:
        raise ValueError("damaged: its metadata is not an object of strings")
    tensors = {name: _dtype_and_shape(name, value) for name, value in values.items()}
    return Header(metadata.get(_ABOUT), metadata.get(_DIGEST), tensors, start + raw)


def read_tensors(file: BinaryIO, header: Header) -> tuple[dict[str, Tensor], bytes]:
    """Read the data of a file whose header was read and checked.

    No memory is allocated before the file is found to be as long as its header says.

    Parameters
    ----------
    file : binary file
        Seekable.
    header : Header
        Of the same file, with shapes and dtypes that were compared with the expected ones.

    Returns
    -------
    tensors : dict
        As saved, on the CPU.
    content : bytes
        The whole file.

    Raises
    ------
    ValueError
        If the file is shorter or longer, or safetensors refuses it.
    """
    values = header.tensors.values()
    expected = len(header.raw) + sum(math.prod(shape) * _BYTES[dtype] for dtype, shape in values)
    size = file.seek(0, 2)
    if size != expected:
        raise ValueError(f"damaged: it has {size} bytes, and its header says {expected}")
    file.seek(len(header.raw))
    content = header.raw + file.read(expected - len(header.raw))
    try:
        return load(content), content
    except SafetensorError as error:
        raise ValueError(f"damaged: {error}") from error


def _dtype_and_shape(name: str, value: Any) -> tuple[str, list[int]]:
    dtype = value.get("dtype") if isinstance(value, dict) else None
    shape = value.get("shape") if isinstance(value, dict) else None
    whole = isinstance(shape, list) and all(is_whole(n) and n >= 0 for n in shape)
    if not isinstance(dtype, str) or not isinstance(shape, list) or not whole:
        raise ValueError(
            f"damaged: its header says {shown(value)} of {shown(name)}, no dtype and shape"
        )
    return dtype, shape
