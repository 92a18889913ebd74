"""Show what only CUDA can: property tests, the Triton kernels, and the speed of 7B models.

    python -m benchmarks.gpu --out benchmarks/results/gpu
    python -m benchmarks.gpu --render benchmarks/results/gpu

Under nine minutes on one card of 80 GB, with no network and nothing to install, from a checkout's
root. A step that is done already is not run again, so the command can be repeated. To see that the
command itself works where there is no GPU: --device cpu --tiny.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from .render import render
from .results import Job
from .runner import command_of, run
from .steps import DEVICES, STEPS


def main(arguments: list[str] | None = None) -> int:
    """Run the steps, or write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    names = [step.name for step in STEPS]
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--render", type=Path, metavar="DIR", help="only print a folder's table")
    parser.add_argument("--device", choices=DEVICES, default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small shapes: a try without a GPU")
    parser.add_argument("--limit", type=float, default=520, help="seconds for all (default 520)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="STEP", help=", ".join(names))
    parser.add_argument("--here", action="store_true", help="steps in this process, none cut short")
    options = parser.parse_args(arguments)
    if options.render:
        try:
            print(render(options.render))
        except ValueError as error:
            parser.error(str(error))
        return 0
    if options.out is None:
        parser.error("--out DIR: say where the results go (or --render DIR to print some)")
    if options.limit <= 0:
        parser.error(f"--limit {options.limit:g}: expected a number of seconds above 0")
    folder = options.out.resolve()
    steps = [step for step in STEPS if step.name in (options.only or names)]
    if options.here:
        folder.mkdir(parents=True, exist_ok=True)
        for step in steps:
            path = folder / f"{step.name}.json"
            here(Job(step.name, options.device, options.tiny, options.limit, path), step.program)
        return 0
    well = run(steps, folder, options.limit, command_of(folder, options.device, options.tiny))
    print(render(folder))
    return 0 if well else 1


def here(job: Job, program: str) -> None:
    """Run a step in this process."""
    # torch is imported from here on only: before, it is not known to be there.
    from .device import prepare

    with prepare(job.device):
        found = import_module(f"{__package__}.{program}").measure(job)
    job.save(found, "done")


if __name__ == "__main__":
    sys.exit(main())
