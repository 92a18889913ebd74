"""lmms-eval (0.7 or newer) with one model more: ``--model tokenprune``.

It finds `manifest` by the entry point ``lmms_eval.models`` of this package. All arguments are
lmms-eval's own::

    lmms-eval --model tokenprune \\
        --model_args pretrained=llava-hf/llava-1.5-7b-hf,heads=out/heads --tasks pope,gqa

Compare results of one ``--batch_size`` only: some models lose accuracy with the batch, unpruned too
(lmms-eval#648).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

__all__ = ["manifest"]


def manifest() -> ModelManifest:
    """Return what lmms-eval registers; the model is imported when it is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("tokenprune", chat_class_path=f"{__name__}.model.TokenPrune")
