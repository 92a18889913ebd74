"""Choose which parameters train: the heads, PEFT's adapters, or both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from ..checks import shown
from ..engine import ATTRIBUTE, Engine, base_model_of, engine_of, peft_layers
from ..saving import cover_save_pretrained

__all__ = ["train_only_heads", "trainable"]

_PARTS = ("heads", "lora")


def trainable(model: nn.Module, *parts: str) -> list[nn.Parameter]:
    """Train these parts of the model and freeze all others, in place.

    Call it after `peft.get_peft_model`, which freezes whatever it did not add, and before the
    model is wrapped in DDP or FSDP and the optimiser is made. From then on the PEFT model's
    ``save_pretrained`` writes the heads beside its adapters. `unwrap` restores every parameter's
    ``requires_grad``.

    Parameters
    ----------
    model : nn.Module
        A wrapped model, or the PEFT model around one.
    *parts : {"heads", "lora"}
        "heads": the pruning heads. "lora": what PEFT trains, whatever the kind of adapter: the
        active adapters, and ``modules_to_save`` if there are any.

    Returns
    -------
    list of nn.Parameter
        What trains, for the optimiser.

    Raises
    ------
    ValueError
        If the model is not wrapped; a part is not known, given twice, or not in the model; or PEFT
        has put adapters into the heads, or trains biases too. Nothing is then changed.

    Examples
    --------
    >>> import peft
    >>> model = tp.wrap(model, tp.ATPConfig(layers=(1, 3), target_tokens=20))
    >>> lora = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
    >>> optimizer = torch.optim.Adam(tp.trainable(lora, "heads", "lora"), lr=1e-4)
    >>> trains = [name for name, p in lora.named_parameters() if p.requires_grad]
    >>> all("tokenprune." in name or "lora_" in name for name in trains)
    True
    """
    engine, base = engine_of(model), base_model_of(model)
    if not parts or len(set(parts)) < len(parts) or not set(parts) <= set(_PARTS):
        raise ValueError(f"parts={shown(parts)}: expected one or both of {_PARTS}.")
    heads = list(engine.parameters())
    layers = list(peft_layers(base).values())
    if "heads" in parts and not heads:
        raise ValueError(f"{type(engine.method).__name__} has no parameters: nothing to train.")
    if "lora" in parts:
        _check_adapters(base, layers)
    cover_save_pretrained(model)  # PEFT's too, which `wrap` may not have seen
    _remember(engine, base)
    base.requires_grad_(False)
    engine.trains = frozenset(parts)
    found = []
    if "heads" in parts:
        engine.requires_grad_(True)
        found += heads
    if "lora" in parts:
        for layer in layers:
            layer.set_adapter(layer.active_adapters)  # PEFT's own call for it
        own = {id(parameter) for parameter in heads}
        found += [p for p in base.parameters() if p.requires_grad and id(p) not in own]
    return found


def train_only_heads(model: nn.Module) -> list[nn.Parameter]:
    """Train the pruning heads and freeze all other parameters, in place.

    The same as ``trainable(model, "heads")``.

    Parameters
    ----------
    model : nn.Module
        A wrapped model.

    Returns
    -------
    list of nn.Parameter
        The heads' parameters, for the optimiser.

    Raises
    ------
    ValueError
        If the model is not wrapped, or its method has no parameters.

    Examples
    --------
    >>> model = tp.wrap(model, tp.ATPConfig(layers=(1, 3), target_tokens=20))
    >>> optimizer = torch.optim.Adam(tp.train_only_heads(model), lr=1e-3)
    >>> trains = [name for name, p in model.named_parameters() if p.requires_grad]
    >>> all(name.startswith("tokenprune.") for name in trains)
    True
    """
    return trainable(model, "heads")


def _remember(engine: Engine, base: nn.Module) -> None:
    """Keep each parameter's ``requires_grad`` for `unwrap`, unless it is kept already."""
    now = dict(_others(base))
    # PEFT adds parameters, renames others and freezes the rest: what it left is then the new start.
    if engine.required_grad is None or engine.required_grad.keys() != now.keys():
        engine.required_grad = now


def _others(base: nn.Module) -> Iterator[tuple[str, bool]]:
    for name, parameter in base.named_parameters():
        if not name.startswith(ATTRIBUTE + "."):
            yield name, parameter.requires_grad


def _check_adapters(base: Any, layers: list[Any]) -> None:
    """Raise ValueError if PEFT trains nothing here, or more than its adapters."""
    if not any(layer.active_adapters for layer in layers):
        raise ValueError(
            f"This {type(base).__name__} has no active PEFT adapter to train: call "
            "peft.get_peft_model(model, ...) or model.add_adapter(...) first, or leave out 'lora'."
        )
    configs = getattr(base, "peft_config", {})
    biases = {n: getattr(config, "bias", "none") for n, config in configs.items()}
    if wrong := {name: bias for name, bias in biases.items() if bias != "none"}:
        raise ValueError(
            f"The PEFT configuration trains the model's own biases too (bias={wrong}), which this "
            'does not follow: use bias="none", or set requires_grad yourself.'
        )
