"""The ATP method: scores, thresholds, masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ...checks import shown
from ...config import ModelFacts
from ..base import Method
from ..context import Context, Criterion, Selection, Trace
from ..registry import register_method
from ..selecting import highest
from .budgets import budgets_of, cap_of, shifts_of, unit_of
from .config import ATPConfig
from .heads import ThresholdHeads, cells_of
from .loss import TargetLoss, atp_loss
from .ranking import LearnedRanking
from .scores import cross_score, normalise, redundant_score, self_score, text_score
from .spatial import spatial_score

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ATP"]


class Places(NamedTuple):
    """What depends on the tokens' places alone, (batch, length) each.

    Attributes
    ----------
    spatial : float32
        The spatial score.
    cells : int64
        The cell of the heads' grid.
    """

    spatial: Tensor
    cells: Tensor


@register_method("atp", ATPConfig)
class ATP(Method):
    """Adaptive token pruning (ATP-LLaVA, arXiv 2412.00447).

    After each of its layers a token stays where S_r > θ_r or S_s > θ_s. In training the mask is
    max(σ((S_r − θ_r)·T), σ((S_s − θ_s)·T)), or its hard form with that gradient. Scores are read
    off the frozen model's attention and carry no gradient; thresholds do.

    Parameters
    ----------
    config : ATPConfig
        With `layers`, `grid` and `target_tokens` filled in.
    visual_tokens : int
        Tokens of one image, to which `target_tokens` refers.

    Attributes
    ----------
    shifts : list of [float, float]
        For each step, added to the logits of its θ_r and θ_s: what `calibrate` finds.
    max_kept : int, optional
        At most so many visual tokens per sample stay after each step.
    budgets : list of dict
        What `calibrate` has found, as {"tokens" or "share", "shifts", "max_kept"}.
    """

    needs = frozenset({"visual", "prompt"})
    trainable = True

    def __init__(self, config: ATPConfig, visual_tokens: int) -> None:
        super().__init__(config)
        if config.layers is None or config.grid is None or config.target_tokens is None:
            raise ValueError("ATP needs a configuration with layers, grid and target_tokens set.")
        self.floor = config.floor
        self.revives = config.revival
        self.distills = config.loss == "distill"
        self.spared_ids = None if config.text_threshold is None else config.special_ids
        self.target_loss = TargetLoss(config.target_tokens / visual_tokens, config.target_unit)
        start = (config.start_redundant, config.start_spatial)
        self.thresholds = nn.ModuleList(
            ThresholdHeads(config.grid, config.hidden, start) for _ in config.layers
        )
        self.rankings: nn.ModuleList | None = None
        if config.ranking == "learned":
            if config.hidden_size is None:
                raise ValueError('ATP needs hidden_size set for ranking="learned".')
            width = config.hidden_size
            self.rankings = nn.ModuleList(LearnedRanking(width) for _ in config.layers)
        self.shifts = [[0.0, 0.0] for _ in config.layers]
        self.max_kept: int | None = None
        self.budgets: list[dict[str, Any]] = []

    @classmethod
    def from_config(cls, config: Any, facts: ModelFacts) -> Self:
        """Build the method for a model's number of tokens."""
        return cls(config, facts.visual_tokens)

    def begin(self, context: Context) -> Places:
        """Compute what depends on each token's place alone, and so is the same at every step."""
        config, layout = self.config, context.layout
        assert config.grid is not None
        return Places(
            spatial_score(layout, config.strides, config.sample_weight, config.temporal),
            cells_of(layout, config.grid),
        )

    def select(self, context: Context) -> Selection:
        """Compare the scores with this step's thresholds."""
        config, layout = self.config, context.layout
        margin, redundant, thresholds, criteria = self.margins(context)
        keep = layout.mask & (margin > 0)
        if self.max_kept is not None:
            keep = highest(margin, keep, self.max_kept)
        soft = None
        if self.training and torch.is_grad_enabled():
            # σ is monotonic: the larger of two masks is the mask of the larger margin.
            soft = (margin * config.temperature).sigmoid()
            if config.training == "straight_through":
                soft = keep.float() + soft - soft.detach()
        text = None
        if config.text_threshold is not None and context.step > 0:
            text = text_score(context.received["prompt"], context.text) > config.text_threshold
        return Selection(
            keep=keep,
            mask=soft,
            scores=redundant,
            thresholds=thresholds.detach(),
            keep_text=text,
            criteria=criteria,
            max_kept=self.max_kept,
        )

    def margins(self, context: Context) -> tuple[Tensor, Tensor, Tensor, tuple[Criterion, ...]]:
        """Compute how far each token lies above the threshold that it is nearest to passing.

        Returns
        -------
        margin, redundant : float32, (batch, tokens)
            The larger of S_r − θ_r and S_s − θ_s, and S_r.
        thresholds : float32, (batch, 2)
            θ_r and θ_s.
        criteria : tuple of Criterion
            Of the prunings that are on: either lets a token stay.
        """
        config, weight, layout = self.config, context.weight, context.layout
        visual, prompt = context.received["visual"], context.received["prompt"]
        self_map = self_score(visual, config.averaging)
        cross_map = cross_score(prompt)
        raw = redundant_score(self_map, cross_map, prompt, config.sources)
        redundant = normalise(raw, weight, config.normalisation)
        maps = torch.stack([self_map, cross_map])
        if self.rankings is not None:
            ranking = self.rankings[context.step]
            redundant = redundant + ranking(context.hidden_states, maps, weight, layout)

        # The heads read each map as shares, whatever the score's own scale: raw attention near
        # 1/n would leave them blind. Tokens that are gone are zeros.
        shares = normalise(maps, weight, "share") * weight
        places: Places = context.memory
        cells = places.cells.gather(1, context.positions)
        logits = self.thresholds[context.step](shares, layout.mask, cells)
        shifts = self.shifts[context.step]
        if any(shifts):
            # As numbers: a tensor made of them here would wait for the device.
            parts = zip(logits.unbind(dim=1), shifts, strict=True)
            logits = torch.stack([logit + shift for logit, shift in parts], dim=1)
        # Infinite logits would pass as thresholds of 0 or 1.
        thresholds = torch.where(logits.isfinite(), logits.sigmoid(), torch.nan)

        scores = {
            "redundant": redundant,
            "spatial": places.spatial.gather(1, context.positions),
        }
        margins, criteria = [], []
        for column, (name, score) in enumerate(scores.items()):
            if name in config.prunings:
                threshold = thresholds[:, column : column + 1]
                margins.append(score - threshold)
                criteria.append(Criterion(f"{name} score", score, threshold))
        margin = margins[0] if len(margins) == 1 else torch.maximum(*margins)
        return margin, redundant, thresholds, tuple(criteria)

    def losses(self, trace: Trace) -> dict[str, tuple[Tensor, float]]:
        """Return L_atp and L_target with their weights."""
        config = self.config
        return {
            "atp": (atp_loss(trace), config.atp_weight),
            "target": (
                self.target_loss(trace, list(self.parameters())),
                config.target_weight,
            ),
        }

    def without_images(self) -> None:
        """Take part in the target loss of other ranks, whose batches may have images."""
        self.target_loss.without_images(list(self.parameters()))

    def set_budget(self, target_tokens: float) -> None:
        """Set the thresholds for a budget that is calibrated, or between two that are."""
        unit = unit_of(target_tokens)
        budgets = [budget for budget in self.budgets if unit in budget]
        known = [budget[unit] for budget in budgets]
        if not known or not known[0] <= target_tokens <= known[-1]:
            raise ValueError(
                f"target_tokens={target_tokens} is outside the calibrated budgets {known}: call "
                "tokenprune.calibrate(model, batches, [..]) with targets on both sides of it."
            )
        above = next(n for n, value in enumerate(known) if value >= target_tokens)
        below = max(above - 1, 0) if known[above] > target_tokens else above
        low, high = budgets[below], budgets[above]
        span = known[above] - known[below]
        part = (target_tokens - known[below]) / span if span else 0.0
        steps = zip(low["shifts"], high["shifts"], strict=True)
        self.shifts = [[a + (b - a) * part for a, b in zip(*pairs, strict=True)] for pairs in steps]
        caps = {low["max_kept"], high["max_kept"]}
        self.max_kept = None if None in caps else max(caps)

    def runtime_state(self) -> dict[str, Any]:
        """Return the thresholds' shifts, the cap and the calibrated budgets."""
        return {"shifts": self.shifts, "max_kept": self.max_kept, "budgets": self.budgets}

    def load_runtime_state(self, state: dict[str, Any]) -> None:
        """Restore the shifts, the cap and the budgets.

        Raises
        ------
        ValueError
            If the state is not what `runtime_state` gives. Nothing is then changed.
        """
        try:
            steps = len(self.thresholds)
            shifts = shifts_of(state.get("shifts", (0.0, 0.0)), steps)
            max_kept = cap_of(state.get("max_kept"))
            budgets = budgets_of(state.get("budgets", ()), steps)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"runtime={shown(state)}: expected shifts, max_kept and budgets as save_heads "
                f"writes them ({error})."
            ) from error
        self.shifts, self.max_kept, self.budgets = shifts, max_kept, budgets
