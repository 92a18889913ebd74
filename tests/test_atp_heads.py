"""ATP's decision: score maps on a grid, thresholds, masks, and the hard choice."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokenprune import ATPConfig
from tokenprune.layout import VisualLayout
from tokenprune.methods.atp import ATP
from tokenprune.methods.atp.heads import ThresholdHeads, cells_of, lay_on_grid
from tokenprune.methods.atp.spatial import spatial_score
from tokenprune.methods.context import Context, Received

SIDE = 6
TOKENS = SIDE * SIDE


def make_context(seed, batch=2, text=5, drop=0.0, images=1):
    """Random attention on images among text; some tokens gone already."""
    generator = torch.Generator().manual_seed(seed)
    length = images * TOKENS + text
    mask = torch.zeros(batch, length, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(length, generator=generator)[: images * TOKENS]] = True
    layout = VisualLayout.from_grids(mask, SIDE, SIDE)
    gone = (torch.rand(mask.shape, generator=generator) < drop) & mask
    index = torch.arange(length).expand(batch, -1)
    layout = layout.gather(index, ~gone)

    def received():
        seen = torch.randint(1, 9, mask.shape, generator=generator).float()
        return Received(
            seen * torch.rand(mask.shape, generator=generator) * 2 / TOKENS,
            seen,
            torch.full((batch,), 9.0),
        )

    return Context(
        step=0,
        layer=1,
        layout=layout,
        weight=layout.mask.float(),
        prompt=~mask,
        text=torch.zeros_like(mask),
        received={"visual": received(), "prompt": received()},
        hidden_states=torch.zeros(batch, length, 4),
        positions=torch.arange(length).expand(batch, -1),
    )


def make_method(seed=0, **options):
    """Heads with weights large enough that thresholds differ between rows."""
    options = {"layers": (1, 3), "grid": (SIDE, SIDE), "target_tokens": 18.0, **options}
    torch.manual_seed(seed)
    method = ATP(ATPConfig(**options), visual_tokens=TOKENS)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return method


def set_shifts(method, redundant, spatial):
    """Shift the thresholds of every step alike."""
    method.shifts = [[redundant, spatial] for _ in method.config.layers]


def on_grid(values, layout, grid):
    return lay_on_grid(values, layout.mask, cells_of(layout, grid), grid)


def decide(method, context):
    return method.select(replace(context, memory=method.begin(context)))


# -- the heads -----------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 999),
    rows=st.integers(1, 8),
    cols=st.integers(1, 8),
    drop=st.sampled_from((0.0, 0.6)),
    images=st.integers(1, 2),
)
def test_a_cell_holds_the_mean_of_the_tokens_that_fall_into_it(seed, rows, cols, drop, images):
    layout = make_context(seed, drop=drop, images=images).layout
    values = torch.rand(layout.mask.shape, generator=torch.Generator().manual_seed(seed))
    found = on_grid(values, layout, (rows, cols))
    for b in range(2):
        cells = {}
        for t in layout.mask[b].nonzero()[:, 0].tolist():
            row, col = int(layout.row[b, t]), int(layout.col[b, t])
            cells.setdefault((row * rows // SIDE, col * cols // SIDE), []).append(values[b, t])
        expected = torch.zeros(rows, cols)
        for place, held in cells.items():
            expected[place] = torch.stack(held).mean()
        torch.testing.assert_close(found[b], expected)


def test_a_token_without_a_place_is_not_read():
    layout = VisualLayout.from_grids(torch.ones(1, 5, dtype=torch.bool), 2, 2, leading=1)
    found = on_grid(torch.tensor([[100.0, 1, 2, 3, 4]]), layout, (2, 2))
    assert found.tolist() == [[[1, 2], [3, 4]]]


def test_thresholds_start_where_the_configuration_says():
    heads = ThresholdHeads((SIDE, SIDE), 16, (0.3, -2.0))
    context = make_context(0)
    zeros = torch.zeros_like(context.weight)
    cells = cells_of(context.layout, (SIDE, SIDE))
    logits = heads(torch.stack([zeros, zeros]), context.layout.mask, cells)
    assert logits.shape == (2, 2)
    assert logits.dtype == torch.float32
    assert (logits - torch.tensor([0.3, -2.0])).abs().max() < 0.1


def test_heads_read_both_maps_and_each_place():
    method = make_method()
    heads, layout = method.thresholds[0], make_context(0).layout
    maps = [torch.rand(layout.mask.shape).requires_grad_() for _ in range(2)]
    cells = cells_of(layout, (SIDE, SIDE))
    heads(torch.stack(maps), layout.mask, cells).sum().backward()
    for m in maps:
        assert (m.grad[layout.mask] != 0).all()
        assert (m.grad[~layout.mask] == 0).all()


# -- what stays ----------------------------------------------------------------------------------

PRUNINGS = (("redundant",), ("spatial",), ("redundant", "spatial"))
seeds = st.integers(0, 9999)


@pytest.mark.parametrize("prunings", PRUNINGS)
@pytest.mark.parametrize("training", ["soft", "straight_through"])
@given(seed=seeds, drop=st.sampled_from((0.0, 0.4)))
def test_decision_and_masks_follow_the_formulas(prunings, training, seed, drop):
    method = make_method(seed, prunings=prunings, training=training, temperature=7.0)
    context = make_context(seed, drop=drop)
    selection = decide(method, context)
    theta_r, theta_s = selection.thresholds.T[:, :, None]
    score_r = selection.scores
    score_s = spatial_score(context.layout, method.config.strides, 3.0)
    hard = {"redundant": score_r > theta_r, "spatial": score_s > theta_s}
    soft = {
        "redundant": ((score_r - theta_r) * 7.0).sigmoid(),
        "spatial": ((score_s - theta_s) * 7.0).sigmoid(),
    }
    keep = torch.stack([hard[name] for name in prunings]).any(dim=0) & context.layout.mask
    assert torch.equal(selection.keep, keep)
    mask = torch.stack([soft[name] for name in prunings]).amax(dim=0)
    if training == "straight_through":
        mask = keep.float()
    torch.testing.assert_close(selection.mask, mask, rtol=1e-5, atol=1e-6)


@given(seed=seeds)
def test_straight_through_has_the_soft_mask_s_gradient(seed):
    gradients = {}
    context = make_context(seed)
    for training in ("soft", "straight_through"):
        method = make_method(seed, training=training)
        (decide(method, context).mask * context.weight).sum().backward()
        gradients[training] = [p.grad for p in method.thresholds[0].parameters()]
        assert all(p.grad is None for p in method.thresholds[1].parameters())
    assert any(g.abs().max() > 0 for g in gradients["soft"])
    for ours, theirs in zip(*gradients.values(), strict=True):
        assert torch.equal(ours, theirs)


shift = st.floats(-6, 6)


@given(seed=seeds, low=st.tuples(shift, shift), rise=st.tuples(st.floats(0, 6), st.floats(0, 6)))
def test_higher_thresholds_keep_a_subset(seed, low, rise):
    method, context = make_method(seed), make_context(seed)
    set_shifts(method, *low)
    many = decide(method, context)
    set_shifts(method, *(a + b for a, b in zip(low, rise, strict=True)))
    few = decide(method, context)
    assert (few.thresholds >= many.thresholds).all()
    assert (many.keep | ~few.keep).all()


def test_shifts_reach_all_and_nothing():
    method, context = make_method(), make_context(0)
    set_shifts(method, -40.0, -40.0)
    assert torch.equal(decide(method, context).keep, context.layout.mask)
    set_shifts(method, 40.0, 40.0)
    assert not decide(method, context).keep.any()


@given(seed=seeds, most=st.integers(1, TOKENS), drop=st.sampled_from((0.0, 0.5)))
def test_the_cap_keeps_the_largest_margins(seed, most, drop):
    method, context = make_method(seed), make_context(seed, drop=drop)
    free = decide(method, context)
    method.max_kept = most
    capped = decide(method, context)
    assert (free.keep | ~capped.keep).all()
    assert capped.keep.sum(1).tolist() == free.keep.sum(1).clamp(max=most).tolist()
    spatial = spatial_score(context.layout, method.config.strides, 3.0)
    margin = (torch.stack([free.scores, spatial]) - free.thresholds.T[:, :, None]).amax(dim=0)
    for b in range(2):
        left_out = margin[b][free.keep[b] & ~capped.keep[b]]
        if left_out.numel():
            assert left_out.max() <= margin[b][capped.keep[b]].min()


def test_ties_under_the_cap_fall_to_the_earlier_token():
    method = make_method(prunings=("spatial",), strides=(2,))
    set_shifts(method, 0.0, -40.0)
    method.max_kept = 4
    context = make_context(0, batch=1, text=0)
    # Nine tokens of the stride-2 grid share one margin above all others.
    assert decide(method, context).keep[0].nonzero()[:, 0].tolist() == [0, 2, 4, 12]


@pytest.mark.parametrize("normalisation", ["share", "mass", "minmax", "none"])
@pytest.mark.parametrize("averaging", ["visible", "all"])
@pytest.mark.parametrize("sources", [("self",), ("cross",), ("self", "cross")])
def test_every_option_gives_its_own_score(normalisation, averaging, sources):
    context = make_context(4)
    visual, prompt = context.received["visual"], context.received["prompt"]
    own = visual.total / (visual.seen_by if averaging == "visible" else visual.queries[:, None])
    cross = prompt.total / prompt.seen_by
    raw = torch.stack([{"self": own, "cross": cross}[name] for name in sources]).mean(dim=0)
    if normalisation == "share":
        raw = TOKENS * raw / (1 + TOKENS * raw)
    elif normalisation == "mass":
        below = (raw[:, None, :] <= raw[:, :, None]) & context.layout.mask[:, None, :]
        raw = (raw[:, None, :] * below).sum(-1) / (raw * context.layout.mask).sum(-1, keepdim=True)
    elif normalisation == "minmax":
        there = [row[m] for row, m in zip(raw, context.layout.mask, strict=True)]
        low = torch.stack([row.min() for row in there])[:, None]
        high = torch.stack([row.max() for row in there])[:, None]
        raw = (raw - low) / (high - low)
    method = make_method(normalisation=normalisation, averaging=averaging, sources=sources)
    found = decide(method, context).scores
    mask = context.layout.mask
    torch.testing.assert_close(found[mask], raw[mask])


def test_thresholds_differ_between_rows_and_modules_and_not_with_a_row_s_neighbours():
    method, context = make_method(), make_context(1, batch=3)
    first = decide(method, context).thresholds
    other = decide(method, replace(context, step=1)).thresholds
    assert (first - other).abs().min() > 1e-4
    assert (first[0] - first[1]).abs().min() > 1e-4
    received = {
        name: Received(r.total[1:2], r.seen_by[1:2], r.queries[1:2])
        for name, r in context.received.items()
    }
    alone = replace(
        context,
        layout=VisualLayout(
            **{k: v[1:2] for k, v in vars(context.layout).items() if k != "complete"}
        ),
        weight=context.weight[1:2],
        prompt=context.prompt[1:2],
        received=received,
        hidden_states=context.hidden_states[1:2],
        positions=context.positions[1:2],
    )
    torch.testing.assert_close(decide(method, alone).thresholds, first[1:2])


def test_a_nan_score_is_reported():
    context = make_context(0)
    context.received["visual"].total[0, context.layout.mask[0].nonzero()[0]] = float("nan")
    assert decide(make_method(), context).scores[0].isnan().any()


def test_runtime_state_goes_both_ways():
    method, other = make_method(), make_method()
    method.shifts, method.max_kept = [[0.5, -1.0], [0.25, 0.0]], 12
    method.budgets = [
        {"tokens": 9.0, "shifts": method.shifts, "max_kept": 12},
        {"share": 0.5, "shifts": method.shifts, "max_kept": None},
    ]
    other.load_runtime_state(method.runtime_state())
    assert other.runtime_state() == method.runtime_state()
    other.load_runtime_state({})
    assert other.runtime_state() == {"shifts": [[0.0, 0.0]] * 2, "max_kept": None, "budgets": []}


def test_an_unfinished_configuration_is_refused():
    with pytest.raises(ValueError, match="layers, grid and target_tokens"):
        ATP(ATPConfig(), visual_tokens=TOKENS)
