"""Random pruning: the baseline that every method must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ..config import MAX_TOKENS, ModelFacts, MultiLayerConfig, checked_tuple, is_number, require
from .base import Context, Method, Selection
from .ranking import highest
from .registry import register_method

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Random", "RandomConfig"]


@dataclass(frozen=True)
class RandomConfig(MultiLayerConfig):
    """Random pruning, the baseline.

    Parameters
    ----------
    layers : tuple of int, optional
        Decoder layers, counted from 0, after which tokens are dropped; -1: before the first. None:
        the family's default.
    keep : tuple of float
        How many visual tokens of a sample stay after each of them, on average.
    seed : int
        Of the draws.

    Raises
    ------
    ValueError
        If a value is outside what is allowed; it names the value and what was expected.
    """

    earliest: ClassVar[int] = -1

    keep: tuple[float, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        expected = f"counts from 0 to {MAX_TOKENS}"
        keep = checked_tuple("keep", self.keep, expected)
        ok = bool(keep) and all(is_number(k) and 0 <= k <= MAX_TOKENS for k in keep)
        require(ok, "keep", keep, expected)
        object.__setattr__(self, "keep", tuple(float(k) for k in keep))
        self._check_whole("seed", -(2**63), 2**63 - 1)  # what torch.Generator takes

    def fitted(self, facts: ModelFacts) -> Self:
        """With layers filled in; see `MethodConfig.fitted`."""
        config = super().fitted(facts)
        if len(config.layers or ()) != len(self.keep):
            raise ValueError(
                f"keep={self.keep}: expected one count for each of the layers {config.layers}."
            )
        return config


@register_method("random", RandomConfig)
class Random(Method):
    """Keep so many visual tokens, chosen at random, after each layer.

    A count with a fraction is rounded up or down at random for each sample, so that the mean over
    many samples is the count itself.

    Parameters
    ----------
    config : RandomConfig
    visual_tokens : int
        Not needed; every method is told.
    """

    def __init__(self, config: RandomConfig, visual_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.layers = config.layers or ()
        self._generator = torch.Generator().manual_seed(config.seed)

    def select(self, context: Context) -> Selection:
        """Draw this step's tokens."""
        visual = context.layout.mask
        # Neither torch's default dtype nor its default device may change the draws.
        how: dict[str, Any] = {
            "generator": self._generator,
            "dtype": torch.float32,
            "device": "cpu",
        }
        draws = torch.rand(visual.shape, **how).to(visual.device)
        extra = torch.rand(visual.shape[0], 1, **how).to(visual.device)
        count = (self.config.keep[context.step] + extra).floor()
        return Selection(keep=highest(draws, visual, count))
