"""The protocol of an adapter: what the engine must know of a model family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokenprune.layout import VisualLayout

from .inputs import MODALITIES, PIXELS, has_modality, placeholder_mask

__all__ = ["Adapter", "CompositeAdapter", "base_model", "clip_tower"]


class Adapter(ABC):
    """What the engine must know of a model family.

    A subclass must define four methods: `core`, `decoder_layers`, `locate` and `grid`. All others
    have a default that is right for most families. Models are typed ``Any``: what an adapter reads
    of them is the family's own.

    Attributes
    ----------
    model_type : str
        ``config.model_type`` of the family. Required.
    causal : bool
        Whether, sliding windows aside, every token of the decoder sees all earlier ones and no
        others. Where it is not so, or not known, the engine keeps to the masks it is given.
    sizes : tuple of str
        Arguments of ``generate`` that say how large images are: newer releases take them away
        before the core is called.
    pixels : tuple of str
        Arguments of the core that hold images or videos; every family has one of them.
    """

    model_type: str
    causal: bool = False
    sizes: tuple[str, ...] = ()
    pixels: tuple[str, ...] = tuple(name for names in PIXELS.values() for name in names)

    # -- required --------------------------------------------------------------------------------

    @abstractmethod
    def core(self, model: Any) -> Any:
        """Return the module whose forward sees ``input_ids`` and the image inputs."""

    @abstractmethod
    def decoder_layers(self, model: Any) -> Any:
        """Return the decoder layers, in order."""

    @abstractmethod
    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Find the visual tokens in the core's inputs. Only called where these have images.

        Parameters
        ----------
        core : nn.Module
            What `core` returns.
        inputs : dict
            Arguments of its forward by name, those that are None left out.

        Returns
        -------
        VisualLayout, (batch, length)

        Raises
        ------
        KeyError
            If an input that says how large images are is missing.
        """

    @abstractmethod
    def grid(self, model: Any) -> tuple[int, int]:
        """Return rows and columns of one image's tokens, or of a usual one where images differ."""

    # -- optional --------------------------------------------------------------------------------

    def check(self, model: Any) -> None:
        """Check that a model of the family can be pruned.

        Raises
        ------
        ValueError
            With the reason, if it cannot.
        """
        if base_model(model).get_output_embeddings() is None:
            raise ValueError(
                f"wrap() takes the whole model, not {type(model).__name__}: expected the one with "
                "the language-model head, such as LlavaForConditionalGeneration."
            )

    def text_config(self, model: Any) -> Any:
        """Return the configuration that the decoder's layers read."""
        return base_model(model).config.get_text_config(decoder=True)

    def special_ids(self, model: Any) -> set[int]:
        """Return every token id that the model's configurations name: begin, end, padding, …"""
        model = base_model(model)
        configs = (model.config, self.text_config(model), getattr(model, "generation_config", None))
        found: set[int] = set()
        for config in configs:
            for name, value in ({} if config is None else config.to_dict()).items():
                if name.endswith(("_token_id", "_token_ids", "_token_index")):
                    ids = value if isinstance(value, list | tuple) else [value]
                    found |= {n for n in ids if isinstance(n, int) and n >= 0}
        return found

    def placeholders(self, model: Any) -> set[int]:
        """Return the ids that the configuration names as placeholders of images and videos."""
        config = base_model(model).config
        names = (f"{modality}_token_{kind}" for modality in MODALITIES for kind in ("id", "index"))
        found = (getattr(config, name, None) for name in names)
        return {token for token in found if isinstance(token, int)}

    def any_of(self, core: Any, inputs: Mapping[str, Any], ids: Sequence[int]) -> Tensor:
        """Return where the prompt has any of these tokens: bool, (batch, length)."""
        if inputs.get("input_ids") is not None:
            return torch.isin(inputs["input_ids"], inputs["input_ids"].new_tensor(ids))
        return torch.stack([placeholder_mask(core, inputs, token) for token in ids]).any(dim=0)

    def first_layer(self, model: Any) -> int:
        """Return the first layer, from 0, after which tokens may be dropped."""
        return 0

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        """Return whether a call of the core has images or videos.

        Read from which inputs are given: it must not wait for the device.
        """
        return any(has_modality(inputs, modality) for modality in MODALITIES)

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """Return the vision tower's configuration and its attention modules, in order.

        Only called for methods that choose by the attention of the tower's class token, which needs
        a tower whose patches are the visual tokens.

        Raises
        ------
        ValueError
            If this family's tower is not of that kind, as here by default.
        """
        raise ValueError(
            f"{base_model(model).config.model_type}: the method chooses by the attention of a "
            "vision tower's class token, and here the tower's patches are not the visual tokens, "
            "or it is not known that they are. LLaVA and LLaVA-NeXT with a CLIP tower are such "
            "models; FastV, DivPrune and the others that ask nothing of the tower work here."
        )

    def patches(self, core: Any, inputs: Mapping[str, Any]) -> Tensor | None:
        """Return which patch of the tower each visual token of the core's inputs is.

        Only called where `tower` is defined.

        Returns
        -------
        int64, (visual tokens of the batch,), optional
            Counted over all that the tower was given, class tokens left out; -1 for a token that is
            none. None: one for one.
        """
        return None

    def default_layers(self, num_layers: int) -> tuple[int, ...]:
        """Return layers, from 0, after which to prune: the paper's 4th, 14th and 24th of 32."""
        counted = [max(1, num_layers * n // 32) for n in (4, 14, 24)]
        return tuple(sorted({n - 1 for n in counted if n < num_layers}))


class CompositeAdapter(Adapter):
    """An adapter where the layers are ``model.model.language_model.layers``, as most have them.

    A subclass must define `locate` and `grid`.
    """

    def core(self, model: Any) -> Any:
        """Return ``model.model``."""
        return base_model(model).model

    def decoder_layers(self, model: Any) -> Any:
        """Return the layers of the core's language model."""
        return self.core(model).language_model.layers


def base_model(model: Any) -> Any:
    """Return the transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def clip_tower(tower: Any) -> tuple[Any, list[Any]]:
    """Return what `Adapter.tower` returns for a CLIP tower."""
    modules = [module for name, module in tower.named_modules() if name.endswith("self_attn")]
    return modules[0].config, modules
