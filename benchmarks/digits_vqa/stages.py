"""The training recipes that made the committed weights, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

from .questions import KINDS, PRESENCE


@dataclass(frozen=True)
class Stage:
    """One stage of the training.

    Its optimisers start anew, and its learning rates rise and fall by themselves.

    Attributes
    ----------
    name : str
        ``"recognition"`` trains the layers that read the patches, on the patches' labels; any
        other name trains the whole model.
    steps, batch : int
        Steps and pictures in each.
    questions : int
        Questions about each picture.
    digits : tuple of int
        Fewest and most digits on a picture.
    muon, adam : float
        Highest learning rates of matrices and of all else.
    tower_rate : float
        What the tower's learning rates are multiplied by; 0 holds it still.
    patch_weight : float
        Weight of the patch-label loss beside the answers' loss.
    warm_up : int
        Steps of linear warm-up; afterwards the rates fall linearly.
    final : float
        Share of the learning rates left at the last step.
    kinds : tuple of str
        The kinds of question.
    layers : int
        How many decoder layers there are while the stage lasts.
    """

    name: str
    steps: int
    batch: int
    questions: int = 16
    digits: tuple[int, int] = (1, 6)
    muon: float = 5e-3
    adam: float = 2e-3
    tower_rate: float = 1.0
    patch_weight: float = 0.3
    warm_up: int = 50
    final: float = 0.0
    kinds: tuple[str, ...] = KINDS
    layers: int = 24


WITH_PRESENCE = (*KINDS[:3], *PRESENCE, *KINDS[3:8])
"""What the first stages asked, before it was clear that presence is not learned."""

RECIPES: dict[str, tuple[Stage, ...]] = {}
RECIPES["llava"] = (
    Stage("recognition", steps=700, batch=64, digits=(4, 7)),
    Stage("reading", 250, 32, tower_rate=0.3, final=0.556, kinds=WITH_PRESENCE),
    Stage(
        "whole",
        375,
        32,
        muon=3.6e-3,
        adam=1.4e-3,
        tower_rate=0.3,
        warm_up=10,
        final=0.255,
        kinds=WITH_PRESENCE,
    ),
    Stage("all", 160, 32, muon=3.6e-3, adam=1.4e-3, tower_rate=0.3, warm_up=10),
)
_HALF = Stage("half", 300, 24, muon=3.6e-3, adam=1.4e-3, tower_rate=0.3, layers=12)
_DEEP = Stage("deep", 100, 24, muon=2e-3, adam=8e-4, tower_rate=0.3, warm_up=10)
RECIPES["llava_next"] = (_HALF, _DEEP)
RECIPES["qwen2_vl"] = (
    Stage("recognition", 250, 48, digits=(4, 7)),
    _HALF,
    Stage("recognition", 400, 48, digits=(4, 7)),
    Stage("deep", 200, 24, muon=3.6e-3, adam=1.4e-3, patch_weight=0.6, warm_up=10),
)
"""The stages that made the committed weights."""
