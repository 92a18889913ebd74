"""Vision towers: whose patches are the visual tokens, and which designs are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from tokenprune.adapters import adapter_for

import tokenprune as tp
from tokenprune import adapters

from .families import FAMILIES
from .families.base import release
from .families.sweep import Case, Patterned, built, cases, has_tower, logits, skipped
from .support.tolerance import assert_close
from .support.wrapping import hooks_of, wrapped


@pytest.mark.parametrize("name", ["llava", "llava_next", "llava_next-mistral", "vipllava"])
def test_the_towers_patches_are_the_tokens(name: str) -> None:
    """What the class token says of a patch is said of the token that the patch became."""
    family, model = FAMILIES[name], built(name)
    assert has_tower(model)

    @settings(max_examples=8, deadline=None)
    @given(case=cases(family))
    def drawn(case: Case) -> None:
        samples = case.samples(family, model)
        batch = family.join(model, samples, case.padding)
        method = Patterned((-1,), 2.0, case.seed)
        method.tower_layer = -1
        features = []
        handle = model.model.multi_modal_projector.register_forward_hook(
            lambda module, given, output: features.append(output.flatten(0, -2))
        )
        with wrapped(model, method):
            logits(model, batch)
        handle.remove()
        context = method.contexts[0]
        assert context.tower is not None
        patches = adapter_for(model).patches(model.model, batch)
        if patches is None:
            patches = torch.arange(len(features[0]))
        tokens = context.hidden_states[context.layout.mask]
        there = patches >= 0
        assert len(patches) == len(tokens)
        assert_close(tokens[there], features[0][patches[there]], "features")
        # A newline is no patch, and has no place in the grid either.
        assert torch.equal(there, context.layout.row[context.layout.mask] >= 0)
        spoken = context.tower.attention[context.layout.mask]
        assert torch.equal(spoken > 0, there)

    drawn()


def test_which_families_have_a_tower() -> None:
    names = {n for n, f in FAMILIES.items() if f.available() and not f.refused}
    found = {name for name in names if has_tower(built(name))}
    assert found == {"llava", "llava_next", "llava_next-mistral", "vipllava"} & names


@pytest.mark.parametrize("name", [skipped(f) for f in FAMILIES.values() if f.refused])
def test_what_cannot_be_pruned_is_refused(name: str) -> None:
    """With the reason, and the model as it was."""
    model = built(name)
    hooks = hooks_of(model)
    with pytest.raises(ValueError, match=FAMILIES[name].refused):
        tp.wrap(model)
    assert hooks_of(model) == hooks
    assert not hasattr(model, "tokenprune")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("MllamaForConditionalGeneration", "reads the image by cross-attention"),
        ("Florence2ForConditionalGeneration", "encoder-decoder"),
        ("Qwen3_5ForConditionalGeneration", "recurrent layers"),
        ("GitForCausalLM", "no image_token_id"),
        ("LlamaForCausalLM", "not take both input_ids and pixel_values"),
    ],
)
def test_designs_without_visual_tokens_to_drop_are_refused(name: str, reason: str) -> None:
    cls = getattr(transformers, name, None)
    if cls is None:
        pytest.skip(f"this transformers has no {name}")
    config = cls.config_class()
    if release() < 5 and name.startswith("Mllama"):
        config.text_config.rope_scaling = {"rope_type": "default"}  # its own default is none
    with torch.device("meta"):
        model = cls(config)
    with pytest.raises(ValueError, match=rf"{name} .* cannot be pruned: .*{reason}"):
        tp.wrap(model)


def test_supported_names_what_was_verified_here() -> None:
    """The list is written by `python -m scripts.verify_families`, under the release it names."""
    written = json.loads((Path(adapters.__file__).parent / "verified.json").read_text())
    if written["transformers"] != transformers.__version__:
        pytest.skip(f"written under transformers {written['transformers']}")
    tried = {f.config().model_type for f in FAMILIES.values() if f.available() and not f.refused}
    assert set(tp.supported()["families"]) == tried
