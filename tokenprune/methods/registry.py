"""The pruning methods by name: the library's own, and those that others register."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ..config import MethodConfig, ModelFacts
from .base import Method

__all__ = ["METHODS", "build", "register_method"]

# Name → (configuration, method). A method is built from its configuration and the model's facts.
METHODS: dict[str, tuple[type[MethodConfig], type[Method]]] = {}

AnyMethod = TypeVar("AnyMethod", bound=type[Method])


def register_method(name: str, config: type[MethodConfig]) -> Callable[[AnyMethod], AnyMethod]:
    """Make a method known by name: a class decorator.

    The method then is in `tokenprune.supported`, its configuration is accepted by `tokenprune.wrap`
    and its parameters are saved and loaded by `tokenprune.save_heads` and `load_heads`. It is built
    as ``Class(config, visual_tokens=…)``, with the configuration as its `fitted` returns it and the
    number of tokens of one image.

    Parameters
    ----------
    name : str
        An identifier that no other method has.
    config : type
        A frozen dataclass derived from `tokenprune.MethodConfig`; its `method` becomes the name.

    Returns
    -------
    callable
        The decorator, which returns the class it is given.

    Raises
    ------
    ValueError
        If the name is taken or no identifier, or the configuration or class is of another kind.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import tokenprune as tp
    >>> @dataclass(frozen=True)
    ... class FirstConfig(tp.MethodConfig):
    ...     keep: int = 8
    >>> @tp.register_method("first_tokens", FirstConfig)
    ... class First(tp.Method):
    ...     layers = (-1,)
    ...
    ...     def __init__(self, config, visual_tokens):
    ...         super().__init__()
    ...         self.keep = config.keep
    ...
    ...     def select(self, context):
    ...         visual = context.layout.mask
    ...         return tp.Selection(keep=visual & (visual.cumsum(dim=1) <= self.keep))
    >>> "first_tokens" in tp.supported()["methods"]
    True
    """
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"name={name!r}: expected an identifier, such as 'key_norm'.")
    if not (isinstance(config, type) and issubclass(config, MethodConfig)):
        raise ValueError(f"config={config!r}: expected a class derived from MethodConfig.")
    if name in METHODS:
        raise ValueError(
            f"name={name!r} is taken by {METHODS[name][1].__qualname__}: choose another one."
        )
    if vars(config).get("method", name) != name:
        raise ValueError(
            f"{config.__name__} says that its method is {config.method!r}, not {name!r}: leave "
            "that out, or give the same name."
        )

    def decorate(method: AnyMethod) -> AnyMethod:
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise ValueError(f"{method!r}: expected a class derived from tokenprune.Method.")
        config.method = name
        METHODS[name] = config, method
        return method

    return decorate


def build(config: MethodConfig, facts: ModelFacts) -> Method:
    """Return the method that a fitted configuration asks for."""
    method = METHODS[config.method][1]
    return method(config, visual_tokens=facts.visual_tokens)
