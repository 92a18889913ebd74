"""`set_attn_implementation` on a wrapped model: as if it had been called before `wrap`."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import tokenprune as tp
from tokenprune.config import MethodConfig

from .support.backends import BACKENDS
from .support.tiny_llava import IMAGE, cache_of, make_batch, on_cache, tiny_llava
from .support.tolerance import assert_close
from .support.wrapping import config_of

BATCH = make_batch([(4, IMAGE, 6), (7, IMAGE, 2)])
CONFIGS = (
    tp.FastVConfig(layer=1, keep=9),  # reads attention
    tp.UniformConfig(layer=1, keep=9),  # nothing: only its masks depend on the backend
    tp.VisionZipConfig(keep=9),  # the tower's
)
UNKNOWN = r"attn_implementation='unknown' cannot be pruned under: expected one of .*'sdpa'"


def llava() -> Any:
    torch.manual_seed(0)  # the tower's class token is drawn from it
    return tiny_llava("sdpa", layers=3)


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(**BATCH).logits


def names(model: Any) -> list[str]:
    config = model.config
    configs = (config, config.text_config, config.vision_config)
    return [each._attn_implementation for each in configs]


def changed(attn: Any, config: MethodConfig) -> Any:
    model = tp.wrap(llava(), config)
    logits(model)
    model.set_attn_implementation(attn)
    return model


@pytest.mark.parametrize("choice", [*BACKENDS, {"text_config": "eager"}], ids=str)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.method)
def test_it_is_as_if_set_before_wrap(choice: Any, config: MethodConfig) -> None:
    model, plain = changed(choice, config), llava()
    plain.set_attn_implementation(choice)
    chosen, unpruned = names(plain), logits(plain)
    wanted = logits(tp.wrap(plain, config))
    assert torch.equal(logits(model), wanted)
    assert not torch.allclose(wanted, unpruned)
    with tp.paused(model):
        assert torch.equal(logits(model), unpruned)
    tp.unwrap(model)
    assert names(model) == chosen
    assert config_of(model) == config_of(tp.unwrap(plain))


def test_each_new_choice_is_followed() -> None:
    """The backend of the training mask, too, is the new one."""
    config = tp.ATPConfig(layers=(0,), target_tokens=20)
    torch.manual_seed(0)
    model = changed("flex_attention", config).train()
    model(**BATCH, labels=BATCH["input_ids"]).loss.backward()
    model.set_attn_implementation("eager")
    model(**BATCH, labels=BATCH["input_ids"]).loss.backward()
    assert model.tokenprune.anatomy.backend.name == "eager"
    model.eval().set_attn_implementation("sdpa")
    ids = model.generate(**BATCH, max_new_tokens=3, do_sample=False)
    assert ids.shape[1] == BATCH["input_ids"].shape[1] + 3


@pytest.mark.parametrize("choice", ["eager", "flex_attention"])
def test_between_two_turns(choice: str) -> None:
    """A cache that was pruned under one backend is read under another."""
    model = tp.wrap(llava(), CONFIGS[1])
    more = {"input_ids": torch.full((2, 1), 9)}
    more["attention_mask"] = torch.ones(2, BATCH["input_ids"].shape[1] + 1, dtype=torch.long)
    more["attention_mask"][:, :-1] = BATCH["attention_mask"]
    with torch.no_grad():
        cache = cache_of(model(**BATCH))
        wanted = model(**more, **on_cache(model, copy.deepcopy(cache))).logits
        model.set_attn_implementation(choice)
        assert_close(model(**more, **on_cache(model, cache)).logits, wanted)


@pytest.mark.parametrize("how", ["the decoder's own", "the configuration", "a copy", "pickled"])
def test_however_it_is_set(how: str) -> None:
    model = tp.wrap(llava(), CONFIGS[1])
    if how != "pickled":  # a forward leaves hooks of transformers' own that cannot be
        logits(model)
    wanted = logits(changed({"text_config": "eager"}, CONFIGS[1]))
    if how == "a copy":
        model = copy.deepcopy(model)
    elif how == "pickled":
        model = pickle.loads(pickle.dumps(model))
    if how == "the decoder's own":
        model.model.language_model.set_attn_implementation("eager")
    elif how == "the configuration":
        model.config.text_config._attn_implementation = "eager"
    else:
        model.set_attn_implementation({"text_config": "eager"})
    assert torch.equal(logits(model), wanted)


@pytest.mark.parametrize("entry", ["forward", "generate", "a second turn"])
def test_what_cannot_be_pruned_under_is_refused(entry: str) -> None:
    """Before anything is computed; what prunes nothing runs under any backend."""
    model = tp.wrap(llava(), CONFIGS[0])
    text = {"input_ids": torch.full((2, 3), 9)}
    wanted = model(**text).logits
    cache = cache_of(model(**BATCH))
    model.set_attn_implementation("eager")
    run = model.model.get_image_features
    model.model.get_image_features = lambda *_, **__: pytest.fail("the tower ran")
    model.config.text_config._attn_implementation = "unknown"
    more = {"input_ids": torch.full((2, 1), 9), **on_cache(model, cache)}
    call, arguments = {
        "forward": (model, BATCH),
        "generate": (model.generate, BATCH),
        "a second turn": (model, more),
    }[entry]
    with pytest.raises(ValueError, match=UNKNOWN):
        call(**arguments)
    model.config.text_config._attn_implementation = "eager"
    model.model.get_image_features = run
    assert_close(model(**text).logits, wanted)


def test_text_alone_runs_under_any_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of the user's own, which is not known here."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("users_own", sdpa_attention_forward)
    AttentionMaskInterface.register("users_own", sdpa_mask)
    model = changed("users_own", CONFIGS[0])
    text = {"input_ids": torch.full((2, 3), 9)}
    with torch.no_grad():
        assert_close(model(**text).logits, llava()(**text).logits)
        with tp.paused(model):
            assert_close(model(**BATCH).logits, logits(llava()))
    with pytest.raises(ValueError, match=r"'users_own' cannot be pruned under"):
        model(**BATCH)
    tp.unwrap(model)
    assert names(model) == ["users_own"] * 3
