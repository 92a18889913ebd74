"""An adapter for any other decoder-only family, by its structure and not by its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokenprune.layout import VisualLayout

from .adapter import Adapter, base_model
from .geometry import grid_coordinates
from .inputs import MODALITIES, has_modality, placeholder_mask

__all__ = ["GenericAdapter"]

# Under which name configurations say how many tokens one image has.
_PER_IMAGE = ("image_seq_length", "mm_tokens_per_image", "num_image_tokens", "image_seq_len")


class GenericAdapter(Adapter):
    """An adapter for a core that replaces placeholders by image features, and its decoder.

    Where grids are given (``image_grid_thw``) and account for every token, they are read. Elsewhere
    each run of placeholders is one image, or as many as the configuration's tokens per image go
    into it; its tokens have a row and a column if its length is a square and the tower takes one
    size only.
    """

    model_type = ""
    sizes: tuple[str, ...] = ("image_grid_thw", "video_grid_thw")

    def check(self, model: Any) -> None:
        """Check the model's structure; ValueError, with the reason, if it cannot be pruned."""
        reason = _why_not(base_model(model))
        if reason:
            raise ValueError(
                f"{type(model).__name__} (model_type={model.config.model_type!r}) cannot be "
                f"pruned: {reason}."
            )
        super().check(model)

    def core(self, model: Any) -> Any:
        """Return the innermost module that takes both the prompt's ids and the pixels."""
        return _core(base_model(model))

    def decoder_layers(self, model: Any) -> Any:
        """Return the text model's layers."""
        return _decoder(self.core(model)).layers

    def first_layer(self, model: Any) -> int:
        """Return the layer after those that get features of the tower's middle layers."""
        vision = getattr(model.config, "vision_config", None)
        return len(getattr(vision, "deepstack_visual_indexes", None) or ())

    def grid(self, model: Any) -> tuple[int, int]:
        """Return the square of an image's tokens, or 24×24 where sizes differ."""
        per_image = self.per_image(model.config) or 0
        side = round(per_image**0.5)
        return (side, side) if side and side * side == per_image else (24, 24)

    def per_image(self, config: Any) -> int | None:
        """Return the tokens of one image, if the configuration says."""
        parts = (
            config,
            getattr(config, "vision_config", None),
            getattr(config, "text_config", None),
        )
        found = (getattr(part, name, None) for part in parts for name in _PER_IMAGE)
        return next((n for n in found if isinstance(n, int)), None)

    def locate(self, core: Any, inputs: Mapping[str, Any]) -> VisualLayout:
        """Find the placeholders of images and videos."""
        modalities = [name for name in MODALITIES if has_modality(inputs, name)]
        config = core.config
        masks = [placeholder_mask(core, inputs, _token(config, name)) for name in modalities]
        grids: list[Any] = [inputs.get(f"{name}_grid_thw") for name in modalities]
        merges = [_merge(grid, mask) for grid, mask in zip(grids, masks, strict=True)]
        if all(merges):
            coordinates = map(grid_coordinates, grids, merges)
            return VisualLayout.from_coordinates(list(zip(masks, coordinates, strict=True)))
        both = torch.stack(masks).any(dim=0)
        per_image = self.per_image(config)
        # Where a tower takes images of any size, a run of 36 tokens may as well be 4 x 9.
        one_size = per_image is not None or any(
            hasattr(getattr(config, part, None), size)
            for part, size in (("vision_config", "image_size"), ("vq_config", "resolution"))
        )
        return VisualLayout.from_runs(both, per_image, squares=one_size)


def _merge(grid: Tensor | None, mask: Tensor) -> int:
    """Return how many patches a side the tower merges into one token; 0 if the grids do not say."""
    if grid is None:
        return 0
    patches, tokens = int(grid.prod(dim=1).sum()), int(mask.sum())
    merge = round((patches / max(tokens, 1)) ** 0.5)
    return merge if merge**2 * tokens == patches else 0


def _token(config: Any, modality: str) -> Any:
    names = (
        f"{modality}_token_id",
        f"{modality}_token_index",
        "image_token_id",
        "image_token_index",
    )
    return next((t for n in names if isinstance(t := getattr(config, n, None), int)), None)


def _takes(module: nn.Module, *names: str) -> bool:
    parameters = inspect.signature(module.forward).parameters
    return all(name in parameters for name in names)


def _inner(module: Any) -> Iterator[Any]:
    """Yield the model, then the model inside it, as long as they take ids and pixels."""
    while module is not None and _takes(module, "input_ids", "pixel_values"):
        yield module
        module = getattr(module, "model", None)


def _core(model: nn.Module) -> Any:
    return list(_inner(model))[-1]


def _decoder(core: Any) -> Any:
    for name in ("language_model", "text_model", "decoder"):
        found = getattr(core, name, None)
        if found is not None:
            return found if hasattr(found, "layers") else getattr(found, "model", found)
    return core


def _why_not(model: nn.Module) -> str | None:
    config: Any = model.config
    chain = list(_inner(model))
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder: image features are not tokens of its decoder"
    if not chain:
        return "its forward does not take both input_ids and pixel_values"
    if len(chain) < 2 and "generate" in vars(type(model)):
        return "its generate does not call its forward, where images would be seen"
    if _token(config, "image") is None:
        return "its configuration has no image_token_id, so image features are not tokens of it"
    text = config.get_text_config(decoder=True)
    if getattr(text, "cross_attention_layers", None):
        return "its decoder reads the image by cross-attention: there are no visual tokens to drop"
    layers = getattr(_decoder(chain[-1]), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return "its decoder's layers were not found"
    if getattr(text, "hidden_size_per_layer_input", None):
        return "each decoder layer reads an input of its own for every token (per_layer_input)"
    if getattr(text, "attn_temperature_tuning", None):
        return (
            "its queries are scaled by how many tokens stand before them (attn_temperature_tuning)"
        )
    if getattr(text, "num_kv_shared_layers", None):
        return "its last decoder layers share the keys of earlier ones (num_kv_shared_layers)"
    kinds = set(getattr(text, "layer_types", None) or ())
    if other := sorted(kind for kind in kinds if not kind.endswith("attention")):
        return f"its decoder has layers that are not attention ({', '.join(other)})"
    if "linear_attention" in kinds:
        return "its decoder has recurrent layers (linear_attention), whose state needs every token"
    return None
