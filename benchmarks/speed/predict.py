"""Expected speed-ups, from operations counted before anything is measured."""

from __future__ import annotations

import numpy as np

from tokenprune.measure.cost import DecoderShape

from .kept import COMPLEX
from .shapes import Shape

__all__ = ["predicted"]


def predicted(shape: Shape, bytes_per_value: int) -> dict[str, float]:
    """Count the operations and cache that are left, and what scoring adds.

    Returns
    -------
    dict
        ``flops``: operations left of the decoder's, and ``speedup``, its inverse. ``kv``: cache
        bytes left. ``scoring``: products that scoring adds, as a share of the pruned prefill's.
        ``scoring_bytes``: queries, keys and their log-sum-exp read once, and what heads write.
    """
    decoder = DecoderShape(
        width=shape.width,
        heads=shape.heads,
        kv_heads=shape.kv_heads or shape.heads,
        head_width=shape.width // shape.heads,
        mlp_width=shape.mlp,
        bytes_per_value=bytes_per_value,
    )
    text = shape.before + shape.after
    visual = np.full(shape.layers, shape.visual, dtype=np.int64)
    for layer, count in zip(shape.prune_after, COMPLEX, strict=True):
        visual[layer + 1 :] = round(count * shape.visual / 576)
    pruned, full = visual + text, np.full(shape.layers, shape.length)
    flops, flops_full = (float(decoder.prefill_flops(n).sum()) for n in (pruned, full))
    at = pruned[list(shape.prune_after)].astype(float)
    # Under the causal rule half of the products; heads · width of a head = width of the model.
    scoring = float((at**2 * shape.width).sum())
    values = at * (shape.heads + decoder.kv_heads) * decoder.head_width
    groups = 2  # visual tokens and the prompt's text
    scoring_bytes = values * bytes_per_value + at * shape.heads * (1 + groups) * 4
    return {
        "flops": flops / flops_full,
        "speedup": flops_full / flops,
        "kv": float(decoder.kv_bytes(pruned).sum() / decoder.kv_bytes(full).sum()),
        "kv_bytes": float(decoder.kv_bytes(pruned).sum()),
        "scoring": scoring / flops,
        "scoring_bytes": float(scoring_bytes.sum()),
    }
