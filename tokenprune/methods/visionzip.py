"""VisionZip: what the vision tower's class token looks at, and the rest merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..config import PreDecoderConfig
from ..fields import budget, checked, number
from .base import Method
from .context import Context, Criterion, Selection
from .pooling import group_means
from .registry import register_method
from .selecting import highest, token_counts

__all__ = ["VisionZip", "VisionZipConfig"]


@dataclass(frozen=True)
class VisionZipConfig(PreDecoderConfig):
    """Configuration of VisionZip (arXiv 2412.04467).

    Parameters
    ----------
    keep : int or float
        How many visual tokens of each sample stay: an int is a number of tokens, a float in (0, 1]
        a share of the sample's own. Contextual ones are counted, and the class token, which the
        authors count among their dominant 54, is not.
    contextual : float
        Of those, the share that are merged from the rest; 10 of 64 in the authors' code.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.
    """

    keep: int | float = checked(64, budget)
    contextual: float = checked(10 / 64, number(least=0, below=1))


@register_method("visionzip", VisionZipConfig)
class VisionZip(Method):
    """Keep dominant tokens, merge the others into contextual ones, before the decoder.

    arXiv 2412.04467, 3.2 and 3.3. Dominant are those to which the class token attends most in the
    tower's last layer but one. Of the others, evenly spaced ones are targets; each other joins the
    target with the most similar key, and the target goes on with the mean of those that joined it
    added. Numbered anew (`positions`), as the authors run it, contextual tokens stand behind the
    dominant ones.

    Checked by reading ``visionzip/clip_encoder.py`` of github.com/dvlab-research/VisionZip, commit
    3151f6d. Differences: the authors' 54 dominant tokens are 53 and the class token itself, which
    transformers cuts off before the projector, so here they are 54 of the picture's; projected
    features are averaged, where the authors average before the projector; a sample's images are
    decided on together. Not implemented: the fine-tuned projector (VisionZip‡), and towers without
    a class token.
    """

    tower_layer = -2  # the last but one

    def select(self, context: Context) -> Selection:
        """Keep dominant and contextual tokens."""
        assert context.tower is not None
        visual, hidden = context.layout.mask, context.hidden_states
        count = token_counts(self.config.keep, context.layout.counts())
        merged = (count * self.config.contextual).round().long()
        attention, most = context.tower.attention, count - merged
        dominant = highest(attention, visual, most)
        rest = visual & ~dominant
        step = rest.sum(dim=1, keepdim=True).div(merged.clamp(min=1), rounding_mode="floor")
        number = rest.long().cumsum(dim=1) - 1
        targets = rest & (number % step.clamp(min=1) == 0)
        targets = targets & (targets.cumsum(dim=1) <= merged)
        # The authors' metric: the mean of the heads' keys.
        keys = F.normalize(context.tower.keys.mean(dim=2), dim=-1)
        likeness = (keys @ keys.transpose(1, 2)).masked_fill(~targets[:, None], float("-inf"))
        means = group_means(hidden, rest & ~targets, likeness.argmax(dim=2))
        return Selection(
            keep=dominant | targets,
            scores=attention,
            hidden_states=torch.where(targets[..., None], hidden + means, hidden),
            order=targets.long(),
            criteria=(
                Criterion("attention of the class token", attention, limit=most),
                Criterion("target of a merge", met=targets),
            ),
        )
