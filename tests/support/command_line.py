"""The command line, run in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from tokenprune.cli import app

__all__ = ["figures_of", "parse_command", "run_command"]


def run_command(*arguments: str) -> tuple[int, str, str]:
    """Run a command: its exit code, what it printed, and what it said on standard error."""
    runner = CliRunner(env={"COLUMNS": "88", "TERMINAL_WIDTH": "88"})
    result = runner.invoke(app, arguments, prog_name="tokenprune")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def parse_command(*arguments: str) -> None:
    """Read a command's arguments, without running it; raise what wrong ones raise."""
    name, *rest = arguments
    get_command(app).commands[name].make_context(name, rest)  # type: ignore[attr-defined]


def figures_of(*arguments: str) -> Any:
    """Run a command with --json: what it printed, read."""
    code, out, err = run_command(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)
