"""Invariants 2, 4 and 6: dropping is masking, and nobody outside can tell the lengths."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tokenprune as tp

from .support.scripted_method import scripted
from .support.strategies import LAYERS, Case, cases, model_of, positions, reference_rows
from .support.tiny_llava import IMAGE, IMAGE_TOKEN, is_text, make_batch, tiny_llava, with_labels
from .support.tolerance import assert_close

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(case=cases(), own_positions=st.booleans())
def test_equals_the_masked_reference(
    device: str, attn: str, dtype: torch.dtype, case: Case, own_positions: bool
) -> None:
    model = model_of(attn, device, dtype)
    batch = case.batch(device, dtype)
    script = case.script()
    expected = reference_rows(model, batch, case.layers, script)
    if own_positions:
        batch["position_ids"] = positions(batch["attention_mask"])
    with torch.no_grad(), scripted(model, case.layers, script):
        out = model(**batch, output_hidden_states=True)
    length = batch["input_ids"].shape[1]
    assert out.logits.shape[:2] == (case.rows, length)
    assert len(out.hidden_states) == LAYERS + 1
    for n, (where, alive, row) in enumerate(expected):
        for layer in range(LAYERS + 1):
            hidden = out.hidden_states[layer][n]
            assert hidden.shape[0] == length
            there = alive[min(layer, LAYERS - 1)]
            wanted = row.inputs[layer] if layer < LAYERS else row.last
            assert_close(hidden[where][there], wanted[there], f"row {n}, hidden states {layer}")
            assert not hidden[where][~there].any()
        there = alive[-1]
        assert_close(out.logits[n][where][there], row.logits[there], f"row {n}, logits")


@pytest.mark.parametrize("keeps", [True, False])
@given(case=cases())
def test_layers_get_the_survivors_in_order_at_their_places(
    device: str, keeps: bool, case: Case
) -> None:
    """Of each row: first the survivors, each with the position it has always had, or anew."""
    model = model_of(device=device)
    batch = case.batch(device)
    batch["position_ids"] = positions(batch["attention_mask"])
    script = case.script()
    expected = reference_rows(model, case.batch(device), case.layers, script)
    given_to: dict[int, dict] = {}
    with torch.no_grad(), scripted(model, case.layers, script) as method:
        method.keeps_positions = keeps
        layers = model.model.language_model.layers
        handles = [
            layer.register_forward_pre_hook(
                lambda _, args, kwargs, n=n: given_to.update({n: {**kwargs, "hidden": args[0]}}),
                with_kwargs=True,
            )
            for n, layer in enumerate(layers)
        ]
        model(**batch)
        for handle in handles:
            handle.remove()
    assert sorted(given_to) == list(range(LAYERS))
    for n, got in given_to.items():
        pruned = not all(alive[n].all() for _, alive, _ in expected)
        most = max(int(alive[n].sum()) for _, alive, _ in expected)
        assert got["hidden"].shape[1] == (most if pruned else batch["input_ids"].shape[1])
        places = got["position_ids"].expand(case.rows, -1)
        cos, sin = (part.expand(case.rows, -1, -1) for part in got["position_embeddings"])
        for r, (where, alive, row) in enumerate(expected):
            want = alive[n].nonzero()[:, 0]
            slots = torch.arange(len(want), device=device) if pruned else where[want]
            if keeps:
                assert_close(got["hidden"][r, slots], row.inputs[n][want], f"layer {n}, row {r}")
            elif pruned:
                want = torch.arange(len(want), device=device)
            assert torch.equal(places[r, slots], want)
            rotary = model.model.language_model.rotary_emb(got["hidden"], want[None])
            assert torch.equal(cos[r, slots], rotary[0][0])
            assert torch.equal(sin[r, slots], rotary[1][0])


@given(case=cases(image=True))
def test_text_is_never_dropped(device: str, case: Case) -> None:
    model = model_of(device=device)
    batch = case.batch(device)
    text = is_text(batch).cpu().numpy()
    nothing = case.script().all(False)
    with torch.no_grad(), scripted(model, case.layers, nothing):
        model(**batch)
        stats = tp.stats(model)
    assert (stats.alive | ~text).all()
    padding = ~batch["attention_mask"].bool().cpu().numpy()
    assert not (stats.alive & padding).any()
    # Image tokens go, but for one that stands last: the next word is read off it.
    last_is_image = [prompt[-1] == IMAGE for prompt in case.prompts]
    assert stats.final_tokens.tolist() == [int(one) for one in last_is_image]


@given(case=cases(image=True))
def test_loss_lines_up_with_the_labels(device: str, attn: str, case: Case) -> None:
    model = model_of(attn, device)
    batch = with_labels(case.batch(device), 3)
    script = case.script()
    wanted = []
    for n, (where, _, row) in enumerate(reference_rows(model, batch, case.layers, script)):
        labels = batch["labels"][n][where]
        wanted.append(nn.functional.cross_entropy(row.logits[:-1], labels[1:], reduction="none"))
        wanted[-1] = wanted[-1][labels[1:] != -100]
    every = torch.cat(wanted)
    with torch.no_grad(), scripted(model, case.layers, script):
        out = model(**batch)
    if len(every):
        assert out.loss.item() == pytest.approx(every.mean().item(), rel=1e-4)


@given(case=cases(image=True), last=st.integers(1, 4))
def test_shapes_of_what_comes_out(device: str, case: Case, last: int) -> None:
    model = model_of(device=device)
    batch = with_labels(case.batch(device), 1)
    with torch.no_grad(), scripted(model, case.layers, case.script()):
        out = model(**batch)
        assert out.logits.shape[:2] == batch["input_ids"].shape
        plain = model(**batch, return_dict=False)
        assert isinstance(plain, tuple)
        assert torch.equal(plain[1], out.logits)
        assert (plain[0] == out.loss) | (plain[0].isnan() & out.loss.isnan())
        without = {name: value for name, value in batch.items() if name != "labels"}
        every = model(**without).logits
        few = model(**without, logits_to_keep=last).logits
    assert_close(few, every[:, -last:])


@given(case=cases(image=True))
def test_output_tuple_has_hidden_states_at_full_length(device: str, case: Case) -> None:
    model = model_of(device=device)
    batch = case.batch(device)
    with torch.no_grad(), scripted(model, case.layers, case.script()):
        named = model(**batch, output_hidden_states=True)
        plain = model(**batch, output_hidden_states=True, return_dict=False)
    hidden = next(part for part in plain if isinstance(part, tuple) and len(part) == LAYERS + 1)
    for ours, theirs in zip(hidden, named.hidden_states, strict=True):
        assert torch.equal(ours, theirs)


@given(case=cases(image=True))
def test_inputs_embeds(device: str, case: Case) -> None:
    """Image tokens are found by their embedding where there are no ids."""
    model = model_of(device=device)
    batch = case.batch(device)
    with torch.no_grad(), scripted(model, case.layers, case.script()):
        expected = model(**batch).logits
        ids = batch.pop("input_ids")
        assert (ids == IMAGE_TOKEN).any()
        embeds = model.get_input_embeddings()(ids)
        assert torch.equal(model(**batch, inputs_embeds=embeds).logits, expected)


def test_output_attentions(device: str, attn: str) -> None:
    """Eager gives each layer's map, over the tokens that it has."""
    model = model_of(attn, device)
    batch = make_batch([(3, IMAGE, 4)], device=device)
    script = torch.zeros(1, 1, 1, 6, 6, dtype=torch.bool)
    script[..., 0] = True
    with torch.no_grad(), scripted(model, (1,), script):
        expected = model(**batch).logits
        out = model(**batch, output_attentions=attn == "eager")
    assert torch.equal(out.logits, expected)
    if attn == "eager":
        sizes = [(a.shape[-2], a.shape[-1]) for a in out.attentions]
        assert sizes == [(43, 43)] * 2 + [(13, 13)] * (LAYERS - 2)


def test_older_hooks_see_what_the_next_layer_gets(device: str) -> None:
    """A hook that stood on a layer before the model was wrapped."""
    model = tiny_llava(layers=LAYERS, device=device)
    seen: list[torch.Tensor] = []

    def note(_: nn.Module, args: tuple, output: torch.Tensor) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    model.model.language_model.layers[1].register_forward_hook(note)
    script = torch.zeros(1, 1, 1, 6, 6, dtype=torch.bool)
    with torch.no_grad(), scripted(model, (1,), script):
        model(**make_batch([(3, IMAGE, 4)], device=device))
    assert [hidden.shape[1] for hidden in seen] == [7]
