"""Check that what a decision is made from is finite: NaN compares as false, and would drop all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...methods.base import Method
from ...methods.context import Selection

__all__ = ["count_not_finite", "raise_if_not_finite"]


def count_not_finite(states: Tensor, selection: Selection, visual: Tensor) -> dict[str, Tensor]:
    """Count, in each row, what is NaN or infinite at visual tokens. Text and padding do not matter.

    Parameters
    ----------
    states : Tensor, (batch, tokens, width)
        The hidden states that the tokens go on with.
    selection : Selection
    visual : bool, (batch, tokens)

    Returns
    -------
    dict
        "states", and "scores" and "thresholds" where the selection has them: int64, (batch,) each.
    """
    # One pass over the states, several times as fast as a check of every number. The sum of
    # half-precision numbers must not overflow in their own dtype.
    total = states.sum(dim=-1, dtype=torch.promote_types(states.dtype, torch.float32))
    counts = {"states": (~total.isfinite().to(visual.device) & visual).sum(dim=1)}
    if selection.scores is not None:
        counts["scores"] = (selection.scores.isnan() & visual).sum(dim=1)
    if selection.thresholds is not None:
        bad = ~selection.thresholds.isfinite().all(dim=1) & visual.any(dim=1)
        counts["thresholds"] = bad.long()
    return counts


def raise_if_not_finite(found: Mapping[str, Sequence[int]], layer: int, method: Method) -> None:
    """Raise where a count of `count_not_finite` is not zero.

    Parameters
    ----------
    found : mapping
        By the names of `count_not_finite`: counts, on the host.
    layer : int
        The decoder layer that the step follows; -1: before the first.
    method : Method

    Raises
    ------
    FloatingPointError
        Says what is not finite, after which layer, and what to do.
    """
    bad = {name for name in ("states", "scores", "thresholds") if any(found.get(name, ()))}
    if not bad:
        return
    where = "before the first decoder layer" if layer < 0 else f"after decoder layer {layer}"
    what = {"states": "hidden states of visual tokens", "scores": "scores of visual tokens"}
    named = next((what[name] for name in what if name in bad), "thresholds")
    if "states" not in bad and not all(p.isfinite().all() for p in method.parameters()):
        raise FloatingPointError(
            f"The {named} {where} are NaN, since parameters of the heads are NaN or infinite, "
            "as one optimiser step on a NaN loss leaves them. Load heads that were saved before "
            "(tokenprune.load_heads), or unwrap the model and wrap it again; in training, leave "
            "out the optimiser's step where the loss is not finite."
        )
    raise FloatingPointError(
        f"The {named} {where} are NaN or infinite: the model overflows in this precision, or its "
        "weights or pixel_values are not finite. Try bfloat16 or float32, and check the inputs "
        "with tokenprune.paused(model)."
    )
