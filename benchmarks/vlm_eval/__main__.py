"""lmms-eval with one model more: ``--model tokenprune``. All arguments are lmms-eval's own.

    python -m benchmarks.vlm_eval --model tokenprune \
        --model_args pretrained=llava-hf/llava-1.5-7b-hf,heads=out/heads --tasks pope,gqa

Compare results of one ``--batch_size`` only: some models lose accuracy with the batch, unpruned too
(lmms-eval#648).
"""

from __future__ import annotations

from lmms_eval.__main__ import cli_evaluate
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.models.registry_v2 import ModelManifest

if __name__ == "__main__":
    MODEL_REGISTRY_V2.register_manifest(
        ModelManifest("tokenprune", chat_class_path="benchmarks.vlm_eval.model.TokenPrune")
    )
    cli_evaluate()
