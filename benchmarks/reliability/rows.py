"""The attacks that docs/reliability.md reports. Adding one is adding a line to `ROWS`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ROWS", "Row"]


@dataclass(frozen=True)
class Row:
    """One attack.

    It is a test file that pytest runs, or a program.

    Attributes
    ----------
    name : str
    tried : str
        What is tried, and what must hold, in a sentence.
    target : str
        A test file, or ``module arguments`` of a program that exits with another code than 0 when
        it finds something.
    variables : dict of str to str
        Environment variables beside those of every row: the long version's switches.
    hypothesis : bool
        Whether Hypothesis draws the examples, so that its seed is part of the command.
    """

    name: str
    tried: str
    target: str
    variables: dict[str, str] = field(default_factory=dict)
    hypothesis: bool = False

    @property
    def is_test(self) -> bool:
        """Return whether the target is a test file."""
        return self.target.endswith(".py")

    @property
    def path(self) -> Path:
        """Return the file that must exist."""
        if self.is_test:
            return Path(self.target)
        return Path(self.target.split()[0].replace(".", "/") + ".py")

    def command(self, python: str, seed: int) -> list[str]:
        """Return the command that runs the attack."""
        if not self.is_test:
            return [python, "-m", *self.target.split(), "--seed", str(seed)]
        seeded = [f"--hypothesis-seed={seed}"] if self.hypothesis else [f"--seed={seed}"]
        return [python, "-m", "pytest", "-q", self.target, *seeded]


FUZZ = {"HYPOTHESIS_PROFILE": "fuzz"}

ROWS = (
    Row(
        "Any order",
        "Wrap, pause, unwrap, train, generate, second turns, cropped and re-ordered caches, heads "
        "saved and loaded, copies, dtypes and budgets in any order: bit for bit what a model made "
        "afresh from the same settings gives, and what the masked reference computes.",
        "tests/test_state_machine.py",
        FUZZ,
        hypothesis=True,
    ),
    Row(
        "Ragged batches",
        "Every method with drawn options: a row of a batch is that row alone, dropping is masking, "
        "cached is uncached.",
        "tests/test_ragged_fuzz.py",
        FUZZ,
        hypothesis=True,
    ),
    Row(
        "Kills",
        "SIGKILL in the middle of a loop that saves heads, and savers beside a reader: what is on "
        "disk loads.",
        "tests/test_killed_saves.py",
        {"KILLS": "100"},
    ),
    Row(
        "Hostile files",
        "Flipped bits, cut ends and generated headers in the place of heads: loaded as they were, "
        "or refused in a sentence, before memory is taken.",
        "tests/test_hostile_files.py",
        FUZZ,
        hypothesis=True,
    ),
    Row(
        "Hostile values",
        "Values of every kind in every field of every configuration: refused by the field's name, "
        "or the model runs with them.",
        "tests/test_hostile_values.py",
    ),
    Row(
        "NaN and infinity",
        "In heads, hidden states and pixels, under every method: an error that says where, and "
        "none at padding and text.",
        "tests/test_not_finite.py",
    ),
    Row(
        "Calls at the wrong time",
        "Calls on what is no wrapped model, inside a forward, in another thread: right, or refused "
        "in a sentence with nothing changed.",
        "tests/test_misuse.py",
    ),
    Row(
        "Out of memory and interrupts",
        "Errors thrown in the middle of a pass: no memory is held, and the next pass is right.",
        "tests/test_interrupted.py",
    ),
    Row(
        "Renamed arguments",
        "Each argument that the engine relies on, renamed in a model, under every method, in a "
        "forward and in generate with and without a cache: refused, or right.",
        "tests/test_renamed_arguments.py",
    ),
    Row(
        "Memory",
        "Forward passes, answers and training steps with changing shapes: tensors, hooks and "
        "memory stay flat.",
        "tests.support.soak --count 10000",
    ),
)
