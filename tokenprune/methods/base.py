"""The base class of pruning methods, what they are given and what they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from ..config import ModelFacts
from ..layout import VisualLayout

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "ATTENTION_NEEDS",
    "NEEDS",
    "STATE_NEEDS",
    "Context",
    "Method",
    "Received",
    "Selection",
    "Tower",
    "Trace",
]

ATTENTION_NEEDS = frozenset({"visual", "prompt", "last", "each"})
"""Groups of queries whose attention `Method.needs` may name: see `Context.received`."""

STATE_NEEDS = frozenset({"queries", "keys", "values"})
"""Attention states that `Method.needs` may name: the fields of `Context` with these names."""

NEEDS = ATTENTION_NEEDS | STATE_NEEDS
"""All that `Method.needs` may name."""


@dataclass(frozen=True)
class Received:
    """Attention that each token receives from one group of queries, mean over the heads.

    Values at tokens that cannot be dropped do not matter.

    Attributes
    ----------
    total : float32, (batch, tokens)
        Sum over the group's queries of the softmaxed attention.
    seen_by : float32, (batch, tokens)
        How many of the group's queries can see the token.
    queries : float32, (batch,)
        How many queries the group has.
    """

    total: Tensor
    seen_by: Tensor
    queries: Tensor

    def mean_visible(self) -> Tensor:
        """Return the mean over the queries that can see the token: float32, (batch, tokens)."""
        return self.total / self.seen_by.clamp(min=1e-6)

    def mean_all(self) -> Tensor:
        """Return the mean over all queries of the group: float32, (batch, tokens)."""
        return self.total / self.queries.clamp(min=1e-6)[:, None]


@dataclass(frozen=True)
class Tower:
    """What a layer of the vision tower computed for each visual token.

    Attributes
    ----------
    attention : float32, (batch, tokens)
        Attention from the class token, mean over the heads; 0 at text.
    keys : float32, (batch, tokens, heads, head_dim)
        The token's key. Values at text do not matter.
    """

    attention: Tensor
    keys: Tensor


@dataclass(frozen=True)
class Context:
    """What a method sees at one pruning step.

    A token here is one of those that are still there at the step; for a method that `revives`, one
    of all. Rows of different lengths are padded: `layout.mask` is False at text and at padding.

    Attributes
    ----------
    step : int
        Number of the pruning step, counted from 0: step n follows layer ``layers[n]``.
    layer : int
        The decoder layer that has just run, counted from 0; -1 (`BEFORE_DECODER`) before the first.
    layout : VisualLayout
        Which tokens are visual, and each one's image, frame, row and column: (batch, tokens).
    weight : float32, (batch, tokens)
        How much of each visual token is still there: 1 or 0 when tokens are dropped, the product
        of the earlier masks when they are softened in training; 0 at text and padding.
    prompt : bool, (batch, tokens)
        Text that is not part of the answer.
    text : bool, (batch, tokens)
        Text that may be dropped: none, unless the method names `spared_ids`.
    received : dict
        Name of a query group in the method's `needs` → `Received`: the attention that each token
        gets from these queries at the layer. Empty before the first layer.
    hidden_states : Tensor, (batch, tokens, hidden_size)
        The layer's output; before the first layer, its input.
    positions : int64, (batch, tokens)
        Index of each token in the sequence as it was given.
    memory : object
        What the method's `begin` returned for this forward pass.
    tower : Tower, optional
        The vision tower's layer `tower_layer`. None for a method that names no such layer, and
        after the first decoder layer.
    queries, keys, values : Tensor, (batch, heads, tokens, head_dim), optional
        The layer's attention states, after rotary embedding; keys and values have the key-value
        heads. Each is None unless the method's `needs` names it, and before the first layer.
    """

    step: int
    layer: int
    layout: VisualLayout
    weight: Tensor
    prompt: Tensor
    text: Tensor
    received: dict[str, Received]
    hidden_states: Tensor
    positions: Tensor
    memory: Any = None
    tower: Tower | None = None
    queries: Tensor | None = None
    keys: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class Selection:
    """What a method decides at one pruning step.

    Attributes
    ----------
    keep : bool, (batch, tokens)
        Which visual tokens stay. Values at text and padding do not matter.
    mask : float32 in [0, 1], (batch, tokens), optional
        The factor by which training softens each visual token, with gradient. A `trainable` method
        returns it in training; other methods drop tokens in training as in inference.
    scores : float32, (batch, tokens), optional
        How much each token matters; NaN here stops the forward pass with an error.
    thresholds : float32, (batch, n), optional
        What `tokenprune.stats` reports as the thresholds of this step.
    keep_text : bool, (batch, tokens), optional
        Which of the context's `text` stays, when tokens are really dropped. None: all.
    hidden_states : Tensor, (batch, tokens, hidden_size), optional
        The tokens' hidden states from here on, for methods that merge what they drop into what
        they keep. None: unchanged.

    Examples
    --------
    >>> tp.Selection(keep=torch.tensor([[True, False, True]])).scores is None
    True
    """

    keep: Tensor
    mask: Tensor | None = None
    scores: Tensor | None = None
    thresholds: Tensor | None = None
    keep_text: Tensor | None = None
    hidden_states: Tensor | None = None


@dataclass(frozen=True)
class Trace:
    """Numbers of tokens in one softened forward pass, with gradient.

    Attributes
    ----------
    visual_tokens : float32, (batch,)
    counts : float32, (steps, batch)
        Visual tokens left after each step.
    layers : tuple of int
        The decoder layer that each step follows, counted from 0.
    num_layers : int
        Decoder layers in all.
    """

    visual_tokens: Tensor
    counts: Tensor
    layers: tuple[int, ...]
    num_layers: int

    def mean_tokens(self) -> Tensor:
        """Return the mean number of visual tokens over all layers: float32, (batch,)."""
        total = self.visual_tokens * (self.layers[0] + 1)
        ends = (*self.layers[1:], self.num_layers - 1)
        for count, start, end in zip(self.counts, self.layers, ends, strict=True):
            total = total + count * (end - start)
        return total / self.num_layers


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
    tower_layer : int, optional
        The layer of the vision tower that it reads, counted from the end as transformers'
        ``vision_feature_layer`` is: -1 is the last.
    floor : float
        Least value of a soft mask as a factor on attention.
    keeps_positions : bool
        Whether survivors keep their original positions. If not, they are numbered anew without
        gaps, which is for measuring what that costs.
    revives : bool
        Whether dropped tokens can come back. The context then has all tokens at each step, the
        dropped ones with the hidden state they left with and the attention they would receive.
    spared_ids : tuple of int, optional
        Token ids of text that always stays, beside those that the model's configuration names
        (begin, end, padding, image and others). None: all text stays.
    trainable : bool
        Whether its selections have soft masks in training.
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
    tower_layer: int | None = None
    floor: float = 1e-4
    keeps_positions: bool = True
    revives: bool = False
    spared_ids: tuple[int, ...] | None = None
    trainable: bool = False

    def __init__(self, config: Any = None) -> None:
        super().__init__()
        if config is None and self.Config is not None:
            config = self.Config()
        self.config = config
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
        """Return what can be changed at run time, as JSON types; saved beside the parameters."""
        return {}

    def load_runtime_state(self, state: dict[str, Any]) -> None:
        """Restore what `runtime_state` returned; ValueError, and no change, if it is not that."""

    def extra_repr(self) -> str:
        """Return the layers, for the model's printed form."""
        return f"layers={getattr(self, 'layers', None)}"
