"""Visual-token pruning for Hugging Face vision-language models.

The examples in the docstrings use these names without making them: ``tp`` is this package,
``torch`` is torch, ``model`` a LLaVA that is not wrapped (here a tiny one: 6 decoder layers, 36
tokens an image), ``batch`` the arguments of its forward for a prompt with one image, as a processor
returns them, and ``folder`` the path of an empty folder.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .api import (
        is_wrapped,
        losses,
        paused,
        stats,
        supported,
        track,
        unwrap,
        wrap,
    )
    from .callback import TrainerCallback
    from .config import (
        MethodConfig,
        MultiLayerConfig,
        PreDecoderConfig,
        RankingConfig,
        SingleLayerConfig,
    )
    from .hub import push_heads
    from .io import load_heads, save_heads
    from .layout import VisualLayout
    from .measure import Explanation, PruneStats, draw, draw_methods, explain, report
    from .methods import (
        ATPConfig,
        CDPrunerConfig,
        Context,
        Criterion,
        DARTConfig,
        DivPruneConfig,
        DownsampleConfig,
        FastVConfig,
        IDSelectionConfig,
        MatryoshkaConfig,
        Method,
        PruMergeConfig,
        PyramidDropConfig,
        RandomConfig,
        RankingMethod,
        Received,
        Selection,
        SparseVLMConfig,
        UniformConfig,
        VisionZipConfig,
        register_method,
    )
    from .pretrained import from_pretrained
    from .training import (
        calibrate,
        fit_need,
        fit_ranking,
        set_budget,
        train_only_heads,
        trainable,
    )

__all__ = [
    "ATPConfig",
    "CDPrunerConfig",
    "Context",
    "Criterion",
    "DARTConfig",
    "DivPruneConfig",
    "DownsampleConfig",
    "Explanation",
    "FastVConfig",
    "IDSelectionConfig",
    "MatryoshkaConfig",
    "Method",
    "MethodConfig",
    "MultiLayerConfig",
    "PreDecoderConfig",
    "PruMergeConfig",
    "PruneStats",
    "PyramidDropConfig",
    "RandomConfig",
    "RankingConfig",
    "RankingMethod",
    "Received",
    "Selection",
    "SingleLayerConfig",
    "SparseVLMConfig",
    "TrainerCallback",
    "UniformConfig",
    "VisionZipConfig",
    "VisualLayout",
    "__version__",
    "calibrate",
    "draw",
    "draw_methods",
    "explain",
    "fit_need",
    "fit_ranking",
    "from_pretrained",
    "is_wrapped",
    "load_heads",
    "losses",
    "paused",
    "push_heads",
    "register_method",
    "report",
    "save_heads",
    "set_budget",
    "stats",
    "supported",
    "track",
    "train_only_heads",
    "trainable",
    "unwrap",
    "wrap",
]

# Silent unless the program that imports it configures logging.
logging.getLogger(__name__).addHandler(logging.NullHandler())

# Where a public name is defined; the first modules are light, the later ones import transformers'
# modelling code, which takes seconds unless a model was loaded before.
_HOMES = (
    "config",
    "layout",
    "methods",
    "measure",
    "training",
    "io",
    "hub",
    "api",
    "pretrained",
    "callback",
)

if not TYPE_CHECKING:  # a type checker would take any name for one that exists

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used, so that `import tokenprune` is fast."""
        if name in __all__:
            for home in _HOMES:
                module = import_module(f"{__name__}.{home}")
                if name in module.__all__:
                    globals()[name] = getattr(module, name)
                    return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
