"""Show how far a calibration is, and how long it will take."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..distributed import is_first

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Progress"]


class Progress:
    """A bar of tqdm's on standard error, as transformers has them; on rank 0 alone.

    ``transformers.utils.logging.disable_progress_bar()`` switches it off, as it does the others.

    Parameters
    ----------
    show : bool, optional
        None: if standard error is a terminal.
    title : str
        What stands before it.
    unit : str
        What it counts.

    Examples
    --------
    >>> with Progress(False, "Calibrating", "batch") as progress:
    ...     progress.expect(2)
    ...     progress.advance()
    """

    def __init__(self, show: bool | None, title: str, unit: str) -> None:
        # Not at the top: `import tokenprune` stays light.
        from transformers.utils.logging import tqdm

        hidden = not is_first() or (None if show is None else not show)
        self._bar: Any = tqdm(desc=title, unit=unit, disable=hidden)
        self._done = 0

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the bar where it is; at its end unless there was an error."""
        if error is None:
            self.expect(0)
        self._bar.close()

    def advance(self) -> None:
        """Count one more."""
        self._done += 1
        self._bar.update()

    def expect(self, more: int) -> None:
        """Say how many more are expected; it may be said again when more is known."""
        self._bar.total = self._done + more
        self._bar.refresh()

    def note(self, text: str) -> None:
        """Show a text behind the bar."""
        self._bar.set_postfix_str(text)
