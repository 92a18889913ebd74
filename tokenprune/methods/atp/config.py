"""The configuration of ATP."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...checks import require
from ...config import MethodConfig, ModelFacts, MultiLayerConfig
from ...fields import (
    MAX_GRID_SIDE,
    MAX_TOKENS,
    Check,
    boolean,
    checked,
    choice,
    integer,
    number,
    optional,
    tuple_of,
)
from .paper import PRINTED

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["LARGEST_SHIFT", "ATPConfig"]

# Of a threshold's logit: a sigmoid is 0 or 1 in float32 long before.
LARGEST_SHIFT = 1000.0

_LARGEST_ID = 2**31 - 1
_MOST_IDS = 10_000  # what stays always; vocabularies name some thousands at most
_MOST_STRIDES = 64
_MOST_HIDDEN = 2**16
_MOST_LAYERS = 2**16
_MOST_WEIGHTS = 2**26  # of the first layer of one step's heads: 256 MiB


def _some_of(*allowed: str) -> Check:
    return tuple_of(choice(*allowed), f"one or both of {allowed}", unique=True)


_SHIFT = number(least=-LARGEST_SHIFT, most=LARGEST_SHIFT)
_WEIGHT = number(least=0, most=1e6)
_SPECIAL_IDS = tuple_of(
    integer(0, _LARGEST_ID),
    f"whole numbers from 0 to {_LARGEST_ID}, at most {_MOST_IDS} of them",
    least=0,
    most=_MOST_IDS,
)
_STRIDES = tuple_of(
    integer(2, MAX_GRID_SIDE),
    f"whole numbers from 2 to {MAX_GRID_SIDE}, at most {_MOST_STRIDES} of them",
    most=_MOST_STRIDES,
)
_GRID = tuple_of(
    integer(1, MAX_GRID_SIDE), f"two whole numbers from 1 to {MAX_GRID_SIDE}", least=2, most=2
)


@dataclass(frozen=True)
class ATPConfig(MultiLayerConfig):
    """Configuration of ATP: adaptive token pruning (ATP-LLaVA, arXiv 2412.00447).

    The paper fixes some of this; what it leaves open is an option here, and the default is what
    measured best on the small model of ``benchmarks/digits_vqa``, or as well as the best within
    the measurement's error (see ``docs/options.md``).

    Parameters
    ----------
    layers : tuple of int, optional
        Decoder layers, counted from 0, after which tokens are dropped. None: the family's default,
        the paper's 3, 13, 23 of 32 layers or the same places in proportion.
    target_tokens : float, optional
        Mean number of visual tokens per image over *all* decoder layers that training aims at.
        None: a quarter of an image's tokens (the paper's 144 of 576). Where images differ in size,
        of one with as many tokens as the family's own grid has cells; of others in proportion.
    normalisation : {"share", "mass", "minmax", "none"}, optional
        How raw attention becomes a score. ``share``: x = n·s, x / (1 + x), so that uniform
        attention over n tokens is 0.5. ``mass``: what the token and those below it receive of all
        attention, so that θ_r is the share that a step may lose. ``minmax``: each row's scores
        stretched to [0, 1]. None: ``mass`` where the ranking is learned, otherwise ``share``.
    averaging : {"visible", "all"}
        Over which visual queries the self score is averaged: those that can see the token, or all.
    ranking : {"attention", "learned"}
        What the redundant score is: the attention of the layer just run, or ``learned``: times what
        a small network of each step reads from hidden states, attention and places, fitted by
        `tokenprune.fit_ranking`. 983,713 parameters a step at a width of 4,096. Not in the paper.
    need_layer : int, optional
        One of `layers`: after it `tokenprune.fit_need` reads how many tokens each prompt needs, and
        from there on each prompt has a budget of its own. None: one budget for all, whose counts
        differ only as the scores do. Not in the paper.
    hidden_size : int, optional
        Width of the hidden states that a learned ranking or `need_layer` reads. None: the model's
        own.
    sources : tuple of {"self", "cross"}
        Which of the two score maps make the redundant score (their mean).
    prunings : tuple of {"redundant", "spatial"}
        Which of the two masks keep a token.
    revival : bool
        Whether tokens dropped at one step can come back at the next, with the hidden state they
        left with, if they score above its threshold there: scores are then over all visual tokens
        each time, as if none were gone. Not in the paper. Costs the keys of those that are gone at
        each further step's layer, which no statistic counts. In training, whose tokens are
        softened and go on being computed, it means that each step's mask stands alone.
    text_threshold : float in (0, 1), optional
        Prune the prompt's text too, after every step but the first: a token stays where
        x / (1 + x) is above this, x being the attention it receives from the prompt's text, as a
        multiple of the mean over those that may go (0.5: the mean). The last token and special
        ones always stay. Not in the paper, not learned, and only when tokens are really dropped.
        None: all text stays.
    special_ids : tuple of int
        Text tokens that stay in any case, beside those that the model's configuration names: a
        chat template's markers, for instance ``tuple(tokenizer.all_special_ids)``.
    strides : tuple of int
        The ladder of uniform grids; stride s samples at rate 1/s².
    temporal : bool
        Whether the ladder samples the frames of videos too, at rate 1/s³; for families that read
        videos. Off: each frame has its own ladder. Not in the paper; not measured yet.
    sample_weight : float
        λ_sample of the spatial score 1 − R·λ_sample.
    heads_read : {"share", "raw"}
        What the heads read of the score maps: attention over n tokens as x / (1 + x), x = n·s, or
        as it is, near 1/n. The paper says no more than that they read the scores, which is ``raw``.
    activation : {"gelu", "none"}
        Between the heads' two linear layers. The paper names none.
    hidden : int
        Width of the threshold heads.
    grid : tuple of int, optional
        Rows and columns on which the heads read the score maps. None: the family's own grid.
    start_redundant, start_spatial : float
        Where the thresholds start, before the sigmoid.
        The default θ_s of 0.953 lies above the default ladder's highest score, 0.917: no grid stays
        until training or calibration lowers it. Start below 2.4 to begin with grids.
    temperature : float
        T of the soft masks σ((S − θ)·T).
    training : {"soft", "straight_through"}
        What training computes on: the soft mask, or the hard one with the soft one's gradient.
    loss : {"labels", "distill"}
        What training compares answers with. ``distill``: the unpruned model's next-token
        distributions, by their divergence, for one more forward without gradient; at the positions
        of answers where labels are given, and otherwise at all text after the image. Not in the
        paper; not measured yet.
    floor : float
        Least value that a mask has as a factor on attention, from 1e-30, below 1.
    atp_weight, target_weight : float
        λ_atp and λ_target.
    target_unit : {"share", "tokens"}
        Whether the target loss |N − N_target| is divided by the number of visual tokens.
    target_over : {"step", "instance"}
        Whether N is the mean over an optimiser step's samples, so that simple images may take less
        and complex ones more, or each sample's own, as the paper's formula is written: the mean of
        |N − N_target| then pushes all samples to the same count.
    positions : {"kept", "renumbered"}
        Which positions survivors have; see `MethodConfig`.

    Examples
    --------
    >>> tp.ATPConfig(target_tokens=144).strides
    (2, 3, 4, 6)
    """

    target_tokens: float | None = checked(None, optional(number(above=0, most=MAX_TOKENS)))
    normalisation: str | None = checked(None, optional(choice("share", "mass", "minmax", "none")))
    averaging: str = checked("visible", choice("visible", "all"))
    ranking: str = checked("attention", choice("attention", "learned"))
    need_layer: int | None = checked(None, optional(integer(0, _MOST_LAYERS)))
    hidden_size: int | None = checked(None, optional(integer(1, _MOST_HIDDEN)))
    sources: tuple[str, ...] = checked(("self", "cross"), _some_of("self", "cross"))
    prunings: tuple[str, ...] = checked(("redundant", "spatial"), _some_of("redundant", "spatial"))
    revival: bool = checked(False, boolean)
    text_threshold: float | None = checked(None, optional(number(above=0, below=1)))
    special_ids: tuple[int, ...] = checked((), _SPECIAL_IDS)
    strides: tuple[int, ...] = checked((2, 3, 4, 6), _STRIDES)
    temporal: bool = checked(False, boolean)
    sample_weight: float = checked(3.0, number(above=0, below=MAX_GRID_SIDE**2))
    heads_read: str = checked("share", choice("share", "raw"))
    activation: str = checked("gelu", choice("gelu", "none"))
    hidden: int = checked(64, integer(1, _MOST_HIDDEN))
    grid: tuple[int, int] | None = checked(None, optional(_GRID))
    start_redundant: float = checked(0.3, _SHIFT)
    start_spatial: float = checked(3.0, _SHIFT)
    temperature: float = checked(20.0, number(above=0, most=1e9))
    training: str = checked("straight_through", choice("soft", "straight_through"))
    loss: str = checked("labels", choice("labels", "distill"))
    # Its logarithm is taken in float32.
    floor: float = checked(1e-6, number(least=1e-30, below=1))
    atp_weight: float = checked(0.01, _WEIGHT)
    target_weight: float = checked(4.0, _WEIGHT)
    target_unit: str = checked("share", choice("share", "tokens"))
    target_over: str = checked("step", choice("step", "instance"))

    def __post_init__(self) -> None:
        """Check each field, then those that bound each other."""
        super().__post_init__()
        if self.normalisation is None:
            usual = "mass" if self.ranking == "learned" else "share"
            object.__setattr__(self, "normalisation", usual)
        expected = "True or False; and not with positions='renumbered', which leaves no place"
        kept = self.positions == "kept"
        require(kept or not self.revival, "revival", self.revival, expected)
        expected = 'None, unless ranking="learned" or need_layer reads hidden states'
        unread = not self._reads_states() and self.hidden_size is not None
        require(not unread, "hidden_size", self.hidden_size, expected)
        most = min(self.strides) ** 2
        expected = f"between 0 and {most}, or the densest grid's score is not positive"
        require(self.sample_weight < most, "sample_weight", self.sample_weight, expected)
        if self.grid is not None:
            most = _MOST_WEIGHTS // (2 * self.hidden)
            expected = f"at most {most} cells with hidden={self.hidden}"
            require(self.grid[0] * self.grid[1] <= most, "grid", self.grid, expected)

    @classmethod
    def paper(cls, **overrides: Any) -> Self:
        """Return the paper's formulas as they are printed, for whoever reproduces it.

        Raw attention as score and as what the heads read, averaged over all visual queries; no
        activation; soft masks; |N − N_target| of each sample, in tokens and undivided; λ_atp = 0.05
        and λ_target = 0.2. Layers, target, ladder and positions are the paper's by default. What it
        does not print: T = 10, since at 100 the soft masks of raw attention are 2e-22, and no
        gradient reaches θ_r; both thresholds start at 0.5. Raw attention is then below every
        threshold, and it is the grids that keep tokens: `start_redundant` near log(1/n) starts with
        both.

        `S_cross` is over the prompt's text, never over answers, which are not there at inference.

        Parameters
        ----------
        **overrides
            Fields of the configuration that are to differ.

        Returns
        -------
        ATPConfig

        Raises
        ------
        TypeError
            If there is no field of such a name.
        ValueError
            If a field's value is refused.

        Examples
        --------
        >>> config = tp.ATPConfig.paper(target_tokens=88)
        >>> config.normalisation, config.training, config.target_weight
        ('none', 'soft', 0.2)
        """
        return cls(**{**PRINTED, **overrides})

    def _reads_states(self) -> bool:
        return self.ranking == "learned" or self.need_layer is not None

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MethodConfig:
        """Return the configuration that `to_dict` wrote, now or in an earlier release.

        Earlier releases wrote ``preserve_positions``: true for `positions` "kept", false for
        "renumbered".
        """
        old = "preserve_positions"
        if isinstance(values, dict) and old in values and "positions" not in values:
            values = dict(values)
            kept = values.pop(old)
            require(isinstance(kept, bool), old, kept, "true or false, as earlier releases wrote")
            values["positions"] = "kept" if kept else "renumbered"
        return super().from_dict(values)

    def fitted(self, facts: ModelFacts) -> ATPConfig:
        """Fill in layers, target and grid; see `MethodConfig.fitted`."""
        config = super().fitted(facts)
        assert config.layers is not None
        total = facts.visual_tokens
        target = total / 4 if self.target_tokens is None else self.target_tokens
        full = (config.layers[0] + 1) * total / facts.num_layers
        if not full < target <= total:
            raise ValueError(
                f"target_tokens={target:g}: it stands for an image of {total} visual tokens, "
                f"{facts.grid[0]} by {facts.grid[1]}; larger images keep more, in proportion. The "
                f"{config.layers[0] + 1} layer(s) up to the first step cost {full:g} of the mean "
                f"over all {facts.num_layers} layers: expected above {full:g} and at most {total}. "
                f"To mean your own images of n tokens, scale it by {total}/n."
            )
        grid = facts.grid if self.grid is None else self.grid
        width = self.hidden_size
        if self.need_layer is not None:
            expected = f"one of the layers, {config.layers}"
            require(self.need_layer in config.layers, "need_layer", self.need_layer, expected)
        if self._reads_states():
            if facts.hidden_size is None or width not in (None, facts.hidden_size):
                raise ValueError(
                    f"hidden_size={width}: the hidden states of this model's decoder are "
                    f"{facts.hidden_size} wide. What reads them serves models of one width."
                )
            width = facts.hidden_size
        return dataclasses.replace(
            config, target_tokens=float(target), grid=grid, hidden_size=width
        )
