"""Every registered method, by sweep: batches, generation, what it says of itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tokenprune as tp
from tokenprune.config import MethodConfig
from tokenprune.methods.matryoshka import Matryoshka

from .families import FAMILIES
from .support.config_strategies import fixed_configs, swept_methods
from .support.strategies import LAYERS, Case, cases, model_of
from .support.tiny_llava import IMAGE, VISUAL_TOKENS, is_text, make_batch, row_alone, tiny_llava
from .support.tolerance import assert_close
from .support.wrapping import wrapped
from .test_batching import assert_same_stats

EVERY = [config for name in swept_methods() for config in fixed_configs(name)]
# A draw for each row differs from the draw for that row alone.
DECIDING = [config for config in EVERY if config.method != "random"]


def ids(config: MethodConfig) -> str:
    """The method, and its number among those with the same one."""
    return f"{config.method}-{fixed_configs(config.method).index(config)}"


@pytest.mark.parametrize("config", DECIDING, ids=ids)
@given(case=cases(image=True))
def test_a_row_of_a_batch_is_that_row_alone(device: str, config: MethodConfig, case: Case) -> None:
    batch = case.batch(device)
    with wrapped(model_of(device=device), config) as model, torch.no_grad():
        logits = model(**batch).logits
        stats = tp.stats(model)
        for n in range(case.rows):
            alone = row_alone(batch, n)
            single = model(**alone).logits
            text = is_text(alone)[0]
            there = batch["attention_mask"][n].bool()
            assert_close(logits[n, there][text], single[0, text], f"row {n}")
            assert_same_stats(stats, tp.stats(model), n, there.cpu().numpy())


@pytest.mark.parametrize("config", EVERY, ids=ids)
@given(case=cases(image=None, rows=2))
def test_it_drops_something_and_text_stays(device: str, config: MethodConfig, case: Case) -> None:
    batch = case.batch(device)
    with wrapped(model_of(device=device), config) as model, torch.no_grad():
        assert model(**batch).logits.isfinite().all()
        if "pixel_values" not in batch:
            return
        stats = tp.stats(model)
    text = is_text(batch).cpu().numpy()
    assert stats.alive[:, text].all()
    assert (stats.kept <= stats.visual_tokens).all()
    if config.method not in ("atp", "prumerge"):  # these may keep all of a picture that needs it
        assert (stats.final_tokens < stats.visual_tokens)[stats.visual_tokens > 0].all()


@pytest.mark.parametrize("config", DECIDING, ids=ids)
def test_generate(device: str, config: MethodConfig) -> None:
    """Cached = uncached, and each row = that row alone; with beams too."""
    model = model_of(device=device)
    prompts = [(4, IMAGE, 3), (2, IMAGE, IMAGE, 6), (3, IMAGE, 1)]
    batch = make_batch(prompts, device=device, seed=5)
    asked = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    tp.wrap(model, config)
    try:
        for beams in (1, 2):
            many = model.generate(**batch, **asked, num_beams=beams)
            bare = model.generate(**batch, **asked, num_beams=beams, use_cache=False)
            assert torch.equal(many, bare)
            for n in range(len(prompts)):
                alone = row_alone(batch, n)
                single = model.generate(**alone, **asked, num_beams=beams)
                new = single[0, alone["input_ids"].shape[1] :]
                assert torch.equal(many[n, batch["input_ids"].shape[1] :][: len(new)], new)
    finally:
        tp.unwrap(model)


@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_unwrapped_is_untouched(device: str, config: MethodConfig) -> None:
    model = tiny_llava(layers=LAYERS, device=device)
    batch = make_batch([(4, IMAGE, 3)], device=device)
    names = set(model.state_dict())
    configs = (model.config.text_config, model.config.vision_config)
    backends = [c._attn_implementation for c in configs]
    with torch.no_grad():
        wanted = model(**batch).logits
        tp.wrap(model, config)
        kept = {name for name in model.state_dict() if not name.startswith("tokenprune.")}
        assert kept == names
        with tp.paused(model):
            assert torch.equal(model(**batch).logits, wanted)
        model(**batch)
        tp.unwrap(model)
        assert torch.equal(model(**batch).logits, wanted)
    assert [c._attn_implementation for c in configs] == backends


@pytest.mark.parametrize("config", EVERY, ids=ids)
def test_it_is_drawn_and_tracked(tmp_path, config: MethodConfig) -> None:
    model = model_of()
    batch = make_batch([(4, IMAGE, 3), (2, IMAGE, 6)])
    tp.wrap(model, config)
    try:
        with torch.no_grad(), tp.track(model) as run:
            model(**batch)
        picture = np.zeros((24, 24, 3), dtype=np.uint8)
        path = tp.draw(picture, tp.stats(model), tmp_path / "kept.png")
        steps = len(tp.stats(model).pruning_layers)
    finally:
        tp.unwrap(model)
    summary = run.summary()
    assert len(summary["per_layer"]) == LAYERS
    assert 0 < summary["mean_tokens"] < VISUAL_TOKENS
    with Image.open(path) as image:
        assert image.width > (steps + 1) * 24


@given(
    keep=st.one_of(st.integers(1, 50), st.floats(0.01, 1.0)),
    images=st.lists(st.integers(1, 2), min_size=1, max_size=3),
)
def test_asked_and_measured_counts_agree(keep: float, images: list[int]) -> None:
    """Numbers, and shares of each row's own tokens, with rows of different sizes."""
    model = model_of()
    batch = make_batch([(3, *[IMAGE] * n, 2) for n in images])
    for config in (
        tp.FastVConfig(layer=0, keep=keep),
        tp.DivPruneConfig(keep=keep),
        tp.IDSelectionConfig(layer=0, keep=keep),
        tp.VisionZipConfig(keep=keep),
        tp.PruMergeConfig(keep=keep),
    ):
        tp.wrap(model, config)
        try:
            with torch.no_grad():
                model(**batch)
            found = tp.stats(model).final_tokens.tolist()
        finally:
            tp.unwrap(model)
        total = [VISUAL_TOKENS * n for n in images]
        whole = isinstance(keep, int)
        wanted = [min(keep, n) if whole else max(1, round(keep * n)) for n in total]
        assert found == wanted, config.method


def test_a_tower_that_did_not_run_is_named() -> None:
    model = model_of()
    batch = make_batch([(4, IMAGE, 3)])
    pixels = batch.pop("pixel_values")
    tp.wrap(model, tp.VisionZipConfig(keep=9))
    try:
        with torch.no_grad():
            made = model.get_image_features(pixel_values=pixels, return_dict=True)
            model(**batch, pixel_values=pixels)  # what this one saw must not serve the next
            with pytest.raises(RuntimeError, match="the tower did not run"):
                model(**batch, mm_encoder_outputs={"image": made})
    finally:
        tp.unwrap(model)


def test_a_family_without_a_class_token_is_refused() -> None:
    model = FAMILIES["qwen2_vl"].build()
    before = set(dir(model))
    for config in (tp.VisionZipConfig(), tp.PruMergeConfig()):
        with pytest.raises(ValueError, match=r"qwen2_vl: .*class token"):
            tp.wrap(model, config)
    assert set(dir(model)) == before


@pytest.mark.parametrize(
    ("target", "stride"), [(576, 1), (575, 2), (144, 2), (36, 4), (9, 8), (5, 12), (1, 24)]
)
def test_matryoshka_has_a_scale_for_each_budget(target: float, stride: int) -> None:
    """The paper's five scales of 24 x 24 tokens, and those between."""
    method = Matryoshka(tp.MatryoshkaConfig(), visual_tokens=576)
    method.set_budget(target)
    assert method.stride == stride
    with pytest.raises(ValueError, match=r"target_tokens=0: expected 1 or more"):
        method.set_budget(0)
    assert method.stride == stride
    method.set_budget(target / 576)  # as a share
    assert method.stride == stride


def test_the_scale_is_chosen_for_each_call() -> None:
    model = tp.wrap(tiny_llava(), tp.MatryoshkaConfig())
    batch = make_batch([(3, IMAGE, 4)])
    for target, tokens in ((36, 36), (9, 9), (8, 4), (1, 1)):
        tp.set_budget(model, target)
        with torch.no_grad():
            model(**batch)
        assert tp.stats(model).final_tokens.tolist() == [tokens]


def test_a_method_without_a_budget_says_so() -> None:
    model = tp.wrap(tiny_llava(), tp.FastVConfig(layer=1, keep=9))
    with pytest.raises(ValueError, match="FastV keeps what its configuration says"):
        tp.set_budget(model, 20)
