"""The base class of pruning methods."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..checks import shown
from ..config import ModelFacts
from ..fields import BEFORE_DECODER, layer_numbers
from ..strict_json import parse_object
from .context import NEEDS, STATE_NEEDS, Context, Selection, Trace

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["EXTRA_STATE", "Method", "check_method"]

# The key under which torch's state dicts have what `get_extra_state` returns.
EXTRA_STATE = "_extra_state"


class Method(nn.Module):
    """Base class of pruning methods: after some decoder layers, choose the tokens that stay.

    A subclass defines `select`. Methods that keep the tokens with the highest scores derive from
    `RankingMethod` instead, and define `score`.

    Attributes
    ----------
    config : MethodConfig, optional
        As given; if None was given, the class's default, ``Config()``, where it has one.
    layers : tuple of int
        Decoder layers, counted from 0, after which it decides; `BEFORE_DECODER` (-1) is before the
        first. The constructor takes them from the configuration, where that says so.
    needs : frozenset of str
        What it reads of attention at those layers, which is then computed, and nothing else.
        Attention received, in `Context.received`, from "visual" (the visual tokens), "prompt" (the
        prompt's text), "last" (the prompt's last text token) or "each" (every text token of the
        prompt on its own). The states "queries", "keys" and "values", in the fields of `Context`
        with these names; not together with `revives`.
    looks_ahead : bool
        Whether what `needs` names is that of the layer to come, computed ahead of it on every token
        that is there, instead of that of the layer just run; not together with `revives`.
    tower_layer : int, optional
        The layer of the vision tower that it reads, counted from the end as transformers'
        ``vision_feature_layer`` is: -1 is the last.
    floor : float
        Least value of a soft mask as a factor on attention.
    keeps_positions : bool
        Whether survivors keep their original positions. If not, they are numbered anew without
        gaps: the constructor sets it so where the configuration's `positions` are "renumbered".
    revives : bool
        Whether dropped tokens can come back. The context then has all tokens at each step, the
        dropped ones with the hidden state they left with and the attention they would receive.
    spared_ids : tuple of int, optional
        Token ids of text that always stays, beside those that the model's configuration names
        (begin, end, padding, image and others). None: all text stays.
    trainable : bool
        Whether its selections have soft masks in training.
    distills : bool
        Whether the unpruned model's logits teach in training, instead of labels.
    Config : type
        The configuration's class; `tokenprune.register_method` sets it.

    Examples
    --------
    >>> class EveryOther(tp.Method):
    ...     def select(self, context):
    ...         visual = context.layout.mask
    ...         return tp.Selection(keep=visual & (context.layout.col % 2 == 0))
    >>> EveryOther(tp.SingleLayerConfig(layer=2)).layers
    (2,)
    """

    Config: ClassVar[Any] = None

    layers: tuple[int, ...]
    needs: frozenset[str] = frozenset()
    looks_ahead: bool = False
    tower_layer: int | None = None
    floor: float = 1e-4
    keeps_positions: bool = True
    revives: bool = False
    spared_ids: tuple[int, ...] | None = None
    trainable: bool = False
    distills: bool = False

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        if config is None and self.Config is not None:
            config = self.Config()
        self.config = config
        if config is not None and config.positions == "renumbered":
            self.keeps_positions = False
        if config is not None and (layers := config.pruning_layers()):
            self.layers = layers

    @classmethod
    def from_config(cls, config: Any, facts: ModelFacts) -> Self:
        """Build the method for a model.

        Override it if the constructor needs more than the configuration.

        Parameters
        ----------
        config : MethodConfig
            As its `fitted` returned it.
        facts : ModelFacts
        """
        return cls(config)

    def begin(self, context: Context) -> Any:
        """Look at the first layer's input; what this returns is each later `Context.memory`."""
        return None

    def select(self, context: Context) -> Selection:
        """Choose which of the visual tokens in `context` stay."""
        raise TypeError(f"{type(self).__name__} does not define select.")

    def losses(self, trace: Trace) -> dict[str, tuple[Tensor, float]]:
        """Return the terms that training adds to the loss: name → (value, weight)."""
        return {}

    def without_images(self) -> None:
        """Note a training forward without images, which `losses` is not called for.

        For methods whose losses communicate with other ranks of torch.distributed.
        """

    def set_budget(self, target_tokens: float) -> None:
        """Change the mean number of tokens per image over all layers.

        Raises
        ------
        ValueError
            If the method has no such control, or the target is out of its reach.
        """
        raise ValueError(
            f"{type(self).__name__} keeps what its configuration says: call "
            "tokenprune.unwrap(model), and wrap it with another one."
        )

    def runtime_state(self) -> dict[str, Any]:
        """Return what can be changed at run time, as JSON types.

        It is saved with the parameters, in files of heads and in state dicts: a method that decides
        by anything else that changes would not come back as it was.
        """
        return {}

    def load_runtime_state(self, state: dict[str, Any]) -> None:
        """Restore what `runtime_state` returned; ValueError, and no change, if it is not that."""

    def get_extra_state(self) -> Tensor:
        """Return the runtime state for a state dict: its JSON, as bytes.

        A tensor, since safetensors files hold nothing else; bytes, since ``model.half()`` would
        round numbers.
        """
        text = json.dumps(self.runtime_state(), allow_nan=False)
        return torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the runtime state from a state dict; ValueError if it is not one."""
        self.load_runtime_state(parse_object(bytes(state.tolist()).decode()))

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        """Write to a state dict; without a key for the runtime state if the method has none."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.runtime_state():
            del destination[prefix + EXTRA_STATE]

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load from a state dict, and refuse one that has the parameters without the rest.

        torch ignores what is missing if ``strict=False``, as transformers' Trainer calls it: the
        model would then keep another number of tokens.
        """
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        key, has_state = prefix + EXTRA_STATE, bool(self.runtime_state())
        if key in missing_keys and not has_state:
            missing_keys.remove(key)
        has_heads = any(name.startswith(prefix) for name in state_dict)
        if has_heads and has_state and key not in state_dict:
            error_msgs.append(
                f"{key} is missing: the state dict, which an earlier version may have written, "
                "does not say what was calibrated or set at run time, so the model would not keep "
                "as many tokens as it did. Load the heads with tokenprune.load_heads, or calibrate "
                "and save again."
            )

    def extra_repr(self) -> str:
        """Return the layers, for the model's printed form."""
        return f"layers={getattr(self, 'layers', None)}"


def check_method(method: Method, facts: ModelFacts) -> None:
    """Check that a model can give a method what it asks for.

    Parameters
    ----------
    method : Method
    facts : ModelFacts
        Of the model.

    Raises
    ------
    ValueError
        If it cannot: layers past its end, unknown needs, or needs that exclude each other.
    """
    layers = layer_numbers(BEFORE_DECODER)("layers", getattr(method, "layers", None))
    facts.check(layers)
    name, needs = type(method).__name__, set(method.needs)
    if unknown := sorted(needs - NEEDS, key=str):
        raise ValueError(f"{name}.needs names {shown(unknown)}: expected some of {sorted(NEEDS)}.")
    if method.revives and needs & STATE_NEEDS:
        raise ValueError(
            f"{name}.revives is True and its needs name {sorted(needs & STATE_NEEDS)}: dropped "
            "tokens have no attention states at later layers. Read attention received instead."
        )
    if method.revives and method.looks_ahead:
        raise ValueError(
            f"{name}.revives and {name}.looks_ahead are both True: what is gone is asked about at "
            "the layer just run. Leave one of them False."
        )
