"""Progress of a training run or an evaluation: a live bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0


class TrainingProgress:
    """A bar over the steps or samples with the newest figures, on stderr; lines that stay, on stdout.

    Without a terminal there is no bar. Lines that are not for `always` come at most every few seconds.
    """

    def __init__(self, total: int, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True)
        self._quiet = quiet
        self.interactive = self._console.is_terminal and not quiet
        self._last_line = -math.inf
        self._bar = Progress(
            TextColumn("{task.fields[epoch]}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self._console,
            disable=not self.interactive,
            transient=True,
        )
        self._task = self._bar.add_task("train", total=total, epoch="", figures="")

    def __enter__(self) -> TrainingProgress:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def step(self, step: int, epoch: str, figures: Mapping[str, str] | None = None) -> None:
        """Move the bar; new figures if there are any."""
        if not self.interactive:
            return
        self._bar.update(self._task, completed=step, epoch=epoch)
        if figures is not None:
            self._bar.update(self._task, figures=join(figures))

    def line(self, text: str, *, always: bool = True) -> None:
        """Print a line; unless `always`, at most one every few seconds."""
        now = time.monotonic()
        if self._quiet or not (always or now - self._last_line >= SECONDS_BETWEEN_LINES):
            return
        self._last_line = now
        if self.interactive:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        else:
            print(text, flush=True)


def join(figures: Mapping[str, str]) -> str:
    """`loss 110.2  LL 280.1`."""
    return "  ".join(f"{name} {value}" for name, value in figures.items())
