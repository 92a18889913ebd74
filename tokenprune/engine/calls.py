"""The calls of wrapped models that run now, in this thread; models keep nothing of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..releases import verified_releases
from .passes import CoreCall, Pass
from .vision_tower import TowerAttention

__all__ = [
    "Call",
    "Lesson",
    "check_images_arrive",
    "current_pass",
    "generate_arguments",
    "generating",
    "given_rows",
    "is_paused",
    "is_running",
    "newest",
    "paused",
    "pop",
    "prompt_length",
    "push",
    "record_tower",
    "tower_attention",
]

# A call belongs to an engine, which is known here by its identity alone.


@dataclass(frozen=True)
class Lesson:
    """What the unpruned model answers to a training batch.

    Attributes
    ----------
    where : bool, (batch, length)
        The positions that teach.
    logits : Tensor, (positions, vocabulary)
        There, without gradient.
    """

    where: Tensor
    logits: Tensor


@dataclass
class Call:
    """One call of a wrapped model, or of its core alone.

    Attributes
    ----------
    owner : Engine
        Whose call it is.
    tower_layer : nn.Module, optional
        The layer of the vision tower whose attention is wanted.
    labels : int64, (batch, length), optional
        What the top-level model was given.
    images : bool
        Whether it was given images.
    core_alone : bool
        Whether it is the core's own call, with no call of the model around it.
    lesson : Lesson, optional
        What this training forward is taught by, where it is not its labels.
    tower : TowerAttention, optional
        Of this call.
    core : CoreCall, optional
        The call of the core inside this one. None: the core was not called yet.
    running : Pass, optional
        The pass through the decoder. None: before its first layer, and after its last.
    finished : Pass, optional
        That pass when the core has returned.
    """

    owner: object
    tower_layer: nn.Module | None = None
    labels: Tensor | None = None
    images: bool = False
    core_alone: bool = False
    lesson: Lesson | None = None
    tower: TowerAttention | None = None
    core: CoreCall | None = None
    running: Pass | None = None
    finished: Pass | None = None


@dataclass
class _Generation:
    """One call of ``generate``: what lies past its first forward's length is answer, not prompt.

    Attributes
    ----------
    owner, tower_layer
        As in `Call`.
    arguments : mapping
        What it was given. Newer releases encode images before the first forward, which then sees
        neither them nor their sizes.
    images : bool
        Whether there were images among them.
    prompt_length : int, optional
        Of the first forward.
    tower : TowerAttention, optional
        Of images that were encoded before that.
    """

    owner: object
    tower_layer: nn.Module | None
    arguments: Mapping[str, Any]
    images: bool = False
    prompt_length: int | None = None
    tower: TowerAttention | None = None


# Context variables: each thread and each task has its own.
_STACK: ContextVar[tuple[Call, ...]] = ContextVar("tokenprune_calls", default=())
_GENERATION: ContextVar[_Generation | None] = ContextVar("tokenprune_generation", default=None)


def push(call: Call) -> None:
    """Begin a call."""
    _STACK.set((*_STACK.get(), call))


def pop(owner: object) -> None:
    """End the owner's newest call, and all that an interrupt left above it."""
    stack = _STACK.get()
    for depth in reversed(range(len(stack))):
        if stack[depth].owner is owner:
            _STACK.set(stack[:depth])
            return


def newest(owner: object) -> Call | None:
    """Return the innermost running call, if it is this owner's."""
    stack = _STACK.get()
    return stack[-1] if stack and stack[-1].owner is owner else None


def current_pass() -> Pass | None:
    """Return the pass that is running now."""
    stack = _STACK.get()
    return stack[-1].running if stack else None


def is_running(owner: object) -> bool:
    """Return whether a call of the owner's model, or of its ``generate``, runs in this thread."""
    return _generation(owner) is not None or any(call.owner is owner for call in _STACK.get())


# -- generate ----------------------------------------------------------------------------------


@contextmanager
def generating(
    owner: object, tower_layer: nn.Module | None, arguments: Mapping[str, Any], images: bool
) -> Iterator[None]:
    """Mark what runs inside as a call of ``generate`` with these arguments."""
    outer = _GENERATION.get()
    _GENERATION.set(_Generation(owner, tower_layer, arguments, images))
    try:
        yield
    finally:
        _GENERATION.set(outer)


def _generation(owner: object) -> _Generation | None:
    found = _GENERATION.get()
    return found if found is not None and found.owner is owner else None


def generate_arguments(owner: object) -> Mapping[str, Any]:
    """Return what the running ``generate`` was given; nothing outside of one."""
    generation = _generation(owner)
    return {} if generation is None else generation.arguments


def prompt_length(owner: object, length: int, past: int) -> int | None:
    """Return the prompt's length, given that of the present forward; None outside ``generate``.

    Without a cache ``generate`` runs prompt and answer so far through the model at every step, and
    nothing in its arguments tells them apart: the first forward's length does. In assisted decoding
    the first forward has candidates for the answer behind the prompt already: it is longer than
    what ``generate`` was given, less the `past` positions that its cache has.
    """
    generation = _generation(owner)
    if generation is None:
        return None
    if generation.prompt_length is None:
        names = ("inputs_embeds", "input_ids", "inputs")
        found = (generation.arguments.get(name) for name in names)
        given = next((value.shape[1] for value in found if value is not None), length)
        if length < given:  # the whole conversation, of which the cache has the beginning
            given -= past
        generation.prompt_length = given if 0 < given < length else length
    return generation.prompt_length


def check_images_arrive(call: Call, has_images: bool) -> None:
    """Check that images given to the model or to ``generate`` are among its core's arguments.

    Raises
    ------
    RuntimeError
        If they are not: a release of transformers may hand them over in another way, and nothing
        would then be pruned.
    """
    generation, expected = _generation(call.owner), call.images
    if generation is not None:
        # Of `generate`, the first forward alone is given images.
        expected = expected or generation.images
        generation.images = False
    if expected and not has_images and not is_paused(call.owner):
        raise RuntimeError(
            "The model was given images, but its core was called without them, or with them under "
            f"a name that is not known here. {verified_releases()}: use one of these releases, or "
            "run this call inside tokenprune.paused(model)."
        )


def given_rows(arguments: Mapping[str, Any]) -> int:
    """Return the rows of the batch that ``generate`` was given, before beams repeat them."""
    names = ("input_ids", "inputs_embeds", "attention_mask", "inputs")
    return next(len(arguments[n]) for n in names if arguments.get(n) is not None)


# -- the vision tower --------------------------------------------------------------------------


def record_tower(module: Any, query: Tensor, key: Tensor) -> None:
    """Keep the attention of a layer of a vision tower, if the call around it wants that layer."""
    stack, generation = _STACK.get(), _GENERATION.get()
    call = stack[-1] if stack else generation
    if call is not None and call.tower_layer is module:
        call.tower = TowerAttention(query.detach(), key.detach())


def tower_attention(owner: object, rows: int) -> TowerAttention | None:
    """Return the tower's attention to the images of the running forward, which has `rows` rows."""
    call, generation = newest(owner), _generation(owner)
    if call is not None and call.tower is not None:
        return call.tower
    if generation is None or generation.tower is None:
        return None
    return replace(generation.tower, copies=rows // given_rows(generation.arguments))


# -- paused ------------------------------------------------------------------------------------


@dataclass(eq=False)
class _Pause:
    """One use of `paused`, of an owner; None: it is over."""

    owner: object | None


_PAUSED: ContextVar[tuple[_Pause, ...]] = ContextVar("tokenprune_paused", default=())


@contextmanager
def paused(owner: object) -> Iterator[None]:
    """Stop the owner's pruning inside, in the thread that enters. Nests."""
    pause = _Pause(owner)
    _PAUSED.set((*_open_pauses(), pause))
    try:
        yield
    finally:
        # The thread that entered resumes, even if another one leaves (a generator's last step).
        pause.owner = None
        _PAUSED.set(_open_pauses())


def is_paused(owner: object) -> bool:
    """Return whether this thread has paused the owner's pruning."""
    return any(pause.owner is owner for pause in _PAUSED.get())


def _open_pauses() -> tuple[_Pause, ...]:
    return tuple(pause for pause in _PAUSED.get() if pause.owner is not None)
