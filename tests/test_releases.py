"""A release of a dependency newer than those verified: a warning, once."""

from __future__ import annotations

import warnings

import pytest

import tokenprune as tp
from tokenprune import releases

from .support.tiny_llava import tiny_llava


def test_a_newer_release_warns_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(releases.VERIFIED, "transformers", ("4.0", "4.1"))
    releases.warn_if_newer.cache_clear()
    with pytest.warns(UserWarning, match=r"transformers .* is newer than 4.1, the newest release"):
        tp.wrap(tiny_llava())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tp.wrap(tiny_llava())
    releases.warn_if_newer.cache_clear()


def test_a_verified_release_does_not_warn() -> None:
    releases.warn_if_newer.cache_clear()
    installed = [part for name in releases.VERIFIED for part in [releases._installed()[name]]]
    newest = [newest for _, newest in releases.VERIFIED.values()]
    if any(_release(a) > _release(b) for a, b in zip(installed, newest, strict=True)):
        pytest.skip(f"{installed} is newer than {newest}: it warns, see above")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tp.wrap(tiny_llava())


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(n) for n in version.split("+")[0].split(".")[:2])
