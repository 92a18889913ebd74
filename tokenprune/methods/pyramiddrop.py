"""PyramidDrop: drop a share of the tokens after each of several layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..config import MultiLayerConfig
from ..fields import budget, checked, one_for_each_layer
from .context import Context
from .ranking import RankingMethod
from .registry import register_method

__all__ = ["PyramidDrop", "PyramidDropConfig"]


@dataclass(frozen=True)
class PyramidDropConfig(MultiLayerConfig):
    """Configuration of PyramidDrop (arXiv 2410.17247).

    Parameters
    ----------
    layers : tuple of int, optional
        Decoder layers, counted from 0, that end a stage. None: those at a quarter, half and three
        quarters of the depth, as in the paper.
    keep : int or float, or a tuple with one for each layer
        How many of its visual tokens each stage hands on: an int is a number of tokens, a float in
        (0, 1] a share of those that reach the stage's end; the paper's λ.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.

    Examples
    --------
    >>> tp.PyramidDropConfig(layers=(7, 15), keep=(0.5, 32))
    PyramidDropConfig(positions='kept', layers=(7, 15), keep=(0.5, 32))
    """

    default_depths: ClassVar[tuple[float, ...]] = (0.25, 0.5, 0.75)

    keep: int | float | tuple[int | float, ...] = checked(0.5, one_for_each_layer(budget))


@register_method("pyramiddrop", PyramidDropConfig)
class PyramidDrop(RankingMethod):
    """Keep a share of the tokens, by the attention of the instruction's last token, stage by stage.

    arXiv 2410.17247, 3.2. The attention is that of the layer to come, mean over its heads, computed
    ahead of it from the stage's output. Checked by reading `pdrop_rank_drop` in
    ``llava/model/modeling_llama_pdrop.py`` of github.com/Cooperx521/PyramidDrop, commit 6444f30,
    which differs in two things: its shares are of the picture's own tokens, cut off where ours are
    rounded, and it numbers survivors anew. Not implemented: training with it from the start, which
    changes the model.
    """

    needs = frozenset({"last"})
    score_name = "attention of the prompt's last token in the layer to come"
    looks_ahead = True

    def score(self, context: Context) -> Tensor:
        """Return the attention received from the prompt's last token."""
        return context.received["last"].total
