"""The pruning methods by name: the library's own, and those that others register."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..checks import require, shown
from ..config import (
    MethodConfig,
    ModelFacts,
    MultiLayerConfig,
    PreDecoderConfig,
    RankingConfig,
    SingleLayerConfig,
)
from .base import Method

__all__ = ["METHODS", "build", "register_method"]

METHODS: dict[str, tuple[type[MethodConfig], type[Method]]] = {}
"""Name → the class of the configuration, and the class of the method."""

AnyMethod = TypeVar("AnyMethod", bound=type[Method])

_BASES = (MethodConfig, MultiLayerConfig, PreDecoderConfig, RankingConfig, SingleLayerConfig)


def register_method(
    name: str, config: type[MethodConfig] | None = None
) -> Callable[[AnyMethod], AnyMethod]:
    """Register a method under a name, and its configuration: a class decorator.

    A registered method is listed by `tokenprune.supported`. `tokenprune.wrap` accepts its
    configuration, and `tokenprune.save_heads` and `load_heads` save and load its parameters.
    ``docs/adding_a_method.md`` has worked examples.

    Parameters
    ----------
    name : str
        An identifier that no other method has.
    config : type, optional
        A frozen dataclass derived from `tokenprune.MethodConfig`, for this method alone. None: a
        subclass of the ``Config`` that the class inherits, which `tokenprune.RankingMethod` has.

    Returns
    -------
    callable
        The decorator. It sets the class's ``Config`` and that configuration's ``method``, and
        returns the class.

    Raises
    ------
    ValueError
        If the name is taken or no identifier, or the configuration or class is of another kind.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class FirstTokensConfig(tp.SingleLayerConfig):
    ...     count: int = 8
    >>> @tp.register_method("first_tokens", FirstTokensConfig)
    ... class FirstTokens(tp.Method):
    ...     def select(self, context):
    ...         visual = context.layout.mask
    ...         return tp.Selection(keep=visual & (visual.cumsum(dim=1) <= self.config.count))
    >>> "first_tokens" in tp.supported()["methods"]
    True
    """
    identifier = isinstance(name, str) and name.isidentifier()
    require(identifier, "name", name, "an identifier, such as 'key_norm'")
    if name in METHODS:
        raise ValueError(
            f"name={name!r} is taken by {METHODS[name][1].__qualname__}: choose another one."
        )
    if config is not None:
        _check_config(name, config)

    def decorate(method: AnyMethod) -> AnyMethod:
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise ValueError(f"{method!r}: expected a class derived from tokenprune.Method.")
        own = _default_config(method) if config is None else config
        own.method = name
        method.Config = own
        METHODS[name] = own, method
        return method

    return decorate


def _check_config(name: str, config: type[MethodConfig]) -> None:
    """Raise ValueError unless the configuration is a class for this method alone."""
    if not (isinstance(config, type) and issubclass(config, MethodConfig)) or config in _BASES:
        raise ValueError(
            f"config={shown(config)}: expected a class derived from MethodConfig or from one of "
            "its bases for methods, of this method's own."
        )
    if vars(config).get("method", name) != name:
        raise ValueError(
            f"{config.__name__} says that its method is {config.method!r}, not {name!r}: leave "
            "that out, or give the same name."
        )


def _default_config(method: type[Method]) -> type[MethodConfig]:
    """Make a configuration for a method alone, with the fields of the one it inherits."""
    if method.Config is None:
        raise ValueError(
            f"{method.__name__} has no configuration: give register_method one, or derive the "
            "method from RankingMethod."
        )
    # Found by pickle under this name: the decorator makes it the method's attribute.
    about = {
        "__doc__": f"Configuration of {method.__name__}.\n\n{method.Config.__doc__}",
        "__module__": method.__module__,
        "__qualname__": f"{method.__qualname__}.Config",
    }
    return dataclass(frozen=True)(type("Config", (method.Config,), about))


def build(config: MethodConfig, facts: ModelFacts) -> Method:
    """Build the method that a fitted configuration describes, for a model."""
    return METHODS[config.method][1].from_config(config, facts)
