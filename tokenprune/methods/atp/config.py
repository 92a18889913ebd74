"""What ATP can be asked for."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from ...config import (
    MAX_GRID_SIDE,
    MAX_TOKENS,
    ModelFacts,
    MultiLayerConfig,
    check_choice,
    checked_tuple,
    is_whole,
    require,
)

__all__ = ["LARGEST_SHIFT", "ATPConfig"]

# Of a threshold's logit: a sigmoid is 0 or 1 in float32 long before.
LARGEST_SHIFT = 1000.0

_LARGEST_ID = 2**31 - 1
_MOST_IDS = 10_000  # what stays always; vocabularies name some thousands at most
_MOST_STRIDES = 64
_MOST_HIDDEN = 2**16
_MOST_WEIGHTS = 2**26  # of the first layer of one step's heads: 256 MiB


@dataclass(frozen=True)
class ATPConfig(MultiLayerConfig):
    """ATP: adaptive token pruning (ATP-LLaVA, arXiv 2412.00447).

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
        that of an image with as many tokens as the family's own grid has cells; larger ones in
        proportion.
    normalisation : {"share", "minmax", "none"}
        How raw attention becomes a score. ``share``: x = n·s, x / (1 + x), so that uniform
        attention over n tokens is 0.5. ``minmax``: each row's scores stretched to [0, 1].
    averaging : {"visible", "all"}
        Over which visual queries the self score is averaged: those that can see the token, or all.
    sources : tuple of {"self", "cross"}
        Which of the two score maps make the redundant score (their mean).
    prunings : tuple of {"redundant", "spatial"}
        Which of the two masks keep a token.
    preserve_positions : bool
        Whether survivors keep their original positions. Off: numbered anew without gaps, the
        paper's ablation; ``generate`` then needs ``use_cache=False``.
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
    hidden : int
        Width of the threshold heads.
    grid : tuple of int, optional
        Rows and columns on which the heads read the score maps. None: the family's own grid.
    start_redundant, start_spatial : float
        Where the thresholds start, before the sigmoid.
    temperature : float
        T of the soft masks σ((S − θ)·T).
    training : {"soft", "straight_through"}
        What training computes on: the soft mask, or the hard one with the soft one's gradient.
    floor : float
        Least value that a mask has as a factor on attention, from 1e-30, below 1.
    atp_weight, target_weight : float
        λ_atp and λ_target.
    target_unit : {"share", "tokens"}
        Whether the target loss |N − N_target| is divided by the number of visual tokens.

    Raises
    ------
    ValueError
        If a value is outside what is allowed; it names the value and what was expected.
    """

    target_tokens: float | None = None
    normalisation: str = "share"
    averaging: str = "visible"
    sources: tuple[str, ...] = ("self", "cross")
    prunings: tuple[str, ...] = ("redundant", "spatial")
    preserve_positions: bool = True
    revival: bool = False
    text_threshold: float | None = None
    special_ids: tuple[int, ...] = ()
    strides: tuple[int, ...] = (2, 3, 4, 6)
    temporal: bool = False
    sample_weight: float = 3.0
    hidden: int = 64
    grid: tuple[int, int] | None = None
    start_redundant: float = 0.3
    start_spatial: float = 3.0
    temperature: float = 20.0
    training: str = "straight_through"
    floor: float = 1e-6
    atp_weight: float = 0.01
    target_weight: float = 4.0
    target_unit: str = "share"

    def __post_init__(self) -> None:
        """Check every field."""
        super().__post_init__()
        for name in ("temporal", "preserve_positions", "revival"):
            given = getattr(self, name)
            require(isinstance(given, bool), name, given, "True or False")
        for name in ("start_redundant", "start_spatial"):
            expected = f"a number between -{LARGEST_SHIFT:g} and {LARGEST_SHIFT:g}"
            self._check_number(name, expected, lambda n: abs(n) <= LARGEST_SHIFT)
        expected = "True or False; and not with preserve_positions=False, which leaves no place"
        require(self.preserve_positions or not self.revival, "revival", self.revival, expected)
        if self.text_threshold is not None:
            self._check_number("text_threshold", "between 0 and 1", lambda n: 0 < n < 1)
        expected = f"whole numbers from 0 to {_LARGEST_ID}"
        ids = checked_tuple("special_ids", self.special_ids, expected, _MOST_IDS)
        ok = all(is_whole(n) and 0 <= n <= _LARGEST_ID for n in ids)
        require(ok, "special_ids", ids, expected)
        object.__setattr__(self, "special_ids", ids)
        if self.target_tokens is not None:
            expected = f"more than 0, at most {MAX_TOKENS}"
            self._check_number("target_tokens", expected, lambda n: 0 < n <= MAX_TOKENS)
        check_choice("normalisation", self.normalisation, ("share", "minmax", "none"))
        check_choice("averaging", self.averaging, ("visible", "all"))
        check_choice("training", self.training, ("soft", "straight_through"))
        check_choice("target_unit", self.target_unit, ("share", "tokens"))
        for name, allowed in (
            ("sources", ("self", "cross")),
            ("prunings", ("redundant", "spatial")),
        ):
            expected = f"one or both of {allowed}"
            given = checked_tuple(name, getattr(self, name), expected)
            ok = bool(given) and all(isinstance(g, str) and g in allowed for g in given)
            ok = ok and len(set(given)) == len(given)
            require(ok, name, given, expected)
            object.__setattr__(self, name, given)
        expected = f"whole numbers from 2 to {MAX_GRID_SIDE}"
        strides = checked_tuple("strides", self.strides, expected, _MOST_STRIDES)
        ok = bool(strides) and all(is_whole(s) and 1 < s <= MAX_GRID_SIDE for s in strides)
        require(ok, "strides", strides, expected)
        object.__setattr__(self, "strides", strides)
        most = min(strides) ** 2
        self._check_number(
            "sample_weight",
            f"between 0 and {most}, or the densest grid's score is not positive",
            lambda n: 0 < n < most,
        )
        if self.grid is not None:
            expected = f"two whole numbers from 1 to {MAX_GRID_SIDE}"
            grid = checked_tuple("grid", self.grid, expected)
            ok = len(grid) == 2 and all(is_whole(n) and 0 < n <= MAX_GRID_SIDE for n in grid)
            require(ok, "grid", grid, expected)
            object.__setattr__(self, "grid", grid)
        self._check_whole("hidden", 1, _MOST_HIDDEN)
        if self.grid is not None:
            most = _MOST_WEIGHTS // (2 * self.hidden)
            expected = f"at most {most} cells with hidden={self.hidden}"
            require(self.grid[0] * self.grid[1] <= most, "grid", self.grid, expected)
        self._check_number("temperature", "more than 0, at most 1e9", lambda n: 0 < n <= 1e9)
        # The floor's logarithm is taken in float32.
        self._check_number("floor", "from 1e-30, below 1", lambda n: 1e-30 <= n < 1)
        for name in ("atp_weight", "target_weight"):
            self._check_number(name, "from 0 to 1e6", lambda n: 0 <= n <= 1e6)

    def fitted(self, facts: ModelFacts) -> ATPConfig:
        """With layers, target and grid filled in; see `MethodConfig.fitted`."""
        config = super().fitted(facts)
        assert config.layers is not None
        total = facts.visual_tokens
        target = total / 4 if self.target_tokens is None else self.target_tokens
        full = (config.layers[0] + 1) * total / facts.num_layers
        if not full < target <= total:
            raise ValueError(
                f"target_tokens={target:g} of an image of {total}: the {config.layers[0] + 1} "
                f"layer(s) up to the first step cost {full:g} of {total} tokens of the mean over "
                f"all {facts.num_layers} layers, so the target must be above {full:g} and at most "
                f"{total}. Raise it, or prune earlier."
            )
        grid = facts.grid if self.grid is None else self.grid
        return dataclasses.replace(config, target_tokens=float(target), grid=grid)
