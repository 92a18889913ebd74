"""ATP: adaptive token pruning, of ATP-LLaVA (arXiv 2412.00447).

Reproduced: the redundant and the spatial score, the two thresholds per image-prompt pair and
step, soft masks in training and hard ones at inference, the budget loss. What the paper leaves
open is an option of `ATPConfig`. Not reproduced: tuning of the language model together with the
heads (freeze or unfreeze it as you like: the heads train beside it).
"""

from .config import ATPConfig
from .method import ATP

__all__ = ["ATP", "ATPConfig"]
