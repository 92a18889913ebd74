"""ATP's loss: the budget's terms, their weights, and rows that do not count."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.methods.atp.loss import TargetLoss, atp_loss
from tokenprune.methods.context import Trace

from .support.tiny_llava import IMAGE, VISUAL_TOKENS, make_batch, tiny_llava
from .support.training import LAYERS, PROMPTS, atp_llava, labelled


def kept_by_layer(counts, visual, layers, num_layers):
    """Visual tokens on which each layer computes, written out."""
    per_layer, now, left = [], visual, dict(zip(layers, counts, strict=True))
    for layer in range(num_layers):
        per_layer.append(now)
        now = left.get(layer, now)
    return per_layer


@pytest.mark.parametrize(("counts", "expected"), [((106, 81, 19), 135), ((143, 109, 21), 156)])
def test_the_paper_s_mean_over_all_layers(counts, expected):
    trace = Trace(torch.tensor([576.0]), torch.tensor(counts)[:, None] * 1.0, (3, 13, 23), 32)
    assert round(float(trace.mean_tokens())) == expected


@st.composite
def traces(draw):
    num_layers = draw(st.integers(2, 12))
    layers = tuple(sorted(draw(st.sets(st.integers(0, num_layers - 2), min_size=1))))
    visual = draw(st.lists(st.sampled_from((0, 36, 72)), min_size=1, max_size=3))
    if not any(visual):
        visual[0] = 36
    share = st.floats(0, 1)
    counts = [[draw(share) * v for v in visual] for _ in layers]
    return Trace(torch.tensor(visual) * 1.0, torch.tensor(counts), layers, num_layers)


@given(trace=traces(), target=st.floats(0.1, 0.9))
def test_loss_terms_by_hand(trace, target):
    rows = [b for b, v in enumerate(trace.visual_tokens) if v > 0]
    visual = trace.visual_tokens.tolist()
    means, costs = [], []
    for b, counts in enumerate(trace.counts.T.tolist()):
        per_layer = kept_by_layer(counts, visual[b], trace.layers, trace.num_layers)
        means.append(sum(per_layer) / trace.num_layers)
        depths = zip(counts, trace.layers, strict=True)
        costs.append(sum(n / max(visual[b], 1) * (layer + 1) for n, layer in depths))
    torch.testing.assert_close(trace.mean_tokens(), torch.tensor(means))
    atp = sum(costs[b] for b in rows) / len(rows)
    assert float(atp_loss(trace)) == pytest.approx(atp, rel=1e-5, abs=1e-5)
    excess = [means[b] - target * visual[b] for b in rows]
    tokens = abs(sum(excess) / len(rows))
    assert float(TargetLoss(target, "tokens")(trace)) == pytest.approx(tokens, rel=1e-4, abs=1e-4)
    shares = [e / visual[b] for e, b in zip(excess, rows, strict=True)]
    share = abs(sum(shares) / len(rows))
    assert float(TargetLoss(target, "share")(trace)) == pytest.approx(share, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("unit", ["share", "tokens"])
def test_the_loss_is_its_terms_with_their_weights(unit):
    model = atp_llava(atp_weight=0.3, target_weight=1.7, target_unit=unit, training="soft").train()
    batch = labelled()
    out = model(**batch)
    terms = tp.losses(model)
    assert set(terms) == {"lm", "atp", "target", "total"}
    assert out.loss is terms["total"]
    expected = terms["lm"] + 0.3 * terms["atp"] + 1.7 * terms["target"]
    torch.testing.assert_close(out.loss, expected)
    assert terms["atp"] > 0
    assert terms["target"] > 0
    lm = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(terms["lm"], lm)
    as_tuple = model(**batch, return_dict=False)
    torch.testing.assert_close(as_tuple[0], out.loss)


def test_the_target_s_unit_is_tokens_or_their_share():
    found = {}
    for unit in ("share", "tokens"):
        model = atp_llava(target_unit=unit).train()
        model(**labelled())
        found[unit] = tp.losses(model)["target"].item()
    assert found["tokens"] == pytest.approx(found["share"] * VISUAL_TOKENS, rel=1e-5)
    assert found["share"] > 0.01


def test_the_mean_that_training_counts_is_the_one_stats_report():
    model = atp_llava(target_unit="tokens", target_tokens=13.0).train()
    model(**labelled())
    counted = tp.stats(model).mean_tokens
    assert tp.losses(model)["target"].item() == pytest.approx(abs(counted - 13), abs=1e-4)
    assert LAYERS[0] + 1 < counted / VISUAL_TOKENS * 6 < 6, "nothing pruned, or everything"


def test_without_labels_the_budget_s_terms_are_there():
    model = atp_llava().train()
    assert model(**make_batch(PROMPTS)).loss is None
    terms = tp.losses(model)
    assert set(terms) == {"atp", "target"}
    terms["target"].backward()
    assert all(p.grad.abs().max() > 0 for p in engine_of(model).parameters())


def test_losses_before_any_training_forward_say_what_to_do():
    model = atp_llava()
    model(**make_batch(PROMPTS))
    with pytest.raises(RuntimeError, match=r"model\.train\(\)"):
        tp.losses(model)


def test_rows_without_an_image_do_not_count_in_the_budget():
    model = atp_llava().train()
    alone = labelled(((4, IMAGE, 6),))
    model(**alone)
    expected = tp.losses(model)
    mixed = {name: value.clone() for name, value in alone.items()}
    words = torch.full_like(alone["input_ids"], 7)
    mixed["input_ids"] = torch.cat([alone["input_ids"], words])
    mixed["attention_mask"] = torch.ones_like(mixed["input_ids"])
    mixed["labels"] = torch.cat([alone["labels"], words])
    out = model(**mixed)
    assert out.loss.isfinite()
    for name in ("atp", "target"):
        torch.testing.assert_close(tp.losses(model)[name], expected[name], rtol=1e-4, atol=1e-5)
    out.loss.backward()
    assert all(p.grad.isfinite().all() for p in engine_of(model).parameters())


def test_a_batch_of_text_alone_has_the_plain_loss():
    batch = labelled(((9,), (5,)))
    plain = tiny_llava().train()(**batch).loss
    torch.testing.assert_close(atp_llava().train()(**batch).loss, plain, rtol=0, atol=0)


def test_a_batch_of_text_alone_can_be_stepped_through():
    """In a mixed data set some batches have no image: no gradient, but no error either."""
    model = atp_llava()
    heads = tp.train_only_heads(model.train())
    model(**labelled()).loss.backward()
    batch = labelled([(6,), (4,)])
    out = model(**batch)
    model.zero_grad()
    out.loss.backward()
    assert all(not head.grad.any() for head in heads)
    assert set(tp.losses(model)) == {"lm", "total"}
    assert torch.equal(tp.losses(model)["lm"], out.loss)


@pytest.mark.parametrize("training", ["soft", "straight_through"])
def test_answers_do_not_move_the_masks(training):
    model = atp_llava(training=training).train()
    batch = labelled(((4, IMAGE, 6),))
    model(**batch)
    terms, kept = tp.losses(model), tp.stats(model).kept
    other = {**batch, "input_ids": batch["input_ids"].clone()}
    other["input_ids"][:, -2:] = 5
    other["labels"] = other["input_ids"].where(batch["labels"] != -100, batch["labels"])
    assert not torch.equal(batch["input_ids"], other["input_ids"])
    model(**other)
    assert (tp.stats(model).kept == kept).all()
    torch.testing.assert_close(tp.losses(model)["atp"], terms["atp"], rtol=1e-6, atol=0)
