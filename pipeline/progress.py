"""How `hiernas run` shows a search: a live panel on a terminal, plain lines elsewhere. It reads the state and decides nothing."""

import logging
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.controller import Controller
from pipeline.executor import Job, JobStatus
from pipeline.plan import View, gpu_seconds, holds
from pipeline.trouble import halted_by
from search.records import Outcome, OutcomeKind
from search.state import State

LINE_SECONDS = 10.0
"""How often a line is printed when the output is no terminal, if something has changed."""
RATE_OUTCOMES = 20
"""The rate is that of so many last outcomes: early ones, and those of an hour ago, say little about now."""
SHOWN_RUNNING = 4
SHOWN_FITNESSES = 40
_BARS = "▁▂▃▄▅▆▇█"
_ERASE_MESSAGE = "\x1b[2A\x1b[J"
"""Two lines up, and clear what is below: launch's answer to Ctrl-C, which the panel repeats."""


class Progress:
    """Called after every round of the controller. Use as a context manager."""

    def __init__(self, console: Console | None = None, seconds: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        # isatty and not rich's own guess: FORCE_COLOR would let that put a live panel into a file.
        live = self._console.file.isatty() and not self._console.is_dumb_terminal
        # Drawn by the controller's rounds only, so that no thread draws while the answer to Ctrl-C is written.
        self._live = Live(console=self._console, auto_refresh=False) if live else None
        self._seconds = seconds
        self._seen: deque[tuple[float, int]] = deque(maxlen=RATE_OUTCOMES + 1)
        self._printed = -LINE_SECONDS
        self._last = ""
        self._interrupts = 0
        self._refusal: str | None = None
        self._handlers: list[logging.StreamHandler[TextIO]] = []

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.update(Text("starting: the first workers import torch, which takes some seconds", style="dim"))
            self._handlers = [one for one in logging.getLogger().handlers if isinstance(one, logging.StreamHandler) and one.stream is sys.stderr]
            self._live.start(refresh=True)
            for handler in self._handlers:  # warnings go above the panel, not through it: Live has put itself in the place of stderr
                handler.setStream(sys.stderr)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()
        for handler in self._handlers:
            handler.setStream(sys.stderr)

    def __call__(self, controller: Controller, view: View) -> None:
        """Show where things stand."""
        self.show(controller.state, view, controller.interrupts, controller.refusal)

    def show(self, state: State, view: View, interrupts: int = 0, refusal: str | None = None) -> None:
        """Show where things stand, after so many interrupts; `refusal` is why no worker can be started."""
        self._refusal = refusal
        now, done = self._seconds(), len(state.history)
        if not self._seen or done != self._seen[-1][1]:
            self._seen.append((now, done))
        if self._live:
            if interrupts != self._interrupts:
                self._console.file.write(_ERASE_MESSAGE)
            self._interrupts = interrupts
            self._live.update(self.panel(state, view), refresh=True)
            return
        line = self.line(state, view)
        if line != self._last and now - self._printed >= LINE_SECONDS:
            self._print(line)
            self._last, self._printed = line, now

    def finish(self, state: State) -> None:
        """Where things stood at the end."""
        if self._live:
            self._live.update(self.panel(state, None), refresh=True)
        else:
            self._print(self.line(state, None))

    def _print(self, line: str) -> None:
        print(line, file=self._console.file, flush=True)

    def line(self, state: State, view: View | None) -> str:
        """One plain line, for logs."""
        total = _total(state)
        best = f"{state.best.fitness:.2%} (candidate {state.best.candidate})" if state.best and state.best.fitness is not None else "none yet"
        text = f"{state.run.name}: {len(state.history)}/{total} evaluated, {state.in_flight} in flight, {state.totals.failed} failed, best {best}"
        if view is not None and len(state.history) < total:
            hold = _hold(state, view) or self._refusal
            text += f", {hold}" if hold else f", {self._rate_words(state)}"
        return text

    def panel(self, state: State, view: View | None) -> Group:
        """Some lines for a terminal, for whoever watches."""
        total, done = _total(state), len(state.history)
        title = Text(f"{state.run.name}  ", style="bold")
        title.append(f"{state.run.strategy.kind} over {state.run.space.name}, data {state.run.data.name}", style="not bold")
        bar = Table.grid(padding=(0, 2))
        bar.add_row(ProgressBar(total=max(1, total), completed=min(done, total), width=40), f"[bold]{done}[/] of {total} evaluated")
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", min_width=9)
        facts.add_column(overflow="ellipsis", no_wrap=True)
        best = Text("none yet")
        if state.best is not None and state.best.fitness is not None:
            best = Text.assemble((f"{state.best.fitness:.2%}", "bold green"), f"  candidate {state.best.candidate}")
        facts.add_row("best", best)
        if fitnesses := self._fitnesses(state):
            facts.add_row("fitness", fitnesses)
        facts.add_row("done", _done(state))
        if view is not None:
            running = [job for job in view.jobs.values() if job.status is JobStatus.RUNNING]
            facts.add_row("in flight", f"{state.in_flight}" + (f": {_running(state, running)}" if running else ""))
            facts.add_row("rate", self._rate_words(state) if done < total else "")
        lines: list[RenderableType] = [title, bar, facts]
        hold = (_hold(state, view) or self._refusal) if view is not None else None
        if hold:
            lines.append(Text(hold, style="yellow"))
        return Group(*lines)

    def _rate_words(self, state: State) -> str:
        """Outcomes a minute and what follows from it."""
        (since, before), (_, done) = (self._seen[0], self._seen[-1]) if self._seen else ((0.0, 0), (0.0, 0))
        elapsed = self._seconds() - since
        if done == before or elapsed < 1:
            return "time left not known yet"
        rate = (done - before) / elapsed
        return f"{rate * 60:.1f} a minute, about {_duration((_total(state) - done) / rate)} left"

    def _fitnesses(self, state: State) -> Text | None:
        """The last outcomes as bars between the lowest and the highest of them; x: no fitness."""
        last = state.history[-SHOWN_FITNESSES:]
        known = [outcome.fitness for outcome in last if outcome.fitness is not None]
        if not known or not self._console.encoding.startswith("utf"):
            return None
        low, span = min(known), max(known) - min(known)
        bars = "".join("x" if one.fitness is None else _BARS[round((one.fitness - low) / span * 7) if span else 7] for one in last)
        return Text(f"{low:.1%} {bars} {low + span:.1%}")


def _total(state: State) -> int:
    return state.limits.max_evaluations if state.limits else 0


def _hold(state: State, view: View) -> str | None:
    """Why nothing new is begun, and what to do."""
    name = state.run.name
    if view.now:
        return "ending what runs"
    if view.interrupted:
        return "interrupted: what runs may finish; Ctrl-C again ends it"
    return {
        "paused": f"paused: `hiernas resume {name}` goes on",
        "stopped": "stopping: what runs may finish",
        "halted": f"halted, what runs may finish: {halted_by(state)}",
        "budget": f"max_gpu_hours is used up: `hiernas set {name} max_gpu_hours=…` goes on",
    }.get(holds(state, gpu_seconds(state, view)) or "")


def _done(state: State) -> str:
    """Outcomes by kind, and the latest."""
    count = state.totals.outcomes.get(OutcomeKind.REUSED, 0)
    good = len(state.history) - state.totals.failed - count
    parts = [f"{good} trained", f"{count} reused" if count else "", f"{state.totals.failed} failed"]
    latest = f"; latest: {_outcome(state.history[-1])}" if state.history else ""
    return ", ".join(part for part in parts if part) + latest


def _outcome(outcome: Outcome) -> str:
    what = f"{outcome.fitness:.2%}" if outcome.fitness is not None else outcome.outcome.value
    return f"candidate {outcome.candidate} {what}"


def _running(state: State, running: list[Job]) -> str:
    """Candidate and seconds of what runs, the longest first."""
    seconds = {job.name: job.held_seconds for job in running}
    attempts = [story.running for story in state.unfinished.values() if story.running and story.running.job in seconds]
    attempts.sort(key=lambda attempt: -seconds[attempt.job])
    shown = [f"candidate {attempt.candidate} for {_duration(seconds[attempt.job])}" for attempt in attempts[:SHOWN_RUNNING]]
    return ", ".join(shown) + (f" and {len(attempts) - SHOWN_RUNNING} more" if len(attempts) > SHOWN_RUNNING else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
