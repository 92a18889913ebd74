"""Build the Triton kernels for a GPU that need not be there, and print what each build takes.

``python -m scripts.build_kernels 90`` for compute capability 9.0 (Hopper): a line of JSON for each.
A process of its own: where there is no GPU, the tests' own one has Triton in its interpreter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tokenprune.kernels import fused, tiles

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# dtype, head width, mask, groups
PROBLEMS = (
    ("bf16", 64, "NO_MASK", 2),
    ("bf16", 128, "NO_MASK", 2),
    ("bf16", 128, "BOOL_MASK", 2),
    ("fp16", 256, "FLOAT_MASK", 2),
    ("bf16", 128, "NO_MASK", 64),
    ("fp32", 128, "NO_MASK", 2),
)


def build(kernel: Any, capability: int, dtype: str, width: int, mask: str, groups: int) -> Any:
    """Compile what `tokenprune.kernels.fused` launches for such a problem."""
    sizes = fused.tile_sizes(width, 4 if dtype == "fp32" else 2, groups)
    constants = {
        **sizes[kernel is tiles.sum_columns],
        "MASK": getattr(tiles, mask).value,
        "CAPPED": False,
        "mask_column": 1,
    }
    types = {
        "query": f"*{dtype}",
        "key": f"*{dtype}",
        "mask": {"NO_MASK": "*fp32", "BOOL_MASK": "*u8", "FLOAT_MASK": f"*{dtype}"}[mask],
        **dict.fromkeys(("lse", "weights", "received"), "*fp32"),
        **dict.fromkeys(("scaling", "softcap", "hidden"), "fp32"),
        **dict.fromkeys(constants, "constexpr"),
    }
    names = kernel.arg_names
    signature = {name: types.get(name, "i32") for name in names}
    # What a launch finds out by itself of tensors and of the strides of heads side by side.
    aligned = [
        n
        for n, name in enumerate(names)
        if signature[name].startswith("*") or re.match("(query|key)_", name)
    ]
    source = ASTSource(
        kernel,
        signature,
        constants,
        {(n,): [["tt.divisibility", 16]] for n in aligned},
    )
    return triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_stages": fused.STAGES}
    )


def taken(built: Any) -> dict[str, int]:
    """Return registers of a thread, bytes it spills to memory, bytes of shared memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(built.asm["cubin"])
        told = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", told)
    assert found, told
    return {
        "registers": int(found[1]),
        "spilled": int(found[2]),
        "shared": built.metadata.shared,
    }


if __name__ == "__main__":
    for problem in PROBLEMS:
        for kernel in (tiles.sum_rows, tiles.sum_columns):
            found = taken(build(kernel, int(sys.argv[1]), *problem))
            print(json.dumps({"kernel": kernel.fn.__name__, "problem": problem, **found}))
