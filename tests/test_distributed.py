"""Two processes: calibration over both, heads that FSDP shards, statistics of both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, distributed, nn

import tokenprune as tp
from tokenprune.distributed import is_part, whole
from tokenprune.engine import engine_of

from .support.heads_files import HEADS, read
from .support.ranks import Run, ranks
from .support.tiny_llava import make_batch, tiny_llava
from .support.training import PROMPTS, atp_llava, labelled

TARGETS = [20.0]
# Batches of each rank: their seeds. One has more than the other.
RAGGED = ((0, 1, 2), (3,))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    with ranks(2, tmp_path_factory.mktemp("ranks")) as run:
        yield run


def rank() -> int:
    return distributed.get_rank()


def data(seeds: Any) -> list[dict[str, Tensor]]:
    return [make_batch(PROMPTS, seed=seed) for seed in seeds]


def spread_out(**options: Any) -> Any:
    """A wrapped model whose thresholds differ from picture to picture."""
    model = atp_llava(**options)
    for heads in engine_of(model).method.thresholds:
        nn.init.normal_(heads.heads.weight, std=0.5)
    return model


def in_ddp(model: Any) -> Any:
    tp.train_only_heads(model)
    return nn.parallel.DistributedDataParallel(model)


def in_fsdp(model: Any) -> Any:
    from torch.distributed.fsdp import fully_shard

    mesh = distributed.init_device_mesh("cpu", (2,))
    tp.train_only_heads(model)
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def alone(model: Any) -> Any:
    return model


AROUND = [alone, in_ddp, in_fsdp]


# -- calibration ---------------------------------------------------------------------------------


def calibrated(around: Callable[[Any], Any], seeds: Any) -> tuple[Any, Any]:
    """What calibrating on this rank's batches returns, and what it leaves."""
    model = spread_out()
    found = tp.calibrate(around(model), data(seeds[rank()]), TARGETS)
    return found, engine_of(model).method.runtime_state()


@pytest.fixture(scope="module")
def on_all_data() -> Any:
    model = spread_out()
    found = tp.calibrate(model, data([seed for seeds in RAGGED for seed in seeds]), TARGETS)
    return found, engine_of(model).method.runtime_state()


@pytest.mark.parametrize("around", AROUND)
def test_calibration_is_one_over_all_ranks(
    two: Run, around: Callable[[Any], Any], on_all_data: Any
) -> None:
    assert two(calibrated, around, RAGGED) == [on_all_data] * 2


def refused(seeds: Any, targets: Any, sharded: bool = False, seed: int = 0) -> str:
    """What calibrating raises on this rank; its shifts are left as they were."""
    model = spread_out(seed=seed + rank())
    method = engine_of(model).method
    batches: Any = data(seeds[rank()]) if seeds[rank()] != "text" else [make_batch([(4,)])]
    try:
        tp.calibrate(in_fsdp(model) if sharded else model, batches, targets[rank()])
    except (ValueError, RuntimeError) as error:
        assert method.runtime_state() == {
            "shifts": [[0.0, 0.0]] * 2,
            "max_kept": None,
            "budgets": [],
        }
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_an_error_on_one_rank_ends_the_others(two: Run) -> None:
    first, second = two(refused, ((0,), (0,)), (20.0, "many"))
    assert "rank 1 raised ValueError: target_tokens='many'" in first
    assert second.startswith("ValueError: target_tokens='many'")


@pytest.mark.parametrize(
    ("seeds", "targets", "sharded", "message"),
    [
        (((0,), (1,)), (20.0, 21.0), False, r"target_tokens is \[20.0\] on rank 0 and \[21.0\]"),
        (((0,), (1,)), (20.0, 20.0), False, "heads of rank 1 are not those of rank 0"),
        (((), ()), (20.0, 20.0), True, "batches is empty: expected at least one"),
        (((0,), ()), (20.0, 20.0), True, "batches is empty on rank 1: the model is sharded"),
    ],
)
def test_what_cannot_be_calibrated_together_is_refused_on_every_rank(
    two: Run, seeds: Any, targets: Any, sharded: bool, message: str
) -> None:
    for said in two(refused, seeds, targets, sharded):
        assert re.search(f"^ValueError: .*{message}", said)


# -- training ------------------------------------------------------------------------------------

ROWS = PROMPTS * 4
TARGET = 13.0  # below what any rank keeps


def heads_of(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.tokenprune.named_parameters()}


def trained(
    around: Callable[[Any], Any], which: slice | None = None, loss: str = "labels"
) -> dict[str, np.ndarray]:
    """The heads after three steps, each on this rank's rows of the batch."""
    torch.manual_seed(0)
    model = atp_llava(target_tokens=TARGET, loss=loss)
    parameters = tp.train_only_heads(model)
    given = around(model).train()
    which = slice(4 * rank(), 4 * rank() + 4) if which is None else which
    # FSDP has put others in place of those.
    trains = [p for p in given.parameters() if p.requires_grad]
    assert len(trains) == len(parameters)
    optimiser = torch.optim.SGD(trains, lr=1e-4)
    for seed in range(3):
        batch = labelled(ROWS, seed=seed)
        given(**{name: values[which] for name, values in batch.items()}).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return {name: whole(value).numpy() for name, value in heads_of(model).items()}


@pytest.fixture(scope="module")
def on_all_rows() -> dict[str, np.ndarray]:
    return trained(alone, slice(None))


@pytest.mark.parametrize("around", [in_ddp, in_fsdp])
def test_two_ranks_train_the_heads_of_one(
    two: Run, around: Callable[[Any], Any], on_all_rows: dict[str, np.ndarray]
) -> None:
    """Two batches of four rows are one of eight."""
    start = heads_of(atp_llava(target_tokens=TARGET))
    for found in two(trained, around):
        for name, expected in on_all_rows.items():
            np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)
            assert np.abs(expected - start[name].numpy()).max() > 1e-7, f"{name} did not move"


@pytest.mark.parametrize("around", [in_ddp, in_fsdp])
def test_two_ranks_learn_from_the_teacher_as_one(
    two: Run, around: Callable[[Any], Any], on_all_rows: dict[str, np.ndarray]
) -> None:
    one = trained(alone, slice(None), "distill")
    assert any(np.abs(one[name] - on_all_rows[name]).max() > 1e-6 for name in one)
    for found in two(trained, around, None, "distill"):
        assert all(np.allclose(found[name], one[name], rtol=0, atol=1e-5) for name in one)


# -- saving --------------------------------------------------------------------------------------


def saved(folder: Path) -> Any:
    """Save the heads of a sharded model, and load them into another one."""
    model, other = spread_out(), spread_out(seed=1)
    expected = heads_of(model)
    engine_of(model).method.shifts = [[0.25, 0.0], [0.5, 0.0]]
    given = in_fsdp(model)
    with torch.no_grad():
        model(**data((0,))[0])  # leaves parameters whole
    assert tp.save_heads(given, folder) == folder
    file = (folder / HEADS).read_bytes()
    tp.load_heads(in_fsdp(other), folder)
    loaded = heads_of(other)
    assert all(is_part(value) for value in loaded.values())
    for name, value in expected.items():
        assert torch.equal(whole(loaded[name]), value)
    assert engine_of(other).method.shifts == [[0.25, 0.0], [0.5, 0.0]]
    return file


def test_sharded_heads_are_saved_once_and_loaded(two: Run, tmp_path: Path) -> None:
    """The file is that of a model which is not sharded."""
    first, second = two(saved, tmp_path / "sharded")
    assert first == second
    assert [path.name for path in (tmp_path / "sharded").iterdir()] == [HEADS]
    model = spread_out()
    engine_of(model).method.shifts = [[0.25, 0.0], [0.5, 0.0]]
    tp.save_heads(model, tmp_path / "alone")
    found, expected = (read(tmp_path / name) for name in ("sharded", "alone"))
    assert found[0] == expected[0]
    assert found[1].keys() == expected[1].keys()
    assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())


def not_saved(folder: Path) -> str:
    given = in_fsdp(spread_out())
    try:
        tp.save_heads(given, folder / "file" / "heads")
    except (OSError, RuntimeError) as error:
        found = f"{type(error).__name__}: {error}"
    try:
        tp.load_heads(given, folder / ("there" if rank() else "absent"))
    except (OSError, RuntimeError) as error:
        return f"{found} / {type(error).__name__}: {error}"
    return found


def test_what_rank_0_cannot_save_or_load_no_rank_can(two: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tp.save_heads(spread_out(), tmp_path / "there")
    first, second = two(not_saved, tmp_path)
    assert re.match("NotADirectoryError: .* / FileNotFoundError: .*absent", first)
    assert re.match("RuntimeError: .*rank 0 raised Not.* / RuntimeError: .*rank 0 raised F", second)


# -- statistics ----------------------------------------------------------------------------------


def tracked(seeds: Any) -> Any:
    model = tp.wrap(tiny_llava(), tp.DivPruneConfig(keep=0.25 * (1 + rank())))
    with torch.no_grad(), tp.track(model) as run:
        for batch in data(seeds[rank()]):
            model(**batch)
    own = run.kept() if seeds[rank()] else None
    run.sync()
    with pytest.raises(RuntimeError, match="called before"):
        run.sync()
    return own, run.kept(), run.summary()


@pytest.mark.parametrize("seeds", [RAGGED, ((), (4,)), ((4,), ())])
def test_statistics_of_all_ranks_are_one(two: Run, seeds: Any) -> None:
    (first, kept, summary), (second, other, same) = two(tracked, seeds)
    expected = np.concatenate([own for own in (first, second) if own is not None], axis=1)
    assert (kept == expected).all()
    assert (other == expected).all()
    assert summary == same
    assert summary["samples"] == expected.shape[1]
    assert summary["mean_tokens"] == expected.mean()
    assert summary["visual_tokens"] == 36.0


def tracked_wrongly() -> str:
    model = tp.wrap(tiny_llava(), tp.FastVConfig(layer=1 + rank(), keep=9))
    with torch.no_grad(), tp.track(model) as run:
        model(**data((0,))[0])
        with pytest.raises(ValueError, match="pruned differently") as refused:
            run.sync()
        assert run.kept().shape[1] == len(PROMPTS)
    return str(refused.value)


def tracked_on() -> None:
    model = tp.wrap(tiny_llava(), tp.FastVConfig(layer=1, keep=9))
    with torch.no_grad(), tp.track(model) as run:
        model(**data((0,))[0])
        run.sync()
        with pytest.raises(RuntimeError, match="when the block has ended"):
            model(**data((1,))[0])
    assert run.kept().shape[1] == 2 * len(PROMPTS)


def test_statistics_that_do_not_belong_together_are_refused(two: Run) -> None:
    assert "[((1,), 6), ((2,), 6)]" in two(tracked_wrongly)[0]
    two(tracked_on)
