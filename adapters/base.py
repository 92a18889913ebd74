"""The adapter protocol, and the registry keyed by ``config.model_type``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from tokenprune.layout import VisualLayout

__all__ = [
    "KINDS",
    "Adapter",
    "adapter_for",
    "base_model",
    "brings",
    "clip_tower",
    "frame_places",
    "grid_places",
    "no_place",
    "register",
    "verified",
    "where_is",
]

KINDS = ("image", "video")
_PIXELS = {"image": ("pixel_values", "pixel_values_images"), "video": ("pixel_values_videos",)}


class Adapter:
    """Answers five questions about a model family, and nothing else.

    Models are typed ``Any``: what an adapter reads of them is the family's own.

    Attributes
    ----------
    model_type : str
        ``config.model_type`` of the family.
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
    pixels: tuple[str, ...] = tuple(name for names in _PIXELS.values() for name in names)

    def check(self, model: Any) -> None:
        """Raise ValueError, with the reason, if this model cannot be pruned."""
        if base_model(model).get_output_embeddings() is None:
            raise ValueError(
                f"wrap() takes the whole model, not {type(model).__name__}: expected the one with "
                "the language-model head, such as LlavaForConditionalGeneration."
            )

    def core(self, model: Any) -> Any:
        """The module whose forward sees ``input_ids`` and the image inputs."""
        raise TypeError(f"{type(self).__name__} does not say which module is the core.")

    def decoder_layers(self, model: Any) -> Any:
        """The decoder layers, in order."""
        raise TypeError(f"{type(self).__name__} does not say which layers are the decoder's.")

    def text_config(self, model: Any) -> Any:
        """The configuration that the decoder's layers read."""
        return base_model(model).config.get_text_config(decoder=True)

    def special_ids(self, model: Any) -> set[int]:
        """Every token id that the model's configurations name: begin, end, padding, image, …"""
        model = base_model(model)
        configs = (model.config, self.text_config(model), getattr(model, "generation_config", None))
        found: set[int] = set()
        for config in configs:
            for name, value in ({} if config is None else config.to_dict()).items():
                if name.endswith(("_token_id", "_token_ids", "_token_index")):
                    ids = value if isinstance(value, list | tuple) else [value]
                    found |= {n for n in ids if isinstance(n, int) and n >= 0}
        return found

    def any_of(self, core: Any, inputs: Mapping[str, Any], ids: Sequence[int]) -> Tensor:
        """Where the prompt has any of these tokens: bool, (batch, length)."""
        if inputs.get("input_ids") is not None:
            return torch.isin(inputs["input_ids"], inputs["input_ids"].new_tensor(ids))
        return torch.stack([where_is(core, inputs, token) for token in ids]).any(dim=0)

    def first_layer(self, model: Any) -> int:
        """The first layer, from 0, after which tokens may go."""
        return 0

    def has_images(self, inputs: Mapping[str, Any]) -> bool:
        """Whether this call of the core brings images or videos.

        Read from which inputs are given: it must not wait for the device.
        """
        return any(brings(inputs, kind) for kind in KINDS)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """The visual tokens in the core's inputs, which bring images."""
        raise TypeError(f"{type(self).__name__} does not say where visual tokens are.")

    def grid(self, model: Any) -> tuple[int, int]:
        """Rows and columns of one image's tokens, or of the usual one where images differ."""
        raise TypeError(f"{type(self).__name__} does not say which grid an image has.")

    def tower(self, model: Any) -> tuple[Any, list[Any]]:
        """The vision tower's configuration and its attention modules, in order.

        Asked only for methods that choose by the attention of the tower's class token, which needs
        a tower whose patches are the visual tokens.

        Raises
        ------
        ValueError
            If this family's is not so.
        """
        raise ValueError(
            f"{base_model(model).config.model_type}: the method chooses by the attention of a "
            "vision tower's class token, and here the tower's patches are not the visual tokens, "
            "or it is not known that they are. LLaVA and LLaVA-NeXT with a CLIP tower are such "
            "models; FastV, DivPrune and the others that ask nothing of the tower work here."
        )

    def patches(self, core: Any, inputs: Mapping[str, Any]) -> Tensor | None:
        """The tower's patch that each visual token of the core's inputs is.

        Asked only where there is a `tower`.

        Returns
        -------
        int64, (visual tokens of the batch,), optional
            Counted over all that the tower was given, class tokens left out; -1 for a token that is
            none. None: one for one.
        """
        return None

    def default_layers(self, num_layers: int) -> tuple[int, ...]:
        """Layers, from 0, after which to decide: the paper's 4th, 14th and 24th of 32."""
        places = [max(1, num_layers * n // 32) for n in (4, 14, 24)]
        return tuple(sorted({n - 1 for n in places if n < num_layers}))


def brings(inputs: Mapping[str, Any], kind: str) -> bool:
    """Whether a call of the core brings pictures of a kind: "image" or "video"."""
    encoded = inputs.get("mm_encoder_outputs") or {}
    given = (*(inputs.get(name) for name in _PIXELS[kind]), encoded.get(kind))
    return any(value is not None for value in given)


def where_is(core: Any, inputs: Mapping[str, Any], token: int) -> Tensor:
    """Where the prompt has a placeholder: bool, (batch, length)."""
    if inputs.get("input_ids") is not None:
        return inputs["input_ids"] == token
    embeds = inputs["inputs_embeds"]
    vocabulary = core.get_input_embeddings().weight
    if token >= len(vocabulary):
        return torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
    embedding = vocabulary[token].to(embeds.device)
    return (embeds == embedding).all(dim=-1)


def clip_tower(tower: Any) -> tuple[Any, list[Any]]:
    """What a CLIP tower gives for `Adapter.tower`."""
    modules = [module for name, module in tower.named_modules() if name.endswith("self_attn")]
    return modules[0].config, modules


def frame_places(
    image: int, height: int, width: int, frame: int = 0, line_ends: bool = False
) -> Tensor:
    """Places of one frame's tokens, line by line, as `VisualLayout.from_places` reads them.

    Parameters
    ----------
    line_ends : bool
        Whether a token without a place ends each line.
    """
    rows, cols = torch.arange(height), torch.arange(width + line_ends)
    row, col = (part.flatten() for part in torch.meshgrid(rows, cols, indexing="ij"))
    inside = col < width
    places = torch.tensor([image, frame, -1, -1, height, width]).repeat(len(row), 1)
    places[:, 2] = torch.where(inside, row, -1)
    places[:, 3] = torch.where(inside, col, -1)
    return places


def no_place(image: int, frame: int, side: int) -> Tensor:
    """A token without a place, in a frame of so many tokens a side."""
    return torch.tensor([[image, frame, -1, -1, side, side]])


def grid_places(grids: Tensor, merge: int) -> Tensor:
    """Places by ``image_grid_thw``: frames, rows and columns before the tower's spatial merge."""
    frames = [
        frame_places(number, height // merge, width // merge, frame)
        for number, (time, height, width) in enumerate(grids.tolist())
        for frame in range(time)
    ]
    return torch.cat(frames)


def base_model(model: Any) -> Any:
    """The transformers model inside a PEFT model, or the model itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


_REGISTRY: dict[str, Adapter] = {}


def register(adapter: type[Adapter]) -> type[Adapter]:
    """Class decorator: make a family known."""
    _REGISTRY[adapter.model_type] = adapter()
    return adapter


def verified() -> list[str]:
    """The ``model_type`` of every family that passed the invariants, with an own adapter or not."""
    written = resources.files(__package__).joinpath("verified.json").read_text(encoding="utf-8")
    return list(json.loads(written)["families"])


def adapter_for(model: Any) -> Adapter:
    """The adapter of a model's family, or the generic one.

    Raises
    ------
    ValueError
        If the model is no transformers model.
    """
    from .generic import GenericAdapter

    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type is None:
        raise ValueError(
            f"{type(model).__name__} has no config.model_type: expected a vision-language model of "
            "transformers, or a PEFT model around one."
        )
    return _REGISTRY.get(model_type) or GenericAdapter()
