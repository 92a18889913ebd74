"""The command ``serve``."""

from __future__ import annotations

import typer

from .app import CommandError, command

__all__ = ["serve"]


@command(
    "tokenprune serve my_model",
    "tokenprune serve my_model --device cuda --port 8000",
    passes_on=True,
)
def serve(context: typer.Context) -> None:
    """Serve a model with the pruning that was saved beside it.

    It is `transformers serve`, an OpenAI-compatible server, with the same arguments: a folder or
    hub id that `model.save_pretrained` of a wrapped model wrote, and options. A model without saved
    pruning is served as it is, with a warning. Needs `pip install transformers[serving]`.
    """
    from ..serving import serve

    try:
        serve(context.args)
    except ImportError as error:
        raise CommandError(str(error)) from error
