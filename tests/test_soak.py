"""Memory stays flat over passes with changing shapes; `make soak` runs thousands of them."""

from __future__ import annotations

import pytest

from tokenprune.engine.hooks.core import CoreHooks

from .support.soak import growth, soak

PASSES = 160


def test_nothing_grows() -> None:
    assert not growth(soak(PASSES))


def test_a_leak_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """What holds on to passes, as a list on the engine would, is counted."""
    kept = []
    after = CoreHooks.after

    def leaking(self: CoreHooks, *arguments: object) -> object:
        output = after(self, *arguments)
        kept.append(self.engine.latest.record)
        return output

    monkeypatch.setattr(CoreHooks, "after", leaking)
    assert growth(soak(PASSES)).keys() >= {"tensors", "passes"}
