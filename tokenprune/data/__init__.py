"""Conversations about pictures in LLaVA's JSON, and batches of them: for training, as prompts."""

from .collate import PromptCollator, TrainingCollator
from .conversations import Conversations, conversation
from .prompts import Turn, text_of

__all__ = [
    "Conversations",
    "PromptCollator",
    "TrainingCollator",
    "Turn",
    "conversation",
    "text_of",
]
