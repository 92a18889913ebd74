"""Heads beside PEFT's adapters, in either order: what trains, what is saved, what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import peft
import pytest
import torch
from torch import nn

import tokenprune as tp
from tokenprune.engine import calls, engine_of

from .support.tiny_llava import tiny_llava
from .support.training import LAYERS, atp_llava, labelled
from .support.wrapping import hooks_of

CONFIG = tp.ATPConfig(layers=LAYERS, target_tokens=18.0)
FROZEN = "pruning heads are frozen in this training forward"


def lora(model: nn.Module, **options: Any) -> Any:
    """The model with LoRA in it; `task_type` chooses PEFT's class, and so its forward."""
    torch.manual_seed(0)
    chosen: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}
    return peft.get_peft_model(model, peft.LoraConfig(r=2, **{**chosen, **options}))


def wrapped_then_lora(**options: Any) -> Any:
    return lora(atp_llava(), **options)


def lora_then_wrapped(**options: Any) -> Any:
    model = lora(tiny_llava(), **options)
    torch.manual_seed(0)
    return tp.wrap(model, CONFIG)


ORDERS = (wrapped_then_lora, lora_then_wrapped)


def trains(model: nn.Module) -> tuple[set[str], set[str], set[str]]:
    """Names of what trains: of the heads, of LoRA, of all else."""
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    heads = {name for name in names if "tokenprune." in name}
    adapters = {name for name in names - heads if "lora_" in name}
    return heads, adapters, names - heads - adapters


@pytest.mark.parametrize("task", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("make", ORDERS)
def test_both_train_in_either_order(make: Any, task: str | None) -> None:
    model = make(task_type=task)
    parameters = tp.trainable(model, "heads", "lora")
    heads, adapters, others = trains(model)
    assert (len(heads), len(adapters), len(others)) == (8, 28, 0)
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    optimiser = torch.optim.Adam(parameters, lr=0.1)
    out = model(**labelled())
    assert out.loss is tp.losses(model)["total"], "the budget's terms are in the loss"
    out.loss.backward()
    optimiser.step()
    for name, p in model.named_parameters():
        in_tower = "vision_tower" in name  # its last layers are not read
        assert torch.equal(p, before[name]) == (name not in heads | adapters) or in_tower, name


@pytest.mark.parametrize("make", ORDERS)
@pytest.mark.parametrize(
    ("parts", "expected"),
    [(("heads",), (8, 0)), (("lora",), (0, 28)), (("lora", "heads"), (8, 28))],
)
def test_the_parts_that_are_named_train(make: Any, parts: Any, expected: Any) -> None:
    model = make()
    base = model.get_base_model()
    for given in (model, base, nn.DataParallel(model)):
        tp.trainable(model, "heads", "lora")
        parameters = tp.trainable(given, *parts)
        heads, adapters, others = trains(model)
        assert (len(heads), len(adapters), len(others)) == (*expected, 0)
        assert len(parameters) == sum(expected)
    tp.train_only_heads(model)
    assert tuple(map(len, trains(model))) == (8, 0, 0)


def test_modules_to_save_train_with_lora_and_stopped_adapters_do_not() -> None:
    model = wrapped_then_lora(modules_to_save=["multi_modal_projector"])
    model.add_adapter("other", peft.LoraConfig(r=2, target_modules=["k_proj"]))
    tp.trainable(model, "lora")
    heads, adapters, others = trains(model)
    assert not heads
    assert adapters
    assert not any("other" in name for name in adapters | others)
    assert len(others) == 4
    assert all("modules_to_save.default" in name for name in others)


@pytest.mark.parametrize("make", ORDERS)
def test_merged_adapters_leave_a_wrapped_model(make: Any) -> None:
    model, batch = make(), labelled()
    plain = tiny_llava()
    plain(**batch)  # some releases of transformers put hooks of their own on at the first forward
    expected = {key: len(found) for key, found in hooks_of(plain).items() if found}
    with torch.no_grad():
        model(**batch)
        kept = tp.stats(model).kept
        merged = model.merge_and_unload()
        assert tp.is_wrapped(merged)
        merged(**batch)
        assert (tp.stats(merged).kept == kept).all()
        tp.unwrap(merged)
    assert not tp.is_wrapped(merged)
    assert {key: len(found) for key, found in hooks_of(merged).items() if found} == expected
    assert merged.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("make", ORDERS)
def test_the_model_inside_is_unwrapped_and_given_its_gradients_back(make: Any) -> None:
    model = make()
    before = trains(model)
    for parts in (("heads", "lora"), ("heads",)):
        tp.trainable(model, *parts)
    tp.unwrap(model)
    assert not tp.is_wrapped(model)
    assert trains(model) == (set(), before[1], before[2])
    tp.wrap(model, CONFIG)
    assert tp.is_wrapped(model.get_base_model())


def test_what_peft_froze_after_the_first_call_stays_frozen() -> None:
    model = atp_llava()
    tp.train_only_heads(model)
    model = lora(model)
    tp.trainable(model, "heads", "lora")
    tp.unwrap(model)
    heads, adapters, others = trains(model)
    assert len(adapters) == 28
    assert not heads | others


def test_frozen_heads_are_not_trained_on_in_silence() -> None:
    model = wrapped_then_lora().train()
    with pytest.warns(UserWarning, match=rf"{FROZEN}.*tokenprune\.trainable"):
        model(**labelled())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{FROZEN}")
        tp.trainable(model, "lora")
        model(**labelled())
        tp.trainable(model, "heads", "lora")
        model(**labelled())
        with torch.no_grad():
            wrapped_then_lora().train()(**labelled())


def test_all_linear_leaves_the_heads_alone(tmp_path: Any) -> None:
    model = wrapped_then_lora(target_modules="all-linear")
    assert not [
        name for name, _ in model.named_parameters() if "tokenprune" in name and "lora" in name
    ]
    assert [name for name, _ in model.named_parameters() if "mlp" in name and "lora" in name]
    tp.load_heads(atp_llava(seed=3), tp.save_heads(model, tmp_path))


class Learned(tp.Method):
    """Somebody's method, with a linear layer like any other."""

    layers = (1,)
    trainable = True

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(2, 1)

    def select(self, context: tp.Context) -> tp.Selection:
        visual = context.layout.mask
        return tp.Selection(keep=visual, mask=visual * self.project.weight.sum().sigmoid())


def test_adapters_in_the_heads_are_refused() -> None:
    model = lora(tp.wrap(tiny_llava(), Learned()), target_modules="all-linear").train()
    for call in (lambda: tp.trainable(model, "heads", "lora"), lambda: model(**labelled())):
        with pytest.raises(ValueError, match=r"method\.project.*exclude_modules=.*trainable"):
            call()
    assert calls._STACK.get() == ()
    # What it says to do works.
    excluded = {"target_modules": "all-linear", "exclude_modules": r".*tokenprune.*"}
    model = lora(tp.wrap(tiny_llava(), Learned()), **excluded).train()
    assert len(tp.trainable(model, "heads")) == 2
    model(**labelled()).loss.backward()


def test_heads_among_modules_to_save_are_refused(tmp_path: Any) -> None:
    model = wrapped_then_lora(modules_to_save=["tokenprune"]).train()
    for call in (
        lambda: model(**labelled()),
        lambda: tp.trainable(model, "heads", "lora"),
        lambda: tp.stats(model),
        lambda: tp.unwrap(model),
        lambda: tp.save_heads(model, tmp_path / "heads"),
    ):
        with pytest.raises(ValueError, match=r"modules_to_save.*copy.*tokenprune\.trainable"):
            call()
    assert calls._STACK.get() == ()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "parts", "message"),
    [
        (wrapped_then_lora, (), r"parts=\(\): expected one or both of"),
        (wrapped_then_lora, ("heads", "heads"), "expected one or both of"),
        (wrapped_then_lora, ("head",), r"\('head',\): expected one or both of \('heads', 'lora'\)"),
        (atp_llava, ("heads", "lora"), r"no active PEFT adapter.*get_peft_model"),
        (lambda: lora(tiny_llava()), ("lora",), r"not wrapped.*tokenprune\.wrap"),
        (lambda: lora(tp.wrap(tiny_llava(), tp.FastVConfig())), ("heads",), "no parameters"),
        (lambda: wrapped_then_lora(bias="all"), ("lora",), r"bias=\{'default': 'all'\}.*\"none\""),
    ],
)
def test_what_cannot_train_is_refused(make: Any, parts: Any, message: str) -> None:
    model = make()
    before = trains(model)
    with pytest.raises(ValueError, match=message):
        tp.trainable(model, *parts)
    assert trains(model) == before
    if tp.is_wrapped(model):
        assert engine_of(model).trains is None


def test_a_method_without_heads_trains_lora_alone() -> None:
    model = lora(tp.wrap(tiny_llava(), tp.FastVConfig(layer=1, keep=9))).train()
    assert len(tp.trainable(model, "lora")) == 28
    model(**labelled()).loss.backward()
