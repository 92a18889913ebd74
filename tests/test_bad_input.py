"""Each bad input has its answer, and the model is left as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

import tokenprune as tp

from .families import FAMILIES
from .support.scripted_method import scripted
from .support.strategies import LAYERS
from .support.tiny_llava import (
    IMAGE,
    cache_of,
    llama_config,
    make_batch,
    on_cache,
    tiny_llava,
    with_labels,
)
from .support.wrapping import hook_count

CONFIG = tp.ATPConfig(layers=(0, 2), target_tokens=20)


def assert_untouched(model: nn.Module, attn: str = "sdpa") -> None:
    assert not hasattr(model, "tokenprune")
    assert hook_count(model) == 0
    assert model.config.text_config._attn_implementation == attn


def test_unknown_family() -> None:
    model = LlamaForCausalLM(llama_config())
    with pytest.raises(ValueError, match=r"model_type='llama'.*not take both .* and pixel_values"):
        tp.wrap(model)
    assert hook_count(model) == 0
    with pytest.raises(ValueError, match=r"Linear has no config.model_type: expected a vision"):
        tp.wrap(nn.Linear(1, 1))


def test_the_core_instead_of_the_model() -> None:
    model = tiny_llava()
    with pytest.raises(ValueError, match="takes the whole model, not LlavaModel"):
        tp.wrap(model.model, CONFIG)
    assert_untouched(model)


def test_wrap_twice() -> None:
    model = tiny_llava()
    tp.wrap(model, CONFIG)
    before = hook_count(model)
    with pytest.raises(ValueError, match=r"wrapped already: call tokenprune.unwrap"):
        tp.wrap(model, CONFIG)
    assert hook_count(model) == before
    tp.unwrap(model)
    assert_untouched(model)
    with pytest.raises(ValueError, match=r"not wrapped: call tokenprune.wrap"):
        tp.unwrap(model)


@pytest.mark.parametrize("call", [tp.stats, tp.losses, tp.paused, tp.unwrap, tp.train_only_heads])
def test_not_wrapped(call: Any) -> None:
    with pytest.raises(ValueError, match="is not wrapped"):
        call(tiny_llava())


def test_attribute_of_the_models_own() -> None:
    model = tiny_llava()
    model.tokenprune = "mine"
    with pytest.raises(ValueError, match="an attribute 'tokenprune' of its own"):
        tp.wrap(model, CONFIG)
    assert model.tokenprune == "mine"
    assert hook_count(model) == 0


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (tp.ATPConfig(layers=(0, 7), target_tokens=20), "has 5 layers, so .* 0 to 3"),
        (tp.ATPConfig(layers=(4,), target_tokens=35), "has 5 layers, so .* 0 to 3"),
        (
            tp.ATPConfig(layers=(2,), target_tokens=9),
            "target_tokens=9: .* expected above 21.6 and at most 36",
        ),
        (
            tp.ATPConfig(layers=(0,), target_tokens=37),
            "target_tokens=37: .* expected above 7.2 and at most 36",
        ),
        ({"layers": (1,)}, "method is a dict: expected a configuration"),
    ],
)
def test_what_the_model_cannot_meet(config: Any, message: str) -> None:
    model = tiny_llava(layers=LAYERS)
    with pytest.raises(ValueError, match=message):
        tp.wrap(model, config)
    assert_untouched(model)


def test_no_heads_there(tmp_path: Path) -> None:
    model = tiny_llava()
    with pytest.raises(FileNotFoundError):
        tp.wrap(model, tmp_path / "nowhere")
    assert_untouched(model)


def test_heads_that_do_not_load(tmp_path: Path) -> None:
    """Their configuration is fine and their weights are cut off: the wrapping is taken back."""
    tp.save_heads(tp.wrap(tiny_llava(), CONFIG), tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    model = tiny_llava()
    with pytest.raises(ValueError, match=weights.name):
        tp.wrap(model, tmp_path)
    assert_untouched(model)


def test_unsupported_attention() -> None:
    model = tiny_llava()
    model.config.text_config._attn_implementation = "flash_attention_3"
    with pytest.raises(ValueError, match=r"'flash_attention_3' cannot be .*expected one of .*sdpa"):
        tp.wrap(model, CONFIG)
    assert_untouched(model, "flash_attention_3")


def test_unsupported_tower() -> None:
    model = tiny_llava()
    model.config.vision_config.model_type = "dinov2"
    with pytest.raises(ValueError, match=r"vision tower 'dinov2' .*expected one of"):
        tp.wrap(model, CONFIG)
    assert_untouched(model)


@pytest.mark.parametrize("bad", [0, 1])
def test_nan(attn: str, bad: int) -> None:
    """In the layer's weights; module n follows layer 2n."""
    model = tiny_llava(attn)
    tp.wrap(model, CONFIG)
    batch = make_batch([(3, IMAGE, 4), (5,)])
    weight = model.model.language_model.layers[2 * bad].self_attn.k_proj.weight
    before = weight.data.clone()
    weight.data.fill_(torch.nan)
    with torch.no_grad(), pytest.raises(FloatingPointError, match=f"after decoder layer {2 * bad}"):
        model(**batch)
    weight.data.copy_(before)
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize("prompt", [(IMAGE,), (IMAGE, IMAGE), (IMAGE, 2), (2, IMAGE)], ids=str)
def test_prompts_with_little_text(attn: str, prompt: tuple) -> None:
    """Image only: no text speaks, and the last token stays, for the answer is read off it."""
    model = tiny_llava(attn)
    tp.wrap(model, tp.ATPConfig(layers=(0, 2), target_tokens=20, start_redundant=9.0))
    model.tokenprune.method.shifts = [[9.0, 9.0], [9.0, 9.0]]
    batch = make_batch([prompt])
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()
        stats = tp.stats(model)
    assert stats.final_tokens.tolist() == [int(prompt[-1] == IMAGE)]
    ids = model.generate(**batch, max_new_tokens=3, do_sample=False)
    assert torch.equal(
        ids, model.generate(**batch, max_new_tokens=3, do_sample=False, use_cache=False)
    )


def test_training_on_a_cache() -> None:
    model = tiny_llava()
    tp.wrap(model, CONFIG)
    batch = make_batch([(3, IMAGE, 4)])
    with torch.no_grad():
        cache = cache_of(model(**batch))
    model.train()
    more = {k: v for k, v in batch.items() if k != "attention_mask"}
    with pytest.raises(ValueError, match=r"give the whole sequence in one forward"):
        model(**more, **on_cache(model, cache))
    assert cache.get_seq_length() == 43


def test_losses_before_training() -> None:
    model = tiny_llava()
    tp.wrap(model, CONFIG)
    model(**with_labels(make_batch([(3, IMAGE, 4)]), 2))
    with pytest.raises(RuntimeError, match="No training forward"):
        tp.losses(model)


def test_the_decoder_called_on_something_else() -> None:
    """A core that runs its decoder on other tokens than it was given."""
    model = tiny_llava()
    batch = make_batch([(3, IMAGE, 4)])
    forward = model.model.language_model.forward

    def shortened(**kwargs: Any) -> Any:
        kwargs["inputs_embeds"] = kwargs["inputs_embeds"][:, 1:]
        kwargs["attention_mask"] = kwargs["attention_mask"][:, 1:]
        return forward(**kwargs)

    model.model.language_model.forward = shortened
    script = torch.zeros(1, 1, 1, 6, 6, dtype=torch.bool)
    with scripted(model, (1,), script), pytest.raises(RuntimeError, match=r"runs on \(1, 42\)"):
        model(**batch)


@pytest.mark.parametrize("whose", ["the model's", "the core's"])
def test_images_without_their_sizes(whose: str) -> None:
    """The refusal comes before the core runs, and leaves nothing behind."""
    family = FAMILIES["qwen2_vl"]
    model = family.build()
    sample = {**family.sample(model, 1, seed=0)}
    whole = sample.pop("image_grid_thw")
    tp.wrap(model)
    call = model if whose == "the model's" else model.model
    with torch.no_grad():
        with pytest.raises(ValueError, match=r"without 'image_grid_thw', which says how large"):
            call(**sample)
        call(**sample, image_grid_thw=whole)
        with pytest.raises(ValueError, match="without 'image_grid_thw'"):
            call(**sample)
    tp.unwrap(model)  # no call of it is thought to be running
