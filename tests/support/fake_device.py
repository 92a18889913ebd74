"""A device other than the CPU, pretended: what lies on the wrong one fails without a GPU.

Its tensors are the CPU's, said to be elsewhere. An operation on tensors of both places fails, as on
CUDA, and so does one on a CUDA tensor that only the CPU has (`numpy`). Everything else is computed
on the CPU. Importing this module registers the device with torch, for the rest of the process.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

__all__ = ["NAME", "Elsewhere", "Pretend"]

NAME = "elsewhere"
aten = torch.ops.aten
# Between places, and those that take indices from the CPU.
MIXED = {
    aten._to_copy.default,
    aten.copy_.default,
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
}


class Elsewhere(Tensor):
    """A tensor that says that it is elsewhere.

    Parameters
    ----------
    inner : Tensor
        On the CPU.
    """

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Elsewhere:
        """As large as the one on the CPU, with the same strides."""
        made = Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )
        made.inner = inner
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Elsewhere({self.inner!r})"

    def tolist(self) -> Any:
        """Its numbers, which takes a copy."""
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """Fail, as CUDA's do."""
        raise TypeError("can't convert an elsewhere tensor to numpy: call .cpu() first")

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute on the CPU."""
        return compute(func, args, kwargs or {})


class Pretend(TorchDispatchMode):
    """Inside, tensors can be made elsewhere.

    Attributes
    ----------
    waits : list
        The operations that made the host wait for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Compute, and note what waits."""
        kwargs = kwargs or {}
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Elsewhere)]
        reads = func in (aten._local_scalar_dense.default, aten.nonzero.default)
        if tensors and (reads or _place(kwargs) == "cpu"):
            self.waits.append(func)
        return compute(func, args, kwargs)


def compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and say that its results are elsewhere where they would be."""
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    ours = [t for t in tensors if isinstance(t, Elsewhere)]
    place = _place(kwargs)
    if not ours and place != NAME:
        return func(*args, **kwargs)
    # Numbers that have no dimensions may come from the CPU.
    theirs = [t for t in tensors if not isinstance(t, Elsewhere) and t.dim()]
    if ours and theirs and func not in MIXED:
        raise RuntimeError(
            f"Expected all tensors to be on the same device: {func} was given "
            f"{[t.device for t in (*ours, *theirs)]}."
        )
    args, kwargs = pytree.tree_map_only(Elsewhere, lambda t: t.inner, (args, kwargs))
    output = func(*args, **(kwargs if place is None else {**kwargs, "device": "cpu"}))
    if place not in (None, NAME) or (func is aten.copy_.default and output is not ours[0].inner):
        return output
    # Operations in place give back what they were given.
    outer = {id(t.inner): t for t in ours}
    return pytree.tree_map_only(
        Tensor, lambda t: outer[id(t)] if id(t) in outer else Elsewhere(t), output
    )


def _place(kwargs: dict[str, Any]) -> str | None:
    device = kwargs.get("device")
    return None if device is None else torch.device(device).type


class _Module(_DummyBackendModule):
    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Module())


# `torch.tensor(numbers, device=…)` asks past all modes.
@torch.library.impl("aten::empty_strided", "PrivateUse1")
def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Elsewhere(torch.empty_strided(size, stride, dtype=dtype))


@torch.library.impl("aten::empty.memory_format", "PrivateUse1")
def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Elsewhere(torch.empty(size, dtype=dtype))


@torch.library.impl("aten::_copy_from", "PrivateUse1")
def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    source, target_inner = (t.inner if isinstance(t, Elsewhere) else t for t in (source, target))
    target_inner.copy_(source)
    return target


# Autocast does nothing elsewhere.
_AUTOCAST = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_AUTOCAST.fallback(torch.library.fallthrough_kernel)
