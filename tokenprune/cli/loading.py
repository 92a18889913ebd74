"""Load what the commands run: a model, its processor, and questions about pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from torch.utils.data import Dataset, Subset
from transformers import AutoModelForImageTextToText, AutoProcessor

from ..api import track as tracked
from ..api import unwrap, wrap
from ..data import read_data
from ..methods import RandomConfig
from .app import CommandError
from .model import DTYPES, not_read

__all__ = ["Batches", "first_rows", "load_model", "mean_visual_tokens", "progress"]

Thing = TypeVar("Thing")


def load_model(name: str, device: str | None, dtype: str | None) -> tuple[Any, Any]:
    """Load a model in evaluation mode, and its processor.

    Parameters
    ----------
    name : str
        A folder or hub id.
    device : str, optional
        None: CUDA where there is one, else the CPU.
    dtype : {"float32", "bfloat16", "float16"}, optional
        None: as saved.

    Raises
    ------
    CommandError
        If one of them is not there.
    """
    what = "model"
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(
            name, dtype=DTYPES[dtype] if dtype else "auto"
        )
        what = "processor"
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise CommandError(not_read(name, what, error)) from error
    if getattr(processor, "image_processor", None) is None:
        raise CommandError(f"{name!r} has no processor that takes pictures: save one beside it.")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return model.to(device).eval(), processor
    except RuntimeError as error:  # an unknown device, or one that is not here
        raise CommandError(f"--device {device}: {str(error).splitlines()[0]}") from error


def first_rows(data: Path, images: Path | None, samples: int | None) -> Dataset[dict[str, Any]]:
    """Return the first questions of a data set; None: all. Pictures are read when asked for."""
    found: Any = read_data(data, images)
    return Subset(found, range(len(found) if samples is None else min(samples, len(found))))


class Batches(Sequence[dict[str, torch.Tensor]]):
    """Questions as batches on a device, each collated when it is asked for.

    Parameters
    ----------
    rows : sequence or Dataset of dict
        As `tokenprune.data` reads them.
    collate : callable
        A collator of `tokenprune.data`.
    size : int
        Rows in a batch.
    device : torch.device
    """

    def __init__(self, rows: Any, collate: Any, size: int, device: torch.device) -> None:
        self.rows, self.collate, self.size, self.device = rows, collate, size, device

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.rows) // self.size)

    def __getitem__(self, index: Any) -> Any:
        """Collate one batch."""
        start = range(len(self))[index] * self.size
        rows = [self.rows[n] for n in range(start, min(start + self.size, len(self.rows)))]
        return {name: values.to(self.device) for name, values in self.collate(rows).items()}


def mean_visual_tokens(model: Any, batches: Sequence[dict[str, torch.Tensor]]) -> float:
    """Count the visual tokens of a prompt, on average. The model is not wrapped."""
    wrap(model, RandomConfig(keep=1.0))  # keeps every token
    try:
        with tracked(model) as run, torch.no_grad():
            for batch in progress(batches, "counting tokens"):
                model(**batch)
        return float(run.summary()["visual_tokens"])
    finally:
        unwrap(model)


def progress(things: Sequence[Thing], what: str) -> Iterable[Thing]:
    """Show how far a loop is, with the time that remains, where there is a terminal."""
    console = Console(stderr=True)
    return track(things, what, console=console, transient=True, disable=not console.is_terminal)
