"""Attention received: what each key gets from groups of queries, without the full map."""

from .received import attention_received
from .reference import attention_received_reference

__all__ = ["attention_received", "attention_received_reference"]
