"""What a person sees while a search runs: a panel on a terminal, plain lines elsewhere."""

import io
import logging
import sys
from typing import Any

import pytest
from rich.console import Console
from small_run import COUNT, controller, work

from pipeline.controller import Controller
from pipeline.executor import Job, JobStatus
from pipeline.plan import View
from pipeline.progress import Progress
from pipeline.store import MemoryStore
from search.limits import Desire
from search.records import Attempt, Resources, Stamp, Why
from search.state import Story


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def finished() -> Controller:
    one = controller(MemoryStore())
    work(one)
    return one


def running(one: Controller) -> View:
    """As if the last candidate ran for 65 s."""
    state = one.state
    last = len(state.stories)
    stamp = Stamp("c" * 32, 1.0, 0, 0)
    attempt = Attempt(last, 0, Why.FIRST, "processes", "job", Resources(), (), 0, stamp)
    state.unfinished[last] = Story(state.stories[-1].candidate, [attempt])
    return View("c" * 32, "processes", False, {"job": Job("job", JobStatus.RUNNING, held_seconds=65.0)}, {"job"})


def shown(progress: Progress, one: Controller, view: View | None, width: int) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(progress.panel(one.state, view))
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_panel_fits_its_terminal_and_says_where_the_search_stands(width: int) -> None:
    one = finished()
    text = shown(Progress(Console(file=io.StringIO())), one, running(one), width)
    assert max(map(len, text.splitlines())) <= width
    assert one.state.best is not None
    assert one.state.best.fitness is not None
    assert f"{COUNT} of {COUNT} evaluated" in text
    assert f"best       {one.state.best.fitness:.2%}  candidate {one.state.best.candidate}" in text
    assert f"{COUNT} trained, 0 failed" in text
    assert f"candidate {COUNT} for 1 min 05 s" in text
    assert len(text.splitlines()) == 7  # the same number of lines whatever the width: the panel does not jump


def test_a_hold_says_what_to_do() -> None:
    one = finished()
    view = running(one)
    one.state.desire = Desire.PAUSE
    assert "`hiernas resume small` goes on" in shown(Progress(), one, view, 80)
    view.interrupted = True
    assert "Ctrl-C again ends it" in shown(Progress(), one, view, 80)


def test_rate_and_time_left_follow_the_last_outcomes() -> None:
    one = finished()
    history = one.state.history
    minutes = 0
    progress = Progress(Console(file=io.StringIO()), lambda: minutes * 60.0)
    view = running(one)
    for minutes in range(11):  # an outcome a minute
        one.state.history = history[:minutes]
        progress.show(one.state, view)
    assert "1.0 a minute, about 10 min 00 s left" in shown(progress, one, view, 80)


def test_what_is_no_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as many CI services do
    file = io.StringIO()
    one = finished()
    with Progress(Console(file=file)) as progress:
        progress.show(one.state, running(one))
        progress.finish(one.state)
    lines = file.getvalue().splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"small: {COUNT}/{COUNT} evaluated") for line in lines)
    assert "\x1b" not in file.getvalue()


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    text = _on_terminal()
    colours = [f"\x1b[{code}m" for code in (31, 32, 33, 34, 35, 36)]
    assert "of 20 evaluated" in text
    assert not any(colour in text for colour in colours)


def test_the_cursor_comes_back_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    file = Terminal()
    with pytest.raises(KeyboardInterrupt), Progress(Console(file=file, width=80)):
        raise KeyboardInterrupt
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert "\x1b" not in _on_terminal()


def _on_terminal() -> str:
    file = Terminal()
    one = finished()
    with Progress(Console(file=file, width=80)) as progress:
        progress.show(one.state, running(one))
        progress.finish(one.state)
    return file.getvalue()


def test_the_answer_to_ctrl_c_is_replaced_by_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    file = Terminal()
    one = finished()
    view: Any = running(one)
    with Progress(Console(file=file, width=80)) as progress:
        progress.show(one.state, view)
        file.write("\nhiernas: waiting\n")  # as launch does
        view.interrupted = True
        progress.show(one.state, view, 1)
        written = file.getvalue()
    assert written.index("\x1b[2A\x1b[J") > written.index("hiernas: waiting")
    assert "Ctrl-C again ends it" in written.split("\x1b[J")[-1]


def test_a_warning_goes_above_the_panel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    file = Terminal()
    monkeypatch.setattr(sys, "stderr", file)
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    one = finished()
    with Progress(Console(file=file, width=80)) as progress:
        progress.show(one.state, running(one))
        logging.getLogger("hiernas.test").warning("store does not answer")
    assert handler.stream is file
    drawn = file.getvalue().split("store does not answer")
    assert len(drawn) == 2
    assert "\x1b[2K" in drawn[0][-400:]  # the panel was erased before
    assert f"of {COUNT} evaluated" in drawn[1]  # and drawn again below


def test_what_refuses_workers_is_said() -> None:
    one = finished()
    progress = Progress()
    view = running(one)
    progress.show(one.state, view, refusal="no worker process can be started on this machine")
    assert "no worker process can be started" in shown(progress, one, view, 80)
