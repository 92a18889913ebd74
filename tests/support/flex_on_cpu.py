"""flex_attention as tests run it on a CPU: torch's own reference computation, with gradients.

On a CPU torch compiles ``flex_attention`` to C++, which takes a minute for each shape, fails for
single queries on some machines, and has no backward pass. Uncompiled it computes the same with
plain tensors, gradients included. CUDA runs are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.attention import flex_attention as of_torch
from transformers import masking_utils
from transformers.integrations import flex_attention as of_transformers

__all__ = ["flex_on_cpu"]


@contextmanager
def flex_on_cpu() -> Iterator[None]:
    """Run ``flex_attention`` uncompiled inside, and let it have gradients on a CPU."""
    compiled, validate = of_transformers.compile_friendly_flex_attention, of_torch._validate_device
    create = masking_utils.create_block_mask

    def uncompiled(query: Any, key: Any, value: Any, training: bool = False, **kwargs: Any) -> Any:
        if query.device.type != "cpu":
            return compiled(query, key, value, training=training, **kwargs)
        # Traced, a bias has a gradient, and every shape takes seconds; else it is a constant.
        closure = getattr(kwargs.get("score_mod"), "__closure__", None) or ()
        inputs = (query, key, value, *(cell.cell_contents for cell in closure))
        trace = torch.is_grad_enabled() and any(getattr(i, "requires_grad", False) for i in inputs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(of_torch, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", not trace)
            return of_torch.flex_attention(query, key, value, **kwargs)

    def validated(query: Any, key: Any, value: Any) -> None:
        if query.device.type != "cpu":
            validate(query, key, value)

    def created(*args: Any, _compile: bool = False, **kwargs: Any) -> Any:
        return create(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(of_transformers, "compile_friendly_flex_attention", uncompiled)
        patch.setattr(of_torch, "_validate_device", validated)
        patch.setattr(masking_utils, "create_block_mask", created)
        yield
