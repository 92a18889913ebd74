"""What every method's configuration has: checked values, JSON both ways, fitted to a model."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from .strict_json import parse_object

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "MAX_GRID_SIDE",
    "MAX_LAYERS",
    "MAX_TOKENS",
    "MethodConfig",
    "ModelFacts",
    "MultiLayerConfig",
    "PreDecoderConfig",
    "SingleLayerConfig",
    "check_choice",
    "checked_layers",
    "checked_tuple",
    "is_number",
    "is_whole",
    "require",
    "shown",
]

# Bounds that no model and no picture comes near. Configurations come from files too, and what is
# computed with them in int64 or float32 must stay finite.
MAX_LAYERS = 10_000
MAX_TOKENS = 2**31 - 1
MAX_GRID_SIDE = 1024  # rows or columns of one frame's tokens


def shown(given: object, longest: int = 200) -> str:
    """The printed form of a value, cut where it is too long for a message."""
    try:
        text = repr(given)
    except Exception:  # an integer of more than 4300 digits, nesting, an object's own error
        return f"<{type(given).__name__} that cannot be printed>"
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


def require(ok: bool, name: str, given: object, expected: str) -> None:
    """Raise ValueError that says what was given and what was expected, unless all is well."""
    if not ok:
        raise ValueError(f"{name}={shown(given)}: expected {expected}.")


def check_choice(name: str, given: object, allowed: tuple[str, ...]) -> None:
    """Require one of the allowed words."""
    ok = isinstance(given, str) and given in allowed
    require(ok, name, given, "one of " + ", ".join(map(repr, allowed)))


def is_number(given: object) -> bool:
    """Whether this is a finite number; booleans are not."""
    if isinstance(given, float):
        return math.isfinite(given)
    return is_whole(given)


def is_whole(given: object) -> bool:
    """Whether this is an int; booleans are not."""
    return isinstance(given, int) and not isinstance(given, bool)


def checked_tuple(name: str, given: Any, expected: str, most: int = MAX_LAYERS) -> tuple[Any, ...]:
    """Require a list or a tuple of at most so many, and give the tuple."""
    require(isinstance(given, list | tuple), name, given, expected)
    require(len(given) <= most, name, given, f"{expected}, at most {most} of them")
    return tuple(given)


def checked_layers(given: Any, earliest: int = 0) -> tuple[int, ...]:
    """Require rising layer numbers; -1, where it is allowed, is before the first layer."""
    expected = f"rising whole numbers from {earliest}, below {MAX_LAYERS}"
    layers = checked_tuple("layers", given, expected)
    whole = all(is_whole(n) and earliest <= n < MAX_LAYERS for n in layers)
    rising = whole and all(a < b for a, b in pairwise(layers))
    require(bool(layers) and rising, "layers", layers, expected)
    return layers


@dataclass(frozen=True)
class ModelFacts:
    """What a configuration must know of the model it is for.

    Attributes
    ----------
    num_layers : int
        Decoder layers.
    grid : (int, int)
        Rows and columns of one image's tokens.
    default_layers : tuple of int
        After which the family prunes if nothing is said.
    first_layer : int
        The first after which tokens may go: the decoder adds image features at the visual tokens of
        all earlier ones.
    """

    num_layers: int
    grid: tuple[int, int]
    default_layers: tuple[int, ...]
    first_layer: int = 0

    @property
    def visual_tokens(self) -> int:
        """Tokens of one image."""
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
    """What every method's configuration has."""

    method: ClassVar[str]

    def fitted(self, facts: ModelFacts) -> Self:
        """This configuration with the model's own defaults filled in.

        Raises
        ------
        ValueError
            If the model cannot meet it.
        """
        return self

    def _check_number(self, name: str, expected: str, allowed: Callable[[Any], bool]) -> None:
        given = getattr(self, name)
        require(is_number(given) and allowed(given), name, given, expected)

    def _check_whole(self, name: str, least: int, most: int) -> None:
        given = getattr(self, name)
        ok = is_whole(given) and least <= given <= most
        require(ok, name, given, f"a whole number from {least} to {most}")

    def to_dict(self) -> dict[str, Any]:
        """A dictionary of JSON types, with the method's name under ``"method"``."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
        return {"method": self.method, **plain}

    def to_json(self) -> str:
        """The dictionary as JSON text."""
        return json.dumps(self.to_dict(), indent=2)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MethodConfig:
        """The configuration that `to_dict` wrote.

        Keys that this release does not know warn and are left out: they come from a newer one.

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
        kept = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**kept)

    @classmethod
    def from_json(cls, text: str) -> MethodConfig:
        """The configuration that `to_json` wrote.

        Raises
        ------
        ValueError
            As `from_dict`; or if the text is no JSON object, or one that `parse_object` refuses.
        """
        return cls.from_dict(parse_object(text))


@dataclass(frozen=True)
class MultiLayerConfig(MethodConfig):
    """What the configuration of a method at several layers has.

    Attributes
    ----------
    layers : tuple of int, optional
        Decoder layers, counted from 0, after which tokens are dropped. None: those of the method's
        paper in proportion, or the family's default.
    """

    earliest: ClassVar[int] = 0
    # Shares of the depth after which the method's paper drops tokens. Empty: the family's default.
    default_depths: ClassVar[tuple[float, ...]] = ()

    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        """Check the layers."""
        if self.layers is not None:
            object.__setattr__(self, "layers", checked_layers(self.layers, self.earliest))

    def fitted(self, facts: ModelFacts) -> Self:
        """With layers filled in; see `MethodConfig.fitted`."""
        layers = self.layers
        if layers is None:
            usual = [max(0, round(facts.num_layers * share) - 1) for share in self.default_depths]
            first = facts.first_layer
            layers = tuple(sorted({max(n, first) for n in usual or facts.default_layers}))
        facts.check(layers)
        return dataclasses.replace(self, layers=layers)


@dataclass(frozen=True)
class SingleLayerConfig(MethodConfig):
    """What the configuration of a method at one layer has.

    Attributes
    ----------
    layer : int
        The decoder layer, counted from 0, after which tokens are dropped; -1, where it is allowed,
        is before the first.
    """

    earliest: ClassVar[int] = 0

    layer: int = 1

    def __post_init__(self) -> None:
        """Check the layer."""
        self._check_whole("layer", self.earliest, MAX_LAYERS - 1)

    def fitted(self, facts: ModelFacts) -> Self:
        """See `MethodConfig.fitted`."""
        facts.check((self.layer,))
        return self


@dataclass(frozen=True)
class PreDecoderConfig(MethodConfig):
    """What the configuration of a method before the first layer has."""

    def fitted(self, facts: ModelFacts) -> Self:
        """See `MethodConfig.fitted`."""
        facts.check((-1,))
        return self
