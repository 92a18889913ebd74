"""The adapter protocol, and the registry keyed by ``config.model_type``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenprune.layout import VisualLayout

__all__ = ["Adapter", "adapter_for", "families", "register"]


class Adapter:
    """Answers five questions about a model family, and nothing else.

    Models are typed ``Any``: what an adapter reads of them is the family's own.

    Attributes
    ----------
    model_type : str
        ``config.model_type`` of the family.
    """

    model_type: str

    def check(self, model: Any) -> None:
        """Raise ValueError, with the reason, if this model cannot be pruned."""

    def core(self, model: Any) -> Any:
        """The module whose forward sees ``input_ids`` and the image inputs."""
        raise TypeError(f"{type(self).__name__} does not say which module is the core.")

    def decoder_layers(self, model: Any) -> Any:
        """The decoder layers, in order."""
        raise TypeError(f"{type(self).__name__} does not say which layers are the decoder's.")

    def text_config(self, model: Any) -> Any:
        """The configuration that the decoder's layers read."""
        return base_model(model).config.get_text_config(decoder=True)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout | None:
        """The visual tokens in the core's inputs; None when this call brings no image.

        It must not wait for the device: whether there is an image is read from which inputs are
        given.
        """
        raise TypeError(f"{type(self).__name__} does not say where visual tokens are.")

    def grid(self, model: Any) -> tuple[int, int]:
        """Rows and columns of one image's tokens, or of the usual one where images differ."""
        raise TypeError(f"{type(self).__name__} does not say which grid an image has.")

    def default_layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers, from 0, after which to decide: the paper's 4th, 14th and 24th of 32."""
        places = [max(1, num_layers * n // 32) for n in (4, 14, 24)]
        return tuple(sorted({n - 1 for n in places if n < num_layers}))


def base_model(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


_REGISTRY: dict[str, Adapter] = {}


def register(adapter: type[Adapter]) -> type[Adapter]:
    """Class decorator: make a family known."""
    _REGISTRY[adapter.model_type] = adapter()
    return adapter


def families() -> list[str]:
    """The ``model_type`` of every family there is an adapter for."""
    return sorted(_REGISTRY)


def adapter_for(model: Any) -> Adapter:
    """The adapter of a model's family.

    Raises
    ------
    ValueError
        If there is none.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in _REGISTRY:
        raise ValueError(
            f"{type(model).__name__} (model_type={model_type!r}) is not supported: expected one of "
            f"{families()}. A new family is one file in adapters/."
        )
    return _REGISTRY[model_type]
