"""What explains one visual token: numbers, and the same in words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ...engine.describe import steps_in_words

__all__ = ["GROUPS", "ExplainedToken", "Measured", "TokenStep"]

GROUPS = {
    "visual": "visual tokens",
    "prompt": "the prompt's text",
    "last": "the prompt's last token",
}


@dataclass(frozen=True)
class Measured:
    """One criterion, for one token at one step.

    Attributes
    ----------
    name : str
        Of the criterion.
    met : bool
        Whether the token meets it, so that it may stay.
    score : float, optional
        The token's.
    threshold : float, optional
        Which the score must be above.
    rank : int, optional
        Of the score, from 1, among the tokens that the step decided among.
    limit : float, optional
        The greatest rank that meets it.
    """

    name: str
    met: bool
    score: float | None
    threshold: float | None
    rank: int | None
    limit: float | None

    def in_words(self, among: int) -> str:
        """Say the score, and the threshold or the rank that it is compared by.

        Parameters
        ----------
        among : int
            How many tokens the step decided among.
        """
        if self.score is None:
            return f"{'as' if self.met else 'not'} {self.name}"
        by = "by " if self.met else ""
        if self.threshold is not None:
            score, threshold = _apart(self.score, self.threshold)
            return f"{by}{self.name} {score} {'>' if self.met else '<='} {threshold}"
        said = f"{by}{self.name} {self.score:.3g}, rank {self.rank} of {among}"
        return said if self.limit is None else f"{said} where {self.limit:g} stay"


@dataclass(frozen=True)
class TokenStep:
    """What one pruning step decided about one token.

    Attributes
    ----------
    layer : int
        The decoder layer, from 0, that the step follows; -1 is before the first.
    kept : bool
        Whether the token is there after the step.
    among : int
        How many visual tokens the step decided among.
    criteria : tuple of Measured
        A token stays that meets any of them.
    place : int, optional
        Its place, from 1, among those that meet a criterion, by the largest distance from a
        threshold. None: it meets none, or the number of tokens had no limit.
    max_kept : int, optional
        The greatest place that stays.
    attention : dict
        Name of a group of queries ("visual", "prompt", "last") → the attention that the token
        receives from it, mean over the queries that see it. What the method did not read is not
        there.
    """

    layer: int
    kept: bool
    among: int
    criteria: tuple[Measured, ...]
    place: int | None
    max_kept: int | None
    attention: dict[str, float]

    @property
    def kept_by(self) -> tuple[str, ...]:
        """Names of the criteria that kept it; none where it went, or stays whatever it is."""
        return tuple(c.name for c in self.criteria if c.met) if self.kept else ()

    def __repr__(self) -> str:
        """Say what was decided and why, in a line."""
        met = [c.in_words(self.among) for c in self.criteria if c.met]
        missed = [c.in_words(self.among) for c in self.criteria if not c.met]
        if self.kept and met:
            said = f"stays {' and '.join(met)}"
            if missed:
                said += f" ({', '.join(missed)})"
        elif self.kept:
            said = f"stays, since the next token is read there ({', '.join(missed)})"
        elif met:
            said = (
                f"goes, though it could stay {' and '.join(met)}: it is number {self.place} by "
                f"the distance from a threshold, and {self.max_kept} stay"
            )
        else:
            said = f"goes: {', '.join(missed)}"
        came = ", ".join(f"{GROUPS[g]} {value:.3g}" for g, value in self.attention.items())
        received = f"; attention received from {came}" if came else ""
        return f"{steps_in_words((self.layer,))}: {said}{received}"


@dataclass(frozen=True)
class ExplainedToken:
    """One visual token of a prefill.

    Attributes
    ----------
    number : int
        Among the sample's visual tokens, in their order, from 0.
    position : int
        In the sequence as it was given.
    image, frame, row, col : int
        Its place; row and column are -1 for a token without one (a class token, a line's end).
    left : int, optional
        The decoder layer after which it went, for good; -1 is before the first. None: it stayed.
    steps : tuple of TokenStep
        Those that decided about it.
    """

    number: int
    position: int
    image: int
    frame: int
    row: int
    col: int
    left: int | None
    steps: tuple[TokenStep, ...]

    def __repr__(self) -> str:
        """Say where it is, what became of it, and each step in a line."""
        place = "without a place" if self.row < 0 else f"row {self.row}, col {self.col}"
        end = "stays" if self.left is None else f"gone {steps_in_words((self.left,))}"
        lines = [f"Token {self.number}, image {self.image}, frame {self.frame}, {place}: {end}"]
        return "\n".join([*lines, *(f"  {step!r}" for step in self.steps)])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        values = asdict(self)
        for step, given in zip(values["steps"], self.steps, strict=True):
            step["kept_by"] = list(given.kept_by)
            step["criteria"] = list(step["criteria"])
        return {**values, "steps": list(values["steps"])}


def _apart(score: float, threshold: float) -> tuple[str, str]:
    """Write two numbers with as many digits as tell them apart."""
    for digits in range(3, 10):
        written = f"{score:.{digits}g}", f"{threshold:.{digits}g}"
        if written[0] != written[1]:
            break
    return written
