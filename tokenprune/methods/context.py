"""What a pruning method is given at a step, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..layout import VisualLayout

__all__ = [
    "ATTENTION_NEEDS",
    "NEEDS",
    "STATE_NEEDS",
    "Context",
    "Criterion",
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
    whole_attention : float32, (batch, tokens)
        The same of queries and keys that are not split into heads: one softmax; 0 at text.
    keys : float32, (batch, tokens, heads, head_dim)
        The token's key. Values at text do not matter.
    """

    attention: Tensor
    whole_attention: Tensor
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
        gets from these queries at the layer, or at the next one for a method that `looks_ahead`.
        Empty before the first layer, unless the method looks ahead.
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
        That layer's attention states, after rotary embedding; keys and values have the key-value
        heads. Each is None unless the method's `needs` names it, and where `received` is empty.
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
class Criterion:
    """One ground on which visual tokens stay, for `tokenprune.explain` to state.

    A token meets it if its score is above `threshold`, or among the `limit` highest (of equal ones
    the earlier), or, where there is neither, if `met` says so. Nothing is decided by it.

    Attributes
    ----------
    name : str
        In a few words, such as "attention of the prompt's last token".
    scores : float, (batch, tokens), optional
    threshold : float, (batch, 1), optional
    limit : number, (batch, 1), or int, optional
    met : bool, (batch, tokens), optional

    Examples
    --------
    >>> tp.Criterion("norm", scores=torch.tensor([[0.2, 0.9]]), limit=1).threshold is None
    True
    """

    name: str
    scores: Tensor | None = None
    threshold: Tensor | None = None
    limit: Tensor | int | None = None
    met: Tensor | None = None


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
    criteria : tuple of Criterion
        What `keep` was decided by, for `tokenprune.explain`: a token stays that meets any of them.
        Empty: explanations state the scores, and that the rule is the method's own.
    max_kept : int, optional
        Of the tokens that meet a criterion, at most so many stay: those farthest above a threshold.
    order : Tensor, (batch, tokens), optional
        Where survivors are numbered anew: visual tokens of one image that stay, stand in rising
        order of this; of equal ones the earlier first. None, and wherever they keep their
        positions: in their own order. Under a mask of more than causal order a token still sees
        what its own place does.

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
    criteria: tuple[Criterion, ...] = ()
    max_kept: int | None = None
    order: Tensor | None = None


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
    weight : float or Tensor
        What the loss is multiplied by in the sum over the batches of an optimiser step, up to a
        factor that these share.
    """

    visual_tokens: Tensor
    counts: Tensor
    layers: tuple[int, ...]
    num_layers: int
    weight: float | Tensor = 1.0

    def mean_tokens(self) -> Tensor:
        """Return the mean number of visual tokens over all layers: float32, (batch,)."""
        total = self.visual_tokens * (self.layers[0] + 1)
        ends = (*self.layers[1:], self.num_layers - 1)
        for count, start, end in zip(self.counts, self.layers, ends, strict=True):
            total = total + count * (end - start)
        return total / self.num_layers
