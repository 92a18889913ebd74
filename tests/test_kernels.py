"""Attention received: the blockwise version against the definition, and that against a model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

import tokenprune.kernels.room as room
from tokenprune.kernels import attention_received_reference, chunked
from tokenprune.kernels.chunked import attention_received

from .support.attention_problems import DTYPES, MASKS, make_mask, on, problems, with_lse
from .support.tiny_llava import llama_config

# Inputs are read in float32 whatever their dtype, so one tolerance holds for all: float32's.
TOLERANCE = {"rtol": 1e-5, "atol": 2e-7}


def asked_about(problem, seed):
    """The problem, asked about a stretch of each row's keys."""
    generator = torch.Generator().manual_seed(seed)
    batch, _, keys, _ = problem["key"].shape
    ends = torch.randint(0, keys + 1, (2, batch, 1), generator=generator).sort(dim=0).values
    places = torch.arange(keys)
    wanted = (places >= ends[0]) & (places < ends[1])
    return {**problem, "wanted": wanted & (torch.rand(batch, keys, generator=generator) < 0.8)}


@settings(max_examples=150, deadline=None)
@given(
    problem=problems(),
    rows=st.integers(1, 9),
    most=st.integers(1, 9),
    has_lse=st.booleans(),
    seed=st.none() | st.integers(0, 999),
)
def test_blocks_give_what_the_definition_gives(device, problem, rows, most, has_lse, seed):
    problem = on(device, with_lse(problem) if has_lse else problem)
    asked = problem if seed is None else on(device, asked_about(problem, seed))
    batch, heads = problem["query"].shape[:2]
    with pytest.MonkeyPatch.context() as patch:
        keys = problem["key"].shape[2]
        patch.setattr(chunked, "_ROWS", most)
        patch.setattr(room, "_TILE_BYTES", 4 * heads * keys * rows)
        patch.setattr(room, "_ELSEWHERE", 4 * batch * heads * keys * rows)
        found = attention_received(**asked)
    expected = attention_received_reference(**problem)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert ours.isfinite().all()
        if "wanted" in asked and ours is found[0]:
            theirs = torch.where(asked["wanted"][:, None], theirs, ours.double())
        torch.testing.assert_close(ours.double(), theirs, **TOLERANCE)


def test_sums_of_logits_without_the_softcap_are_not_read(device):
    query, key = (torch.randn(1, 2, 7, 8, device=device) for _ in range(2))
    weights = torch.rand(1, 1, 7, device=device)
    found = attention_received(query, key, weights, softcap=2.0, lse=query.new_zeros(1, 2, 7))
    assert torch.equal(found[0], attention_received(query, key, weights, softcap=2.0)[0])


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_that_sees_nothing_gives_no_nan(device, kind, dtype):
    generator = torch.Generator().manual_seed(3)
    mask = make_mask(kind, (2, 6, 6), dtype, generator)
    if mask is not None:
        mask[:, :, :3] = False if kind == "bool" else torch.finfo(dtype).min
    query, key = (torch.randn(2, 4, 6, 8, generator=generator).to(dtype) for _ in range(2))
    weights = torch.ones(2, 1, 6)
    problem = on(device, {"query": query, "key": key, "weights": weights, "mask": mask})
    for kernel in (attention_received, attention_received_reference):
        received, seen_by = kernel(**problem)
        assert received.isfinite().all()
        assert seen_by.isfinite().all()
        if mask is not None:
            assert seen_by.max() <= 3, "a query that sees nothing was counted as seeing"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", MASKS)
def test_autocast_changes_nothing(device, kind, dtype):
    generator = torch.Generator().manual_seed(5)
    query, key = (torch.randn(2, 4, 6, 8, generator=generator) for _ in range(2))
    mask = make_mask(kind, (2, 6, 6), torch.float32, generator)
    problem = {"query": query, "key": key, "weights": torch.ones(2, 1, 6), "mask": mask}
    problem = on(device, problem)
    expected = attention_received(**problem)
    with torch.autocast(device, dtype):
        found = attention_received(**problem)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_seen_by_counts_queries_by_their_weight():
    weights = torch.tensor([[[1.0, 0.0, 0.5]]])
    query, key = torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4)
    received, seen_by = attention_received(query, key, weights)
    assert seen_by.tolist() == [[[1.5, 0.5, 0.5]]]
    # Zero logits: each query spreads itself evenly over what it sees.
    expected = torch.tensor([[[1 + 0.5 / 3, 0.5 / 3, 0.5 / 3]]])
    torch.testing.assert_close(received, expected)


@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_attention_is_handed_out_whole(problem):
    received, _ = attention_received(**problem)
    weights, mask = problem["weights"], problem["mask"]
    if mask is not None:  # a query that sees nothing hands nothing out
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        weights = weights * visible[:, 0].any(dim=-1)[:, None]
    torch.testing.assert_close(received.sum(dim=2), weights.sum(dim=2), rtol=1e-5, atol=1e-5)


class Largest(TorchDispatchMode):
    """Bytes of the largest storage that was made inside."""

    def __init__(self, known):
        super().__init__()
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.known:
                    self.bytes = max(self.bytes, storage.nbytes())
        return out


class Products(TorchDispatchMode):
    """Counts the logits that were multiplied out inside."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.baddbmm.out:
            self.count += out.numel()
        return out


@pytest.mark.parametrize("kind", MASKS)
def test_what_nobody_asks_about_is_not_computed(kind):
    heads, length = 2, 200
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, length, 8, generator=generator) for _ in range(2))
    mask = make_mask(kind, (1, length, length), torch.float32, generator)
    lse = with_lse({"query": query, "key": key, "mask": mask, "scaling": None, "softcap": None})
    weights, wanted = torch.zeros(1, 2, length), torch.zeros(1, length, dtype=torch.bool)
    weights[0, 1, 150:153] = 1
    wanted[0, 20:90] = True
    with Products() as products:
        attention_received(query, key, weights, mask, lse=lse["lse"], wanted=wanted)
    assert products.count == heads * 3 * 70
    with Products() as products:
        attention_received(query, key, weights, mask, lse=lse["lse"], wanted=~wanted)
    assert products.count == heads * 3 * (200 if mask is not None else 153)
    with Products() as products:
        attention_received(query, key, 0 * weights, mask, lse=lse["lse"])
    assert products.count == 0
    if mask is None:  # queries before the first key that is asked about cannot see it
        wanted[:] = torch.arange(length) >= 130
        with Products() as products:
            attention_received(query, key, weights + 1, lse=lse["lse"], wanted=wanted)
        assert products.count < heads * 70 * 70


@pytest.mark.parametrize("kind", MASKS)
def test_the_full_map_is_never_there(kind):
    heads, length, rows = 8, 192, 5
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, heads, length, 8, generator=generator) for _ in range(2))
    weights = torch.ones(1, 2, length)
    mask = make_mask(kind, (1, length, length), torch.float32, generator)
    block = 4 * heads * length * rows
    given = [t for t in (query, key, weights, mask) if t is not None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_TILE_BYTES", block)
        with Largest(given) as largest:
            attention_received(query, key, weights, mask)
    inputs = max(t.untyped_storage().nbytes() for t in (query, key))
    assert 0 < largest.bytes <= max(block, inputs) < 4 * heads * length**2 / 10
    with Largest(given) as largest:
        attention_received_reference(query, key, weights, mask)
    assert largest.bytes >= 8 * heads * length**2, "the measurement itself sees nothing"


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config()).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("left", [0, 3])
def test_the_definition_is_the_attention_map_of_an_eager_model(llama, left):
    seen = []

    def spy(module, query, key, value, attention_mask, scaling, **kwargs):
        seen.append((query, key, attention_mask, scaling))
        return eager_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )

    AttentionInterface.register("spying_eager", spy)
    AttentionMaskInterface.register("spying_eager", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    ids = torch.randint(0, 32, (2, 11), generator=torch.Generator().manual_seed(1))
    attention_mask = torch.ones_like(ids)
    attention_mask[1, :left] = 0
    llama.set_attn_implementation("spying_eager")
    with torch.no_grad():
        maps = llama(ids, attention_mask=attention_mask, output_attentions=True).attentions
    assert len(maps) == len(seen) == 2
    assert max(m.std() for m in maps) > 0.05, "the maps are flat: nothing to compare"

    weights = torch.rand(2, 3, 11) * attention_mask[:, None]
    for attention, (query, key, mask, scaling) in zip(maps, seen, strict=True):
        received, seen_by = attention_received_reference(query, key, weights, mask, scaling)
        expected = torch.einsum("bnq,bhqk->bnk", weights, attention) / attention.shape[1]
        torch.testing.assert_close(received.float(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            seen_by.float(),
            torch.einsum("bnq,bqk->bnk", weights, (attention > 0).any(dim=1).float()),
        )
