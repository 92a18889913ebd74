"""Measure what pruning did: statistics, costs, pictures."""

from .draw import draw
from .stats import PruneStats
from .track import Tracker

__all__ = ["PruneStats", "Tracker", "draw"]
