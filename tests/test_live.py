"""A person at work on a real search in real processes: Ctrl-C, SIGTERM, `hiernas set`, `pause`, `resume`, `stop`."""

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_run import Live, until

from pipeline.status import word
from search.limits import Desire
from search.records import EndReason, ReleaseReason

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads other processes' environment, which only Linux allows")

WORKERS = 3


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Live]:
    """A search whose trainings finish when the test lets them, then at once."""
    with contextlib.closing(Live(tmp_path, 12, WORKERS, "trainers:held")) as live:
        yield live


def go_on(live: Live) -> None:
    """The same command again: to the end of the search."""
    live.let_go()
    assert live.start().wait() == 0
    live.check_finished()


# -- signals


def test_ctrl_c_once_lets_what_runs_finish(live: Live) -> None:
    controller = live.start()
    live.wait_for_held(WORKERS)
    controller.signal(signal.SIGINT)
    controller.wait_to_say("waiting for what runs to finish; Ctrl-C again to end it now")
    assert controller.running
    live.let_go()
    assert controller.wait() == 0
    assert "was interrupted, nothing is lost; the same command continues it" in controller.said
    live.wait_until_gone()
    assert live.released is ReleaseReason.INTERRUPTED
    assert (live.evaluated(), len(live.held()), live.ends) == (WORKERS, WORKERS, [])
    go_on(live)


@pytest.mark.parametrize("signals", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM)])
def test_ctrl_c_twice_or_sigterm_ends_what_runs(live: Live, signals: tuple[signal.Signals, ...]) -> None:
    controller = live.start()
    live.wait_for_held(WORKERS)
    if len(signals) == 2:
        controller.signal(signals[0])
        controller.wait_to_say("waiting for what runs to finish")
    controller.signal(signals[-1])
    controller.wait_to_say("ending what runs now")
    assert controller.wait() == 0
    live.wait_until_gone()
    assert live.released is ReleaseReason.INTERRUPTED
    assert live.evaluated() == 0
    assert [(end.candidate, end.attempt, end.reason) for end in live.ends] == [(index, 0, EndReason.STOPPED) for index in range(WORKERS)]
    go_on(live)
    assert [story.outcome.attempt for story in live.state.stories if story.outcome] == [1] * WORKERS + [0] * (live.count - WORKERS)


# -- requests


@pytest.fixture
def endless(tmp_path: Path) -> Iterator[Live]:
    """A search that is far from its end."""
    with contextlib.closing(Live(tmp_path, 10_000)) as live:
        yield live


def test_lowered_workers_drain_and_raised_ones_start(endless: Live) -> None:
    live = endless
    controller = live.start()
    live.wait_for(5)
    live.person("set", "workers=1")
    until(lambda: alone_since(live, 1) >= 4, lambda: f"{controller.said}")
    live.person("set", "workers=2", f"max_evaluations={len(live.state.stories) + 10}")
    assert controller.wait() == 0
    live.count = live.state.limits.max_evaluations if live.state.limits else 0
    live.check_finished()
    opened = [(attempt.stamp.control, attempt.open) for story in live.state.stories for attempt in story.attempts]
    assert [max(count for control, count in opened if control == request) for request in range(3)] == [2, 0, 1]
    assert live.ends == []


def alone_since(live: Live, control: int) -> int:
    """Outcomes of attempts that were decided under the control-th request."""
    stories = live.state.stories
    return sum(story.outcome is not None and story.attempts[0].stamp.control == control for story in stories)


def test_a_paused_run_starts_nothing_until_it_is_resumed(live: Live) -> None:
    controller = live.start()
    live.wait_for_held(WORKERS)
    live.person("pause")
    live.let_go()
    live.wait_for(WORKERS)
    until(lambda: not live.workers(controller), lambda: "the workers go on")
    assert word(live.state) == "paused"
    live.person("set", "workers=2")  # says nothing of going on
    looked = len(live.state.controllers)
    assert controller.running
    live.person("resume")
    assert controller.wait() == 0
    live.check_finished()
    assert len(live.state.controllers) == looked + 1  # paused and resumed by one and the same controller
    controls = [attempt.stamp.control for story in live.state.stories for attempt in story.attempts]
    assert controls == [0] * WORKERS + [3] * (live.count - WORKERS)


@pytest.mark.parametrize("words", [("stop",), ("stop", "--now")])
def test_a_stopped_run_stays_stopped_until_it_is_resumed(live: Live, words: tuple[str, ...]) -> None:
    controller = live.start()
    live.wait_for_held(WORKERS)
    live.person(*words)
    if words == ("stop",):
        assert controller.running
        live.let_go()
    assert controller.wait() == 0
    assert "is stopped and stays so" in controller.said
    live.wait_until_gone()
    assert live.released is ReleaseReason.STOPPED
    finished = WORKERS if words == ("stop",) else 0
    assert live.evaluated() == finished
    assert [end.reason for end in live.ends] == [EndReason.STOPPED] * (WORKERS - finished)

    live.let_go()
    before = live.folder.store.list("")
    again = live.start()
    assert again.wait() == 0
    assert "is stopped and stays so" in again.said
    assert live.folder.store.list("") == before
    live.person("resume")
    assert live.state.desire is Desire.RUN
    go_on(live)
