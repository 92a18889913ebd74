"""Statistics of one prefill."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..engine.describe import steps_in_words
from ..engine.record import Record
from .cost import DecoderShape

__all__ = ["PruneStats", "in_words"]


@dataclass(frozen=True)
class PruneStats:
    """What one prefill computed on, as `tokenprune.stats` returns it.

    All figures are measured, none estimated; the arrays are read-only.

    Attributes
    ----------
    kept : int64, (layers, batch)
        Visual tokens that each layer computes on.
    alive : bool, (layers, batch, length)
        True at the positions, text included and padding excluded, that each layer computes on.
    visual_tokens : int64, (batch,)
        Visual tokens of the prompt.
    thresholds : float32, (steps, batch, n)
        The thresholds that each pruning step decided by; NaN where it had none.
    pruning_layers : tuple of int
        The layer, from 0, after which each pruning step decides; -1 is before the first.
    kv_bytes, kv_bytes_unpruned : int64, (batch,)
        Key-value cache of the prompt. Tokens that are dropped before the first layer leave zeros in
        that layer's cache, which are counted.
    prefill_flops, prefill_flops_unpruned : float64, (batch,)
        Of the decoder layers.
    visual, row, col, image, frame : (batch, length)
        The layout: which positions are visual (bool) and where in which image they lie (int64), -1
        elsewhere.
    grid : int64, (batch, length, 2)
        Rows and columns of each token's image.

    Examples
    --------
    >>> model = tp.wrap(model, tp.FastVConfig(layer=1, keep=9))
    >>> output = model(**batch)
    >>> stats = tp.stats(model)
    >>> stats.kept[:, 0]
    array([36, 36,  9,  9,  9,  9])
    >>> stats.mean_tokens
    18.0
    """

    kept: np.ndarray
    alive: np.ndarray
    visual_tokens: np.ndarray
    thresholds: np.ndarray
    pruning_layers: tuple[int, ...]
    kv_bytes: np.ndarray
    kv_bytes_unpruned: np.ndarray
    prefill_flops: np.ndarray
    prefill_flops_unpruned: np.ndarray
    visual: np.ndarray
    row: np.ndarray
    col: np.ndarray
    image: np.ndarray
    frame: np.ndarray
    grid: np.ndarray

    def __repr__(self) -> str:
        """Say what was kept and saved, in a few lines."""
        costs = (
            self.kv_bytes,
            self.kv_bytes_unpruned,
            self.prefill_flops,
            self.prefill_flops_unpruned,
        )
        return in_words("PruneStats", self.pruning_layers, self.kept, self.visual_tokens, *costs)

    @property
    def tokens(self) -> np.ndarray:
        """Visual tokens of each sample, mean over all layers: float64, (batch,)."""
        return self.kept.mean(axis=0)

    @property
    def mean_tokens(self) -> float:
        """The paper's N: visual tokens, mean over all layers and samples."""
        return float(self.kept.mean())

    @property
    def final_tokens(self) -> np.ndarray:
        """Visual tokens after the last pruning step: int64, (batch,)."""
        return self.kept[-1]

    @property
    def threshold_spread(self) -> np.ndarray:
        """Standard deviation over the samples: float64, (steps, n); NaN where there is none."""
        return self.thresholds.std(axis=1, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON types, without the arrays over positions."""
        left_out = {"alive", "visual", "row", "col", "image", "frame", "grid"}
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in left_out}
        plain = {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in values.items()}
        absent = np.isnan(self.thresholds)
        thresholds = self.thresholds.astype(object)
        thresholds[absent] = None  # JSON has no NaN
        plain["thresholds"] = thresholds.tolist()
        return {
            **plain,
            "pruning_layers": list(self.pruning_layers),
            "tokens": self.tokens.tolist(),
            "mean_tokens": self.mean_tokens,
            "final_tokens": self.final_tokens.tolist(),
        }

    @classmethod
    def from_record(cls, record: Record, shape: DecoderShape) -> PruneStats:
        """Count the tokens of a pass on the host.

        Parameters
        ----------
        record : Record
            What the engine kept of the pass.
        shape : DecoderShape
            Of the model's decoder.
        """
        layout = record.layout
        alive = record.alive().cpu().numpy()
        visual = layout.mask.cpu().numpy()
        per_layer = alive.sum(axis=2)
        present = np.ones_like(visual) if record.present is None else record.present.cpu().numpy()
        full = np.broadcast_to(present.sum(axis=1), per_layer.shape)
        cached = per_layer.copy()
        if any(decision.layer < 0 for decision in record.decisions):
            cached[0] = full[0]  # laid out at full length, see engine/caches.py
        arrays = {
            "kept": (alive & visual).sum(axis=2),
            "alive": alive,
            "visual_tokens": visual.sum(axis=1),
            "thresholds": _thresholds(record, visual.shape[0]),
            "kv_bytes": shape.kv_bytes(cached).sum(axis=0),
            "kv_bytes_unpruned": shape.kv_bytes(full).sum(axis=0),
            "prefill_flops": shape.prefill_flops(per_layer).sum(axis=0),
            "prefill_flops_unpruned": shape.prefill_flops(full).sum(axis=0),
            "visual": visual,
            "row": layout.row.cpu().numpy(),
            "col": layout.col.cpu().numpy(),
            "image": layout.image.cpu().numpy(),
            "frame": layout.frame.cpu().numpy(),
            "grid": np.stack([layout.height.cpu().numpy(), layout.width.cpu().numpy()], axis=-1),
        }
        for array in arrays.values():
            array.flags.writeable = False
        return cls(pruning_layers=tuple(d.layer for d in record.decisions), **arrays)


def in_words(
    name: str,
    pruning_layers: tuple[int, ...],
    kept: np.ndarray,
    visual_tokens: np.ndarray,
    kv_bytes: np.ndarray,
    kv_bytes_unpruned: np.ndarray,
    prefill_flops: np.ndarray,
    prefill_flops_unpruned: np.ndarray,
) -> str:
    """Say what samples kept and saved, in a few lines.

    Parameters
    ----------
    name : str
        What the first line begins with.
    pruning_layers, kept, ...
        As the attributes of `PruneStats` with these names.
    """
    layers, samples = kept.shape
    mean, total = kept.mean(), visual_tokens.mean()
    cache = 1 - kv_bytes.sum() / kv_bytes_unpruned.sum()
    flops = 1 - prefill_flops.sum() / prefill_flops_unpruned.sum()
    return (
        f"{name}: {samples} sample{'s' * (samples > 1)}, pruned {steps_in_words(pruning_layers)} "
        f"of {layers}\n"
        f"  kept:  {mean:.1f} of {total:.1f} visual tokens ({mean / total:.1%}), mean over layers "
        f"and samples; {kept[-1].mean():.1f} in the last layer\n"
        f"  saved: {cache:.1%} of the key-value cache, {flops:.1%} of the prefill's FLOPs"
    )


def _thresholds(record: Record, batch: int) -> np.ndarray:
    given = [d.thresholds for d in record.decisions]
    width = max([t.shape[1] for t in given if t is not None], default=0)
    table = np.full((len(given), batch, width), np.nan, dtype=np.float32)
    for row, values in zip(table, given, strict=True):
        if values is not None:
            row[:, : values.shape[1]] = values.float().cpu().numpy()
    return table
