"""The state machine's state, the rules that change settings, and what holds after each step."""

from __future__ import annotations

import copy
import math
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.engine import calls, engine_of

from .backends import BACKENDS
from .case_counts import count
from .config_strategies import every_config
from .expected_state import Conversation, Plain, Settings, Surface
from .strategies import LAYERS, model_of, prompts
from .tiny_llava import IMAGE, SIDE, make_batch

__all__ = ["SettingsMachine"]

DTYPES = [torch.float32, torch.bfloat16]
TARGETS = st.floats(2.0, 36.0)


class SettingsMachine(RuleBasedStateMachine):
    """A model and the plain model of it, and every way to change the settings of both.

    Attributes
    ----------
    model : nn.Module
    plain : Plain
    surface, wrapped_surface : Surface
        Before the model was first wrapped, and when it was last.
    talks : list of Conversation
    saved : list of (Path, Settings)
    """

    @initialize(attn=st.sampled_from(BACKENDS))
    def build(self, attn: str) -> None:
        self.model = copy.deepcopy(model_of(attn))
        with torch.no_grad():  # transformers puts hooks of its own on at the first such call
            self.model(**make_batch([(1, IMAGE)]), output_hidden_states=True)
        self.plain = Plain(copy.deepcopy(self.model))
        self.surface = self.wrapped_surface = Surface.of(self.model)
        self.talks: list[Conversation] = []
        self.folder = tempfile.TemporaryDirectory()
        self.saved: list[tuple[Path, Settings]] = []

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.folder.cleanup()
            while self.plain.pauses:
                self.leave_pause()

    def is_wrapped(self) -> bool:
        return self.plain.settings is not None

    def is_unwrapped(self) -> bool:
        return self.plain.settings is None

    def is_paused(self) -> bool:
        return bool(self.plain.pauses)

    def can_wrap_saved(self) -> bool:
        return bool(self.saved) and self.is_unwrapped()

    def can_load(self) -> bool:
        return bool(self.saved) and self.is_wrapped()

    @property
    def settings(self) -> Settings:
        assert self.plain.settings is not None
        return self.plain.settings

    # -- what holds after each step --------------------------------------------------------------

    @invariant()
    def is_as_the_plain_model(self) -> None:
        count("steps")
        assert calls._STACK.get() == ()
        assert calls._GENERATION.get() is None
        assert len(calls._PAUSED.get()) == len(self.plain.pauses)
        assert {module.training for module in self.model.modules()} == {self.plain.training}
        if self.is_unwrapped():
            assert Surface.of(self.model) == self.surface
        else:
            assert Surface.of(self.model) == self.wrapped_surface
            self.settings.assert_in(self.model)
        for name, parameter in self.model.named_parameters():
            head = name.startswith("tokenprune.")
            assert parameter.requires_grad is (head or not self.plain.frozen), name

    # -- wrap, unwrap, pause, modes ---------------------------------------------------------------

    def note_wrapped(self) -> None:
        self.plain.settings = Settings.of(self.model)
        self.wrapped_surface = Surface.of(self.model)

    @precondition(is_unwrapped)
    @rule(config=every_config(), seed=st.integers(0, 9))
    def wrap(self, config: MethodConfig, seed: int) -> None:
        torch.manual_seed(seed)
        assert tp.wrap(self.model, config) is self.model
        self.note_wrapped()
        assert type(self.settings.config) is type(config)

    @precondition(can_wrap_saved)
    @rule(data=st.data())
    def wrap_saved(self, data: st.DataObject) -> None:
        folder, saved = data.draw(st.sampled_from(self.saved))
        tp.wrap(self.model, folder)
        self.note_wrapped()
        self.plain.settings = copy.deepcopy(saved)

    @precondition(is_wrapped)
    @rule(config=every_config())
    def wrap_again_is_refused(self, config: MethodConfig) -> None:
        with pytest.raises(ValueError, match="wrapped already"):
            tp.wrap(self.model, config)

    @precondition(is_wrapped)
    @rule()
    def unwrap(self) -> None:
        """The weights are the same; `is_as_the_plain_model` sees that nothing is left."""
        assert tp.unwrap(self.model) is self.model
        self.plain.settings, self.plain.frozen = None, False
        while self.plain.pauses:
            self.leave_pause()
        weights = self.plain.twin.state_dict()
        found = self.model.state_dict()
        assert found.keys() == weights.keys()
        assert all(torch.equal(value, weights[name]) for name, value in found.items())

    @precondition(is_unwrapped)
    @rule()
    def unwrapped_is_refused(self) -> None:
        for call in (tp.unwrap, tp.paused, tp.stats, tp.train_only_heads):
            with pytest.raises(ValueError, match="not wrapped"):
                call(self.model)

    @precondition(is_wrapped)
    @rule()
    def pause(self) -> None:
        pause = tp.paused(self.model)
        pause.__enter__()
        self.plain.pauses.append(pause)

    @precondition(is_paused)
    @rule()
    def leave_pause(self) -> None:
        self.plain.pauses.pop().__exit__(None, None, None)

    @rule(training=st.booleans())
    def train(self, training: bool) -> None:
        assert self.model.train(training) is self.model
        self.plain.training = training

    @rule(dtype=st.sampled_from(DTYPES))
    def to(self, dtype: torch.dtype) -> None:
        for model in (self.model, self.plain.twin):
            model.to(dtype)
            # That rounds the rotary frequencies, which a model loaded in bfloat16 has in float32.
            exact = dict(model_of().model.language_model.rotary_emb.named_buffers())
            for name, buffer in model.model.language_model.rotary_emb.named_buffers():
                buffer.data = exact[name].clone()
        if dtype != self.plain.dtype:
            self.talks.clear()  # keys and values do not follow
        self.plain.dtype = dtype  # the heads stay in float32

    # -- heads on disk ---------------------------------------------------------------------------

    @precondition(is_wrapped)
    @rule(place=st.integers(0, 2))
    def save_heads(self, place: int) -> None:
        """Into a new folder, or over what another method left in one."""
        folder = Path(self.folder.name, str(place))
        assert tp.save_heads(self.model, folder) == folder
        self.saved = [(f, saved) for f, saved in self.saved if f != folder]
        self.saved.append((folder, copy.deepcopy(self.settings)))

    @precondition(can_load)
    @rule(data=st.data())
    def load_heads(self, data: st.DataObject) -> None:
        folder, saved = data.draw(st.sampled_from(self.saved))
        if saved.config != self.settings.config:
            with pytest.raises(ValueError, match="do not fit this model"):
                tp.load_heads(self.model, folder)
            return
        tp.load_heads(self.model, folder)
        self.plain.settings = copy.deepcopy(saved)

    # -- budgets ---------------------------------------------------------------------------------

    @precondition(is_wrapped)
    @rule(
        prompt=prompts(image=True),
        seed=st.integers(0, 9),
        goals=st.lists(TARGETS, min_size=1, max_size=2),
        cap=st.sampled_from([None, None, 9]),
    )
    def calibrate(self, prompt: tuple, seed: int, goals: list[float], cap: int | None) -> None:
        batch = make_batch([prompt], dtype=self.plain.dtype, seed=seed)
        try:
            found = tp.calibrate(self.model, [batch], goals, max_kept=cap)
        except ValueError as error:
            if not re.search("no thresholds|can be reached|no image", str(error)):
                raise
            return
        assert self.plain.prunes
        assert self.settings.config.method == "atp"
        assert list(found) == list(dict.fromkeys(goals))
        before = {budget["tokens"] for budget in self.settings.runtime["budgets"]}
        heads = self.settings.heads
        self.plain.settings = Settings.of(self.model)
        self.plain.settings.heads = heads  # these must not have moved
        after = [budget["tokens"] for budget in self.settings.runtime["budgets"]]
        assert after == sorted(before | set(goals))
        assert self.settings.runtime["max_kept"] == cap
        with torch.no_grad():
            self.model(**batch, use_cache=False)
        images = prompt.count(IMAGE)
        measured = tp.stats(self.model).kept.sum() / LAYERS / images
        assert measured == pytest.approx(found[goals[-1]], rel=1e-6)

    @precondition(is_wrapped)
    @rule(goal=TARGETS)
    def set_budget(self, goal: float) -> None:
        """Between calibrated budgets, straight lines; for Matryoshka the finest scale inside."""
        runtime = copy.deepcopy(self.settings.runtime)
        known = runtime.get("budgets", [])
        tokens = [budget["tokens"] for budget in known]
        if "stride" in runtime:
            scales = range(1, SIDE + 1)
            runtime["stride"] = next(s for s in scales if math.ceil(SIDE / s) ** 2 <= goal)
            tp.set_budget(self.model, goal)
        elif not known or not tokens[0] <= goal <= tokens[-1]:
            with pytest.raises(ValueError, match=r"calibrated budgets|what its configuration says"):
                tp.set_budget(self.model, goal)
        else:
            tp.set_budget(self.model, goal)
            steps = range(len(known[0]["shifts"]))
            shifts = [
                [np.interp(goal, tokens, [b["shifts"][step][n] for b in known]) for n in (0, 1)]
                for step in steps
            ]
            around = known[max(np.searchsorted(tokens, goal, "right") - 1, 0) :]
            around = around[: 1 if around[0]["tokens"] == goal else 2]
            caps = {budget["max_kept"] for budget in around}
            runtime["max_kept"] = None if None in caps else max(caps)
            found = engine_of(self.model).method.runtime_state()["shifts"]
            assert np.allclose(found, shifts, rtol=0, atol=1e-9)
            runtime["shifts"] = list(found)
        self.settings.runtime = runtime
