"""`draw`, `calibrate` and `set_budget` on wrong arguments: each is named, and nothing changes."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tokenprune as tp

from .support.strategies import LAYERS
from .support.tiny_llava import tiny_llava
from .support.wrapping import wrapped_llava
from .test_misuse import BATCH, CONFIG


@pytest.fixture
def wrapped() -> Any:
    return wrapped_llava(CONFIG, layers=LAYERS)


# `draw` on something else ------------------------------------------------------------------------

PICTURE = np.zeros((24, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def stats() -> tp.PruneStats:
    model = tp.wrap(tiny_llava(layers=LAYERS), CONFIG)
    with torch.no_grad():
        model(**BATCH)
    return tp.stats(model)


@pytest.mark.parametrize("thing", [None, 7, {}, tiny_llava(layers=1), tp.PruneStats], ids=type)
def test_draw_other_statistics(tmp_path: Path, thing: Any) -> None:
    message = rf"^stats is a {type(thing).__name__}: expected what tokenprune.stats\(model\) gives"
    with pytest.raises(ValueError, match=message):
        tp.draw(PICTURE, thing, tmp_path / "kept.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (None, "a NoneType"),
        (7, "a int"),
        (np.zeros((24, 24, 3), np.float32), r"array of shape \(24, 24, 3\) and dtype float32"),
        (np.zeros((3, 24, 24), np.uint8), r"array of shape \(3, 24, 24\) and dtype uint8"),
        (np.zeros((1, 24, 24, 3), np.uint8), r"array of shape \(1, 24, 24, 3\)"),
        (np.zeros(24, np.uint8), r"array of shape \(24,\)"),
        (np.zeros((24, 24, 3), object), "dtype object"),
        (np.zeros((0, 24, 3), np.uint8), r"array of shape \(0, 24, 3\)"),
        (np.zeros((24, 0, 3), np.uint8), r"array of shape \(24, 0, 3\)"),
        (Image.new("RGB", (0, 24)), "picture of 0 x 24 pixels"),
        (Image.new("L", (24, 0)), "picture of 24 x 0 pixels"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_draw_no_picture(tmp_path: Path, stats: tp.PruneStats, image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^image is .*{message}.*expected a PIL image or"):
        tp.draw(image, stats, tmp_path / "kept.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sample", "image_number", "frame"])
@pytest.mark.parametrize("value", ["0", 0.0, True, [0]])
def test_draw_no_number(tmp_path: Path, stats: tp.PruneStats, name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name}={re.escape(repr(value))}: expected a whole"):
        tp.draw(PICTURE, stats, tmp_path / "kept.png", **{name: value})


@pytest.mark.parametrize("path", [None, 7, b"kept.png"])
def test_draw_to_no_path(stats: tp.PruneStats, path: Any) -> None:
    with pytest.raises(ValueError, match=r"^path=.*: expected a path"):
        tp.draw(PICTURE, stats, path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "I;16"])
def test_draw_takes_every_kind_of_picture(tmp_path: Path, stats: tp.PruneStats, mode: str) -> None:
    assert tp.draw(Image.new(mode, (24, 24)), stats, tmp_path / "kept.png").exists()


@pytest.mark.parametrize("shape", [(24, 24), (24, 24, 3), (24, 24, 4)])
def test_draw_takes_arrays_and_tensors(
    tmp_path: Path, stats: tp.PruneStats, shape: tuple[int, ...]
) -> None:
    for n, image in enumerate((np.zeros(shape, np.uint8), torch.zeros(shape, dtype=torch.uint8))):
        assert tp.draw(image, stats, tmp_path / f"{n}.png").exists()


# `calibrate` and `set_budget` on something else --------------------------------------------------


def runtime_state(model: Any) -> Any:
    return copy.deepcopy(model.tokenprune.method.runtime_state())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, "batches is a NoneType: expected a list, or another iterable, of dicts"),
        (7, "batches is a int: expected a list"),
        (BATCH, "batches is a dict: expected a list, or another iterable, of dicts"),
        ("batches", "batches is a str: expected a list"),
        ([1], r"batches\[0\] is a int: expected a dict of the model's arguments"),
        ([BATCH, None], r"batches\[1\] is a NoneType: expected a dict"),
        ([BATCH["input_ids"]], r"batches\[0\] is a Tensor: expected a dict"),
        ([{1: 2}], r"batches\[0\] has the key 1: expected names of arguments"),
        ([], "batches is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_calibrate_on_no_batches(wrapped: Any, batches: Any, message: str) -> None:
    before = runtime_state(wrapped)
    with pytest.raises(ValueError, match=f"^{message}"):
        tp.calibrate(wrapped, batches, 20)
    assert runtime_state(wrapped) == before


@pytest.mark.parametrize("cap", ["x", "3", 0, -1, 1.5, True, [3], torch.nan, 2**70])
def test_calibrate_with_no_cap(wrapped: Any, cap: Any) -> None:
    before = runtime_state(wrapped)
    with pytest.raises(ValueError, match=rf"^max_kept={re.escape(repr(cap))}: expected a whole"):
        tp.calibrate(wrapped, [BATCH], 20, max_kept=cap)
    assert runtime_state(wrapped) == before


TARGETS = [None, "x", "20", True, torch.nan, torch.inf, 10**400, {}, [None], [20, torch.nan]]


@pytest.mark.parametrize("target", [*TARGETS, []], ids=lambda t: str(t)[:9])
def test_calibrate_to_no_budget(wrapped: Any, target: Any) -> None:
    before = runtime_state(wrapped)
    with pytest.raises(ValueError, match=r"^target_tokens=.*: expected a number, or a list of"):
        tp.calibrate(wrapped, [BATCH], target)
    assert runtime_state(wrapped) == before


@pytest.mark.parametrize("target", [*TARGETS, [20.0]], ids=lambda t: str(t)[:9])
@pytest.mark.parametrize("config", [CONFIG, tp.MatryoshkaConfig()], ids=lambda c: c.method)
def test_set_no_budget(config: Any, target: Any) -> None:
    model = tp.wrap(tiny_llava(layers=LAYERS), config)
    model.tokenprune.method.budgets = [{"tokens": 20.0, "shifts": [0.0, 0.0], "max_kept": None}]
    before = runtime_state(model)
    with pytest.raises(ValueError, match=r"^target_tokens=.*: expected a number"):
        tp.set_budget(model, target)
    assert runtime_state(model) == before


def test_numbers_of_numpy_are_numbers(wrapped: Any) -> None:
    found = tp.calibrate(wrapped, [BATCH], np.array([18.0, 20.0]), max_kept=np.int64(30))
    assert list(found) == [18.0, 20.0]
    tp.set_budget(wrapped, np.float32(19))
    assert wrapped.tokenprune.method.max_kept == 30
