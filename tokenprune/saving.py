"""Let ``model.save_pretrained`` of a wrapped model save the pruning beside the plain model.

transformers' Trainer and ``push_to_hub`` save by it too.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from .engine import ATTRIBUTE, engine_of, heads_left_out
from .engine.arguments import bind
from .io import save_heads

__all__ = ["cover_save_pretrained", "uncover_save_pretrained"]

# Arguments of save_pretrained that are meant for the hub.
_HUB = ("repo_id", "commit_message", "create_pr", "private", "revision", "tags", "token")


def cover_save_pretrained(model: Any) -> None:
    """Cover the ``save_pretrained`` of a wrapped model, on the instance.

    Parameters
    ----------
    model : nn.Module
        A wrapped model. One without a ``save_pretrained`` is left as it is.
    """
    if hasattr(model, "save_pretrained"):
        save = model.save_pretrained
        model.save_pretrained = update_wrapper(partial(_save_pretrained, save, model), save)


def uncover_save_pretrained(model: Any) -> None:
    """Undo `cover_save_pretrained`. What somebody has put over it since is left as it is."""
    ours = vars(model).get("save_pretrained")
    if not isinstance(ours, partial) or ours.func is not _save_pretrained:
        return
    save = ours.args[0]
    del model.save_pretrained
    if model.save_pretrained != save:  # it was on the instance before
        model.save_pretrained = save


def _save_pretrained(save: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> None:
    """Save the heads and the plain model in one folder, and upload both if that is asked for."""
    given = bind(inspect.signature(save), args, kwargs)
    folder = given["save_directory"]
    main = given.get("is_main_process", True)
    if main and engine_of(model).config is not None:
        save_heads(model, folder)  # first: it refuses before anything is written
    elif main:
        warnings.warn(
            f"The pruning is not saved with the model: {type(engine_of(model).method).__name__} is "
            "not registered (tokenprune.register_method).",
            stacklevel=2,
        )
    if given.get("state_dict") is not None:
        plain = given["state_dict"].items()
        given["state_dict"] = {k: v for k, v in plain if not k.startswith(ATTRIBUTE + ".")}
    push = given.pop("push_to_hub", False)
    hub = {name: given.pop(name) for name in _HUB if name in given} if push else {}
    with heads_left_out():
        save(**given)
    if push and main:
        # save_pretrained would upload what it has written itself, so not the heads.
        repo_id = hub.pop("repo_id", os.path.basename(os.path.normpath(folder)))
        model.push_to_hub(repo_id, **hub)
