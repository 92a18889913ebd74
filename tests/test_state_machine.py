"""Everything that can be done to a model, in any order, against the plain model beside it.

After each step the wrapped model has the settings that the plain one has; its forward passes equal,
bit for bit, those of a model made afresh from these settings, and what they compute is what the
reference decoder computes with dropped keys masked. Unwrapped, it is bit for bit the twin that was
never wrapped. `SettingsMachine` has the rules that change settings, this file those that run it.

``FUZZ_WITHOUT=chunked,reordered`` leaves out the rules of that name.
"""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

import tokenprune as tp
from tokenprune.engine import engine_of

from .support.expected_state import Conversation, Settings
from .support.ragged_batches import RAGGED, STEPS, Ragged, answer, assert_best, at_a_tie
from .support.reference_decoder import Reference
from .support.settings_machine import SettingsMachine
from .support.strategies import prompts
from .support.tiny_llava import PAD, Batch, cache_of, make_batch, on_cache, row_alone, with_labels
from .support.turns import grown, prefill, step

LEFT_OUT = set(os.environ.get("FUZZ_WITHOUT", "").split(","))
# Right or refused: whether these are held to that.
CHUNKED_PREFILL = "chunked" not in LEFT_OUT
REORDERED_CACHE = "reordered" not in LEFT_OUT

REFUSALS = (RuntimeError, ValueError)
MOST_SEEN = 250  # positions of a conversation, so that examples stay quick


def assert_sentence(error: BaseException) -> None:
    """A refusal says something, and is not an error from deep inside."""
    assert type(error) in REFUSALS, f"{error!r} is no refusal"
    assert len(str(error).split()) > 8, f"{error!r} does not say what to do"


class Machine(SettingsMachine):
    """A model that runs as well."""

    def is_learning(self) -> bool:
        return self.plain.training and self.is_wrapped()

    def draws_nothing(self) -> bool:
        return self.is_unwrapped() or self.settings.config.method != "random"

    def has_talks(self) -> bool:
        return bool(self.talks) and self.is_wrapped()

    # -- forward, training -----------------------------------------------------------------------

    @rule(ragged=RAGGED, labels=st.booleans())
    def forward(self, ragged: Ragged, labels: bool) -> None:
        batch = ragged.batch(dtype=self.plain.dtype)
        if labels:
            batch = with_labels(batch, 2)
        fresh = self.plain.fresh(self.model)
        with torch.no_grad():
            out = self.model(**batch, output_hidden_states=True)
            wanted = fresh(**batch)
        assert torch.equal(out.logits, wanted.logits), "not what a fresh model gives"
        rows = self.plain.rows(self.model, batch, out)
        self.plain.assert_logits(out.logits, rows, batch["attention_mask"])

    @precondition(is_learning)
    @rule(ragged=RAGGED)
    def learn(self, ragged: Ragged) -> None:
        """One step of the optimiser: heads move, and nothing else does."""
        batch = with_labels(ragged.batch(dtype=self.plain.dtype), 2)
        if self.settings.config.method != "atp":
            with pytest.raises(ValueError, match="nothing to train"):
                tp.train_only_heads(self.model)
            return
        heads = tp.train_only_heads(self.model)
        self.plain.frozen = True
        loss = self.model(**batch).loss
        if self.is_paused() or not (batch["labels"] != -100).any():
            return  # nothing to learn, or a mean over nothing
        assert loss.isfinite()
        loss.backward()
        assert all(head.grad is not None and head.grad.isfinite().all() for head in heads)
        torch.optim.SGD(heads, lr=1e-3).step()
        for parameter in self.model.parameters():
            parameter.grad = None
        before, found = self.settings, Settings.of(self.model)
        assert found.runtime == before.runtime
        if "pixel_values" not in batch:
            assert all(torch.equal(v, before.heads[n]) for n, v in found.heads.items())
        self.plain.settings = found

    @rule(ragged=RAGGED, original=st.booleans())
    def deepcopy(self, ragged: Ragged, original: bool) -> None:
        """Go on with either; what is done to the other is not felt."""
        while self.is_paused():  # which is for one of the two
            self.leave_pause()
        other, stays = copy.deepcopy(self.model), self.model
        if not original:
            other, stays = stays, other
        other.to(torch.float64)
        if self.is_wrapped():
            for head in engine_of(other).parameters():  # which stay in float32
                head.data.zero_()
            tp.unwrap(other)
        self.model = stays
        self.forward(ragged, labels=False)

    # -- generate --------------------------------------------------------------------------------

    def words(self, model: Any, batch: Batch, **arguments: Any) -> list[list[int]]:
        arguments = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": PAD, **arguments}
        ids = model.generate(**batch, **arguments)
        return [answer(row) for row in ids[:, batch["input_ids"].shape[1] :].tolist()]

    @rule(ragged=RAGGED, beams=st.sampled_from([1, 1, 3]))
    def generate(self, ragged: Ragged, beams: int) -> None:
        batch = ragged.batch("left", self.plain.dtype)
        fresh = self.plain.fresh(self.model)
        words = self.words(self.model, batch, num_beams=beams)
        assert words == self.words(fresh, batch, num_beams=beams), "not what a fresh model says"
        if beams > 1 or self.plain.merges or self.plain.dtype != torch.float32:
            return
        reference, alive = Reference(self.plain.twin), self.plain.alive(self.model, batch)
        for n in range(len(words)):
            there = batch["attention_mask"][n].bool()
            embeds = reference.embed(row_alone(batch, n))
            assert_best(reference, embeds, alive[:, n, there], words[n])

    @precondition(lambda self: CHUNKED_PREFILL and self.draws_nothing())
    @rule(ragged=RAGGED, size=st.integers(1, 60))
    def generate_in_chunks(self, ragged: Ragged, size: int) -> None:
        """The words without chunks, or a refusal."""
        batch = ragged.batch("left", self.plain.dtype)
        fresh = self.plain.fresh(self.model)
        try:
            words = self.words(self.model, batch, prefill_chunk_size=size)
        except Exception as error:
            if not self.plain.prunes:
                with pytest.raises(type(error)):
                    self.words(fresh, batch, prefill_chunk_size=size)
            else:
                assert_sentence(error)
            return
        if not self.plain.prunes:
            assert words == self.words(fresh, batch, prefill_chunk_size=size)
        elif words != self.words(fresh, batch):
            rounding = at_a_tie(lambda some: self.words(fresh, some), batch, list.__eq__)
            assert rounding, f"{words}, without chunks {self.words(fresh, batch)}"

    @rule(ragged=RAGGED, seed=st.integers(0, 9))
    def second_turn(self, ragged: Ragged, seed: int) -> None:
        """A question on the first answer's cache, as a fresh model answers it."""
        batch = ragged.batch("left", self.plain.dtype)
        fresh = self.plain.fresh(self.model)
        rows = len(ragged.prompts)
        question = make_batch([(3,)] * rows, seed=seed)["input_ids"]

        def both_turns(model: Any) -> list[list[int]]:
            asked = {"max_new_tokens": STEPS, "do_sample": False, "pad_token_id": PAD}
            first = model.generate(**batch, **asked, return_dict_in_generate=True)
            ids = torch.cat([first.sequences, question], dim=1)
            mask = grown(batch["attention_mask"], ids.shape[1] - batch["input_ids"].shape[1])
            second = {"input_ids": ids, "attention_mask": mask}
            return self.words(model, second, **on_cache(model, cache_of(first)))

        assert both_turns(self.model) == both_turns(fresh), "not what a fresh model says"

    # -- on a cache ------------------------------------------------------------------------------

    @rule(ragged=RAGGED)
    def begin_talk(self, ragged: Ragged) -> None:
        batch = ragged.batch(dtype=self.plain.dtype)
        with torch.no_grad():
            out = prefill(self.model, batch, output_hidden_states=True)
        rows = self.plain.rows(self.model, batch, out)
        mask = batch["attention_mask"]
        self.plain.assert_logits(out.logits, rows, mask)
        whole = mask.shape[1] if self.plain.dropped_nothing(self.model, batch) else 0
        self.talks.append(Conversation(cache_of(out), mask, rows, whole))

    def go_on(self, talk: Conversation, new: Batch) -> None:
        """A forward on the cache with new tokens, the same number in each row."""
        seen, (_, count) = talk.cache.get_seq_length(), new["input_ids"].shape
        mask = grown(talk.mask, count)
        extra = {name: new[name] for name in ("pixel_values",) if name in new}
        try:
            with torch.no_grad():
                out = step(
                    self.model,
                    new["input_ids"],
                    mask,
                    talk.cache,
                    output_hidden_states=True,
                    **extra,
                )
        except REFUSALS as error:
            if not talk.doubtful:
                raise  # without a reason
            assert_sentence(error)
            assert talk.cache.get_seq_length() == seen, "written to before it was refused"
            self.talks = [other for other in self.talks if other is not talk]
            return
        fresh_rows = self.plain.rows(self.model, new, out)
        if talk.rows is not None and fresh_rows is not None:
            both = zip(talk.rows, fresh_rows, strict=True)
            talk.rows = [row.add(more) for row, more in both]
        else:
            talk.rows = None
        talk.mask = mask
        self.plain.assert_logits(out.logits, talk.rows, mask[:, -count:])
        talk.whole = talk.whole + count if self.plain.dropped_nothing(self.model, new) else 0

    @precondition(has_talks)
    @rule(data=st.data(), count=st.integers(1, 3), seed=st.integers(0, 9))
    def say_words(self, data: st.DataObject, count: int, seed: int) -> None:
        talk = data.draw(st.sampled_from(self.talks))
        self.go_on(talk, make_batch([(count,)] * len(talk.mask), seed=seed))

    @precondition(has_talks)
    @rule(data=st.data(), prompt=prompts(image=True), seed=st.integers(0, 9))
    def show_another_image(self, data: st.DataObject, prompt: tuple, seed: int) -> None:
        talk = data.draw(st.sampled_from(self.talks))
        if talk.mask.shape[1] < MOST_SEEN:
            rows = len(talk.mask)
            self.go_on(talk, make_batch([prompt] * rows, dtype=self.plain.dtype, seed=seed))

    @precondition(has_talks)
    @rule(data=st.data())
    def deepcopy_cache(self, data: st.DataObject) -> None:
        self.talks.append(copy.deepcopy(data.draw(st.sampled_from(self.talks))))

    @precondition(has_talks)
    @rule(data=st.data(), tokens=st.integers(1, 6))
    def crop(self, data: st.DataObject, tokens: int) -> None:
        """Right where all layers have the tokens that go, else right or refused."""
        talk = data.draw(st.sampled_from(self.talks))
        gone = talk.mask[:, -tokens:].sum(dim=1)
        if (talk.mask.sum(dim=1) <= gone).any():
            return
        talk.cache.crop(-tokens)
        talk.doubtful |= tokens > talk.whole
        talk.whole = max(talk.whole - tokens, 0)
        talk.mask = talk.mask[:, :-tokens]
        if talk.rows is not None:
            talk.rows = [row.without(int(n)) for row, n in zip(talk.rows, gone, strict=True)]
        self.go_on(talk, make_batch([(1,)] * len(talk.mask)))

    @precondition(lambda self: REORDERED_CACHE and self.has_talks())
    @rule(data=st.data(), how=st.sampled_from(["reorder", "select", "repeat"]))
    def other_rows(self, data: st.DataObject, how: str) -> None:
        """Right or refused; right in any case where nothing was dropped."""
        talk = data.draw(st.sampled_from(self.talks))
        count = len(talk.mask)
        if how == "repeat":
            index = torch.arange(count).repeat_interleave(2)
            talk.cache.batch_repeat_interleave(2)
        else:
            any_row, most = st.integers(0, count - 1), count if how == "select" else None
            index = torch.tensor(
                data.draw(st.lists(any_row, min_size=1 if most else count, max_size=count))
            )
            if how == "select":
                talk.cache.batch_select_indices(index)
            else:
                talk.cache.reorder_cache(index)
        talk.doubtful |= talk.whole < talk.mask.shape[1]
        talk.mask = talk.mask[index]
        if talk.rows is not None:
            talk.rows = [talk.rows[n] for n in index.tolist()]
        self.go_on(talk, make_batch([(1,)] * len(index)))


TestStateMachine = Machine.TestCase
TestStateMachine.settings = settings(
    max_examples=max(settings().max_examples // 2, 1), stateful_step_count=30
)
