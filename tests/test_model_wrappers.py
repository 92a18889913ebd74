"""Functions of the library take models inside DDP's, torch.compile's and PEFT's wrappers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import peft
import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

import tokenprune as tp
from tokenprune.engine import base_model_of

from .support.tiny_llava import make_batch, tiny_llava
from .support.training import PROMPTS, atp_llava, labelled
from .support.wrapping import hooks_of, nothing_runs


@pytest.fixture
def _process_group() -> Iterator[None]:
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def in_peft(model: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))


def in_ddp(model: Any) -> Any:
    tp.train_only_heads(model)
    return nn.parallel.DistributedDataParallel(model)


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize("around", [in_ddp, nn.DataParallel, in_peft])
def test_a_model_in_a_wrapper_is_the_model(around: Callable[[Any], Any], tmp_path: Any) -> None:
    model = atp_llava()
    given = around(model)
    assert base_model_of(given) is model
    assert tp.is_wrapped(given)
    tp.calibrate(given, [make_batch(PROMPTS)], [18, 24])
    tp.set_budget(given, 20)
    output = given.train()(**labelled())
    assert tp.losses(given)["total"] is output.loss
    assert (tp.stats(given).kept == tp.stats(model).kept).all()
    with torch.no_grad(), tp.track(given) as run:
        given(**labelled())
        kept = float(tp.stats(given).mean_tokens)
        with tp.paused(given):
            given(**labelled())
    assert run.summary()["mean_tokens"] == pytest.approx(kept)
    tp.load_heads(given, tp.save_heads(given, tmp_path))
    tp.unwrap(given)
    assert not tp.is_wrapped(model)


def test_wrappers_in_each_other() -> None:
    model = atp_llava()
    assert base_model_of(torch.compile(nn.DataParallel(in_peft(model)))) is model
    assert tp.is_wrapped(torch.compile(model))
    tp.unwrap(torch.compile(model))
    assert not tp.is_wrapped(model)


@pytest.mark.usefixtures("_process_group")
@pytest.mark.parametrize(
    ("around", "name"),
    [
        (nn.DataParallel, "DataParallel"),
        (lambda model: torch.compile(nn.DataParallel(model)), "DataParallel"),
        (nn.parallel.DistributedDataParallel, "DistributedDataParallel"),
        (fully_shard, "FSDP"),
        (lambda model: (fully_shard(model.model.language_model.layers[1]), model)[1], "FSDP"),
    ],
)
def test_heads_are_put_in_before_the_model_is_distributed(
    around: Callable[[Any], Any], name: str
) -> None:
    model = tiny_llava()
    before = hooks_of(given := around(model))
    with pytest.raises(ValueError, match=rf"is in {name}, .*tokenprune\.wrap\(model\) first"):
        tp.wrap(given)
    assert not tp.is_wrapped(model)
    assert hooks_of(given) == before


def test_copies_on_several_devices_are_refused() -> None:
    model: Any = atp_llava()
    copy = model._replicate_for_data_parallel()  # what nn.DataParallel runs on each device
    with pytest.raises(RuntimeError, match="one process for each device"):
        copy(**make_batch(PROMPTS))
    model(**make_batch(PROMPTS))
    assert nothing_runs()
