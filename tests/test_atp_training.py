"""Training: soft masks and their limit, the budget's loss, gradients, and who is changed."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.engine.masks import soften
from tokenprune.methods.atp.loss import atp_loss, target_loss
from tokenprune.methods.context import Trace

from .support.tiny_llava import IMAGE, VISUAL_TOKENS, is_text, make_batch, tiny_llava, with_labels
from .support.wrapping import wrapped_llava

LAYERS = (1, 3)
PROMPTS = ((4, IMAGE, 6), (2, IMAGE, 9))


def atp_llava(device="cpu", attn="sdpa", dtype=torch.float32, seed=0, **options):
    config = tp.ATPConfig(**{"layers": LAYERS, "target_tokens": 18.0, **options})
    return wrapped_llava(config, seed, attn=attn, dtype=dtype, device=device)


def labelled(prompts=PROMPTS, **options):
    return with_labels(make_batch(prompts, **options), answer=2)


def kept_by_layer(counts, visual, layers, num_layers):
    """Visual tokens on which each layer computes, written out."""
    per_layer, now, left = [], visual, dict(zip(layers, counts, strict=True))
    for layer in range(num_layers):
        per_layer.append(now)
        now = left.get(layer, now)
    return per_layer


# -- the loss ------------------------------------------------------------------------------------


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
    assert float(target_loss(trace, target, "tokens")) == pytest.approx(tokens, rel=1e-4, abs=1e-4)
    shares = [e / visual[b] for e, b in zip(excess, rows, strict=True)]
    share = abs(sum(shares) / len(rows))
    assert float(target_loss(trace, target, "share")) == pytest.approx(share, rel=1e-4, abs=1e-6)


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


# -- soft and hard -------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("training", ["soft", "straight_through"])
@pytest.mark.parametrize(("seed", "layers"), [(0, (1, 3)), (1, (0, 2, 4)), (2, (0,))])
def test_the_limit_of_a_hard_mask_is_dropping(device, training, padding, attn, seed, layers):
    sharp = {"temperature": 1e9, "floor": 1e-30, "layers": layers}
    model = atp_llava(device, attn, seed=seed, training=training, **sharp)
    batch = make_batch(((4, IMAGE, 6), (2, IMAGE, 3, IMAGE, 5)), padding, device, seed=seed)
    text = is_text(batch)
    with torch.no_grad():
        hard = model(**batch).logits[text]
        kept = tp.stats(model).kept
        with tp.paused(model):
            full = model(**batch).logits[text]
    assert (kept[-1] < kept[0]).all()
    assert (hard - full).abs().max() > 0.1, "dropping changed nothing: nothing is compared"
    model.train()
    soft = model(**batch).logits[text].detach()
    assert (tp.stats(model).kept == kept).all()
    torch.testing.assert_close(soft, hard, rtol=1e-3, atol=1e-3)


def test_the_floor_leaks_little_and_less_the_lower_it_is():
    batch = make_batch(PROMPTS)
    text = is_text(batch)
    leaks = []
    for floor in (1e-3, 1e-5, 1e-8):
        model = atp_llava(floor=floor, training="straight_through")
        with torch.no_grad():
            hard = model(**batch).logits[text]
        soft = model.train()(**batch).logits[text].detach()
        leaks.append(float((soft - hard).abs().max()))
    assert leaks[0] > leaks[1] > leaks[2]
    assert leaks[2] < 1e-3 < leaks[0]


def test_a_soft_mask_is_neither_everything_nor_dropping():
    batch = make_batch(PROMPTS)
    text = is_text(batch)
    model = atp_llava(training="soft", temperature=3.0)
    with torch.no_grad():
        hard = model(**batch).logits[text]
        with tp.paused(model):
            full = model(**batch).logits[text]
    soft = model.train()(**batch).logits[text].detach()
    assert (soft - hard).abs().max() > 0.01
    assert (soft - full).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
@given(seed=st.integers(0, 999), length=st.integers(1, 9))
def test_a_soft_key_counts_as_a_factor_but_fully_to_itself(kind, seed, length):
    """A'[i, j] ∝ exp(logit[i, j])·G[i, j], G the mask off the diagonal and 1 on it."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 1, length, length, generator=generator)
    weight = torch.rand(2, length, generator=generator) * 1.2 - 0.2  # some below the floor
    visible = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    lowest = torch.finfo(torch.float32).min
    mask = {"none": None, "bool": visible, "float": torch.zeros(1).where(visible, lowest)}[kind]
    factor = weight.clamp(min=1e-3)[:, None, None, :].expand(2, 1, length, length).clone()
    factor.diagonal(dim1=-2, dim2=-1).fill_(1.0)
    expected = logits.exp() * factor * visible
    expected = expected / expected.sum(dim=-1, keepdim=True)
    bias = soften(mask, weight, 1e-3, torch.float32)
    torch.testing.assert_close((logits + bias).softmax(dim=-1), expected)


@pytest.mark.parametrize("training", ["soft", "straight_through"])
def test_masks_of_successive_modules_multiply(monkeypatch, training):
    model = atp_llava(training=training, layers=(0, 2, 4), start_redundant=-0.5).train()
    method = engine_of(model).method
    masks, weights, traces = [], [], []
    select, losses = method.select, method.losses

    def spy_select(context):
        selection = select(context)
        masks.append(selection.mask * context.layout.mask)
        weights.append(context.weight)
        return selection

    def spy_losses(trace):
        traces.append(trace)
        return losses(trace)

    monkeypatch.setattr(method, "select", spy_select)
    monkeypatch.setattr(method, "losses", spy_losses)
    model(**make_batch(PROMPTS))
    product = torch.ones_like(masks[0])
    for n, mask in enumerate(masks):
        if n:
            torch.testing.assert_close(weights[n], product, rtol=1e-5, atol=1e-6)
        product = product * mask
        torch.testing.assert_close(traces[0].counts[n], product.sum(dim=1), rtol=1e-5, atol=1e-5)
    assert 0 < product.sum() < masks[0].sum() < 2 * VISUAL_TOKENS


# -- gradients -----------------------------------------------------------------------------------

# A module behind one that drops everything has nothing to learn from.
GENTLE = {"start_redundant": -0.5}
OPTIONS = (
    {},
    {"normalisation": "minmax"},
    {"normalisation": "none", "start_redundant": -3.0},
    {"averaging": "all"},
    {"sources": ("self",)},
    {"sources": ("cross",)},
    {"prunings": ("redundant",), **GENTLE},
    {"prunings": ("spatial",), "start_spatial": 0.0},
    {"strides": (2,)},
    {"target_unit": "tokens"},
    {"grid": (3, 5), "hidden": 7},
    {"layers": (0, 1, 2, 3, 4), "target_tokens": 20.0, **GENTLE},
)


def check_gradients(model):
    for name, parameter in engine_of(model).named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("training", ["soft", "straight_through"])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o)) or "default")
def test_every_head_of_every_module_learns(device, training, options):
    model = atp_llava(device, training=training, **options).train()
    model(**labelled(device=device)).loss.backward()
    check_gradients(model)


@pytest.mark.parametrize("training", ["soft", "straight_through"])
def test_the_language_loss_alone_reaches_every_head(training):
    model = atp_llava(training=training).train()
    model(**labelled())
    tp.losses(model)["lm"].backward()
    check_gradients(model)


@pytest.mark.parametrize("training", ["soft", "straight_through"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_float32_heads(device, dtype, training, attn):
    model = atp_llava(device, attn, dtype, training=training).train()
    out = model(**labelled(device=device, dtype=dtype))
    assert out.logits.dtype == dtype
    assert out.loss.isfinite()
    out.loss.float().backward()
    check_gradients(model)


def test_autocast_leaves_the_thresholds_in_float32(device):
    model = atp_llava(device).train()
    batch = labelled(device=device)
    logits = []
    for heads in engine_of(model).method.thresholds:
        heads.register_forward_hook(lambda module, args, output: logits.append(output.detach()))
    with torch.autocast(device, torch.bfloat16):
        loss = model(**batch).loss
    found = torch.cat(logits)
    assert (found != found.bfloat16().float()).all(), "the logits have bfloat16's few digits"
    loss.backward()
    check_gradients(model)


def test_a_few_steps_move_the_mean_to_the_target():
    """Both from above and from below, and what is dropped at inference follows."""
    batch = make_batch(((4, IMAGE, 6), (2, IMAGE, 9), (3, IMAGE, 4)))
    for start, target in ((-2.0, 18.0), (2.0, 26.0)):
        model = atp_llava(start_redundant=start, target_tokens=target)
        parameters = tp.train_only_heads(model)
        optimiser = torch.optim.Adam(parameters, lr=0.02)

        def measured(model=model):
            model.eval()
            with torch.no_grad():
                model(**batch)
            model.train()
            return tp.stats(model).mean_tokens

        before = measured()
        assert abs(before - target) > 4, (start, before)
        for _ in range(40):
            optimiser.zero_grad()
            model(**batch)
            tp.losses(model)["target"].backward()
            optimiser.step()
        assert abs(measured() - target) < 1.5, (start, before, measured())


# -- who is changed ------------------------------------------------------------------------------


def test_only_heads_change():
    model = atp_llava()
    parameters = tp.train_only_heads(model)
    assert {id(p) for p in parameters} == {id(p) for p in engine_of(model).parameters()}
    assert all(p.requires_grad for p in parameters)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    optimiser = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        model(**labelled()).loss.backward()
        optimiser.step()
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        assert same != name.startswith("tokenprune."), name
    assert all(p.grad is None for n, p in model.named_parameters() if "tokenprune" not in n)


def test_unwrap_gives_requires_grad_back():
    model = tiny_llava()
    model.model.vision_tower.requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    assert len(set(before.values())) == 2
    tp.wrap(model, tp.ATPConfig(layers=LAYERS, target_tokens=18))
    for _ in range(2):  # the second call must not take frozen for what they were
        tp.train_only_heads(model)
        frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
        assert frozen == set(before)
    tp.unwrap(model)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before


def test_training_needs_a_wrapped_model_with_heads():
    with pytest.raises(ValueError, match=r"not wrapped.*tokenprune\.wrap"):
        tp.train_only_heads(tiny_llava())


def test_the_trainer_of_transformers_trains_the_heads(tmp_path):
    model = atp_llava()
    tp.train_only_heads(model)
    batch = labelled(((4, IMAGE, 6), (2, IMAGE, 8)))
    rows = [{name: value[n] for name, value in batch.items()} for n in range(2)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    result = trainer.train()
    assert result.global_step == 2
    assert math.isfinite(result.training_loss)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith("tokenprune."), name
