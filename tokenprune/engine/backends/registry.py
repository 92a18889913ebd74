"""The attention backends by name."""

from __future__ import annotations

from .base import Backend
from .eager import EagerBackend
from .flash import FlashBackend
from .flex import FlexBackend
from .sdpa import SdpaBackend

__all__ = ["backend_named", "backend_names"]

_BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (EagerBackend(), SdpaBackend(), FlashBackend(), FlexBackend())
}


def backend_names() -> tuple[str, ...]:
    """Return the names under which backends can be pruned."""
    return tuple(_BACKENDS)


def backend_named(name: str | None) -> Backend:
    """Return a backend by its name in ``attn_implementation``; None is eager.

    Raises
    ------
    ValueError
        If it cannot be pruned under.
    """
    found = _BACKENDS.get(name or "eager")
    if found is None:
        raise ValueError(
            f"attn_implementation={name!r} cannot be pruned under: expected one of "
            f'{backend_names()}. Call model.set_attn_implementation("sdpa") first.'
        )
    return found
