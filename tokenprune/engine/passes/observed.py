"""What a method asked of a decoder layer's attention: who attends to each token, and its states."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...kernels import attention_received
from ...methods.context import Received
from .query_groups import query_group
from .stage import Stage

__all__ = ["LayerAttention", "Observed", "received_by_group"]


@dataclass(frozen=True)
class LayerAttention:
    """One layer's attention, as its backend was called.

    Attributes
    ----------
    query, key, value : (batch, heads, tokens, head_dim)
        After rotary embeddings; of the keys and values, the last are this pass's own tokens.
    mask : bool or float, (1 or batch, 1 or heads, queries, keys), optional
        None: causal.
    scaling, softcap : float, optional
        Of the logits.
    lse : float32, (batch, heads, queries), optional
        See `Backend.attend`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float | None
    softcap: float | None
    lse: Tensor | None

    def own(self, states: Tensor) -> Tensor:
        """Return the keys or values of this pass's own tokens, without cached ones."""
        return states[:, :, states.shape[2] - self.query.shape[2] :]


@dataclass(frozen=True)
class Observed:
    """What `Context` holds of one layer's attention.

    Attributes
    ----------
    received : dict
        Query group → attention received from it.
    states : dict
        "queries", "keys" and "values", where they were asked for: (batch, heads, tokens, head_dim).
    """

    received: dict[str, Received]
    states: dict[str, Tensor]


def received_by_group(
    names: Iterable[str], attention: LayerAttention, stage: Stage, weight: Tensor, returning: int
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return, for each query group, the attention that tokens received from it.

    Parameters
    ----------
    names : iterable of str
        Of the groups; see `Method.needs`.
    attention : LayerAttention
    stage : Stage
        The tokens of the queries.
    weight : float32, (batch, tokens)
        How much of each visual token of the stage is there.
    returning : int
        How many of the last keys are of tokens that were dropped and may come back.

    Returns
    -------
    dict
        Name → what `Received` has, with one more axis of groups: float32, (batch, groups, tokens)
        twice, and (batch, groups). Tokens are those of the stage and then those that may come back.
    """
    query, key = attention.query, attention.key
    groups = [query_group(name, weight, stage.prompt) for name in names]
    # Layers may be spread over devices; what is ours stays where the inputs are.
    home = weight.device
    weights = torch.cat(groups, dim=1).detach().to(query.device)
    own = query.shape[2] + returning
    asked_keys = None
    # Elsewhere than on a CPU no key is left out: the mask would be launches for nothing.
    if not returning and key.device.type == "cpu":
        # Text that may go is asked about as well; earlier turns on the cache are not.
        asked_keys = stage.layout.mask | stage.text
        asked_keys = nn.functional.pad(asked_keys, (key.shape[2] - own, 0)).to(key.device)
    total, seen_by = attention_received(
        query,
        key,
        weights,
        attention.mask,
        attention.scaling,
        attention.softcap,
        attention.lse,
        asked_keys,
    )
    answers = (
        total[..., -own:].to(home),
        seen_by[..., -own:].to(home),
        weights.sum(dim=2).to(home),
    )
    sizes = [group.shape[1] for group in groups]
    by_group = zip(*(a.split(sizes, dim=1) for a in answers), strict=True)
    return dict(zip(names, by_group, strict=True))
