"""`python -m benchmarks.gpu` without a GPU: steps are run, cut, resumed and reported."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, settings

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import properties, runner, speed, steps
from benchmarks.gpu.render import render
from benchmarks.gpu.results import Job
from benchmarks.gpu.steps import ENVIRONMENT, STEPS, Step
from benchmarks.speed.shapes import SHAPES
from benchmarks.store import read, write

ROOT = Path(__file__).parents[1]
SPEED = "speed-llava-1.5-7b"
KNOWN = {
    "device": "cpu",
    "tiny": True,
    "commit": "a1",
    "python": "3",
    "cuda": None,
    "date": "today",
    "card": {"name": "a card", "memory_bytes": None, "driver": None},
    "packages": {"torch": "2", "transformers": "5", "triton": None},
}


def job(step: str, folder: Path) -> Job:
    return Job(step, "cpu", True, 100.0, folder / f"{step}.json")


def doing(folder: Path, **what: str) -> runner.Command:
    """Lines of Python in place of a step, in a process that imports nothing large."""

    def command(step: Step, seconds: float) -> list[str]:
        known = KNOWN if step is ENVIRONMENT else {}
        done = f"write(path, dict({known!r}, status='done', seconds={seconds}))"
        lines = (
            "import subprocess, sys, time",
            "from pathlib import Path",
            "from benchmarks.store import write",
            f"path = Path({str(folder / step.name)!r} + '.json')",
            what.get(step.name.replace("-", "_"), done),
        )
        return [sys.executable, "-S", "-c", "\n".join(lines)]

    return command


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    monkeypatch.setattr(runner, "_LEAST", 0.3)
    return [Step(name, "", 4, ()) for name in ("one", "two", "three")]


def test_what_is_done_is_not_run_again(tmp_path: Path, three: list[Step]) -> None:
    write(tmp_path / "two.json", {"status": "cut", "reason": "before"})
    nothing = dict.fromkeys(("one", "three"), "sys.exit('ran again')")
    assert runner.run(three, tmp_path, 60, doing(tmp_path))
    # Two and three left their seconds to one, and so on.
    given = [read(tmp_path / f"{step.name}.json")["seconds"] for step in three]
    assert given[0] == pytest.approx(52, abs=3)
    assert given[2] == pytest.approx(60, abs=5)
    (tmp_path / "two.json").unlink()
    assert runner.run(three, tmp_path, 60, doing(tmp_path, **nothing))
    assert read(tmp_path / "two.json")["status"] == "done"
    write(tmp_path / "two.json", {"status": "done", "wrong": ["a kernel"]})
    assert not runner.run(three, tmp_path, 60, doing(tmp_path, **nothing))


def test_a_step_that_takes_too_long_is_cut_with_all_that_it_started(
    tmp_path: Path, three: list[Step]
) -> None:
    late = tmp_path / "late"
    slow = (
        "write(path, {'status': 'running', 'kernels': [1]})\n"
        f"subprocess.run(['sh', '-c', 'sleep 6; touch {late}'])"
    )
    start = time.monotonic()
    # Half of what the steps ask for: each gets half.
    assert not runner.run(three, tmp_path, 6, doing(tmp_path, two=slow))
    assert time.monotonic() - start < 6
    found = read(tmp_path / "two.json")
    assert (found["status"], found["kernels"]) == ("cut", [1])
    assert read(tmp_path / "three.json")["status"] == "done"
    time.sleep(max(0.0, start + 8 - time.monotonic()))
    assert not late.exists()


def test_when_time_is_over_the_rest_is_not_begun(tmp_path: Path, three: list[Step]) -> None:
    assert not runner.run(three, tmp_path, 0.2, doing(tmp_path))
    for step in three:
        found = read(tmp_path / f"{step.name}.json")
        assert found["status"] == "not run"
        assert "again" in found["reason"]


def test_a_step_that_fails_says_why_and_the_others_go_on(tmp_path: Path, three: list[Step]) -> None:
    fails = "write(path, {'status': 'running', 'kernels': [1]})\nraise ValueError('no such shape')"
    quits = "sys.exit(0)"
    assert not runner.run(three, tmp_path, 60, doing(tmp_path, one=fails, two=quits))
    found = read(tmp_path / "one.json")
    assert (found["status"], found["kernels"]) == ("failed", [1])
    assert found["reason"] == "exit status 1: ValueError: no such shape"
    assert "Traceback" in found["output"][1]
    assert read(tmp_path / "two.json")["status"] == "failed"
    assert read(tmp_path / "three.json")["status"] == "done"
    assert "no such shape" in (tmp_path / "log.txt").read_text()
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("absent", "without"),
    [("hypothesis", {"properties"}), ("triton", {"kernels"}), ("torch", None)],
)
def test_steps_whose_packages_are_missing_are_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str, without: set[str] | None
) -> None:
    there = steps.find_spec
    monkeypatch.setattr(steps, "find_spec", lambda n: None if n == absent else there(n))
    assert not runner.run(STEPS, tmp_path, 520, doing(tmp_path))
    for step in STEPS:
        found = read(tmp_path / f"{step.name}.json")
        out = without is None or step.name in without
        assert found["status"] == ("not run" if out else "done"), step
        if out:
            assert found["reason"] == f"cannot be imported here: {absent}"
    assert f"cannot be imported here: {absent}" in render(tmp_path)


def test_results_of_another_card_are_not_mixed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert runner.run(STEPS[:3], tmp_path, 520, doing(tmp_path))
    assert runner.run(STEPS[:3], tmp_path, 520, doing(tmp_path))
    other = {**KNOWN, "status": "done", "card": {"name": "another card"}}
    write(tmp_path / "environment.json", other)
    capsys.readouterr()
    assert not runner.run(STEPS[:3], tmp_path, 520, doing(tmp_path))
    assert "card: another card there, a card now" in capsys.readouterr().out
    assert read(tmp_path / "environment.json") == other


def test_without_the_device_nothing_is_tried(tmp_path: Path) -> None:
    fails = "raise ValueError('no CUDA device')"
    assert not runner.run(STEPS, tmp_path, 520, doing(tmp_path, environment=fails))
    assert [path.name for path in tmp_path.glob("*.json")] == ["environment.json"]


def test_the_steps_fit_into_nine_minutes() -> None:
    assert sum(step.seconds for step in STEPS) <= 520
    assert Phase.shrink not in settings.get_profile("unshrunk").phases  # minutes for a failure
    for step in STEPS[3:]:
        assert speed.shape_of(Job(step.name, "cuda", False, 1, Path("x"))) in SHAPES.values()
    for name in properties.FILES:
        assert "device: str" in (ROOT / name).read_text() or "(device" in (ROOT / name).read_text()


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, said in (
        ([], "--out DIR"),
        (["--out", str(tmp_path), "--limit", "0"], "above 0"),
        (["--out", str(tmp_path), "--only", "speed"], "invalid choice"),
        (["--render", str(tmp_path)], "holds no results"),
    ):
        with pytest.raises(SystemExit):
            program.main(flags)
        assert said in capsys.readouterr().err


def test_it_runs_from_a_checkout_on_a_pretended_device(tmp_path: Path) -> None:
    """Nothing is installed: neither the library nor, with -S, the test environment's link to it."""
    checkout = tmp_path / "checkout"
    for name in ("tokenprune", "adapters", "benchmarks", "tests"):
        left_out = shutil.ignore_patterns("digits_vqa", "results", "__pycache__", "adapters")
        shutil.copytree(ROOT / name, checkout / name, ignore=left_out)
    out = tmp_path / "out"
    flags = ["--device", "elsewhere", "--tiny", "--only", "environment", SPEED]
    ran = subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks.gpu", "--out", str(out), *flags],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": sysconfig.get_path("purelib"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + (out / "log.txt").read_text()
    assert {path.name for path in out.iterdir()} == {"environment.json", f"{SPEED}.json", "log.txt"}
    assert read(out / "environment.json")["packages"]["torch"] == torch.__version__.split("+")[0]
    found = read(out / f"{SPEED}.json")
    assert (found["status"], found["left_out"], found["wrong"]) == ("done", [], [])
    assert set(found["batches"]) == {"b1", "b8", "b32"}
    assert f"{found['shape']}, b32 |" in ran.stdout
