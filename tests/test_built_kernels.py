"""The Triton kernels as their compiler builds them: for any GPU, on a machine without one."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("triton.backends.nvidia", reason="Triton comes with torch on Linux only")
# What a program may take of a GeForce (8.6, 8.9), the smallest of them: CUDA's programming guide,
# "Compute Capabilities".
SHARED = 99 * 1024


@pytest.mark.parametrize("capability", [80, 90])
def test_what_a_program_holds_stays_on_the_chip(capability: int) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "scripts.build_kernels", str(capability)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    builds = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(builds) == 12
    for build in builds:
        assert build["spilled"] <= 16, build  # hundreds where it is slow
        assert build["shared"] <= SHARED, build
