"""Explanations: the rule that they state gives the tokens that were kept, for every method."""

import numpy as np
import pytest
import torch
from hypothesis import given
from torch.utils._python_dispatch import TorchDispatchMode

import tokenprune as tp
from tokenprune.engine.record import Basis

from .families import FAMILIES
from .support.config_strategies import every_config, fixed_configs, swept_methods
from .support.explaining import check, check_row, read_positions
from .support.scripted_method import scripted
from .support.strategies import Case, cases, model_of
from .support.tiny_llava import IMAGE, SIDE, make_batch, with_labels
from .support.wrapping import wrapped, wrapped_llava

EVERY = [config for name in swept_methods() for config in fixed_configs(name)]
ATP = tp.ATPConfig(layers=(1, 3), target_tokens=18.0, start_spatial=0.9)
BATCH = make_batch(((4, IMAGE, 6), (2, IMAGE, 3)))


@pytest.mark.parametrize(
    "config", EVERY, ids=lambda config: f"{config.method}-{EVERY.index(config)}"
)
def test_every_method_is_explained(config):
    batch = make_batch(((4, IMAGE, 6), (5,), (2, IMAGE, IMAGE, 3)), seed=3)
    with wrapped(model_of(), config) as model, torch.no_grad():
        model(**batch)
        stats = tp.stats(model)
        check(model, stats)
        # The library's own methods all say what they decide by.
        names = [c.name for step in tp.explain(model, 2).steps for c in step.criteria]
        assert "the method's own rule" not in names


@given(config=every_config(), case=cases())
def test_any_configuration_on_any_batch(config, case):
    batch = case.batch()
    with wrapped(model_of(), config) as model, torch.no_grad():
        model(**batch)
        if "pixel_values" in batch:
            rows = range(case.rows)
            read = read_positions(batch)
            stats = tp.stats(model)
            for row in rows:
                # One row's last position is another's padding or middle.
                check_row(model, stats, row, read[row])


@pytest.mark.parametrize("revival", [False, True])
@pytest.mark.parametrize("cap", [None, 8])
def test_atp_says_which_pruning_kept_and_which_thresholds(revival, cap):
    model = wrapped_llava(tp.ATPConfig(**{**vars(ATP), "revival": revival}))
    model.tokenprune.method.max_kept = cap
    with torch.no_grad():
        model(**BATCH)
    stats = tp.stats(model)
    check(model, stats)
    for sample in range(2):
        for number, step in enumerate(tp.explain(model, sample).steps):
            assert [c.name for c in step.criteria] == ["redundant score", "spatial score"]
            assert [c.threshold for c in step.criteria] == stats.thresholds[number, sample].tolist()
            assert (step.criteria[1].scores[step.asked] > 0).any()
            assert set(step.attention) == {"visual", "prompt"}
            if cap is not None:
                assert step.kept.sum() == cap == step.max_kept or number
    said = repr(tp.explain(model)[0, 0])
    assert said.startswith("Token 0, image 0, frame 0, row 0, col 0: stays\n  after layer 1: stays")
    assert "spatial score 0.917 > 0.7" in said
    assert "attention received from the prompt's text 0." in said


def test_the_attention_is_what_the_layer_received():
    model = wrapped_llava(tp.FastVConfig(layer=1, keep=9), attn="eager")
    batch = make_batch(((4, IMAGE, 6),))
    with torch.no_grad():
        model(**batch)
        token = tp.explain(model)[2, 3]
        with tp.paused(model):
            maps = model(**batch, output_attentions=True).attentions[1]
    wanted = maps[0, :, -1].mean(dim=0)[token.position].item()
    (step,) = token.steps
    assert step.attention == {"last": pytest.approx(wanted, rel=1e-4)}
    assert step.criteria[0].score == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("cap", [None, 9])
def test_softened_passes_are_explained_and_keep_no_graph(cap):
    model = wrapped_llava(ATP).train()
    model.tokenprune.method.max_kept = cap
    output = model(**with_labels(BATCH, 3))
    check(model, tp.stats(model))
    tokens = map(tp.explain(model).token, range(36))
    assert {len(token.steps) for token in tokens if token.left == 1} == {1}
    for basis in model.tokenprune.latest.record.bases:
        assert not any(c.scores.requires_grad or c.threshold.requires_grad for c in basis.criteria)
    output.loss.backward()


def test_keeping_what_explains_a_pass_computes_nothing(monkeypatch):
    seen = []

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    real = Basis.of

    def watched(context, selection):
        with Watched():
            return real(context, selection)

    monkeypatch.setattr(Basis, "of", watched)
    for config in EVERY:
        with wrapped(model_of(), config) as model, torch.no_grad():
            model(**BATCH)
            assert model.tokenprune.latest.record.bases
    assert set(seen) <= {"aten.detach.default"}


def test_methods_of_others_are_explained_by_their_scores(registrations):
    @tp.register_method("hidden_norm")
    class HiddenNorm(tp.RankingMethod):
        def score(self, context):
            return context.hidden_states.norm(dim=-1).to(torch.bfloat16)

    class Odd(tp.Method):
        layers = (1,)

        def select(self, context):
            odd = context.layout.mask & (context.layout.col % 2 == 1)
            return tp.Selection(keep=odd, scores=context.layout.row.float())

    model = wrapped_llava(HiddenNorm.Config(layer=2, keep=7))
    with torch.no_grad():
        model(**BATCH)
    check(model, tp.stats(model))
    assert "7 of 36 stay; 7 by score among the 7 highest" in repr(tp.explain(model))
    model = wrapped_llava(Odd())
    with torch.no_grad():
        model(**BATCH)
    check(model, tp.stats(model))
    explanation = tp.explain(model)
    assert "18 of 36 stay; 18 by the method's own rule" in repr(explanation)
    assert "goes: the method's own rule 5, rank 1 of 36" in repr(explanation[5, 0])


@given(case=cases(image=True))
def test_tokens_that_come_back_left_when_they_last_did(case: Case):
    model = model_of()
    with torch.no_grad(), scripted(model, case.layers, case.script()) as _:
        model(**case.batch())
        read = read_positions(case.batch())
        stats = tp.stats(model)
        for row in range(case.rows):
            check_row(model, stats, row, read[row])
            visual = stats.visual[row]
            explanation = tp.explain(model, row)
            for n, alive in enumerate(stats.alive[:, row][:, visual].T):
                gone = len(alive) - 1 - alive[::-1].argmax() if alive.any() else -1
                assert explanation.token(n).left == (None if alive[-1] else gone)


def test_several_images_and_tokens_without_a_place():
    model = wrapped_llava(ATP)
    with torch.no_grad():
        model(**make_batch(((2, IMAGE, 1, IMAGE, 3),)))
    explanation = tp.explain(model)
    with pytest.raises(ValueError, match=r"several images.*explanation\.at\(row, col, image="):
        explanation[0, 0]
    token = explanation.at(2, 3, image=1)
    assert (token.image, token.row, token.col, token.number) == (1, 2, 3, 36 + 2 * SIDE + 3)


@pytest.mark.parametrize("name", ["llava_next", "qwen2_vl"])
def test_views_lines_ends_and_frames(name):
    """Tiles with newlines, which have no place; a video's frames."""
    family = FAMILIES[name]
    if not family.available():
        pytest.skip(f"this transformers has no {name}")
    model = family.build()
    sample = family.sample(model, images=1, seed=1, video=family.videos)
    tp.wrap(model, tp.ATPConfig())
    with torch.no_grad():
        model(**sample)
    stats = tp.stats(model)
    check(model, stats)
    explanation = tp.explain(model)
    frames = {(t["image"], t["frame"]) for t in explanation.to_dict()["tokens"]}
    assert len(frames) > 1
    for image, frame in frames:
        assert explanation.at(0, 0, image=image, frame=frame).frame == frame
    unplaced = (explanation.row < 0).nonzero()[0]
    assert bool(len(unplaced)) == (name == "llava_next")
    assert all("without a place" in repr(explanation.token(int(n))) for n in unplaced)


def test_what_is_not_there_is_refused():
    model = wrapped_llava(ATP)
    with pytest.raises(RuntimeError, match="run the model first"):
        tp.explain(model)
    with torch.no_grad():
        model(**BATCH)
    for sample in (-1, 2, 0.0, True, "0"):
        with pytest.raises(ValueError, match=r"sample=.*: expected 0 to 1, the rows"):
            tp.explain(model, sample)
    explanation = tp.explain(model)
    for place in (3, (1, 2, 3), "ab"):
        with pytest.raises(ValueError, match=r"expected a (row and a column|whole number)"):
            explanation[place]
    with pytest.raises(
        ValueError, match="no token at row=6, col=0, image=0, frame=0: the last are"
    ):
        explanation[6, 0]
    with pytest.raises(ValueError, match="expected 0 to 35"):
        explanation.token(36)
    with pytest.raises(ValueError, match="not wrapped"):
        tp.explain(tp.unwrap(model))


def test_another_batch_s_record_never_stands_for_one_that_failed_or_was_paused():
    model = wrapped_llava(ATP)
    for fails in (True, False):
        with torch.no_grad():
            model(**BATCH)
            tp.explain(model)
            if fails:
                broken = {**BATCH, "pixel_values": torch.full_like(BATCH["pixel_values"], np.nan)}
                with pytest.raises(FloatingPointError):
                    model(**broken)
            else:
                with tp.paused(model):
                    model(**BATCH)
        for ask in (tp.explain, tp.stats):
            with pytest.raises(RuntimeError, match="run the model first"):
                ask(model)


def test_a_text_only_prompt_leaves_the_record_and_has_nothing_to_explain():
    model = wrapped_llava(ATP)
    with torch.no_grad():
        model(**make_batch(((4, IMAGE, 6), (5,))))
        model(**make_batch(((9,),)))
    assert len(tp.explain(model, 0).position) == 36
    empty = tp.explain(model, 1)
    assert empty.to_dict()["tokens"] == []
    assert "0 visual tokens" in repr(empty)
