"""The small models, one file each."""

from types import ModuleType

from . import llava, llava_next, qwen2_vl

MODELS: dict[str, ModuleType] = {
    "llava": llava,
    "llava_next": llava_next,
    "qwen2_vl": qwen2_vl,
}
"""Each has ``FOLDER``, ``SIZES``, ``build``, ``grid``, ``processor`` and ``save``."""
