"""How `hiernas run` shows a search: a live panel on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.controller import Controller
from pipeline.executor import JobStatus
from pipeline.plan import View, gpu_seconds, holds
from search.state import State

LINE_SECONDS = 10.0
"""How often a line is printed when the output is no terminal, if something has changed."""


class Progress:
    """Called after every round of the controller. Use as a context manager."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None
        self._began = time.monotonic()
        self._printed = -LINE_SECONDS
        self._evaluated_before: int | None = None
        self._last = ""

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, controller: Controller, view: View) -> None:
        """Show where things stand."""
        state = controller.state
        if self._evaluated_before is None:
            self._evaluated_before = len(state.history)
        if self._live:
            self._live.update(self._panel(state, view))
            return
        line, now = self._line(state, view), time.monotonic()
        if line != self._last and now - self._printed >= LINE_SECONDS:
            print(line, file=sys.stderr, flush=True)
            self._last, self._printed = line, now

    def finish(self, state: State) -> None:
        """The last line."""
        if not self._live:
            print(self._line(state, None), file=sys.stderr, flush=True)

    def _rate(self, state: State) -> float:
        """Outcomes a second since this process began."""
        elapsed = time.monotonic() - self._began
        return (len(state.history) - (self._evaluated_before or 0)) / elapsed if elapsed > 1 else 0.0

    def _left(self, state: State) -> str:
        rate = self._rate(state)
        total = state.limits.max_evaluations if state.limits else 0
        return _duration((total - len(state.history)) / rate) if rate > 0 else "?"

    def _line(self, state: State, view: View | None) -> str:
        total = state.limits.max_evaluations if state.limits else 0
        best = f"{state.best.fitness:.2%} (candidate {state.best.candidate})" if state.best and state.best.fitness is not None else "none yet"
        text = f"{state.run.name}: {len(state.history)}/{total} evaluated, {state.in_flight} in flight, {state.totals.failed} failed, best {best}"
        if view is not None and len(state.history) < total:
            text += f", {self._rate(state) * 60:.1f}/min, {self._left(state)} left"
        return text

    def _panel(self, state: State, view: View) -> Group:
        total = state.limits.max_evaluations if state.limits else 0
        running = sum(job.status is JobStatus.RUNNING for job in view.jobs.values())
        table = Table.grid(padding=(0, 2))
        best = f"{state.best.fitness:.2%}" if state.best and state.best.fitness is not None else "none yet"
        table.add_row(
            "evaluated",
            f"[bold]{len(state.history)}[/] of {total}",
            "best",
            f"[bold green]{best}[/]" + (f" candidate {state.best.candidate}" if state.best else ""),
        )
        table.add_row("in flight", f"{state.in_flight} ({running} running)", "failed", str(state.totals.failed))
        table.add_row("rate", f"{self._rate(state) * 60:.1f} a minute", "time left", self._left(state))
        hold = "interrupted: waiting for what runs, Ctrl-C again ends it" if view.interrupted else holds(state, gpu_seconds(state, view))
        title = Text(f"{state.run.name}  {state.run.strategy.kind} search over {state.run.space.name}", style="bold")
        if hold:
            title.append(f"  [{hold}]", style="yellow")
        return Group(title, ProgressBar(total=max(1, total), completed=len(state.history), width=60), table)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
