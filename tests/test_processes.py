"""Real controllers and real workers, killed with SIGKILL at random moments: nothing is lost, counted twice or left behind."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pipeline.directory import DirectoryStore
from pipeline.prepare import prepare_digits
from pipeline.requests import request
from pipeline.run import RunFolder
from pipeline.verify import Level, verify

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads other processes' environment, which only Linux allows")

CONFIG = """
run: killed
data: digits
space: liu2018-hierarchical
strategy: {{kind: evolution, initial: 6, initial_mutations: 50}}
recipe: digits-small
limits: {{max_evaluations: {count}, workers: 3, max_attempts: 50, max_disruptions: 1000}}
data_root: {root}/data
"""
PROGRAM = """
import sys
from pathlib import Path
from pipeline.config import load_config
from pipeline.errors import HiernasError
from pipeline.launch import launch
try:
    launch(load_config(Path(sys.argv[1])), sys.argv[2], False, lock=False, trainer="trainers:slow")
except HiernasError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    prepare_digits(tmp_path / "data" / "digits")
    return tmp_path


def configure(place: Path, count: int) -> Path:
    path = place / "config.yaml"
    path.write_text(CONFIG.format(root=place, count=count))
    return path


def start(place: Path) -> "subprocess.Popen[bytes]":
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "HIERNAS_TEST": str(place)}
    with (place / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(place / "config.yaml"), str(place / "runs")],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )


def relatives(place: Path) -> list[psutil.Process]:
    """Every process that was started for this test, workers and fork servers included: they inherit its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("HIERNAS_TEST") == str(place):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until_gone(place: Path) -> None:
    deadline = time.monotonic() + 20
    while (left := relatives(place)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []


def check(place: Path) -> int:
    """All invariants; returns how many candidates there were, each with exactly one outcome."""
    store = DirectoryStore(place / "runs")
    assert [finding for finding in verify(store, "killed") if finding.level is Level.ERROR] == []
    state = RunFolder(store, "killed").load()
    assert sorted(outcome.candidate for outcome in state.history) == list(range(len(state.stories)))
    assert state.totals.failed == 0
    return len(state.stories)


def test_controllers_and_workers_killed_twelve_times(place: Path) -> None:
    configure(place, 10_000)  # far more than can be done: a person ends it after the last kill, however fast this machine is
    draw = random.Random(12)
    kills = 0
    controller = start(place)
    while kills < 12:
        time.sleep(draw.uniform(0.6, 2.0))
        assert controller.poll() is None, (place / "log").read_text()[-3000:]
        workers = [one for one in relatives(place) if one.pid != controller.pid and os.getsid(one.pid) == one.pid]
        if kills % 3 == 2 and workers:
            draw.choice(workers).kill()
        else:
            os.killpg(controller.pid, signal.SIGKILL)
            controller.wait()
            wait_until_gone(place)
            controller = start(place)
        kills += 1
    folder = RunFolder(DirectoryStore(place / "runs"), "killed")
    enough = len(folder.load().stories) + 5
    request(folder, {"max_evaluations": enough}, None)
    assert controller.wait(120) == 0, (place / "log").read_text()[-3000:]
    wait_until_gone(place)
    assert check(place) >= enough


def test_of_two_controllers_started_together_one_gives_way(place: Path) -> None:
    configure(place, 12)
    both = [start(place), start(place)]
    codes = sorted(one.wait(120) for one in both)
    assert codes in ([0, 0], [0, 3]), (place / "log").read_text()[-3000:]
    if codes == [0, 3]:
        assert "taken over by" in (place / "log").read_text()
    wait_until_gone(place)
    assert check(place) == 12
