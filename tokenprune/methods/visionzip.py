"""VisionZip: what the vision tower's class token looks at, and the rest merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..config import PreDecoderConfig
from .base import Context, Method, Selection
from .pooling import group_means
from .ranking import check_keep, evenly, highest, token_counts
from .registry import register_method

__all__ = ["VisionZip", "VisionZipConfig"]


@dataclass(frozen=True)
class VisionZipConfig(PreDecoderConfig):
    """VisionZip (arXiv 2412.04467).

    Parameters
    ----------
    keep : float
        How many visual tokens of each sample stay: a number from 1, or a share below 1.
    contextual : float
        Of those, the share that are merged from the rest; 10 of 64 in the paper.

    Raises
    ------
    ValueError
        If a value is outside what is allowed; it names the value and what was expected.
    """

    keep: float = 64
    contextual: float = 10 / 64

    def __post_init__(self) -> None:
        """Check every field."""
        check_keep("keep", self.keep)
        self._check_number("contextual", "a share from 0, below 1", lambda n: 0 <= n < 1)


@register_method("visionzip", VisionZipConfig)
class VisionZip(Method):
    """Keep dominant tokens, merge the others into contextual ones, before the decoder.

    arXiv 2412.04467, 3.2 and 3.3. Dominant are those to which the class token attends most in the
    tower's last layer but one. Of the others, evenly spaced ones are targets; each joins the target
    with the most similar key, and the group goes on as its mean, at the target's place. Here it is
    the projected features that are averaged; the authors average before the projector. Not
    implemented: the fine-tuned projector (VisionZip‡), and towers without a class token.

    Parameters
    ----------
    config : VisionZipConfig
    visual_tokens : int
        Not needed; every method is told.
    """

    layers = (-1,)
    tower_layer = -2

    def __init__(self, config: VisionZipConfig, visual_tokens: int) -> None:
        super().__init__()
        self.config = config

    def select(self, context: Context) -> Selection:
        """Dominant and contextual tokens."""
        assert context.tower is not None
        visual, hidden = context.layout.mask, context.hidden_states
        count = token_counts(self.config.keep, context.layout.counts())
        merged = (count * self.config.contextual).round().long()
        dominant = highest(context.tower.attention, visual, count - merged)
        rest = visual & ~dominant
        targets = evenly(rest, merged)
        # The authors' metric: the mean of the heads' keys.
        keys = F.normalize(context.tower.keys.mean(dim=2), dim=-1)
        likeness = (keys @ keys.transpose(1, 2)).masked_fill(~targets[:, None], float("-inf"))
        places = torch.arange(rest.shape[1], device=rest.device)
        own = torch.where(targets, places, likeness.argmax(dim=2))
        means = group_means(hidden, rest, own)
        return Selection(
            keep=dominant | targets,
            scores=context.tower.attention,
            hidden_states=torch.where(targets[..., None], means, hidden),
        )
