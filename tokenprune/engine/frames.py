"""What is running now, in this thread: frames on a stack, never on the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..releases import verified_releases

if TYPE_CHECKING:
    from .engine import Engine
    from .run import Run

__all__ = [
    "Frame",
    "TowerPass",
    "check_images_arrive",
    "current_run",
    "generate_arguments",
    "generating",
    "given_rows",
    "is_paused",
    "is_running",
    "note_tower",
    "pause",
    "pop",
    "prompt_length",
    "push",
    "resume",
    "top",
    "tower_pass",
]


@dataclass(frozen=True)
class TowerPass:
    """One layer of the vision tower, as it ran.

    Attributes
    ----------
    query, key : (images, heads, tokens, width)
    copies : int
        How often each row of its batch stands in the decoder's.
    """

    query: Tensor
    key: Tensor
    copies: int = 1


@dataclass
class Frame:
    """One call of a wrapped model, or of its core alone.

    Attributes
    ----------
    engine : Engine
        Whose call it is.
    labels : int64, (batch, length), optional
        What the top-level model was given.
    images : bool
        Whether it was given images.
    tower : TowerPass, optional
        Of this call.
    run : Run, optional
        The forward pass of the core inside this call.
    alone : bool
        Whether it is the core's own call, with no call of the model around it.
    """

    engine: Engine
    labels: Tensor | None = None
    images: bool = False
    run: Run | None = field(default=None)
    alone: bool = False
    tower: TowerPass | None = None


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
    images : bool
        Whether there were images among them.
    prompt_length : int, optional
        Of the first forward.
    tower : TowerPass, optional
        Of images that were encoded before that.
    """

    engine: Engine
    arguments: Mapping[str, Any]
    images: bool = False
    prompt_length: int | None = None
    tower: TowerPass | None = None


@dataclass(eq=False)
class Pause:
    """One use of ``paused``.

    Attributes
    ----------
    engine : Engine, optional
        Whose pruning it stops. None: it is over.
    """

    engine: Engine | None


# A context variable: each thread and each task has its own.
_STACK: ContextVar[tuple[Frame, ...]] = ContextVar("tokenprune_frames", default=())
_GENERATION: ContextVar[Generation | None] = ContextVar("tokenprune_generation", default=None)
_PAUSED: ContextVar[tuple[Pause, ...]] = ContextVar("tokenprune_paused", default=())


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
def generating(engine: Engine, arguments: Mapping[str, Any], images: bool) -> Iterator[None]:
    """Inside, a call of ``generate`` with these arguments runs."""
    outer = _GENERATION.get()
    _GENERATION.set(Generation(engine, arguments, images))
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


def check_images_arrive(frame: Frame, has_images: bool) -> None:
    """See that images given to the model or to ``generate`` are among its core's arguments.

    Raises
    ------
    RuntimeError
        If they are not: a release of transformers may hand them over in another way, and nothing
        would then be pruned.
    """
    generation, expected = _GENERATION.get(), frame.images
    if generation is not None and generation.engine is frame.engine:
        # Of `generate`, the first forward alone is given images.
        expected = expected or generation.images
        generation.images = False
    if expected and not has_images and not is_paused(frame.engine):
        raise RuntimeError(
            "The model was given images, but its core was called without them, or with them under "
            f"a name that is not known here. {verified_releases()}: use one of these releases, or "
            "run this call inside tokenprune.paused(model)."
        )


def note_tower(module: Any, query: Tensor, key: Tensor) -> None:
    """A layer of a vision tower has run: kept if the call around it asks for that layer."""
    stack, generation = _STACK.get(), _GENERATION.get()
    call = stack[-1] if stack else generation
    if call is not None and any(m is module for m in call.engine.tower_layer):
        call.tower = TowerPass(query.detach(), key.detach())


def tower_pass(engine: Engine, rows: int) -> TowerPass | None:
    """What the tower said of the images in the running forward, which has so many rows."""
    frame, generation = top(engine), _GENERATION.get()
    if frame is not None and frame.tower is not None:
        return frame.tower
    if generation is None or generation.engine is not engine or generation.tower is None:
        return None
    return replace(generation.tower, copies=rows // given_rows(generation.arguments))


def given_rows(arguments: Mapping[str, Any]) -> int:
    """Rows of the batch that ``generate`` was given, before beams repeat them."""
    names = ("input_ids", "inputs_embeds", "attention_mask", "inputs")
    return next(len(arguments[n]) for n in names if arguments.get(n) is not None)


def is_running(engine: Engine) -> bool:
    """Whether a call of this engine's model, or of its ``generate``, runs in this thread."""
    generation = _GENERATION.get()
    return any(frame.engine is engine for frame in _STACK.get()) or (
        generation is not None and generation.engine is engine
    )


def pause(engine: Engine) -> Pause:
    """Stop pruning in this thread until `resume` is given what this returns. Nests."""
    ours = Pause(engine)
    _PAUSED.set((*_paused(), ours))
    return ours


def resume(paused: Pause) -> None:
    """Undo one `pause`, in the thread that asked for it, whichever thread this is."""
    paused.engine = None
    _PAUSED.set(_paused())


def is_paused(engine: Engine) -> bool:
    """Whether this thread has paused the engine."""
    return any(paused.engine is engine for paused in _PAUSED.get())


def _paused() -> tuple[Pause, ...]:
    return tuple(paused for paused in _PAUSED.get() if paused.engine is not None)
