"""What methods that keep a number of tokens have in common."""

from __future__ import annotations

from torch import Tensor

from ..config import MAX_TOKENS, is_number, require

__all__ = ["check_keep", "evenly", "highest", "max_count", "token_counts"]


def check_keep(name: str, given: object) -> None:
    """Require a share of the tokens or a number of them."""
    expected = f"a number of tokens from 1 to {MAX_TOKENS}, or a share of them between 0 and 1"
    ok = is_number(given) and 0 < given <= MAX_TOKENS  # type: ignore[operator]
    require(ok, name, given, expected)


def token_counts(keep: float, of: Tensor) -> Tensor:
    """How many tokens a number or share of them is.

    Parameters
    ----------
    keep : float
        From 1: so many, or all if there are fewer. Below 1: this share, rounded to the nearest
        whole number, at least one.
    of : int64, (batch,)
        Visual tokens of each row.

    Returns
    -------
    int64, (batch, 1)
    """
    wanted = of.new_tensor(round(keep)).expand_as(of) if keep >= 1 else (of * keep).round().long()
    return wanted.clamp(min=1).minimum(of)[:, None]


def max_count(keep: float, tokens: int) -> int:
    """What `token_counts` is at most in a sequence of so many tokens, without asking the device."""
    return min(round(keep) if keep >= 1 else round(keep * tokens) + 1, tokens)


def highest(scores: Tensor, among: Tensor, count: Tensor | int) -> Tensor:
    """The tokens with the highest scores; of equal ones, the earlier.

    Parameters
    ----------
    scores : float, (batch, tokens)
    among : bool, (batch, tokens)
        Which may be chosen.
    count : number, (batch, 1), or int
        How many are.

    Returns
    -------
    bool, (batch, tokens)
    """
    ranked = scores.masked_fill(~among, float("-inf")).argsort(dim=1, descending=True, stable=True)
    return among & (ranked.argsort(dim=1) < count)


def evenly(among: Tensor, count: Tensor) -> Tensor:
    """So many of the tokens, evenly spaced in their order, from the first.

    Parameters
    ----------
    among : bool, (batch, tokens)
    count : int64, (batch, 1)

    Returns
    -------
    bool, (batch, tokens)
    """
    order = among.long().cumsum(dim=1) - 1
    total = among.sum(dim=1, keepdim=True).clamp(min=1)
    wanted = count.minimum(total)
    before = (order * wanted + total - 1).div(total, rounding_mode="floor")
    after = ((order + 1) * wanted + total - 1).div(total, rounding_mode="floor")
    return among & (after > before)
