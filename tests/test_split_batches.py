"""The budget's terms do not depend on how an optimiser step's samples are split into batches."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from transformers import Trainer, TrainingArguments

import tokenprune as tp
from tokenprune.engine import engine_of
from tokenprune.methods.atp.loss import TargetLoss
from tokenprune.methods.context import Trace

from .support.tiny_llava import IMAGE, Batch, row_alone
from .support.training import atp_llava, labelled

ROWS = 6
# Answers of one length: a batch's share of the language model's loss goes by its answers' tokens.
PROMPTS = tuple((2 + n, IMAGE, 9) for n in range(ROWS))


def batches() -> tuple[Batch, list[Batch]]:
    whole = labelled(PROMPTS)
    return whole, [row_alone(whole, row) for row in range(ROWS)]


def middle(whole: Batch, below: float = 0.2) -> float:
    """A target just below the batch's mean: some pictures are above it, some below."""
    probe = atp_llava()
    with torch.no_grad():
        probe(**whole)
    means = tp.stats(probe).kept.mean(axis=0)
    target = float(means.mean()) - below
    assert (means < target).any()
    return target


def accumulated(model: Any, parts: list[Batch]) -> tuple[float, Tensor]:
    """The loss and the heads' gradient of the budget's terms, accumulated over batches."""
    model.zero_grad()
    values = []
    for part in parts:
        model(**part)
        loss = tp.losses(model)["target"] / len(parts)
        loss.backward()
        values.append(float(loss.detach()))
    return sum(values), gradient(model)


def gradient(model: Any) -> Tensor:
    return torch.cat([p.grad.flatten() for p in engine_of(model).parameters()])


def test_batches_of_one_give_the_heads_the_whole_batch_s_loss_and_gradient() -> None:
    whole, alone = batches()
    model = atp_llava(target_tokens=middle(whole)).train()
    value, wanted = accumulated(model, [whole])
    for order in (alone, alone[::-1]):
        found, same = accumulated(model, order)
        assert found == pytest.approx(value, rel=1e-3, abs=1e-6)
        torch.testing.assert_close(same, wanted, rtol=1e-3, atol=1e-6)
    each = [accumulated(model, [part])[1] for part in alone]
    assert torch.stack(each).mean(dim=0).norm() < 0.9 * wanted.norm(), "or it shows nothing"


def counts_of(parameters: Tensor, hardness: Tensor) -> Tensor:
    """Toy counts, 36·σ(offset + slope·hardness): (1, rows)."""
    return 36 * (parameters[0] + parameters[1] * hardness).sigmoid()[None]


def traced(counts: Tensor, weight: float = 1.0, visual: float = 36.0) -> Trace:
    return Trace(torch.full(counts.shape[1:], visual), counts, (0,), 2, weight)


@pytest.mark.parametrize("unit", ["share", "tokens"])
def test_a_step_adds_up_to_one_batch(unit: str) -> None:
    """Batches of any sizes and weights; their answers may have any lengths."""
    parameters = nn.Parameter(torch.tensor([0.3, 1.5]))
    hardness = torch.randn(8)
    offset = float(counts_of(parameters, hardness).detach().mean()) - 0.5
    loss = TargetLoss((36 + offset) / 72, unit)
    loss(traced(counts_of(parameters, hardness)), [parameters]).backward()
    wanted = parameters.grad
    value = float(loss(traced(counts_of(parameters, hardness))).detach())
    for sizes in ([8], [4, 4], [1] * 8, [1, 5, 2], [3, 3, 2]):
        for weights in ([1.0] * len(sizes), [float(n + 1) for n in range(len(sizes))]):
            parameters.grad, total = None, 0.0
            for part, weight in zip(hardness.split(sizes), weights, strict=True):
                term = loss(traced(counts_of(parameters, part), weight), [parameters])
                term = term * weight / sum(weights)
                term.backward()
                total += float(term.detach())
            assert total == pytest.approx(value, rel=1e-4, abs=1e-5)
            torch.testing.assert_close(parameters.grad, wanted, rtol=1e-4, atol=1e-5)


OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD([p], lr=0.1),
    "foreach": lambda p: torch.optim.AdamW([p], lr=0.1, foreach=True),
    "fused": lambda p: torch.optim.AdamW([p], lr=0.1, fused=True),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@pytest.mark.parametrize("to_none", [True, False])
def test_a_step_ends_with_the_optimiser_s(name: str, to_none: bool) -> None:
    parameters = nn.Parameter(torch.tensor([0.3, 1.5]))
    optimiser = OPTIMISERS[name](parameters)
    loss = TargetLoss(0.75, "share")
    for _ in range(2):
        for hardness in (torch.tensor([2.0, 3.0]), torch.tensor([-2.0])):
            loss(traced(counts_of(parameters, hardness)), [parameters]).backward()
        optimiser.step()
        one = traced(counts_of(parameters, torch.tensor([1.0])))
        assert torch.equal(loss(one, [parameters]), loss(one)), "as where zero_grad comes later"
        optimiser.zero_grad(set_to_none=to_none)
        assert torch.equal(loss(one, [parameters]), loss(one))


def test_batches_whose_gradients_are_not_there_do_not_count() -> None:
    """A forward without backward, and gradients that were thrown away."""
    parameters = nn.Parameter(torch.tensor([0.3, 1.5]))
    loss = TargetLoss(0.75, "share")
    first, second = (traced(counts_of(parameters, torch.tensor([h]))) for h in (2.0, -2.0))
    term = loss(first, [parameters])
    assert torch.equal(loss(second, [parameters]), loss(second))
    term.backward()
    parts = loss(first) + loss(second, [parameters])
    both = loss(traced(counts_of(parameters, torch.tensor([2.0, -2.0]))))
    torch.testing.assert_close(parts, 2 * both)
    for nothing in (torch.zeros(2), None):
        parameters.grad = nothing
        assert torch.equal(loss(second, [parameters]), loss(second))


def test_a_copied_model_begins_a_step() -> None:
    whole, alone = batches()
    two = {name: value[:2] for name, value in whole.items()}
    model = atp_llava(target_tokens=middle(two, below=0.1)).train()
    expected = model(**alone[1]).loss
    model(**alone[0]).loss.backward()
    assert not torch.allclose(model(**alone[1]).loss, expected)
    torch.testing.assert_close(copy.deepcopy(model)(**alone[1]).loss, expected)


def test_counts_go_on_differing_when_each_batch_is_one_picture() -> None:
    """Of the slope a budget of the mean says little, that of each picture everything."""
    hardness = torch.linspace(-1, 1, 8)[torch.randperm(8)]

    def learned(size: int, splits: bool) -> Tensor:
        parameters = nn.Parameter(torch.tensor([2.0, 1.5]))
        optimiser = torch.optim.Adam([parameters], lr=0.05)
        loss = TargetLoss(0.75, "share")
        for _ in range(80):
            optimiser.zero_grad()
            for part in hardness.split(size):
                known = [parameters] if splits else []
                term = loss(traced(counts_of(parameters, part)), known)
                (term * len(part) / len(hardness)).backward()
            optimiser.step()
        return counts_of(parameters, hardness).detach()

    whole, split, apart = learned(8, True), learned(1, True), learned(1, False)
    torch.testing.assert_close(split, whole, rtol=1e-3, atol=1e-2)
    assert apart.std() < 1 < whole.std()


class Ranks:
    """Two threads in lockstep, in the place of torch.distributed's ranks."""

    def __init__(self) -> None:
        self.barrier, self.given = threading.Barrier(2, timeout=60), [torch.zeros(3)] * 2
        self.rank = threading.local()

    def all_reduce(self, values: Tensor) -> None:
        self.given[self.rank.number] = values.clone()
        self.barrier.wait()
        total = self.given[0] + self.given[1]
        self.barrier.wait()
        values.copy_(total)

    def run(self, number: int, batches: list[list[float]]) -> tuple[float, Tensor]:
        """The loss and the gradient of a rank's batches; one may have no image."""
        self.rank.number = number
        parameters = nn.Parameter(torch.tensor([0.3, 1.5]))
        loss, total = TargetLoss(0.75, "share"), 0.0
        for hardness in batches:
            if hardness:
                term = loss(traced(counts_of(parameters, torch.tensor(hardness))), [parameters])
                term.backward()
                total += float(term.detach())
            else:
                loss.without_images([parameters])
                parameters.grad = torch.zeros(2)
        assert parameters.grad is not None
        return total, parameters.grad


def test_two_ranks_add_up_to_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_reduce", ranks.all_reduce)
    given = [[2.0, 3.0], [-2.0, -2.5]], [[], [0.5, -3.5]]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(ranks.run, range(2), given))
    monkeypatch.undo()
    parameters = nn.Parameter(torch.tensor([0.3, 1.5]))
    hardness = torch.tensor([h for rank in given for batch in rank for h in batch])
    whole = TargetLoss(0.75, "share")(traced(counts_of(parameters, hardness)))
    whole.backward()
    # Ranks' gradients are averaged. The first batch is half a one: one rank had no image.
    mean = (found[0][1] + found[1][1]) / 2
    torch.testing.assert_close(mean / 1.5, parameters.grad, rtol=1e-4, atol=1e-6)
    value = (found[0][0] + found[1][0]) / 2
    assert value / 1.5 == pytest.approx(float(whole.detach()), rel=1e-4)


def trained(tmp_path: Any, size: int, target: float) -> tuple[Tensor, float]:
    """Heads, and the loss reported, after steps of all samples in batches of a size."""
    model = atp_llava(target_tokens=target)
    tp.train_only_heads(model)
    whole, _ = batches()
    rows = [{name: value[n] for name, value in whole.items()} for n in range(ROWS)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / str(size)),
        max_steps=2,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=ROWS // size,
        learning_rate=0.05,
        optim="sgd",
        lr_scheduler_type="constant",
        max_grad_norm=0,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    loss = Trainer(model=model, args=arguments, train_dataset=rows).train().training_loss
    return torch.cat([p.detach().flatten() for p in engine_of(model).parameters()]), loss


def test_the_trainer_of_transformers_gives_each_batch_its_share(tmp_path: Any) -> None:
    """It divides the language model's loss by the items of all batches of a step."""
    start = torch.cat([p.detach().flatten() for p in engine_of(atp_llava()).parameters()])
    target = middle(batches()[0])
    whole, loss = trained(tmp_path, ROWS, target)
    split, same = trained(tmp_path, 1, target)
    assert (whole - start).abs().max() > 1e-3
    torch.testing.assert_close(split - start, whole - start, rtol=1e-2, atol=1e-5)
    assert same == pytest.approx(loss, rel=1e-4)
