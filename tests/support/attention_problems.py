"""Problems for the kernels that sum attention received: queries, keys, weights and masks."""

import torch
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MASKS = ("none", "bool", "float", "soft")


def make_mask(kind, shape, dtype, generator):
    """A causal mask with padding on the left of some rows, so that some queries see nothing."""
    batch, queries, keys = shape
    if kind == "none":
        return None
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    padding = torch.randint(0, keys + 1, (batch, 1, 1, 1), generator=generator)
    visible = causal & (torch.arange(keys) >= padding)
    if kind == "bool":
        return visible
    bias = torch.zeros(batch, 1, queries, keys)
    if kind == "soft":
        bias = torch.rand(batch, 1, 1, keys, generator=generator).clamp(min=1e-4).log()
        bias = bias.expand(batch, 1, queries, keys)
    return bias.masked_fill(~visible, torch.finfo(dtype).min).to(dtype)


@st.composite
def problems(draw):
    batch, kv_heads, repeats = (draw(st.integers(1, 3)) for _ in range(3))
    queries = draw(st.integers(1, 20))
    keys = queries + draw(st.sampled_from((0, 1, 7)))
    width = draw(st.sampled_from((4, 6, 16)))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    heads = kv_heads * repeats
    weights = torch.rand(batch, draw(st.integers(1, 3)), queries, generator=generator)
    return {
        "query": 2 * torch.randn(batch, heads, queries, width, generator=generator).to(dtype),
        "key": 2 * torch.randn(batch, kv_heads, keys, width, generator=generator).to(dtype),
        "weights": weights * (weights > draw(st.sampled_from((0.0, 0.5, 1.0)))),
        "mask": make_mask(draw(st.sampled_from(MASKS)), (batch, queries, keys), dtype, generator),
        "scaling": draw(st.sampled_from((None, 0.1, 1.0))),
        "softcap": draw(st.sampled_from((None, 3.0))),
    }


def with_lse(problem):
    """The problem with what an attention kernel would leave."""
    query, key, mask = (problem[name] for name in ("query", "key", "mask"))
    heads, queries, width = query.shape[1:]
    shared, keys = heads // key.shape[1], key.shape[2]
    scaling = width**-0.5 if problem["scaling"] is None else problem["scaling"]
    logits = query.double() @ key.double().repeat_interleave(shared, 1).transpose(2, 3) * scaling
    if problem["softcap"] is not None:
        logits = (logits / problem["softcap"]).tanh() * problem["softcap"]
    if mask is None:
        mask = torch.ones(1, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    if mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, -torch.inf)
    else:
        logits = logits + mask.double()
    return {**problem, "lse": logits.logsumexp(dim=-1).float()}


def on(device, problem):
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in problem.items()}
