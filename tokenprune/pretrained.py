"""Load a model and its pruning from one folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .api import wrap
from .checks import shown
from .saved import HEADS

__all__ = ["find_heads", "from_pretrained"]

# Which of the arguments say where on the hub, and how, to look for files.
_HUB = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def from_pretrained(source: str | Path, **options: Any) -> Any:
    """Load a model and wrap it with the pruning that was saved beside it.

    ``model.save_pretrained`` of a wrapped model, transformers' Trainer and ``model.push_to_hub``
    write such folders. `AutoModelForImageTextToText` loads the same folder without pruning.

    Parameters
    ----------
    source : path or hub id
        A folder with the model's files and ``tokenprune_heads.safetensors``.
    **options
        Arguments of ``AutoModelForImageTextToText.from_pretrained``, such as ``dtype``,
        ``device_map`` and ``revision``.

    Returns
    -------
    PreTrainedModel
        In evaluation mode.

    Raises
    ------
    FileNotFoundError
        If there is no pruning at `source`.
    ValueError
        If it does not fit the model, or is damaged; see `load_heads`.
    OSError
        If the model cannot be loaded.

    Examples
    --------
    >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
    >>> model.save_pretrained(folder)
    >>> other = tp.from_pretrained(folder)
    >>> output = other(**batch)
    >>> tp.stats(other).final_tokens.tolist()
    [9]
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME

    heads = find_heads(source, options)
    if heads is None:
        raise FileNotFoundError(
            f"{shown(str(source))} has no {HEADS}: expected a folder or hub id that "
            "model.save_pretrained of a wrapped model wrote. For a model without saved pruning, "
            "call its own from_pretrained, then tokenprune.wrap."
        )
    if os.path.isdir(source) and not any(
        os.path.isfile(os.path.join(source, name)) for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME)
    ):
        raise FileNotFoundError(
            f"{shown(str(source))} holds the pruning alone, as save_heads and the checkpoints of a "
            "Trainer that trains nothing else do: load the model they were trained for by its own "
            "from_pretrained, then call tokenprune.wrap(model, folder)."
        )
    model = AutoModelForImageTextToText.from_pretrained(source, **options)
    return wrap(model, heads.parent)


def find_heads(source: str | Path, options: Mapping[str, Any]) -> Path | None:
    """Return the file of the pruning that was saved beside a model; None: there is none.

    Parameters
    ----------
    source : path or hub id
    options : mapping
        What ``from_pretrained`` of the model is given.
    """
    from transformers.utils import cached_file

    where = {name: options[name] for name in _HUB if name in options}
    try:
        found = cached_file(source, HEADS, **where)
    except OSError:
        return None
    return None if found is None else Path(found)
