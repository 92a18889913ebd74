"""The program ``tokenprune``: what its commands have in common.

Only typer is imported here and beside the commands' signatures, so that ``--help`` is quick: torch,
transformers and rich are imported inside the commands.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer

__all__ = ["CommandError", "app", "command"]

Parameters = ParamSpec("Parameters")

app = typer.Typer(
    help="Drop visual tokens inside Hugging Face vision-language models.",
    epilog="""\b
A budget is the mean number of visual tokens over all decoder layers: a number of tokens (144)
or a share of the prompt's own (25%).
Exit codes: 0 done, 1 it cannot be done (the reason is said), 2 wrong arguments.""",
    no_args_is_help=True,
    # Plain text, as Hugging Face's own commands print it: no boxes that cut paths in two.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


class CommandError(Exception):
    """A reason, in a sentence, why a command cannot do what was asked."""


def command(
    *examples: str, passes_on: bool = False
) -> Callable[[Callable[Parameters, None]], Callable[Parameters, None]]:
    """Make a function a command of that name, whose errors are sentences.

    What a command cannot do it raises as `CommandError`, `ValueError`, `OSError` or `ImportError`:
    the message goes to standard error, and the exit code is 1.

    Parameters
    ----------
    *examples : str
        Shown at the end of the command's help.
    passes_on : bool
        Whether it takes arguments that it does not know, to pass them on to another program.
    """
    settings = {"allow_extra_args": True, "ignore_unknown_options": True} if passes_on else {}
    lines = "\n".join(f"  $ {example}" for example in examples)

    def made(run: Callable[Parameters, None]) -> Callable[Parameters, None]:
        @functools.wraps(run)
        def checked(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
            try:
                run(*args, **kwargs)
            except (CommandError, ValueError, OSError, ImportError) as error:
                typer.echo(f"tokenprune {run.__name__}: {error}", err=True)
                raise typer.Exit(1) from error

        made_by = app.command(epilog=f"\b\nExamples:\n{lines}", context_settings=settings)
        return made_by(checked)

    return made
