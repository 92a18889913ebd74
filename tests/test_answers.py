"""Invariant 9: what is kept depends on the prompt, never on the answer."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tokenprune as tp

from .support.strategies import LAYERS
from .support.tiny_llava import IMAGE, VOCABULARY, make_batch, tiny_llava

ATP = tp.ATPConfig(layers=(0, 2), target_tokens=20, start_spatial=0.5)
PROMPTS = [(3, IMAGE, 4), (2, IMAGE, 1, IMAGE, 6), (7,), (5, IMAGE)]


def kept(model: torch.nn.Module, batch: dict, grad: bool) -> tuple:
    with torch.set_grad_enabled(grad):
        model(**batch)
    stats = tp.stats(model)
    return stats.kept, stats.alive & stats.visual, stats.thresholds


@pytest.mark.parametrize("training", [False, True])
@given(data=st.data())
def test_answers_do_not_decide(attn: str, training: bool, data: st.DataObject) -> None:
    """Another answer, or none, behind the same prompts: the same tokens stay."""
    prompts = data.draw(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=3))
    prompts = [*prompts, PROMPTS[0]]
    seed = data.draw(st.integers(0, 2**16))
    length = data.draw(st.integers(1, 6))
    model = tiny_llava(attn, layers=LAYERS)
    torch.manual_seed(0)
    tp.wrap(model, ATP).train(training)
    batch = make_batch(prompts, "left", seed=seed)
    rows, start = batch["input_ids"].shape
    alone = kept(model, batch, training)
    mask = torch.cat([batch["attention_mask"], torch.ones(rows, length).long()], dim=1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(2):
        answer = torch.randint(3, VOCABULARY - 1, (rows, length), generator=generator)
        ids = torch.cat([batch["input_ids"], answer], dim=1)
        labels = ids.clone()
        labels[:, :start] = -100
        whole = {**batch, "input_ids": ids, "attention_mask": mask, "labels": labels}
        counts, alive, thresholds = kept(model, whole, training)
        assert (counts == alone[0]).all()
        assert (alive[..., :start] == alone[1]).all()
        torch.testing.assert_close(torch.tensor(thresholds), torch.tensor(alone[2]))
    assert (counts[-1] < counts[0]).any()


def test_words_of_the_prompt_do_decide() -> None:
    """The same, said of the prompt, is false."""
    model = tiny_llava(layers=LAYERS)
    torch.manual_seed(0)
    tp.wrap(model, ATP)
    batch = make_batch([(3, IMAGE, 4)])
    _, before, _ = kept(model, batch, False)
    other = make_batch([(3, IMAGE, 4)], seed=5)
    _, after, _ = kept(model, {**batch, "input_ids": other["input_ids"]}, False)
    assert (before != after).any()


def test_generated_words_do_not_decide(attn: str) -> None:
    """Without a cache the prompt is run again with each word; what it keeps stays the same."""
    model = tiny_llava(attn, layers=LAYERS)
    torch.manual_seed(0)
    tp.wrap(model, ATP)
    batch = make_batch(PROMPTS)
    start = batch["input_ids"].shape[1]
    seen: list[torch.Tensor] = []
    model.tokenprune.trackers.append(lambda record: seen.append(record.alive()[:, :, :start]))
    model.generate(**batch, max_new_tokens=5, do_sample=False, use_cache=False)
    assert len(seen) == 5
    image = batch["input_ids"] == model.config.image_token_id
    for alive in seen[1:]:
        assert torch.equal(alive & image, seen[0] & image)
