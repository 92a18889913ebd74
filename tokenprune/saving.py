"""Let ``model.save_pretrained`` of a wrapped model save the pruning beside the plain model.

transformers' Trainer and ``push_to_hub`` save by it too. A PEFT model's writes its adapters alone:
there the pruning is saved beside these.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable
from functools import partial, update_wrapper
from typing import Any

from safetensors.torch import save_file
from torch.nn.modules.batchnorm import _BatchNorm
from transformers.utils import SAFE_WEIGHTS_NAME

from .engine import ATTRIBUTE, base_model_of, engine_of, heads_left_out
from .engine.arguments import bind
from .engine.wrappers import transformers_and_peft
from .io import save_heads

__all__ = ["cover_save_pretrained", "uncover_save_pretrained"]

# Arguments of save_pretrained that are meant for the hub.
_HUB = ("repo_id", "commit_message", "create_pr", "private", "revision", "tags", "token")


def cover_save_pretrained(model: Any) -> None:
    """Cover the ``save_pretrained`` of a wrapped model, on the instance.

    Parameters
    ----------
    model : nn.Module
        A wrapped model, or a PEFT model around one: both are then covered. One that is covered
        already, or has no ``save_pretrained``, is left as it is.
    """
    for each in transformers_and_peft(model):
        if hasattr(each, "save_pretrained") and not _is_covered(each):
            save = each.save_pretrained
            each.save_pretrained = update_wrapper(partial(_save_pretrained, save, each), save)


def uncover_save_pretrained(model: Any) -> None:
    """Undo `cover_save_pretrained`. What somebody has put over it since is left as it is."""
    for each in transformers_and_peft(model):
        if _is_covered(each):
            save = vars(each)["save_pretrained"].args[0]
            del each.save_pretrained
            if each.save_pretrained != save:  # it was on the instance before
                each.save_pretrained = save


def _is_covered(model: Any) -> bool:
    found = vars(model).get("save_pretrained")
    return isinstance(found, partial) and found.func is _save_pretrained


def _save_pretrained(save: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> None:
    """Save the heads and the plain model in one folder, and upload both if that is asked for."""
    if not hasattr(base_model_of(model), ATTRIBUTE):  # unwrapped, inside a PEFT model
        save(*args, **kwargs)
        return
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
    if _is_checkpoint_of_heads(model, folder):
        if main:
            # The Trainer looks for a file of this name where it resumes.
            save_file({}, os.path.join(folder, SAFE_WEIGHTS_NAME), metadata={"format": "pt"})
        return
    push = given.pop("push_to_hub", False)
    hub = {name: given.pop(name) for name in _HUB if name in given} if push else {}
    with heads_left_out():
        save(**given)
    if push and main:
        # save_pretrained would upload what it has written itself, so not the heads.
        repo_id = hub.pop("repo_id", os.path.basename(os.path.normpath(folder)))
        model.push_to_hub(repo_id, **hub)


def _is_checkpoint_of_heads(model: Any, folder: Any) -> bool:
    """Return whether a Trainer with our callback saves a checkpoint, and trains heads alone.

    The rest of the model is then what the run began with. Batch norms' statistics change without a
    gradient.
    """
    engine = engine_of(model)
    path = os.path.abspath(folder)
    if (
        model is not base_model_of(model)  # PEFT saves little by itself
        or engine.config is None
        or engine.checkpoints_in != os.path.dirname(path)
        or not re.fullmatch(r"checkpoint-\d+", os.path.basename(path))
    ):
        return False
    heads = {id(parameter) for parameter in engine.parameters()}
    others = (p for p in model.parameters() if id(p) not in heads)
    changes = any(isinstance(m, _BatchNorm) and m.track_running_stats for m in model.modules())
    return not changes and not any(p.requires_grad for p in others)
