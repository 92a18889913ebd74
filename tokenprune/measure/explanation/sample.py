"""What explains all visual tokens of one sample."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...checks import is_whole, require
from ...engine.describe import steps_in_words
from .token import ExplainedToken, Measured, TokenStep

__all__ = ["Explanation", "StepCriterion", "StepExplanation"]


@dataclass(frozen=True)
class StepCriterion:
    """One criterion at one step, for all visual tokens of the sample.

    Attributes
    ----------
    name : str
    met : bool, (tokens,)
    scores : float, (tokens,), optional
        NaN at tokens that the step did not decide about.
    ranks : int64, (tokens,), optional
        Of the scores, from 1; 0 at tokens that the step did not decide about.
    threshold, limit : float, optional
        See `Criterion`.
    """

    name: str
    met: np.ndarray
    scores: np.ndarray | None
    ranks: np.ndarray | None
    threshold: float | None
    limit: float | None

    def of(self, token: int) -> Measured:
        """Return it for one token."""
        return Measured(
            name=self.name,
            met=bool(self.met[token]),
            score=None if self.scores is None else float(self.scores[token]),
            threshold=self.threshold,
            rank=None if self.ranks is None else int(self.ranks[token]),
            limit=self.limit,
        )

    def in_words(self) -> str:
        """Say the rule, such as "spatial score > 0.62"."""
        if self.scores is None:
            return f"as {self.name}"
        if self.threshold is not None:
            return f"by {self.name} > {self.threshold:.3g}"
        among = "" if self.limit is None else f" among the {self.limit:g} highest"
        return f"by {self.name}{among}"


@dataclass(frozen=True)
class StepExplanation:
    """One pruning step, for all visual tokens of the sample.

    Attributes
    ----------
    layer : int
        The decoder layer, from 0, that it follows; -1 is before the first.
    asked, kept : bool, (tokens,)
        The tokens that it decided about, and those that are there after it.
    among : int
        How many tokens the ranks are among.
    criteria : tuple of StepCriterion
    places : int64, (tokens,), optional
        See `TokenStep.place`; 0 where there is none.
    max_kept : int, optional
    attention : dict
        Name of a group of queries → float32, (tokens,): see `TokenStep.attention`.
    """

    layer: int
    asked: np.ndarray
    kept: np.ndarray
    among: int
    criteria: tuple[StepCriterion, ...]
    places: np.ndarray | None
    max_kept: int | None
    attention: dict[str, np.ndarray]

    def of(self, token: int) -> TokenStep:
        """Return it for one token."""
        place = None if self.places is None else int(self.places[token]) or None
        return TokenStep(
            layer=self.layer,
            kept=bool(self.kept[token]),
            among=self.among,
            criteria=tuple(criterion.of(token) for criterion in self.criteria),
            place=place,
            max_kept=self.max_kept,
            attention={group: float(values[token]) for group, values in self.attention.items()},
        )

    def __repr__(self) -> str:
        """Say how many stay, and by which criterion how many, in a line."""
        counts = [f"{(c.met & self.kept).sum()} {c.in_words()}" for c in self.criteria]
        cap = f", {self.max_kept} at most" if self.max_kept is not None else ""
        return (
            f"{steps_in_words((self.layer,))}: {self.kept.sum()} of {self.asked.sum()} stay"
            f"{cap}; {', '.join(counts)}"
        )


@dataclass(frozen=True)
class Explanation:
    """What became of each visual token of one sample, and why: `tokenprune.explain` returns it.

    Attributes
    ----------
    method : str
        Name of the method's class.
    sample : int
    position, image, frame, row, col : int64, (tokens,)
        The sample's visual tokens, in their order: see `ExplainedToken`.
    steps : tuple of StepExplanation

    Examples
    --------
    >>> model = tp.wrap(model, tp.UniformConfig(layer=1, keep=9))
    >>> output = model(**batch)
    >>> print(tp.explain(model).token(0))
    Token 0, image 0, frame 0, row 0, col 0: stays
      after layer 1: stays as middle of its cell
    """

    method: str
    sample: int
    position: np.ndarray
    image: np.ndarray
    frame: np.ndarray
    row: np.ndarray
    col: np.ndarray
    steps: tuple[StepExplanation, ...]

    def __repr__(self) -> str:
        """Say what each step kept, in a line each."""
        last = self.steps[-1].kept.sum() if self.steps else len(self.position)
        said = f"Explanation of sample {self.sample} by {self.method}: {len(self.position)} visual "
        return "\n".join(
            [f"{said}tokens, {last} in the last layer", *(f"  {step!r}" for step in self.steps)]
        )

    def __getitem__(self, place: tuple[int, int]) -> ExplainedToken:
        """Return the token at a row and column, where the sample has one image of one frame."""
        whole = isinstance(place, tuple) and len(place) == 2
        require(whole, "place", place, "a row and a column, explanation[row, col]")
        if len(np.unique(np.stack([self.image, self.frame]), axis=1).T) > 1:
            raise ValueError(
                f"Sample {self.sample} has several images, frames or views: write "
                "explanation.at(row, col, image=…, frame=…)."
            )
        return self.at(*place)

    def at(self, row: int, col: int, image: int = 0, frame: int = 0) -> ExplainedToken:
        """Return the token at a place.

        Parameters
        ----------
        row, col : int
            In the grid of tokens.
        image, frame : int
            Number of the image or video, and of the video's frame or the image's view.

        Raises
        ------
        ValueError
            If there is none.
        """
        wanted = {"row": row, "col": col, "image": image, "frame": frame}
        for name, value in wanted.items():
            require(is_whole(value) and value >= 0, name, value, "a whole number from 0")
        here = np.ones_like(self.row, dtype=bool)
        for name, value in wanted.items():
            here &= getattr(self, name) == value
        if not here.any():
            placed = self.row >= 0
            last = {name: getattr(self, name)[placed].max(initial=-1) for name in wanted}
            most = ", ".join(f"{name} {value}" for name, value in last.items())
            asked = ", ".join(f"{name}={value}" for name, value in wanted.items())
            raise ValueError(f"Sample {self.sample} has no token at {asked}: the last are {most}.")
        return self.token(int(here.argmax()))

    def token(self, number: int) -> ExplainedToken:
        """Return one of the sample's visual tokens, in their order, from 0.

        Raises
        ------
        ValueError
            If there is none.
        """
        count = len(self.position)
        known = is_whole(number) and 0 <= number < count
        require(known, "number", number, f"0 to {count - 1}, the visual tokens of this sample")
        steps = tuple(step.of(number) for step in self.steps if step.asked[number])
        gone = bool(steps) and not steps[-1].kept
        return ExplainedToken(
            number=number,
            position=int(self.position[number]),
            **{name: int(getattr(self, name)[number]) for name in ("image", "frame", "row", "col")},
            left=_last_departure(steps) if gone else None,
            steps=steps,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all tokens and steps as JSON types."""
        return {
            "method": self.method,
            "sample": self.sample,
            "visual_tokens": len(self.position),
            "steps": [{"layer": s.layer, "kept": int(s.kept.sum())} for s in self.steps],
            "tokens": [self.token(n).to_dict() for n in range(len(self.position))],
        }


def _last_departure(steps: Iterable[TokenStep]) -> int | None:
    """Return the layer after which a token went, that was gone after the last of its steps."""
    left: int | None = None
    for step in steps:
        left = None if step.kept else step.layer if left is None else left
    return left
