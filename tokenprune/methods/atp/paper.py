"""The fields of `ATPConfig.paper`."""

from __future__ import annotations

from typing import Any

__all__ = ["PRINTED"]

PRINTED: dict[str, Any] = {
    "normalisation": "none",
    "averaging": "all",
    "prunings": ("redundant", "spatial"),
    "heads_read": "raw",
    "activation": "none",
    "start_redundant": 0.0,
    "start_spatial": 0.0,
    "temperature": 10.0,
    "training": "soft",
    "atp_weight": 0.05,
    "target_weight": 0.2,
    "target_unit": "tokens",
    "target_over": "instance",
}
