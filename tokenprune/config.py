"""One dataclass per method: what can be asked for, checked, and JSON both ways."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

__all__ = ["ATPConfig", "MethodConfig", "ModelFacts", "RandomConfig"]


def _require(ok: bool, name: str, given: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"{name}={given!r}: expected {expected}.")


def _one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    _require(given in allowed, name, given, "one of " + ", ".join(map(repr, allowed)))


def _is_number(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def _is_whole(given: object) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)


def _tuple_of(name: str, given: Any, expected: str) -> tuple[Any, ...]:
    _require(isinstance(given, list | tuple), name, given, expected)
    return tuple(given)


def _checked_layers(given: Any) -> tuple[int, ...]:
    expected = "rising whole numbers from 0"
    layers = _tuple_of("layers", given, expected)
    whole = all(_is_whole(n) and n >= 0 for n in layers)
    rising = whole and all(a < b for a, b in pairwise(layers))
    _require(bool(layers) and rising, "layers", layers, expected)
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


@dataclass(frozen=True)
class MethodConfig:
    """What every method's configuration has."""

    method: ClassVar[str]
    layers: tuple[int, ...] | None = None

    def fitted(self, facts: ModelFacts) -> MethodConfig:
        """This configuration with the model's own defaults filled in.

        Raises
        ------
        ValueError
            If the model cannot meet it.
        """
        first = facts.first_layer
        layers = self.layers
        if layers is None:
            layers = tuple(sorted({max(n, first) for n in facts.default_layers}))
        if layers[0] < first:
            raise ValueError(
                f"layers={layers}: this decoder adds image features at the visual tokens after its "
                f"layers 0 to {first - 1}, so none may be dropped before layer {first} has run."
            )
        if layers[-1] >= facts.num_layers - 1:
            raise ValueError(
                f"layers={layers}: this decoder has {facts.num_layers} layers, so a module can "
                f"follow layers 0 to {facts.num_layers - 2}."
            )
        return dataclasses.replace(self, layers=layers)

    def _check_number(self, name: str, expected: str, allowed: Callable[[Any], bool]) -> None:
        given = getattr(self, name)
        _require(_is_number(given) and allowed(given), name, given, expected)

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
            If the dictionary names another method.
        """
        values = dict(values)
        name = values.pop("method", cls.method)
        _require(name == cls.method, "method", name, repr(cls.method))
        known = {f.name for f in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            warnings.warn(
                f"{cls.__name__} does not know {unknown}: written by a newer tokenprune? Left out.",
                stacklevel=2,
            )
        kept = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**kept)

    @classmethod
    def from_json(cls, text: str) -> MethodConfig:
        """The configuration that `to_json` wrote."""
        return cls.from_dict(json.loads(text))


@dataclass(frozen=True)
class ATPConfig(MethodConfig):
    """ATP: adaptive token pruning (ATP-LLaVA, arXiv 2412.00447).

    The paper fixes some of this; what it leaves open is an option here, and the default is what
    measured best on the small model of ``benchmarks/digits_vqa``, or as well as the best within
    the measurement's error (see ``docs/options.md``).

    Parameters
    ----------
    layers : tuple of int, optional
        Decoder layers, counted from 0, after which a module decides. None: the family's default,
        the paper's 3, 13, 23 of 32 layers or the same places in proportion.
    target_tokens : float, optional
        Mean number of visual tokens per image over *all* decoder layers that training aims at.
        None: a quarter of an image's tokens (the paper's 144 of 576). Where images differ in size,
        that of an image with as many tokens as the family's own grid has cells; larger ones in
        proportion.
    normalisation : {"share", "minmax", "none"}
        How raw attention becomes a score. ``share``: x = n·s, x / (1 + x), so that uniform
        attention over n tokens is 0.5. ``minmax``: each row's scores stretched to [0, 1].
    averaging : {"visible", "all"}
        Over which visual queries the self score is averaged: those that can see the token, or all.
    sources : tuple of {"self", "cross"}
        Which of the two score maps make the redundant score (their mean).
    prunings : tuple of {"redundant", "spatial"}
        Which of the two masks keep a token.
    strides : tuple of int
        The ladder of uniform grids; stride s samples at rate 1/s².
    temporal : bool
        Whether the ladder samples the frames of videos too, at rate 1/s³; for families that read
        videos. Off: each frame has its own ladder. Not in the paper; not measured yet.
    sample_weight : float
        λ_sample of the spatial score 1 − R·λ_sample.
    hidden : int
        Width of the threshold heads.
    grid : tuple of int, optional
        Rows and columns on which the heads read the score maps. None: the family's own grid.
    start_redundant, start_spatial : float
        Where the thresholds start, before the sigmoid.
    temperature : float
        T of the soft masks σ((S − θ)·T).
    training : {"soft", "straight_through"}
        What training computes on: the soft mask, or the hard one with the soft one's gradient.
    floor : float
        Least value that a mask has as a factor on attention, in (0, 1).
    atp_weight, target_weight : float
        λ_atp and λ_target.
    target_unit : {"share", "tokens"}
        Whether the target loss |N − N_target| is divided by the number of visual tokens.

    Raises
    ------
    ValueError
        If a value is outside what is allowed; it names the value and what was expected.
    """

    method: ClassVar[str] = "atp"

    target_tokens: float | None = None
    normalisation: str = "share"
    averaging: str = "visible"
    sources: tuple[str, ...] = ("self", "cross")
    prunings: tuple[str, ...] = ("redundant", "spatial")
    strides: tuple[int, ...] = (2, 3, 4, 6)
    temporal: bool = False
    sample_weight: float = 3.0
    hidden: int = 64
    grid: tuple[int, int] | None = None
    start_redundant: float = 0.3
    start_spatial: float = 3.0
    temperature: float = 20.0
    training: str = "straight_through"
    floor: float = 1e-6
    atp_weight: float = 0.01
    target_weight: float = 4.0
    target_unit: str = "share"

    def __post_init__(self) -> None:
        """Check every field."""
        if self.layers is not None:
            object.__setattr__(self, "layers", _checked_layers(self.layers))
        _require(isinstance(self.temporal, bool), "temporal", self.temporal, "True or False")
        for name in ("start_redundant", "start_spatial"):
            _require(_is_number(getattr(self, name)), name, getattr(self, name), "a number")
        if self.target_tokens is not None:
            self._check_number("target_tokens", "more than 0", lambda n: n > 0)
        _one_of("normalisation", self.normalisation, ("share", "minmax", "none"))
        _one_of("averaging", self.averaging, ("visible", "all"))
        _one_of("training", self.training, ("soft", "straight_through"))
        _one_of("target_unit", self.target_unit, ("share", "tokens"))
        for name, allowed in (
            ("sources", ("self", "cross")),
            ("prunings", ("redundant", "spatial")),
        ):
            expected = f"one or both of {allowed}"
            given = _tuple_of(name, getattr(self, name), expected)
            ok = bool(given) and all(g in allowed for g in given)
            ok = ok and len(set(given)) == len(given)
            _require(ok, name, given, expected)
            object.__setattr__(self, name, given)
        expected = "whole numbers above 1"
        strides = _tuple_of("strides", self.strides, expected)
        ok = bool(strides) and all(_is_whole(s) and s > 1 for s in strides)
        _require(ok, "strides", strides, expected)
        object.__setattr__(self, "strides", strides)
        most = min(strides) ** 2
        self._check_number(
            "sample_weight",
            f"between 0 and {most}, or the densest grid's score is not positive",
            lambda n: 0 < n < most,
        )
        if self.grid is not None:
            expected = "two whole numbers above 0"
            grid = _tuple_of("grid", self.grid, expected)
            ok = len(grid) == 2 and all(_is_whole(n) and n > 0 for n in grid)
            _require(ok, "grid", grid, expected)
            object.__setattr__(self, "grid", grid)
        ok = _is_whole(self.hidden) and self.hidden > 0
        _require(ok, "hidden", self.hidden, "a whole number above 0")
        self._check_number("temperature", "more than 0", lambda n: n > 0)
        self._check_number("floor", "between 0 and 1", lambda n: 0 < n < 1)
        for name in ("atp_weight", "target_weight"):
            self._check_number(name, "0 or more", lambda n: n >= 0)

    def fitted(self, facts: ModelFacts) -> ATPConfig:
        """With layers, target and grid filled in; see `MethodConfig.fitted`."""
        config = super().fitted(facts)
        assert isinstance(config, ATPConfig)
        assert config.layers is not None
        total = facts.visual_tokens
        target = total / 4 if self.target_tokens is None else self.target_tokens
        full = (config.layers[0] + 1) * total / facts.num_layers
        if not full < target <= total:
            raise ValueError(
                f"target_tokens={target:g} of an image of {total}: the {config.layers[0] + 1} "
                f"layer(s) up to the first module cost {full:g} of {total} tokens of the mean over "
                f"all {facts.num_layers} layers, so the target must be above {full:g} and at most "
                f"{total}. Raise it, or prune earlier."
            )
        grid = facts.grid if self.grid is None else self.grid
        return dataclasses.replace(config, target_tokens=float(target), grid=grid)


@dataclass(frozen=True)
class RandomConfig(MethodConfig):
    """Random pruning, the baseline.

    Parameters
    ----------
    layers : tuple of int, optional
        Decoder layers, counted from 0, after which tokens are dropped. None: the family's default.
    keep : tuple of float
        How many visual tokens of a sample stay after each of them, on average.
    seed : int
        Of the draws.

    Raises
    ------
    ValueError
        If a value is outside what is allowed; it names the value and what was expected.
    """

    method: ClassVar[str] = "random"

    keep: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        expected = "counts of 0 or more"
        keep = _tuple_of("keep", self.keep, expected)
        _require(bool(keep) and all(_is_number(k) and k >= 0 for k in keep), "keep", keep, expected)
        object.__setattr__(self, "keep", tuple(float(k) for k in keep))
        _require(_is_whole(self.seed), "seed", self.seed, "a whole number")
        if self.layers is not None:
            object.__setattr__(self, "layers", _checked_layers(self.layers))

    def fitted(self, facts: ModelFacts) -> RandomConfig:
        """With layers filled in; see `MethodConfig.fitted`."""
        config = super().fitted(facts)
        assert isinstance(config, RandomConfig)
        assert config.layers is not None
        if len(config.layers) != len(self.keep):
            raise ValueError(
                f"keep={self.keep}: expected one count for each of the layers {config.layers}."
            )
        return config
