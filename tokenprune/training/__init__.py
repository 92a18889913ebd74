"""Train the heads, and calibrate their thresholds without training."""

from .calibrate import calibrate, set_budget
from .need import fit_need
from .ranking import fit_ranking
from .trainable import train_only_heads, trainable

__all__ = ["calibrate", "fit_need", "fit_ranking", "set_budget", "train_only_heads", "trainable"]
