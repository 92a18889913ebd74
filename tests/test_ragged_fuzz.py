"""Every method, with drawn options, on ragged batches: invariants 2, 3, 4 and 5.

`make test` draws a few examples for each method, `make fuzz` hundreds. A row's kept sets may depend
on rounding where a score is at a threshold or two scores are equal. So a row that differs from
itself alone is left out, and counted, only if that row alone, a hundred-thousandth of noise added
to its pixels, differs from itself too: see `at_a_tie`.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.methods.selecting import at_step, token_counts

from .support.backends import BACKENDS
from .support.case_counts import count
from .support.config_strategies import drawn_configs, merges, merges_between_layers, swept_methods
from .support.ragged_batches import RAGGED, STEPS, Ragged, alive_of, answer, assert_best, at_a_tie
from .support.reference_decoder import Reference
from .support.strategies import model_of
from .support.tiny_llava import IMAGE, PAD, Batch, is_text, row_alone
from .support.tolerance import TOLERANCE, assert_close
from .support.wrapping import wrapped

# A third of the profile's examples for each method and property.
few = settings(max_examples=max(settings().max_examples // 3, 1))


def methods(but_random: str | None = None) -> pytest.MarkDecorator:
    """Sweep over the methods, with the reason why a random one is left out, if it is."""
    skip = pytest.mark.skip(reason=f"random draws: {but_random}")
    marks = {"random": [skip]} if but_random else {}
    return pytest.mark.parametrize(
        "method", [pytest.param(name, marks=marks.get(name, [])) for name in swept_methods()]
    )


@methods(but_random="a row of a batch is given other numbers than that row alone")
@few
@given(data=st.data(), ragged=RAGGED, attn=st.sampled_from(BACKENDS))
def test_a_row_of_a_batch_is_that_row_alone(
    method: str, data: st.DataObject, ragged: Ragged, attn: str
) -> None:
    config = data.draw(drawn_configs(method))
    batch = ragged.batch()
    count("batches")
    with wrapped(model_of(attn), config, ragged.seed) as model, torch.no_grad():
        logits = model(**batch).logits
        alive = alive_of(model, batch)

        def outcome(row: Batch) -> tuple[Tensor, Tensor]:
            out = model(**row).logits[0]
            assert out.isfinite().all()  # or nothing would be equal to itself
            there = alive_of(model, row)[:, 0]
            return there, out[there[-1]]

        for n in range(len(ragged.prompts)):
            row, there = row_alone(batch, n), batch["attention_mask"][n].bool()
            mine = alive[:, n, there]
            ours = mine, logits[n, there][mine[-1]]
            count("rows against themselves alone")
            if not same(ours, outcome(row)) and not at_a_tie(outcome, row, same):
                alone = outcome(row)
                assert torch.equal(mine, alone[0]), f"row {n} keeps other tokens than alone"
                assert_close(ours[1], alone[1], f"row {n}")


@few
@given(config=drawn_configs("random"), ragged=RAGGED)
def test_random_keeps_its_counts(config: MethodConfig, ragged: Ragged) -> None:
    """For each row a whole number next to the one asked for, or all there are."""
    assert isinstance(config, tp.RandomConfig)
    batch = ragged.batch()
    if "pixel_values" not in batch:
        return
    with wrapped(model_of(), config, ragged.seed) as model, torch.no_grad():
        model(**batch)
        stats = tp.stats(model)
    ends_in_image = torch.tensor([prompt[-1] == IMAGE for prompt in ragged.prompts])
    left = torch.from_numpy(stats.visual_tokens.copy())
    for step, layer in enumerate(config.layers or ()):
        kept = torch.from_numpy(stats.kept[layer + 1].copy())
        mean = at_step(config.mean_tokens, step)
        if mean is None:
            low = high = token_counts(at_step(config.keep, step), left)[:, 0]
        else:
            low, high = left.clamp(max=int(mean)), left.clamp(max=int(mean) + (mean % 1 > 0))
        # The last token stays whatever it is.
        assert (kept >= low).all()
        assert (kept <= high + ends_in_image).all()
        left = kept


def same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    """The same tokens, with the same logits."""
    if not torch.equal(ours[0], theirs[0]):
        return False
    error = (ours[1] - theirs[1]).norm() / theirs[1].norm()
    return bool(error <= TOLERANCE[theirs[1].dtype])


@methods()
@few
@given(data=st.data(), ragged=RAGGED, attn=st.sampled_from(BACKENDS))
def test_dropping_is_masking(method: str, data: st.DataObject, ragged: Ragged, attn: str) -> None:
    """With the method's own kept sets, of which it is only known that text stays."""
    config = data.draw(drawn_configs(method))
    batch = ragged.batch()
    with wrapped(model_of(attn), config, ragged.seed) as model, torch.no_grad():
        out = model(**batch, output_hidden_states=True)
        alive = alive_of(model, batch)
        reference = Reference(model)
        present, text = batch["attention_mask"].bool(), is_text(batch)
        if getattr(config, "text_threshold", None) is None:
            assert alive[:, text].all()
        assert not alive[:, ~present].any()
        assert out.logits.isfinite().all()
        if merges_between_layers(config):
            return
        for n in range(len(ragged.prompts)):
            row, there = row_alone(batch, n), present[n]
            mine = alive[:, n, there]
            embeds = reference.embed(row)
            if merges(config):
                embeds = out.hidden_states[0][n, there].to(embeds)
            wanted = reference.run(embeds, mine).logits
            count("rows against the masked reference")
            assert_close(out.logits[n, there][mine[-1]], wanted[mine[-1]], f"row {n}")


@methods()
@few
@given(data=st.data(), ragged=RAGGED, beams=st.sampled_from([1, 1, 2]))
def test_generate(method: str, data: st.DataObject, ragged: Ragged, beams: int) -> None:
    """Cached is uncached is each row alone; and each word is the best by the masked reference."""
    config = data.draw(drawn_configs(method))
    batch = ragged.batch("left")
    with wrapped(model_of(), config, ragged.seed) as model, torch.no_grad():

        def words(some: Batch, use_cache: bool = True) -> list[list[int]]:
            ids = model.generate(
                **some,
                max_new_tokens=STEPS,
                do_sample=False,
                num_beams=beams,
                use_cache=use_cache,
                pad_token_id=PAD,
            )[:, some["input_ids"].shape[1] :]
            return [answer(row) for row in ids.tolist()]

        cached = words(batch)
        alive = alive_of(model, batch)
        count("batches generated from")
        if beams == 1 and not (merges(config) or merges_between_layers(config)):
            for n in range(len(ragged.prompts)):
                row, there = row_alone(batch, n), batch["attention_mask"][n].bool()
                reference = Reference(model)
                assert_best(reference, reference.embed(row), alive[:, n, there], cached[n])
        if method == "random":
            return  # every forward, and so every uncached step, draws anew
        uncached = words(batch, use_cache=False)
        for n in range(len(ragged.prompts)):
            row = row_alone(batch, n)
            alone = words(row)[0]
            if not cached[n] == uncached[n] == alone and not at_a_tie(words, row, list.__eq__):
                assert cached[n] == uncached[n], f"row {n}: cached against uncached"
                assert cached[n] == alone, f"row {n}: of a batch against alone"
