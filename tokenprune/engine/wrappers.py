"""What other libraries put around a model, or into it: PEFT, torch.compile, DDP and FSDP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from torch import nn

from ..distributed import is_fsdp

__all__ = [
    "base_model_of",
    "check_heads",
    "check_not_parallel",
    "peft_layers",
    "transformers_and_peft",
    "without_ddp",
]

# The child that holds the model: in torch.compile's wrapper, in FSDP's, and in DDP's.
_CHILDREN = ("_orig_mod", "_fsdp_wrapped_module", "module")


def base_model_of(model: Any) -> Any:
    """Return the transformers model inside PEFT's, torch.compile's, DDP's and FSDP's wrappers.

    Parameters
    ----------
    model : nn.Module
        A model with any of these around it, in any order, or none. Other objects are returned as
        they are.

    Examples
    --------
    >>> base_model_of(torch.nn.DataParallel(model)) is model
    True
    """
    *_, base = _layers(model)
    return base


def transformers_and_peft(model: Any) -> list[Any]:
    """Return the transformers model inside all wrappers, and PEFT's models around it."""
    *around, base = _layers(model)
    return [*(each for each in around if hasattr(type(each), "get_base_model")), base]


def _layers(model: Any) -> Iterator[Any]:
    """Yield what lies in each other, outermost first; the transformers model is the last."""
    yield model
    while isinstance(model, nn.Module):
        name = _child(model)
        if name is not None:
            model = getattr(model, name)
        elif hasattr(model, "get_base_model"):
            model = cast(Any, model).get_base_model()
        else:
            break
        yield model


def _child(model: nn.Module) -> str | None:
    """Return the name of the child that holds the model, in what was put around it; or None."""
    children = vars(model).get("_modules", {})
    return next((name for name in _CHILDREN if name in children), None)


def without_ddp(model: Any) -> Any:
    """Return what is in DistributedDataParallel, whose forward waits for those of other ranks.

    Parameters
    ----------
    model : nn.Module
        With or without it; PEFT's wrapper inside it stays.
    """
    ddp = nn.parallel.DistributedDataParallel
    return next((layer.module for layer in _layers(model) if isinstance(layer, ddp)), model)


def peft_layers(module: nn.Module) -> dict[str, Any]:
    """Return what PEFT has put into a module, by name: its adapters and its copies.

    LoRA layers and other adapters, and the wrappers of ``modules_to_save`` and of trainable tokens.
    """
    # PEFT is not imported for this: it may not be installed.
    found = module.named_modules()
    return {name: layer for name, layer in found if hasattr(type(layer), "adapter_layer_names")}


def check_heads(engine: Any) -> None:
    """Check that PEFT has left the pruning heads alone.

    Parameters
    ----------
    engine : object
        What stands under the engine's name in a model.

    Raises
    ------
    ValueError
        If they are among ``modules_to_save``, or adapters were put into them.
    """
    layers = peft_layers(engine) if isinstance(engine, nn.Module) else {}
    if "" in layers:
        raise ValueError(
            "PEFT was given the pruning heads as modules_to_save: it trains a copy of them, which "
            "the model does not prune by. Leave them out of modules_to_save, and call "
            'tokenprune.trainable(model, "heads", "lora").'
        )
    if layers:
        names = ", ".join(sorted(layers))
        raise ValueError(
            f"PEFT has changed the pruning heads ({names}): they are trained and saved as they "
            'are. Give its configuration exclude_modules=r".*tokenprune.*", and call '
            'tokenprune.trainable(model, "heads", "lora").'
        )


def check_not_parallel(model: Any) -> None:
    """Check that a model that is to be wrapped is not in DDP, DataParallel, FSDP or DeepSpeed yet.

    Raises
    ------
    ValueError
        If it is: they synchronise or shard the parameters that they found when they were made.
    """
    *around, base = _layers(model)
    # PEFT's and torch.compile's wrappers may be around it already.
    parallel = [layer for layer in around if _child(layer) not in (None, "_orig_mod")]
    # FSDP2 changes the class of the modules that it shards, and puts nothing around them.
    parts = base.modules() if isinstance(base, nn.Module) else ()
    name = type(parallel[0]).__name__ if parallel else "FSDP" if any(map(is_fsdp, parts)) else None
    if name is not None:
        raise ValueError(
            f"The model is in {name}, which would not synchronise heads that it was made without: "
            "call tokenprune.wrap(model) first, then distribute the model."
        )
