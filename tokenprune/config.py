"""The base classes of the methods' configurations: checks, JSON, and defaults from a model."""

from __future__ import annotations

import dataclasses
import json
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .checks import require, shown
from .fields import BEFORE_DECODER, budget, checked, choice, layer_number, layer_numbers, optional
from .strict_json import parse_object

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "MethodConfig",
    "ModelFacts",
    "MultiLayerConfig",
    "PreDecoderConfig",
    "RankingConfig",
    "SingleLayerConfig",
]


@dataclass(frozen=True)
class ModelFacts:
    """What a configuration and a method can know of the model.

    Attributes
    ----------
    num_layers : int
        Decoder layers.
    grid : (int, int)
        Rows and columns of one image's tokens.
    default_layers : tuple of int
        Layers after which the family prunes if the configuration names none.
    first_layer : int
        The first layer after which tokens may go: the decoder adds image features at the visual
        tokens of all earlier ones.
    hidden_size : int, optional
        Width of the decoder's hidden states.
    """

    num_layers: int
    grid: tuple[int, int]
    default_layers: tuple[int, ...]
    first_layer: int = 0
    hidden_size: int | None = None

    @property
    def visual_tokens(self) -> int:
        """Return the number of tokens of one image."""
        return self.grid[0] * self.grid[1]

    def check(self, layers: tuple[int, ...]) -> None:
        """Raise ValueError, with the reason, if tokens cannot go after one of these layers."""
        if layers[0] < self.first_layer and self.first_layer > 0:
            raise ValueError(
                f"layers={layers}: this decoder adds image features at the visual tokens after its "
                f"layers 0 to {self.first_layer - 1}, so none may be dropped before layer "
                f"{self.first_layer} has run."
            )
        if layers[-1] >= self.num_layers - 1:
            raise ValueError(
                f"layers={layers}: this decoder has {self.num_layers} layers, so tokens can go "
                f"after layers 0 to {self.num_layers - 2}."
            )


@dataclass(frozen=True)
class MethodConfig:
    """Base class of every method's configuration: a frozen dataclass with checked fields.

    Fields made by `tokenprune.fields.checked` are validated when the configuration is made: a
    value outside what is allowed raises ValueError, which names the field, the value and what was
    expected. So does every class derived from this one.

    Parameters
    ----------
    positions : {"kept", "renumbered"}
        Which positions survivors have: their own, or new ones without gaps. Authors of most other
        methods than ATP and FastV run theirs renumbered; then survivors also stand in the order in
        which the authors put them (`Selection.order`). Words that follow on a key-value cache would
        have no right positions, so ``generate`` needs ``use_cache=False``. Families whose
        positions have several axes (M-RoPE), where no gap is to be seen, are refused. Given by name
        only.

    Attributes
    ----------
    method : str
        The method's name; `tokenprune.register_method` sets it on the class.

    Examples
    --------
    >>> config = tp.FastVConfig(layer=1, keep=0.25)
    >>> config.to_dict()
    {'method': 'fastv', 'positions': 'kept', 'layer': 1, 'keep': 0.25}
    >>> tp.FastVConfig.from_json(config.to_json()) == config
    True
    """

    method: ClassVar[str]

    _: KW_ONLY
    positions: str = checked("kept", choice("kept", "renumbered"))

    def __post_init__(self) -> None:
        """Run the validator of each field. An override that checks more calls this first."""
        for field in dataclasses.fields(self):
            if check := field.metadata.get("check"):
                value = check(field.name, getattr(self, field.name))
                object.__setattr__(self, field.name, value)

    def pruning_layers(self) -> tuple[int, ...]:
        """Return the layers after which tokens are dropped; empty if nothing says so yet."""
        return ()

    def fitted(self, facts: ModelFacts) -> Self:
        """Return this configuration with the model's own defaults filled in.

        Raises
        ------
        ValueError
            If the model cannot meet it.
        """
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary of JSON types, with the method's name under ``"method"``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {"method": self.method, **plain}

    def to_json(self) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MethodConfig:
        """Return the configuration that `to_dict` wrote.

        Keys that this release does not know, which come from a newer one, are left out with a
        warning.

        Raises
        ------
        ValueError
            If the dictionary names another method, or a value is outside what is allowed.
        """
        require(isinstance(values, dict), "values", values, "a dictionary")
        values = dict(values)
        name = values.pop("method", cls.method)
        require(name == cls.method, "method", name, repr(cls.method))
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known, key=str):
            warnings.warn(
                f"{cls.__name__} does not know {shown(unknown)}: written by a newer tokenprune? "
                "Left out.",
                stacklevel=2,
            )
        kept: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known
        }
        return cls(**kept)

    @classmethod
    def from_json(cls, text: str) -> MethodConfig:
        """Return the configuration that `to_json` wrote.

        Raises
        ------
        ValueError
            As `from_dict`; or if the text is no JSON object, or one that `parse_object` refuses.
        """
        return cls.from_dict(parse_object(text))


@dataclass(frozen=True)
class MultiLayerConfig(MethodConfig):
    """Base class of the configuration of a method that drops tokens after several layers.

    Parameters
    ----------
    layers : tuple of int, optional
        Decoder layers, counted from 0, after which tokens are dropped. None: those of the method's
        paper in proportion, or the family's default.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    # Shares of the depth after which the method's paper drops tokens. Empty: the family's default.
    default_depths: ClassVar[tuple[float, ...]] = ()

    layers: tuple[int, ...] | None = checked(None, optional(layer_numbers()))

    def pruning_layers(self) -> tuple[int, ...]:
        """Return `layers`; empty where they are None."""
        return self.layers or ()

    def fitted(self, facts: ModelFacts) -> Self:
        """Fill in the layers, and check that values given for each layer are as many."""
        layers = self.layers
        if layers is None:
            usual = [max(0, round(facts.num_layers * share) - 1) for share in self.default_depths]
            first = facts.first_layer
            layers = tuple(sorted({max(n, first) for n in usual or facts.default_layers}))
        facts.check(layers)
        for field in dataclasses.fields(self):
            given, check = getattr(self, field.name), field.metadata.get("check")
            if check and check.per_layer and isinstance(given, tuple):
                expected = f"one entry for each of the layers {layers}"
                require(len(given) == len(layers), field.name, given, expected)
        return dataclasses.replace(self, layers=layers)


@dataclass(frozen=True)
class SingleLayerConfig(MethodConfig):
    """Base class of the configuration of a method that drops tokens after one layer.

    Parameters
    ----------
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    layer: int = checked(1, layer_number())

    def pruning_layers(self) -> tuple[int, ...]:
        """Return the one layer."""
        return (self.layer,)

    def fitted(self, facts: ModelFacts) -> Self:
        """Check the layer; see `MethodConfig.fitted`."""
        facts.check(self.pruning_layers())
        return self


@dataclass(frozen=True)
class RankingConfig(SingleLayerConfig):
    """Configuration of a method that keeps the highest-ranked tokens after one layer.

    Parameters
    ----------
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped.
    keep : int or float
        How many visual tokens of each sample stay: an int is a number of tokens, a float in (0, 1]
        a share of the sample's own.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    keep: int | float = checked(0.25, budget)


@dataclass(frozen=True)
class PreDecoderConfig(MethodConfig):
    """Base class of the configuration of a method that drops tokens before the first layer.

    Parameters
    ----------
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    def pruning_layers(self) -> tuple[int, ...]:
        """Return `BEFORE_DECODER` alone."""
        return (BEFORE_DECODER,)

    def fitted(self, facts: ModelFacts) -> Self:
        """Check that the decoder allows it; see `MethodConfig.fitted`."""
        facts.check(self.pruning_layers())
        return self
