"""Conversations to text, by the checkpoint's own template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["Turn", "text_of"]

Turn = dict[str, Any]
"""``{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": …}]}``, the role
"user" or "assistant": as processors read it."""


def text_of(processor: Any, turns: Sequence[Turn], for_answer: bool) -> str:
    """Return the text of a conversation, with a placeholder for each picture.

    A checkpoint without a template gets the parts in order, a space between.

    Parameters
    ----------
    processor : ProcessorMixin
    turns : sequence of dict
    for_answer : bool
        Whether the text ends where the assistant's answer begins.
    """
    if not turns:
        return ""  # which a template is not made for
    if getattr(processor, "chat_template", None):
        return processor.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=for_answer
        )
    parts = [part for turn in turns for part in turn["content"]]
    return " ".join(p["text"] if p["type"] == "text" else processor.image_token for p in parts)
