"""Conversations about pictures, and batches of them: for training, as prompts."""

from .collate import PromptCollator, TrainingCollator
from .conversations import Conversations, conversation
from .folders import ImageFolder, SavedDataset, read_data
from .prompts import Turn, text_of

__all__ = [
    "Conversations",
    "ImageFolder",
    "PromptCollator",
    "SavedDataset",
    "TrainingCollator",
    "Turn",
    "conversation",
    "read_data",
    "text_of",
]
