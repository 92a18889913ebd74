"""The steps of `python -m benchmarks.gpu` without a GPU: what each counts, times and compares."""

from __future__ import annotations

import subprocess
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from benchmarks.gpu import device as on_device
from benchmarks.gpu import properties, speed
from benchmarks.gpu.render import render
from benchmarks.gpu.results import Job
from benchmarks.speed import render as speed_page
from benchmarks.speed.shapes import SHAPES
from benchmarks.store import read

SPEED = "speed-llava-1.5-7b"


def job(step: str, folder: Path) -> Job:
    return Job(step, "cpu", True, 100.0, folder / f"{step}.json")


CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--device")
"""
TESTS = """
import os
import sys
import pytest

def test_passes():
    assert os.environ["HYPOTHESIS_PROFILE"] == "unshrunk"
    assert any("benchmarks.gpu" in name for name in sys.modules)

@pytest.mark.parametrize("n", [1, 2])
def test_fails(n):
    assert n == 1, "two is not one"

def test_is_skipped():
    pytest.skip("no device of that kind")

@pytest.fixture
def broken():
    raise RuntimeError("CUDA error: an illegal memory access was encountered")

def test_breaks(broken):
    pass
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    (tmp_path / "test_some.py").write_text(TESTS)
    return tmp_path / "test_some.py"


def test_tests_are_counted(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(properties, "find_spec", lambda name: None)  # no xdist
    found = properties.run_files([str(suite)], "cpu", 100)
    assert [found[name] for name in ("passed", "failed", "skipped")] == [2, 2, 1]
    assert list(found["files"].values()) == [{"passed": 2, "failed": 2, "skipped": 1}]
    assert found["skips"] == {"no device of that kind": 1}
    assert sorted(found["wrong"]) == ["test_some::test_breaks", "test_some::test_fails[2]"]
    said = {each["test"]: each["message"] for each in found["failures"]}
    assert "two is not one" in said["test_some::test_fails[2]"]
    assert "illegal memory access" in said["test_some::test_breaks"]
    assert "reason" not in found


def test_no_test_at_all_is_wrong(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(properties, "find_spec", lambda name: None)
    suite.write_text("")
    assert properties.run_files([str(suite)], "cpu", 100)["wrong"]


def test_tests_that_take_too_long_are_cut(suite: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By workers side by side, if there are such; what ran before is counted."""
    began = suite.with_name("began")
    suite.write_text(
        f"import pathlib, time\na, b = map(pathlib.Path, ({str(suite) + '.a'!r}, {str(began)!r}))\n"
        "def test_a(): a.touch()\n"
        # Another worker's: the first test's report is given time to arrive.
        "def test_b():\n while not a.exists(): time.sleep(0.1)\n"
        " time.sleep(2); b.touch(); time.sleep(60)\n"
    )

    class Patient(subprocess.Popen):  # type: ignore[type-arg]
        """Time is over when the second test has begun."""

        def wait(self, timeout: float | None = None) -> int:
            if timeout == 77:
                while not began.exists():
                    assert self.poll() is None
                    time.sleep(0.1)
                raise subprocess.TimeoutExpired(self.args, timeout)
            return super().wait(timeout)

    monkeypatch.setattr(properties.subprocess, "Popen", Patient)
    monkeypatch.setattr(properties, "_TO_STOP", 60)  # this machine may be busy
    found = properties.run_files([str(suite)], "cpu", 60 + 77)
    assert found["passed"] == 1
    assert "interrupted" in found["reason"]
    assert found["pytest_status"] == 2, "it was killed before it wrote its report"


def test_kernels_are_compared_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="Triton comes with torch on Linux only")
    from benchmarks.gpu import kernels

    if torch.cuda.is_available():
        pytest.skip("Triton is not in its interpreter here; the command itself runs on CUDA")
    monkeypatch.setattr(kernels, "TINY_WIDTHS", (16, 256))
    monkeypatch.setattr(kernels, "DTYPES", (torch.bfloat16, torch.float32))
    found = kernels.measure(job("kernels", tmp_path))
    said = [row["failed"] for row in found["kernels"] if "failed" in row]
    if any("InterpreterError" in each for each in said):
        pytest.skip(f"Triton's interpreter does not run with this numpy: {said[0]}")
    rows = {(row["dtype"], row["width"], row["mask"]): row for row in found["kernels"]}
    assert len(rows) == 12
    compared = [row for row in rows.values() if "error" in row]
    assert len(compared) == 3
    for row in compared:
        assert row["right"], row
        assert 0 < row["relative"] < 1e-5
        assert {"triton", "triton, two passes", "plain", "attention"} <= row["ms"].keys()
    assert "interpreter" in rows["bfloat16", 16, "none"]["not_run"]
    assert "wider" in rows["float32", 256, "bool"]["not_run"]
    assert rows["float32", 16, "none"]["ms"]["lse_error"] < 1e-5
    assert (found["wrong"], found["left_out"]) == ([], [])
    saved = read(tmp_path / "kernels.json")
    assert (saved["status"], saved["kernels"]) == ("running", found["kernels"])

    def broken(*args: Any, **kwargs: Any) -> Any:
        received, seen_by = original(*args, **kwargs)
        return received + 1e-4, seen_by

    original = kernels.fused.attention_received
    monkeypatch.setattr(kernels.fused, "attention_received", broken)
    monkeypatch.setattr(kernels, "DTYPES", (torch.float16,))
    monkeypatch.setattr(kernels, "TINY_WIDTHS", (16,))
    found = kernels.measure(job("kernels", tmp_path))
    assert found["wrong"] == [f"float16 16 {mask}" for mask in kernels.MASKS]
    job("kernels", tmp_path).save(found, "done")
    assert "- kernels: float16 16 none" in render(tmp_path)

    def unbuilt(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no ptxas")

    monkeypatch.setattr(kernels.fused, "attention_received", unbuilt)
    found = kernels.measure(job("kernels", tmp_path))
    assert len(found["wrong"]) == 3
    job("kernels", tmp_path).save(found, "done")
    assert "- float16, 16, none: RuntimeError('no ptxas')" in render(tmp_path)


@pytest.fixture
def two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "ROUNDS", {1: 1, 8: 1})


@pytest.mark.usefixtures("two_sizes")
def test_speed_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = "speed-qwen2-vl-7b"
    found = speed.measure(job(step, tmp_path))
    assert (found["left_out"], found["out_of_memory"], found["wrong"]) == ([], {}, [])
    assert found["layers"] == 5
    assert not found["full_depth"]
    for size, rows in (("b1", 1), ("b8", 8)):
        batch, prefill = found["batches"][size], found["prefill"][size]
        assert prefill["rounds"] == {"unpruned": 1, "oracle": 1, "ATP": 1}
        assert prefill["speedup"] == pytest.approx(prefill["unpruned_s"] / prefill["atp_s"])
        assert batch["decode"]["tokens_per_s"]["ATP"] == rows / batch["decode"]["atp_s"]
        assert batch["pruner"]["all"] > 0
        memory = batch["memory"]
        assert memory["ATP"]["kv_bytes"] == memory["oracle"]["kv_bytes"]
        assert memory["ATP"]["kv_bytes"] < memory["unpruned"]["kv_bytes"]
        assert memory["ATP"]["peak_bytes"] > memory["ATP"]["kv_bytes"]
        assert 0 <= memory["ATP"]["logits_off_oracle"] < 0.01
    job(step, tmp_path).save(found, "done")
    assert f"{found['shape']}, b8" in render(tmp_path)
    # The page of `benchmarks.speed` can be made of it too.
    monkeypatch.setitem(SHAPES, found["shape"], speed.shape_of(job(step, tmp_path)))
    assert "| batch 8 |" in speed_page.render(tmp_path)


@pytest.mark.usefixtures("two_sizes")
def test_what_runs_out_of_memory_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At batch 8 the unpruned model and the oracle do not fit, then the images do not."""

    def forward(model: Any, batch: Any) -> Any:
        if len(batch["input_ids"]) == 8 and not hasattr(model, "tokenprune"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore")
        return original(model, batch)

    original = speed.inference.forward
    monkeypatch.setattr(speed.inference, "forward", forward)
    step = "speed-llava-next-7b"
    found = speed.measure(job(step, tmp_path))
    words = "CUDA out of memory. Tried to allocate 2 GiB."
    assert found["out_of_memory"] == {"b8 unpruned": words, "b8 oracle": words}
    assert set(found["batches"]["b8"]["memory"]) == {"ATP"}
    assert found["prefill"]["b8"].keys() == {"atp_s", "spread", "rounds"}
    assert found["batches"]["b8"]["decode"]["tokens_per_s"].keys() == {"ATP"}
    assert found["prefill"]["b1"]["speedup"] > 0
    assert found["left_out"] == []
    job(step, tmp_path).save(found, "done")
    assert f"b8 unpruned: {words}" in render(tmp_path)

    def features(model: Any, batch: Any) -> Any:
        raise torch.OutOfMemoryError(words)

    monkeypatch.setattr(speed, "features_once", features)
    found = speed.measure(job(step, tmp_path))
    assert set(found["out_of_memory"]) == {"b1", "b8"}
    assert found["left_out"] == []
    assert found["scoring_extra_bytes"] > 0
    job(step, tmp_path).save(found, "done")
    assert f"b8: {words}" in render(tmp_path)


def test_other_work_than_the_oracle_s_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = speed.Speed(job(SPEED, tmp_path))
    shape = measured.shape
    model = measured.model = speed.build(shape, "cpu", torch.float32)
    forward = partial(speed.inference.forward, model, speed.inputs(shape, 1, "cpu", torch.float32))
    # The paper's counts of the complex picture and of the simple one.
    many, few = (speed.kept_of(shape, 1, "cpu", ragged) for ragged in (False, True))
    variants = {
        "oracle": speed.core(model, shape, many)["oracle"],
        "ATP": speed.core(model, shape, few)["ATP"],
    }
    measured.memory(1, variants, forward)
    assert measured.found["wrong"][0].startswith("b1: cache of [23, 10, 9, 9, 8], oracle's [23, 11")

    def peak_bytes(work: Any, device: str) -> int:
        raise torch.OutOfMemoryError("on the second pass")

    monkeypatch.setattr(speed, "peak_bytes", peak_bytes)
    assert measured.memory(1, variants, forward) == {}
    assert set(measured.found["out_of_memory"]) == {"b1 oracle", "b1 ATP"}


class Event:
    """A CUDA event: two in a row are 3 ms apart."""

    order: ClassVar[list[str]] = []

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.order.append("record")

    def synchronize(self) -> None:
        self.order.append("wait")

    def elapsed_time(self, end: Event) -> float:
        assert self.order[-1] == "wait"
        return 3.0


def test_what_only_cuda_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are CUDA's own: what does not exist cannot be replaced here."""
    if torch.cuda.is_available():
        pytest.skip("there is CUDA: the command itself shows it")
    with pytest.raises(ValueError, match="sees no CUDA device"):
        on_device.prepare("cuda")
    for name, value in (
        ("synchronize", None),
        ("empty_cache", None),
        ("mem_get_info", (1, 2)),
        ("get_device_name", "a card"),
        ("get_device_capability", (9, 0)),
        ("current_device", 0),
        ("get_device_properties", type("P", (), {"multi_processor_count": 132})),
        ("is_available", True),
    ):
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    with on_device.prepare("cuda"):
        card = on_device.card("cuda")
    assert (card["name"], card["memory_bytes"], card["multiprocessors"]) == ("a card", 2, 132)
    on_device.release("cuda")
    took = on_device.seconds_of({"a": lambda: Event.order.append("work")}, 2, "cuda")
    assert took == {"a": [0.003, 0.003]}
    assert Event.order == ["record", "work", "record", "wait"] * 4
    assert on_device.kernels_on("cuda") == "cuda"
