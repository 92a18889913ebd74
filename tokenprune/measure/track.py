"""Statistics over many prefills."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.table import Table

from ..checks import require
from ..distributed import all_gather, together, world_size
from ..engine.record import Record
from .cost import DecoderShape
from .explanation import explanation_of
from .kept import KeptSample, panels_of
from .spread import PERCENTILES, spread_of, spreads_of_thresholds
from .stats import PruneStats, in_words

__all__ = ["Tracker"]


class Tracker:
    """The statistics of every prefill inside ``with tokenprune.track(model) as tracker: ...``.

    Parameters
    ----------
    shape : DecoderShape
        Of the tracked model's decoder.

    Attributes
    ----------
    method : str
        Name of the class of the method; empty before the first prefill.
    samples : list of KeptSample
        Those that `keep` was given the pictures of.

    Examples
    --------
    >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
    >>> with tp.track(model) as tracker:
    ...     for _ in range(2):
    ...         output = model(**batch)
    >>> tracker.summary()["mean_tokens"]
    18.0
    >>> tracker.kept().shape
    (6, 2)
    """

    def __init__(self, shape: DecoderShape) -> None:
        self._shape = shape
        self._lock = threading.Lock()
        self._kept: list[np.ndarray] = []
        self._thresholds: list[np.ndarray] = []
        self._count = 0
        self._columns: dict[str, list[np.ndarray]] = {
            name: []
            for name in (
                "visual_tokens",
                "kv_bytes",
                "kv_bytes_unpruned",
                "prefill_flops",
                "prefill_flops_unpruned",
            )
        }
        self._pruning_layers: tuple[int, ...] = ()
        self._synced = False
        self.method = ""
        self.samples: list[KeptSample] = []
        # Each thread's last prefill, and the number of its first sample.
        self._last = threading.local()

    def __repr__(self) -> str:
        """Say what was kept and saved so far, in a few lines."""
        with self._lock:
            if not self._kept:
                return "Tracker: nothing tracked yet"
            kept = np.concatenate(self._kept, axis=1)
            columns = {name: np.concatenate(values) for name, values in self._columns.items()}
            return in_words("Tracker", self._pruning_layers, kept, **columns)

    def add(self, record: Record) -> None:
        """Add one pass.

        Raises
        ------
        RuntimeError
            If `sync` was called: other ranks would not have it.
        """
        stats = PruneStats.from_record(record, self._shape)
        with self._lock:
            if self._synced:
                raise RuntimeError(
                    "The model was run inside `with tokenprune.track(model) as run:` after "
                    "run.sync(): call that when the block has ended."
                )
            self._last.prefill = record, self._count
            self._count += stats.kept.shape[1]
            self.method = record.method
            self._kept.append(stats.kept)
            self._thresholds.append(stats.thresholds)
            self._pruning_layers = stats.pruning_layers
            for name, values in self._columns.items():
                values.append(getattr(stats, name))

    def sync(self) -> None:
        """Add the samples of all other ranks, so that each has all, in the order of the ranks.

        Every rank has to call it, once, when its block has ended; one that tracked nothing too.
        Without torch.distributed it does nothing. A sampler that gives ranks equally many samples
        may repeat some: they count twice.

        Raises
        ------
        RuntimeError
            If it was called before.
        ValueError
            If the ranks pruned after different layers; each then has what it had.

        Examples
        --------
        >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
        >>> with tp.track(model) as run:
        ...     output = model(**batch)
        >>> run.sync()
        >>> run.summary()["samples"]
        1
        """
        if world_size() == 1:
            return
        with together():
            if self._synced:
                raise RuntimeError("run.sync() was called before: this run has all ranks' samples.")
        told = all_gather(
            (self._pruning_layers, self._kept, self._columns, self.samples, self._thresholds)
        )
        told = [rank for rank in told if rank[1]]
        layers = {(pruned, kept[0].shape[0]) for pruned, kept, *_ in told}
        if len(layers) > 1:
            raise ValueError(
                f"The ranks pruned differently (layers, of how many: {sorted(layers)}): expected "
                "the same model, wrapped in the same way, on each."
            )
        with self._lock:
            self._synced = True
            self._kept = [array for _, kept, *_ in told for array in kept]
            self._thresholds = [array for *_, thresholds in told for array in thresholds]
            self._columns = {
                name: [array for _, _, columns, *_ in told for array in columns[name]]
                for name in self._columns
            }
            self.samples, first = [], 0
            for _, kept, _, samples, _ in told:
                self.samples += [replace(each, number=first + each.number) for each in samples]
                first += sum(array.shape[1] for array in kept)
            self._last = threading.local()  # what is kept now would have another number
            self._pruning_layers = told[0][0] if told else ()

    def keep(self, pictures: Sequence[Any], questions: Sequence[str] | None = None) -> None:
        """Keep the pictures of this thread's last prefill, and what became of each of its tokens.

        For `tokenprune.report`: call it after a forward or ``generate``. Pictures are kept small.

        Parameters
        ----------
        pictures : sequence
            One for each row of the batch: a PIL image, a uint8 array (height, width, 3) or a path.
            Of a row with several images, a sequence with one for each; of a video, a sequence with
            one for each frame of its tokens. As the processor hands them to the model: the whole
            picture has to lie under the grid of tokens.
        questions : sequence of str, optional
            One for each row. None: no text stands beside the pictures.

        Raises
        ------
        RuntimeError
            If this thread has run no prompt with an image inside ``track``, or has kept its last
            one already.
        ValueError
            If there are not as many as rows, or a picture is not that of the tokens. Nothing is
            kept then.

        Examples
        --------
        >>> from PIL import Image
        >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
        >>> with tp.track(model) as run:
        ...     output = model(**batch)
        ...     run.keep([Image.new("RGB", (24, 24), "navy")], ["What is to be seen?"])
        >>> len(run.samples)
        1
        """
        record, first = getattr(self._last, "prefill", (None, 0))
        if record is None:
            raise RuntimeError(
                "No prompt with an image has been run in this thread inside "
                "`with tokenprune.track(model) as run:` since the last one that was kept: call "
                "run.keep(pictures, questions) once, after the model."
            )
        rows = record.layout.mask.shape[0]
        texts = [""] * rows if questions is None else questions
        for name, given in (("pictures", pictures), ("questions", texts)):
            count = (
                len(given) if isinstance(given, Sequence) and not isinstance(given, str) else None
            )
            if count != rows:
                found = f"a {type(given).__name__}" if count is None else f"{count} of them"
                raise ValueError(
                    f"{name}: {found}, for a batch of {rows} row(s): expected a sequence with one "
                    "for each row."
                )
        for text in texts:
            require(isinstance(text, str), "questions", text, "a str for each row")
        grids = torch.stack([record.layout.height, record.layout.width], dim=-1).cpu().numpy()
        samples = []
        for row in range(rows):
            explanation = explanation_of(record, row)
            panels = panels_of(explanation, grids[row][explanation.position], pictures[row])
            samples.append(KeptSample(first + row, texts[row], panels, explanation))
        self._last.prefill = (None, 0)
        with self._lock:
            self.samples += samples

    def kept(self) -> np.ndarray:
        """Return the visual tokens that each layer computed on: int64, (layers, samples).

        Raises
        ------
        RuntimeError
            If no prompt with an image was run inside ``track``.
        """
        if not self._kept:
            raise RuntimeError(
                "Nothing was tracked: run the model on at least one prompt with an image inside "
                "`with tokenprune.track(model) as run:`."
            )
        return np.concatenate(self._kept, axis=1)

    def column(self, name: str) -> np.ndarray:
        """Return one figure of every sample, such as "kv_bytes": (samples,)."""
        return np.concatenate(self._columns[name])

    def summary(self) -> dict[str, Any]:
        """Return figures over all samples, as JSON types.

        ``per_layer`` has for each decoder layer the mean, the standard deviation and percentiles of
        the visual tokens it computed on; ``tokens`` has the same for each sample's mean over the
        layers, and ``thresholds`` for each of the thresholds of each pruning step: how far they
        differ between samples. It is None for a step without thresholds.

        Raises
        ------
        RuntimeError
            As `kept`.
        """
        kept = self.kept()
        return {
            "samples": kept.shape[1],
            "pruning_layers": list(self._pruning_layers),
            "visual_tokens": float(self.column("visual_tokens").mean()),
            "mean_tokens": float(kept.mean()),
            "final_tokens": float(kept[-1].mean()),
            "tokens": spread_of(kept.mean(axis=0)),
            "per_layer": [spread_of(layer) for layer in kept],
            "thresholds": spreads_of_thresholds(self._thresholds),
            **{
                name: float(self.column(name).mean())
                for name in self._columns
                if name != "visual_tokens"
            },
        }

    def table(self) -> Table:
        """Return the kept tokens per layer as a table, for ``rich.print``."""
        summary = self.summary()
        table = Table(
            title=f"Visual tokens kept, {summary['samples']} samples of "
            f"{summary['visual_tokens']:.0f}; pruned after layers {summary['pruning_layers']}",
        )
        names = ("mean", "std", *(f"p{p}" for p in PERCENTILES))
        for name in ("layer", *names):
            table.add_column(name, justify="right")
        for layer, spread in enumerate(summary["per_layer"]):
            table.add_row(str(layer), *(f"{spread[name]:.1f}" for name in names))
        table.add_section()
        table.add_row("all", *(f"{summary['tokens'][name]:.1f}" for name in names))
        return table

    def to_json(self) -> str:
        """Return the summary as JSON text."""
        return json.dumps(self.summary(), indent=2)
