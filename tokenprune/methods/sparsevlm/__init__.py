"""SparseVLM: text tokens that look at the picture rate it, and what is dropped is recycled."""

from .method import SparseVLM, SparseVLMConfig

__all__ = ["SparseVLM", "SparseVLMConfig"]
