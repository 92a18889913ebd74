"""Statistics over a data set."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
from rich.table import Table

from ..engine.record import Record
from .cost import DecoderShape
from .stats import PruneStats

__all__ = ["Tracker"]

_PERCENTILES = (5, 50, 95)


class Tracker:
    """Collects every prefill inside ``tokenprune.track``.

    Parameters
    ----------
    shape : DecoderShape
        Of the tracked model's decoder.
    """

    def __init__(self, shape: DecoderShape) -> None:
        self._shape = shape
        self._lock = threading.Lock()
        self._kept: list[np.ndarray] = []
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
        self._modules: tuple[int, ...] = ()

    def add(self, record: Record) -> None:
        """Take in one pass."""
        stats = PruneStats.from_record(record, self._shape)
        with self._lock:
            self._kept.append(stats.kept)
            self._modules = stats.modules
            for name, values in self._columns.items():
                values.append(getattr(stats, name))

    def kept(self) -> np.ndarray:
        """Visual tokens that each layer computed on: int64, (layers, samples).

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
        """One figure of every sample, such as "kv_bytes": (samples,)."""
        return np.concatenate(self._columns[name])

    def summary(self) -> dict[str, Any]:
        """Figures over all samples, as JSON types.

        ``per_layer`` has, for each decoder layer, the mean, the standard deviation and percentiles
        of the visual tokens it computed on; ``tokens`` the same for each sample's mean over the
        layers.
        """
        kept = self.kept()
        return {
            "samples": kept.shape[1],
            "modules": list(self._modules),
            "visual_tokens": float(self.column("visual_tokens").mean()),
            "mean_tokens": float(kept.mean()),
            "final_tokens": float(kept[-1].mean()),
            "tokens": _spread(kept.mean(axis=0)),
            "per_layer": [_spread(layer) for layer in kept],
            **{
                name: float(self.column(name).mean())
                for name in self._columns
                if name != "visual_tokens"
            },
        }

    def table(self) -> Table:
        """The kept tokens per layer, for ``rich.print``."""
        summary = self.summary()
        table = Table(
            title=f"Visual tokens kept, {summary['samples']} samples of "
            f"{summary['visual_tokens']:.0f}; modules after layers {summary['modules']}",
        )
        names = ("mean", "std", *(f"p{p}" for p in _PERCENTILES))
        for name in ("layer", *names):
            table.add_column(name, justify="right")
        for layer, spread in enumerate(summary["per_layer"]):
            table.add_row(str(layer), *(f"{spread[name]:.1f}" for name in names))
        table.add_section()
        table.add_row("all", *(f"{summary['tokens'][name]:.1f}" for name in names))
        return table

    def to_json(self) -> str:
        """The summary as JSON text."""
        return json.dumps(self.summary(), indent=2)


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "std": float(values.std()),
        "min": float(values.min()),
        **{f"p{p}": float(np.percentile(values, p)) for p in _PERCENTILES},
        "max": float(values.max()),
    }
