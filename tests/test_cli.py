"""The command line: what it prints, its exit codes, and that its estimates come true."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoConfig, LlamaConfig

import tokenprune as tp
from tokenprune.cli import app
from tokenprune.measure.estimate import equal_shares, least_mean

from .support.command_line import figures_of, parse_command, run_command
from .support.tiny_llava import IMAGE, make_batch, tiny_llava

ROOT = Path(__file__).parents[1]
COMMANDS = [str(command.callback.__name__) for command in app.registered_commands]
WEIGHTS = ROOT / "benchmarks" / "digits_vqa" / "weights"
LLAVA = str(WEIGHTS / "llava")


@pytest.fixture
def run() -> Any:
    """Run a command: its exit code, what it printed, and what it said on standard error."""
    return run_command


@pytest.fixture
def figures() -> Any:
    """Run a command with --json: what it printed, read."""
    return figures_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with nothing but a configuration: of 6 layers and 36 tokens."""
    path = tmp_path_factory.mktemp("config")
    tiny_llava().config.save_pretrained(path)
    return str(path)


# -- figures -------------------------------------------------------------------------------------


def test_supported_lists_what_the_library_does(run: Any, figures: Any) -> None:
    assert figures("supported") == tp.supported()
    code, out, _ = run("supported")
    assert code == 0
    assert all(name in out for names in tp.supported().values() for name in names)


@pytest.mark.parametrize(
    ("config", "layers", "keep"),
    [
        (tp.PyramidDropConfig(layers=(1, 3), keep=0.5), "1,3", "21"),
        (tp.FastVConfig(layer=1, keep=9), "1", "50%"),
        (tp.DivPruneConfig(keep=9), "-1", "25%"),  # zeros in the first layer's cache are counted
    ],
)
def test_an_estimate_is_what_a_run_then_measures(
    figures: Any, folder: str, config: Any, layers: str, keep: str
) -> None:
    model = tp.wrap(tiny_llava(), config)
    with torch.no_grad():
        model(**make_batch(((4, IMAGE, 6),) * 2))
    stats = tp.stats(model)
    text = int((stats.alive[0, 0] & ~stats.visual[0]).sum())
    options = f"--budget {keep} --layers={layers} --text {text} --batch 2 --dtype float32"
    found = figures("estimate", folder, *options.split())
    assert found["pruning_layers"] == list(stats.pruning_layers)
    full, pruned = found["rows"]
    assert (full["budget"], pruned["budget"]) == ("100%", keep)
    assert full["kv_bytes"] == stats.kv_bytes_unpruned.sum()
    assert full["prefill_flops"] == stats.prefill_flops_unpruned.sum()
    assert pruned["kv_bytes"] == stats.kv_bytes.sum()
    assert pruned["prefill_flops"] == stats.prefill_flops.sum()
    assert pruned["mean_tokens"] == stats.mean_tokens
    assert pruned["final_tokens"] == stats.final_tokens[0]


def test_inspect_reads_the_layers_that_wrap_would_take(figures: Any, folder: str) -> None:
    found = figures("inspect", folder, "--budget", "18")
    model = tp.wrap(tiny_llava())
    assert found["pruning_layers"] == list(model.tokenprune.method.layers)
    assert (found["family"], found["decoder_layers"], found["visual_tokens"]) == ("llava", 6, 36)
    stages = found["stages"]
    assert [stage["first_layer"] for stage in stages] == [
        0,
        *(n + 1 for n in model.tokenprune.method.layers),
    ]
    assert stages[0]["visual_tokens"] == 36 > stages[-1]["visual_tokens"]
    assert stages[-1]["last_layer"] == 5
    spans = [(s["last_layer"] - s["first_layer"] + 1) * s["visual_tokens"] for s in stages]
    assert sum(spans) / 6 == pytest.approx(18, abs=0.5)


def test_inspect_and_wrap_agree_on_what_is_feasible(run: Any, folder: str) -> None:
    for tokens, layers in ((18, (1, 3)), (12.5, (1, 3)), (12, (1, 3)), (36, (1, 3)), (37, (1, 3))):
        code, out, _ = run("inspect", folder, "--budget", str(tokens), "--layers", "1,3")
        try:
            tp.wrap(tiny_llava(), tp.ATPConfig(layers=layers, target_tokens=tokens))
            wrapped = True
        except ValueError:
            wrapped = False
        assert (code == 0) == wrapped, tokens
        assert ("cannot be met: expected above 12" in out) != wrapped


def test_the_processor_counts_the_tokens_of_a_resolution(figures: Any) -> None:
    for size, tokens in (("96x96", 144), ("144x96", 216), ("128x64", 128)):
        found = figures("inspect", str(WEIGHTS / "qwen2_vl"), "--resolution", size)
        assert found["visual_tokens"] == tokens
    found = figures("estimate", LLAVA, "--tokens", "500", "--budget", "100", "--budget", "20%")
    assert found["visual_tokens"] == 500
    assert found["rows"][1:] == [{**found["rows"][1]}, {**found["rows"][1], "budget": "20%"}]


@given(
    layers=st.sets(st.integers(-1, 10), min_size=1, max_size=4).map(lambda s: tuple(sorted(s))),
    tokens=st.integers(1, 3000),
    share=st.floats(0.001, 1),
)
def test_equal_shares_meet_the_budget(layers: tuple[int, ...], tokens: int, share: float) -> None:
    least = least_mean(layers, 12, tokens)
    mean = least + share * (tokens - least)
    kept = equal_shares(layers, 12, tokens, mean)
    assert kept.mean() == pytest.approx(mean, abs=0.51)
    assert (kept[: layers[0] + 1] == tokens).all()
    assert (np.diff(kept) <= 0).all()
    assert set(np.flatnonzero(np.diff(kept))) <= {*layers}
    for wrong in (least, tokens + 1):
        with pytest.raises(ValueError, match=r"cannot be met.*Expected above"):
            equal_shares(layers, 12, tokens, wrong)


# -- what cannot be done -------------------------------------------------------------------------


def test_a_hub_that_cannot_be_reached_is_a_sentence(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(name: str, **_: Any) -> None:
        raise OSError("We couldn't connect to the hub to load the files, and couldn't find them.")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    for command in ("inspect", "estimate"):
        code, out, err = run(command, "someone/model")
        assert (code, out) == (1, "")
        assert err == (
            f"tokenprune {command}: 'someone/model' is no folder here, and the hub gave no "
            "configuration of that name: it could not be reached, or has no such model, or asks "
            "for a login (`hf auth login`).\n"
        )


def test_a_model_or_folder_that_cannot_be_pruned(run: Any, tmp_path: Path, folder: str) -> None:
    code, _, err = run("inspect", str(tmp_path))
    assert code == 1
    assert err.startswith(
        f"tokenprune inspect: No configuration can be read in the folder {tmp_path}: "
    )
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    code, _, err = run("inspect", str(tmp_path))
    assert code == 1
    assert "LlamaConfig" in err
    assert err.count("\n") == 1
    code, _, err = run("estimate", folder, "--resolution", "24x24")
    assert code == 1
    assert "No processor can be read" in err
    assert "--tokens" in err
    code, _, err = run("estimate", folder, "--budget", "3")
    assert code == 1
    assert "A budget of 3 of 36 visual tokens cannot be met" in err
    code, _, err = run("estimate", folder, "--layers", "5")
    assert code == 1
    assert "this decoder has 6 layers" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("", "COMMAND"),
        ("paint", "No such command 'paint'"),
        ("inspect", "MODEL"),
        ("inspect m --budget lots", "'lots': expected tokens (144) or a share (25%)"),
        ("inspect m --budget -3", "--budget"),
        ("inspect m --budget 0%", "'0%': expected tokens (144) or a share (25%)"),
        ("inspect m --tokens 0", "'--tokens'"),
        ("inspect m --resolution 5", "'5': expected width and height, as in 1280x960"),
        ("inspect m --tokens 5 --resolution 5x5", "--tokens or --resolution, not both"),
        ("inspect m --layers 3,1", "'3,1': expected rising numbers"),
    ],
)
def test_wrong_arguments_exit_with_2(run: Any, arguments: str, says: str) -> None:
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert says in err


def test_help_teaches_by_examples(run: Any) -> None:
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"  {command}  " in out for command in COMMANDS)
    assert "..." not in out.split("Commands:")[1]  # what a command does fits on its line
    for command in COMMANDS:
        code, out, _ = run(command, "--help")
        assert code == 0
        assert f"Examples:\n    $ tokenprune {command}" in out
        assert "--json" in out or command == "serve"  # which prints no figures


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_of_the_help_are_right_arguments(run: Any, command: str) -> None:
    """Read, not run: the models they name are not here."""
    _, out, _ = run(command, "--help")
    examples = re.findall(r"^    \$ tokenprune (.*)$", out, re.MULTILINE)
    assert examples
    for example in examples:
        parse_command(*shlex.split(example))


# -- demo, entry points --------------------------------------------------------------------


def test_demo_prunes_and_draws(run: Any, figures: Any, tmp_path: Path) -> None:
    Image.new("L", (50, 20), 200).save(tmp_path / "mine.jpg")
    code, out, _ = run(*f"demo --image {tmp_path}/mine.jpg --out {tmp_path}/a.jpg".split())
    assert code == 0
    assert "kept:  35.9 of 144.0" in out
    assert (tmp_path / "a.jpg").is_file()
    found = figures(*f"demo --budget 50% --out {tmp_path}/b.png".split())
    assert found["mean_tokens"] == pytest.approx(72, abs=0.5)
    assert found["picture"] == f"{tmp_path}/b.png"
    code, _, err = run(*f"demo --image {tmp_path}/absent.png".split())
    assert code == 1
    assert "absent.png" in err


def test_the_help_imports_nothing_heavy() -> None:
    """The commands are there, with their help, before torch is."""
    code = "import sys, tokenprune.cli; print([n for n in sys.argv[1:] if n in sys.modules])"
    heavy = ["torch", "transformers", "rich", "PIL", "numpy"]
    command = [sys.executable, "-c", code, *heavy]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == "[]\n"


def test_python_m_is_the_same_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["tokenprune", "supported", "--json"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("tokenprune", run_name="__main__")
    assert json.loads(capsys.readouterr().out) == tp.supported()
