"""Measure what pruning did: statistics, costs, pictures, explanations."""

from .draw import draw, draw_methods
from .explanation import Explanation, explain
from .report import report
from .stats import PruneStats
from .track import Tracker

__all__ = ["Explanation", "PruneStats", "Tracker", "draw", "draw_methods", "explain", "report"]
