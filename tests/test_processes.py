"""Real controllers and real workers, killed with SIGKILL at random moments or started twice: nothing is lost, counted twice or left behind."""

import contextlib
import random
import sys
import time
from pathlib import Path

import pytest
from live_run import Live, until

from search.records import Claim, EndReason

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads other processes' environment, which only Linux allows")


def test_controllers_and_workers_killed_twelve_times(tmp_path: Path) -> None:
    # Far more candidates than can be done: a person ends it after the last kill, however fast this machine is.
    with contextlib.closing(Live(tmp_path, 10_000)) as live:
        draw = random.Random(12)
        kills = 0
        controller = live.start()
        while kills < 12:
            time.sleep(draw.uniform(0.6, 2.0))
            assert controller.running, controller.said[-3000:]
            workers = live.workers(controller)
            if kills % 3 == 2 and workers:
                draw.choice(workers).kill()
            else:
                controller.kill()
                live.wait_until_gone()
                controller = live.start()
            kills += 1
        enough = len(live.state.stories) + 5
        live.person("set", f"max_evaluations={enough}")
        assert controller.wait() == 0, controller.said[-3000:]
        live.wait_until_gone()
        assert live.check() >= enough


@pytest.mark.parametrize("turn", range(10))
def test_of_two_controllers_started_together_one_gives_way(tmp_path: Path, turn: int) -> None:
    """Nothing keeps them apart but the claims. No training finishes before one has gone: so both work at the same time."""
    with contextlib.closing(Live(tmp_path, 4, 2, "trainers:held")) as live:
        both = [live.start(), live.start()]
        until(lambda: not all(one.running for one in both), lambda: "both go on")
        live.let_go()
        loser, winner = sorted(both, key=lambda one: one.running)
        assert loser.wait() == 3
        assert winner.wait() == 0, winner.said
        (said,) = (line for line in loser.said.splitlines() if line.startswith("hiernas: "))
        assert "run 'live' was taken over by" in said
        assert f"/{winner.pid}/" in said  # whose incarnation is host/pid/birth
        assert "nothing is lost" in said
        live.check_finished()
        assert len([record for record in live.state.controllers if isinstance(record, Claim)]) == 2
        assert {end.reason for end in live.ends} <= {EndReason.CONTROLLER_LOST}


def test_with_the_local_lock_a_second_process_waits_until_the_first_is_killed(tmp_path: Path) -> None:
    with contextlib.closing(Live(tmp_path, 8, 3, "trainers:held")) as live:
        first = live.start(lock=True)
        live.wait_for_held(3)
        second = live.start(lock=True)
        second.wait_to_say("another process of this machine works on run 'live'; waiting for it")
        assert len(live.state.controllers) == 1
        assert first.running
        assert second.running
        workers = live.workers(first, second)
        assert len(workers) == 3
        first.kill()
        until(lambda: not any(one.is_running() for one in workers), lambda: "the workers outlived their controller")
        live.let_go()
        assert second.wait() == 0
        live.check_finished()
        assert [end.reason for end in live.ends] == [EndReason.CONTROLLER_LOST] * 3
