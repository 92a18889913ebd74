"""What a pruning method is: it looks at the tokens after a decoder layer and says which stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..layout import VisualLayout

__all__ = [
    "ATTENTION_NEEDS",
    "NEEDS",
    "Context",
    "Method",
    "Received",
    "Selection",
    "Tower",
    "Trace",
]

ATTENTION_NEEDS = frozenset({"visual", "prompt", "last", "each"})
NEEDS = ATTENTION_NEEDS
"""What `Method.needs` may name."""


@dataclass(frozen=True)
class Received:
    """Attention that each token receives from one group of queries, heads averaged.

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
        """Mean over the queries that can see the token: float32, (batch, tokens)."""
        return self.total / self.seen_by.clamp(min=1e-6)

    def mean_all(self) -> Tensor:
        """Mean over all queries of the group: float32, (batch, tokens)."""
        return self.total / self.queries.clamp(min=1e-6)[:, None]


@dataclass(frozen=True)
class Tower:
    """What a layer of the vision tower says of each visual token.

    Attributes
    ----------
    attention : float32, (batch, tokens)
        How much the class token attends to it, mean over the heads; 0 at text.
    keys : float32, (batch, tokens, heads, width)
        Its key. Values at text do not matter.
    """

    attention: Tensor
    keys: Tensor


@dataclass(frozen=True)
class Context:
    """All that a method may look at when it decides.

    Attributes
    ----------
    step : int
        Number of the pruning step, counted from 0: step n follows layer ``layers[n]``.
    layer : int
        The decoder layer that has just run, counted from 0; -1 before the first.
    layout : VisualLayout
        The tokens still there, (batch, tokens).
    weight : float32, (batch, tokens)
        How much of each visual token is still there: 1 or 0 when tokens are really dropped, the
        product of the earlier masks when they are softened; 0 at text and padding.
    prompt : bool, (batch, tokens)
        Text that the answer does not contain.
    text : bool, (batch, tokens)
        Text that may be dropped: none, but for a method that names `spared_ids`.
    received : dict
        What each query group that the method `needs` gives; see `Method.needs`. Nothing before the
        first layer.
    hidden_states : Tensor, (batch, tokens, width)
        The layer's output; before the first layer, its input.
    positions : int64, (batch, tokens)
        Where each token stands in the sequence as it was given.
    memory : object
        What the method's `begin` gave for this pass.
    tower : Tower, optional
        For a method that names a `tower_layer`, before the first layer.
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


@dataclass(frozen=True)
class Selection:
    """What a method decides.

    Attributes
    ----------
    keep : bool, (batch, tokens)
        Which visual tokens stay. Values at text and padding do not matter.
    mask : float32 in [0, 1], (batch, tokens), optional
        The factor with which each visual token counts in training, with gradient. A trainable
        method gives it; one that is not drops in training as in inference.
    scores : float32, (batch, tokens), optional
        How much each token matters; NaN here stops the forward pass with an error.
    thresholds : float32, (batch, n), optional
        What `stats` reports as the thresholds of this step.
    keep_text : bool, (batch, tokens), optional
        Which of the context's `text` stays, when tokens are really dropped. None: all.
    hidden_states : Tensor, (batch, tokens, width), optional
        What the tokens are from here on, for methods that merge what they drop into what they
        keep. None: what they are.
    """

    keep: Tensor
    mask: Tensor | None = None
    scores: Tensor | None = None
    thresholds: Tensor | None = None
    keep_text: Tensor | None = None
    hidden_states: Tensor | None = None


@dataclass(frozen=True)
class Trace:
    """What one softened forward pass counted, with gradient.

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
        """Visual tokens that a layer computes on, mean over all layers: float32, (batch,)."""
        total = self.visual_tokens * (self.layers[0] + 1)
        ends = (*self.layers[1:], self.num_layers - 1)
        for count, start, end in zip(self.counts, self.layers, ends, strict=True):
            total = total + count * (end - start)
        return total / self.num_layers


class Method(nn.Module):
    """A pruning method.

    Attributes
    ----------
    layers : tuple of int
        Decoder layers, counted from 0, after which it decides; -1: before the first.
    needs : frozenset of str
        The query groups whose attention it asks for at those layers: "visual" (the visual tokens),
        "prompt" (the prompt text), "last" (the prompt's last text token), "each" (every text token
        of the prompt on its own). Nothing else is computed.
    tower_layer : int, optional
        The layer of the vision tower, counted from its end (-1), whose attention it asks for.
    floor : float
        Least value of a soft mask as a factor on attention.
    keeps_positions : bool
        Whether survivors keep their original positions. If not, they are numbered anew without
        gaps, which is for measuring what that costs.
    revives : bool
        Whether what it dropped may come back: it is then asked about all visual tokens each time,
        those that are gone with the hidden state they left with and the attention they would
        receive if they were there.
    spared_ids : tuple of int, optional
        Ids of text that always stays, beside those that the model's configuration names (begin,
        end, padding, image and others). None: all text stays.
    trainable : bool
        Whether its selections come with soft masks, which training then computes on.
    """

    layers: tuple[int, ...]
    needs: frozenset[str] = frozenset()
    tower_layer: int | None = None
    floor: float = 1e-4
    keeps_positions: bool = True
    revives: bool = False
    spared_ids: tuple[int, ...] | None = None
    trainable: bool = False

    def begin(self, context: Context) -> Any:
        """Look at the first layer's input; what this gives is each later `Context.memory`."""
        return None

    def select(self, context: Context) -> Selection:
        """Which of the visual tokens in `context` stay."""
        raise TypeError(f"{type(self).__name__} does not say which tokens stay.")

    def losses(self, trace: Trace) -> dict[str, tuple[Tensor, float]]:
        """Terms that training adds to the loss: name → (value, weight)."""
        return {}

    def set_budget(self, target_tokens: float) -> None:
        """Go to another mean of tokens per image over all layers.

        Raises
        ------
        ValueError
            If the method has no such knob, or the target is out of its reach.
        """
        raise ValueError(
            f"{type(self).__name__} keeps what its configuration says: call "
            "tokenprune.unwrap(model), and wrap it with another one."
        )

    def runtime_state(self) -> dict[str, Any]:
        """What can be turned at run time, as JSON types; saved beside the parameters."""
        return {}

    def load_runtime_state(self, state: dict[str, Any]) -> None:
        """Take back what `runtime_state` gave; ValueError, and no change, if it is not that."""

    def extra_repr(self) -> str:
        """The layers, in the model's printed form."""
        return f"layers={self.layers}"
