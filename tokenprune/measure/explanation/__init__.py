"""Explain a prefill: which step each visual token went at, or what it stayed by."""

from .reading import explain, explanation_of
from .sample import Explanation
from .token import ExplainedToken

__all__ = ["ExplainedToken", "Explanation", "explain", "explanation_of"]
