"""Run transformers' own server on models that are pruned."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any

from .api import wrap
from .checks import shown
from .pretrained import find_heads
from .saved import HEADS

__all__ = ["loading_pruned", "serve"]

_log = logging.getLogger(__name__)


def serve(arguments: Sequence[str]) -> None:
    """Run ``transformers serve``, and load models with the pruning that was saved beside them.

    It returns when the server does, or exits as transformers' command does.

    Parameters
    ----------
    arguments : sequence of str
        Those of ``transformers serve``: a folder or hub id, and options.

    Raises
    ------
    ImportError
        If what transformers serves by is not installed.
    """
    (command,) = entry_points(group="console_scripts", name="transformers")
    main = command.load()
    before, sys.argv = sys.argv, ["transformers", "serve", *arguments]
    try:
        with loading_pruned():
            main()
    finally:
        sys.argv = before


@contextmanager
def loading_pruned() -> Iterator[None]:
    """Wrap every model that transformers loads inside, if pruning was saved beside it.

    In all threads, since a server loads models where requests are answered. A model without saved
    pruning is loaded as it is, with a warning.

    Examples
    --------
    >>> tp.wrap(model, tp.FastVConfig(layer=1, keep=9)).save_pretrained(folder)
    >>> with loading_pruned():
    ...     loaded = type(model).from_pretrained(folder)
    >>> tp.is_wrapped(loaded)
    True
    """
    from transformers import PreTrainedModel

    plain = vars(PreTrainedModel)["from_pretrained"]

    def from_pretrained(
        cls: type[Any], pretrained_model_name_or_path: Any, *args: Any, **options: Any
    ) -> Any:
        source = pretrained_model_name_or_path
        model = plain.__get__(None, cls)(source, *args, **options)
        heads = find_heads(source, options)
        if heads is None:
            warnings.warn(
                f"{shown(str(source))} has no {HEADS}: it is served without pruning.", stacklevel=2
            )
            return model
        _log.info("%s is served pruned", source)
        return wrap(model, heads.parent)

    # Any class of models inherits it, whichever a server loads by.
    base: Any = PreTrainedModel
    base.from_pretrained = classmethod(from_pretrained)
    try:
        yield
    finally:
        base.from_pretrained = plain
