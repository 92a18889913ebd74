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
from .budgets import between, budgets_of, cap_of, check_prices, price_of, shifts_of
from .config import ATPConfig
from .heads import ThresholdHeads, cells_of
from .loss import TargetLoss, atp_loss
from .need import Need
from .ranking import LearnedRanking, RankingInputs, reweighted
from .scores import cross_score, normalise, redundant_score, self_score, text_score
from .spatial import spatial_score

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["ATP"]


class Places(NamedTuple):
    """What depends on the tokens' places alone, (batch, length) each, and what was chosen.

    Attributes
    ----------
    spatial : float32
        The spatial score.
    cells : int64
        The cell of the heads' grid.
    chosen : list of Tensor
        Once each row's need is read, the shifts of its budget: float32, (batch, steps, 2).
    """

    spatial: Tensor
    cells: Tensor
    chosen: list[Tensor]


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
        What `calibrate` has found, as {"tokens" or "share", "shifts", "max_kept"}, and "price"
        where each row has a budget of its own.
    price : float, optional
        What `need` weighs a token, or a share of all, with. None: one budget for all rows.
    ladder : list of dict
        The budgets that `need` chooses from, as in `budgets`; empty until it is fitted.
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
        self.target_loss = TargetLoss(
            config.target_tokens / visual_tokens, config.target_unit, config.target_over
        )
        start = (config.start_redundant, config.start_spatial)
        self.thresholds = nn.ModuleList(
            ThresholdHeads(config.grid, config.hidden, start, config.activation)
            for _ in config.layers
        )
        self.rankings: nn.ModuleList | None = None
        if config.ranking == "learned":
            if config.hidden_size is None:
                raise ValueError('ATP needs hidden_size set for ranking="learned".')
            width = config.hidden_size
            self.rankings = nn.ModuleList(LearnedRanking(width) for _ in config.layers)
        self.need: Need | None = None
        if config.need_layer is not None:
            if config.hidden_size is None:
                raise ValueError("ATP needs hidden_size set for need_layer.")
            self.need = Need(config.hidden_size, config.layers.index(config.need_layer))
        self.price: float | None = None
        self.ladder: list[dict[str, Any]] = []
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
            [],
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
        maps, raw = self.maps(context)
        if self.rankings is not None:
            residual = self.rankings[context.step](RankingInputs.of(context, maps))
            raw = reweighted(raw, residual, weight, layout.mask)
        assert config.normalisation is not None  # the configuration fills it in
        redundant = normalise(raw, weight, config.normalisation)

        # Read as shares unless told otherwise, whatever the score's own scale: raw attention near
        # 1/n leaves the heads nearly blind. Tokens that are gone are zeros.
        how = "none" if config.heads_read == "raw" else "share"
        read = normalise(maps, weight, how) * weight
        places: Places = context.memory
        cells = places.cells.gather(1, context.positions)
        logits = self.thresholds[context.step](read, layout.mask, cells)
        shifts = self.shifts[context.step]
        rows = None
        if self.need is not None and not (self.training and torch.is_grad_enabled()):
            rows = self.need.shifts(context, maps[0], maps[1], self.price)
        if rows is not None:
            logits = logits + rows
        elif any(shifts):
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

    def maps(self, context: Context) -> tuple[Tensor, Tensor]:
        """Compute S_self and S_cross, (2, batch, tokens), and S_r of them: float32, raw."""
        visual, prompt = context.received["visual"], context.received["prompt"]
        self_map = self_score(visual, self.config.averaging)
        cross_map = cross_score(prompt)
        raw = redundant_score(self_map, cross_map, prompt, self.config.sources)
        return torch.stack([self_map, cross_map]), raw

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
        found = between(self.budgets, target_tokens)
        self.shifts, self.max_kept = found["shifts"], found["max_kept"]
        self.price = found.get("price")

    def runtime_state(self) -> dict[str, Any]:
        """Return the thresholds' shifts, the cap and the calibrated budgets."""
        state = {"shifts": self.shifts, "max_kept": self.max_kept, "budgets": self.budgets}
        return state if self.need is None else {**state, "price": self.price, "ladder": self.ladder}

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
            price = price_of(state.get("price"))
            ladder = budgets_of(state.get("ladder", ()), steps)
            check_prices(budgets, ladder, price, self.need is not None)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"runtime={shown(state)}: expected shifts, max_kept and budgets as save_heads "
                f"writes them ({error})."
            ) from error
        self.shifts, self.max_kept, self.budgets = shifts, max_kept, budgets
        # A copy of the method shares the network: equal ladders leave it alone.
        if self.need is not None and (ladder != self.ladder or len(ladder) != len(self.need.rungs)):
            self.need.set_ladder(ladder)
        self.price, self.ladder = price, ladder
