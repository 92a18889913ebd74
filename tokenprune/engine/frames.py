"""What is running now, in this thread: frames on a stack, never on the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from .engine import Engine
    from .run import Run

__all__ = [
    "Frame",
    "current_run",
    "generate_arguments",
    "generating",
    "is_paused",
    "pause",
    "pop",
    "prompt_length",
    "push",
    "resume",
    "top",
]


@dataclass
class Frame:
    """One call of a wrapped model, or of its core alone.

    Attributes
    ----------
    engine : Engine
        Whose call it is.
    labels : int64, (batch, length), optional
        What the top-level model was given.
    run : Run, optional
        The forward pass of the core inside this call.
    alone : bool
        Whether it is the core's own call, with no call of the model around it.
    """

    engine: Engine
    labels: Tensor | None = None
    run: Run | None = field(default=None)
    alone: bool = False


@dataclass
class Generation:
    """One call of ``generate``: what lies past its first forward's length is answer, not prompt.

    Attributes
    ----------
    engine : Engine
        Whose call it is.
    arguments : dict
        What it was given. Newer releases encode images before the first forward, which then sees
        neither them nor their sizes.
    prompt_length : int, optional
        Of the first forward.
    """

    engine: Engine
    arguments: Mapping[str, Any]
    prompt_length: int | None = None


# A context variable: each thread and each task has its own.
_STACK: ContextVar[tuple[Frame, ...]] = ContextVar("tokenprune_frames", default=())
_GENERATION: ContextVar[Generation | None] = ContextVar("tokenprune_generation", default=None)
_PAUSED: ContextVar[tuple[Engine, ...]] = ContextVar("tokenprune_paused", default=())


def push(frame: Frame) -> None:
    """Begin a call."""
    _STACK.set((*_STACK.get(), frame))


def pop(engine: Engine) -> None:
    """End the engine's newest call and all that an interrupt left above it."""
    stack = _STACK.get()
    for depth in reversed(range(len(stack))):
        if stack[depth].engine is engine:
            _STACK.set(stack[:depth])
            return


def top(engine: Engine) -> Frame | None:
    """The running call, if it is this engine's."""
    stack = _STACK.get()
    return stack[-1] if stack and stack[-1].engine is engine else None


def current_run() -> Run | None:
    """The forward pass that is running now."""
    stack = _STACK.get()
    return stack[-1].run if stack else None


@contextmanager
def generating(engine: Engine, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Inside, a call of ``generate`` with these arguments runs."""
    outer = _GENERATION.get()
    _GENERATION.set(Generation(engine, arguments))
    try:
        yield
    finally:
        _GENERATION.set(outer)


def generate_arguments(engine: Engine) -> Mapping[str, Any]:
    """What the running ``generate`` was given; nothing outside of one."""
    generation = _GENERATION.get()
    return {} if generation is None or generation.engine is not engine else generation.arguments


def prompt_length(engine: Engine, length: int) -> int | None:
    """How long the prompt is, asked by a forward of `length` tokens; None outside ``generate``.

    Without a cache ``generate`` runs prompt and answer so far through the model at every step, and
    nothing in its arguments tells them apart: the first forward's length does.
    """
    generation = _GENERATION.get()
    if generation is None or generation.engine is not engine:
        return None
    if generation.prompt_length is None:
        generation.prompt_length = length
    return generation.prompt_length


def pause(engine: Engine) -> None:
    """Stop pruning in this thread. Nests."""
    _PAUSED.set((*_PAUSED.get(), engine))


def resume(engine: Engine) -> None:
    """Undo one `pause`."""
    paused = list(_PAUSED.get())
    paused.remove(engine)
    _PAUSED.set(tuple(paused))


def is_paused(engine: Engine) -> bool:
    """Whether this thread has paused the engine."""
    return any(e is engine for e in _PAUSED.get())
