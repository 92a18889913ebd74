"""Distillation: the unpruned model's logits teach, once a step, and nothing else changes."""

from typing import Any

import pytest
import torch
from torch import nn

import tokenprune as tp
from tokenprune.engine import calls, engine_of

from .support.tiny_llava import IMAGE_TOKEN, make_batch, with_labels
from .support.training import PROMPTS, atp_llava, labelled

TIGHT = {"loss": "distill", "start_redundant": 0.5, "prunings": ("redundant",)}


def distilled(**options: Any) -> Any:
    return atp_llava(**{**TIGHT, **options}).train()


def gradients(model: Any) -> list[torch.Tensor]:
    found = [p.grad.clone() for p in engine_of(model).parameters()]
    model.zero_grad()
    return found


@pytest.mark.parametrize("with_answers", [True, False])
def test_the_loss_is_the_divergence_and_the_terms(with_answers: bool) -> None:
    model, batch = distilled(), labelled()
    labels = batch["labels"]
    if not with_answers:
        del batch["labels"]
    output = model(**batch)
    with tp.paused(model), torch.no_grad():
        teacher = model(**{n: v for n, v in batch.items() if n != "labels"}).logits.double()
    found = []
    for row, ids in enumerate(batch["input_ids"]):
        for place in range(len(ids)):
            after = bool((ids[: place + 1] == IMAGE_TOKEN).any()) and ids[place] != IMAGE_TOKEN
            text = after and batch["attention_mask"][row, place] == 1
            answer = place + 1 < len(ids) and labels[row, place + 1] != -100
            if answer if with_answers else text:
                one, other = teacher[row, place], output.logits[row, place].double()
                found.append(
                    nn.functional.kl_div(other.log_softmax(0), one.softmax(0), reduction="sum")
                )
    terms = tp.losses(model)
    assert sorted(terms) == ["atp", "distill", "target", "total"]
    torch.testing.assert_close(
        terms["distill"].double(), torch.stack(found).mean(), rtol=1e-4, atol=1e-8
    )
    assert terms["distill"] > 1e-4
    config = engine_of(model).method.config
    budget = config.atp_weight * terms["atp"] + config.target_weight * terms["target"]
    torch.testing.assert_close(output.loss, terms["distill"] + budget)
    assert output[0] is output.loss
    as_tuple = model(**batch, return_dict=False)
    torch.testing.assert_close(as_tuple[0], output.loss)
    assert torch.equal(as_tuple[1], output.logits)
    output.loss.backward()
    assert all(
        g.isfinite().all() and g.any() for g in (p.grad[0] for p in engine_of(model).parameters())
    )


def test_which_answers_are_given_does_not_matter() -> None:
    """Where they stand does; what they say is the model's input in any case."""
    model, batch = distilled(), labelled()
    first = model(**batch).loss
    batch["labels"] = torch.where(batch["labels"] == -100, -100, 7)
    assert torch.equal(model(**batch).loss, first)
    batch["labels"][0] = -100
    assert not torch.equal(model(**batch).loss, first)


def test_what_is_kept_is_as_good_as_all() -> None:
    """Nothing dropped: nothing to learn from the teacher."""
    model = distilled(start_redundant=-50.0)
    model(**labelled())
    assert tp.losses(model)["distill"].detach().abs() < 1e-6


def test_the_teacher_runs_once_without_pruning_gradient_and_dropout() -> None:
    model = distilled()
    seen: list[tuple[bool, bool]] = []
    layer = model.model.language_model.layers[-1]
    layer.register_forward_hook(lambda m, *_: seen.append((m.training, torch.is_grad_enabled())))
    outer: list[int] = []
    model.register_forward_hook(lambda *_: outer.append(1))
    model(**labelled())
    assert seen == [(False, False), (True, True)]
    assert not calls.is_running(engine_of(model))
    assert len(outer) == 1
    assert all(module.training for module in model.modules())
    kept = tp.stats(model).kept
    other = atp_llava(**{**TIGHT, "loss": "labels"}).train()
    other(**labelled())
    assert (kept == tp.stats(other).kept).all()
    with torch.no_grad():
        model(**labelled())
    model.eval()
    model(**labelled())
    with tp.paused(model.train()):
        assert model(**labelled()).loss > 1  # of the labels: nothing is pruned, nothing is taught
    assert len(seen) == 5


def test_an_error_in_the_teacher_leaves_everything_as_it_was() -> None:
    model = distilled()
    model.model.language_model.eval()
    flags = [module.training for module in model.modules()]

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        model(**labelled())
    handle.remove()
    assert [module.training for module in model.modules()] == flags
    assert not calls.is_running(engine_of(model))
    assert not calls.is_paused(engine_of(model))
    model(**labelled()).loss.backward()


def test_batches_without_images_teach_nothing() -> None:
    model = distilled()
    batch = with_labels(make_batch([(8,)]), 2)
    output = model(**batch)
    output.loss.backward()
    assert float(output.loss.detach()) == 0
    del batch["labels"]
    assert float(model(**batch).loss.detach()) == 0


def test_accumulated_batches_have_their_share() -> None:
    """As transformers' Trainer asks: what a batch adds to the sum over all answers."""
    model, batch = distilled(), labelled()
    whole = model(**batch).loss
    answers = int((batch["labels"][:, 1:] != -100).sum())
    half = model(**batch, num_items_in_batch=2 * answers).loss
    torch.testing.assert_close(half, whole / 2)


@pytest.mark.parametrize("training", ["soft", "straight_through"])
def test_gradient_checkpointing_changes_nothing(training: str) -> None:
    model = distilled(training=training)
    model(**labelled()).loss.backward()
    plain = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(**labelled()).loss.backward()
    for found, expected in zip(gradients(model), plain, strict=True):
        torch.testing.assert_close(found, expected)


def test_it_brings_the_answers_nearer_to_the_unpruned_ones() -> None:
    model = distilled(ranking="learned", atp_weight=0.0, training="soft")
    optimiser = torch.optim.Adam(tp.train_only_heads(model), lr=1e-2)
    batch, found = make_batch(PROMPTS), []
    for _ in range(20):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        optimiser.step()
        found.append(float(tp.losses(model)["distill"].detach()))
    assert found[-1] < 0.8 * found[0]


def test_a_peft_model_teaches_itself() -> None:
    peft = pytest.importorskip("peft")
    lora = peft.get_peft_model(distilled(), peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    tp.trainable(lora, "heads", "lora")
    lora.train()
    lora(**labelled()).loss.backward()
    trained = [p for p in lora.parameters() if p.requires_grad]
    assert all(p.grad is not None for p in trained)


def test_what_cannot_be_compared_is_refused() -> None:
    model, batch = distilled(), labelled()
    with pytest.raises(ValueError, match="leave out logits_to_keep"):
        model(**batch, logits_to_keep=1)
    from transformers import DynamicCache

    with pytest.raises(ValueError, match="leave out past_key_values"):
        model(**batch, past_key_values=DynamicCache())
    assert not calls.is_running(engine_of(model))
