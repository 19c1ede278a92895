"""The contract of an executor, over every one that there is; then what only processes of their own can do."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from small_run import RUN
from trainers import GO, began

from pipeline.directory import DirectoryStore
from pipeline.errors import ExecutorUnavailable
from pipeline.executor import Executor, Job, JobSpec, JobStatus, job_name
from pipeline.inline import InlineExecutor
from pipeline.prepare import prepare_digits
from pipeline.processes import LOG_LINES, ProcessExecutor
from pipeline.run import RunFolder, attempt_key, candidate_key
from search.records import Attempt, EndReason, Failure, FailureKind, Metrics, Resources, Run, Stamp, Why
from search.state import State, derive_candidate

PATIENCE_SECONDS = 60.0
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at another process's libraries, which only Linux shows")


def _inline(place: Path, trainer: str) -> Executor:
    return InlineExecutor(DirectoryStore(place / "store"), str(place), trainer)


def _processes(place: Path, trainer: str) -> Executor:
    return ProcessExecutor(str(place / "store"), str(place), trainer)


MAKERS: dict[str, Callable[[Path, str], Executor]] = {"inline": _inline, "processes": _processes}


@dataclass
class Bench:
    """A run in a store, and an executor that is given its attempts one by one."""

    place: Path
    executor: Executor
    folder: RunFolder

    def decide(self, candidate: int = 0, attempt: int = 0, resources: Resources | None = None) -> JobSpec:
        """Write a candidate and an attempt, as a controller does before it starts the job."""
        resources = resources or Resources()
        record = derive_candidate(self.folder.run, State(self.folder.run).past, candidate)
        assert record is not None
        self.folder.create(candidate_key(candidate), record)
        job = job_name(self.folder.name, candidate, attempt)
        why = Why.RETRY if attempt else Why.FIRST
        decision = Attempt(candidate, attempt, why, self.executor.name, job, resources, (), 0, Stamp("c" * 32, 0.0, 0, 0))
        digest = self.folder.create(attempt_key(candidate, attempt), decision)
        return JobSpec(job, self.folder.name, candidate, attempt, resources, digest)

    def job(self, spec: JobSpec) -> Job:
        """The one job of that name, which must be there."""
        (found,) = (job for job in self.executor.jobs() if job.name == spec.name)
        return found

    def ended(self, spec: JobSpec) -> Job:
        """The job once it has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (job := self.job(spec)).status is not JobStatus.ENDED:
            assert time.monotonic() < deadline, job
            self.executor.wait(0.2)
        return job

    def run(self, spec: JobSpec) -> Job:
        """Start a job and wait until it has ended."""
        self.executor.start(spec)
        return self.ended(spec)

    def processes(self, spec: JobSpec) -> list[int]:
        """The processes that began to train an attempt, once there is one."""
        path = began(self.place, spec.candidate, spec.attempt)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (path.exists() and path.read_text().endswith("\n")):
            assert time.monotonic() < deadline, self.executor.jobs()
            time.sleep(0.01)
        return [int(line) for line in path.read_text().split()]


Make = Callable[..., Bench]


def _benches(place: Path, make: Callable[[Path, str], Executor]) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def bench(trainer: str, run: Run = RUN) -> Bench:
            executor = make(place, f"trainers:{trainer}")
            stack.callback(executor.close)
            folder = RunFolder(DirectoryStore(place / "store"), run.name)
            folder.begin(run)
            return Bench(place, executor, folder)

        yield bench


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    yield from _benches(tmp_path, MAKERS[request.param])


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Make]:
    yield from _benches(tmp_path, _processes)


# -- the contract


def test_an_attempt_leaves_its_evaluation_in_the_store_and_exit_code_0(make: Make) -> None:
    bench = make("instant")
    job = bench.run(bench.decide())
    assert (job.status, job.exit_code, job.reason) == (JobStatus.ENDED, 0, None)
    found = bench.folder.evaluation(0, 0)
    assert found is not None
    assert isinstance(found[0], Metrics)
    assert found[0].machine.threads == 1


def test_jobs_are_listed_until_they_are_deleted(make: Make) -> None:
    bench = make("instant")
    assert list(bench.executor.jobs()) == []
    specs = [bench.decide(candidate) for candidate in range(3)]
    for spec in specs:
        bench.executor.start(spec)
    for spec in specs:
        job = bench.ended(spec)
        assert job.exit_code == 0
        assert 0 < job.held_seconds < PATIENCE_SECONDS
        assert bench.ended(spec).held_seconds == job.held_seconds
    bench.executor.delete(specs[1].name)
    assert sorted(job.name for job in bench.executor.jobs()) == [specs[0].name, specs[2].name]


def test_a_job_is_started_once_however_often_it_is_asked_for(make: Make) -> None:
    bench = make("machine_fault")  # it leaves no evaluation that would tell a second process to do nothing
    spec = bench.decide()
    bench.executor.start(spec)
    bench.executor.start(spec)
    assert len(bench.executor.jobs()) == 1
    assert bench.ended(spec).exit_code == 5
    bench.executor.start(spec)
    assert bench.job(spec).status is JobStatus.ENDED
    assert len(bench.processes(spec)) == 1


def test_an_attempt_whose_evaluation_exists_does_not_train_again(make: Make) -> None:
    bench = make("counted")
    spec = bench.decide()
    assert bench.run(spec).exit_code == 0
    before = bench.folder.evaluation(0, 0)
    bench.executor.delete(spec.name)
    assert bench.run(spec).exit_code == 0
    assert bench.run(bench.decide(0, 1)).exit_code == 0  # nor does another attempt of that candidate
    assert len(bench.processes(spec)) == 1
    assert not began(bench.place, 0, 1).exists()
    assert bench.folder.evaluation(0, 0) == before
    assert bench.folder.evaluation(0, 1) is None


def test_a_trainer_that_raises_is_a_bug_with_its_traceback(make: Make) -> None:
    bench = make("raises")
    assert bench.run(bench.decide()).exit_code == 1
    found = bench.folder.evaluation(0, 0)
    assert found is not None
    failure = found[0]
    assert isinstance(failure, Failure)
    assert failure.failure is FailureKind.BUG
    assert "in raises" in failure.message
    assert "ZeroDivisionError: a bug on purpose" in failure.message


def test_a_trainer_that_is_not_there_is_a_bug_too(make: Make) -> None:
    bench = make("absent")
    assert bench.run(bench.decide()).exit_code == 1
    found = bench.folder.evaluation(0, 0)
    assert found is not None
    assert isinstance(found[0], Failure)
    assert "absent" in found[0].message


@pytest.mark.parametrize("trainer", ["machine_fault", "full_disk"])
def test_a_machine_at_fault_is_exit_code_5_and_no_evaluation(make: Make, trainer: str) -> None:
    bench = make(trainer)
    assert bench.run(bench.decide()).exit_code == 5
    assert bench.folder.evaluation(0, 0) is None


@pytest.mark.parametrize("instead", ["nothing", "file", "empty folder"])
def test_a_store_that_does_not_answer_is_the_machines_fault(make: Make, instead: str) -> None:
    """As on a machine where the store's disk is not mounted."""
    bench = make("counted")
    spec = bench.decide()
    store = bench.place / "store"
    store.rename(bench.place / "elsewhere")
    if instead == "file":
        store.write_text("")
    elif instead == "empty folder":
        store.mkdir()
    assert bench.run(spec).exit_code == 5
    assert not began(bench.place, 0, 0).exists()
    assert not store.is_dir() or not list(store.iterdir())  # no other store is begun in its place


def test_deleting_forgets_a_job_and_may_be_repeated(make: Make) -> None:
    bench = make("counted")
    spec = bench.decide()
    bench.run(spec)
    for _ in range(2):
        bench.executor.delete(spec.name)
        assert list(bench.executor.jobs()) == []
    bench.executor.delete("never-heard-of")
    assert bench.run(bench.decide(1)).exit_code == 0


def test_closing_leaves_no_job(make: Make) -> None:
    bench = make("instant")
    for candidate in range(2):
        bench.run(bench.decide(candidate))
    for _ in range(2):
        bench.executor.close()
        assert list(bench.executor.jobs()) == []


# -- what only processes do


def alive(number: int) -> bool:
    """Whether a process runs: one that only waits to be collected does not."""
    try:
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def assert_gone(number: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while alive(number):
        assert time.monotonic() < deadline, psutil.Process(number)
        time.sleep(0.01)


def test_a_job_that_runs_says_so_and_is_ended_when_deleted(processes: Make) -> None:
    bench = processes("held")
    spec, other = bench.decide(0), bench.decide(1)
    bench.executor.start(spec)
    bench.executor.start(other)
    ((number,), (second,)) = bench.processes(spec), bench.processes(other)
    job = bench.job(spec)
    assert (job.status, job.exit_code, job.reason, job.node) == (JobStatus.RUNNING, None, None, os.uname().nodename)
    assert job.held_seconds > 0
    bench.executor.delete(spec.name)
    assert not alive(number)
    assert [job.name for job in bench.executor.jobs()] == [other.name]
    bench.executor.close()
    assert not alive(second)
    assert list(bench.executor.jobs()) == []
    assert bench.folder.evaluation(0, 0) is bench.folder.evaluation(1, 0) is None


def test_wait_returns_when_a_job_ends_else_after_the_time(processes: Make) -> None:
    bench = processes("held")
    began_at = time.monotonic()
    bench.executor.wait(0.1)  # nothing runs
    assert time.monotonic() - began_at >= 0.1
    spec = bench.decide()
    bench.executor.start(spec)
    bench.processes(spec)
    began_at = time.monotonic()
    bench.executor.wait(0.2)
    assert 0.2 <= time.monotonic() - began_at < PATIENCE_SECONDS / 2
    assert bench.job(spec).status is JobStatus.RUNNING
    (bench.place / GO).touch()
    bench.executor.wait(10 * PATIENCE_SECONDS)
    assert time.monotonic() - began_at < PATIENCE_SECONDS
    assert bench.job(spec).status is JobStatus.ENDED
    began_at = time.monotonic()
    bench.executor.wait(0.1)  # an end that was seen wakes nobody again
    assert time.monotonic() - began_at >= 0.1


def test_a_worker_over_its_memory_is_ended_for_it(processes: Make) -> None:
    bench = processes("greedy")
    job = bench.run(bench.decide(resources=Resources(memory_bytes=300_000_000)))
    assert (job.reason, job.exit_code) == (EndReason.MEMORY, -signal.SIGKILL)
    assert "the limit is 300000000" in job.message


def test_a_worker_within_its_limits_is_left_alone(processes: Make) -> None:
    bench = processes("counted")
    job = bench.run(bench.decide(resources=Resources(memory_bytes=2_000_000_000, time_limit_seconds=PATIENCE_SECONDS)))
    assert (job.reason, job.exit_code, job.message) == (None, 0, "")


def test_a_worker_over_its_time_is_ended_for_it(processes: Make) -> None:
    bench = processes("held")
    job = bench.run(bench.decide(resources=Resources(time_limit_seconds=0.5)))
    assert (job.reason, job.exit_code) == (EndReason.DEADLINE, -signal.SIGKILL)
    assert "the limit is 0.5 s" in job.message
    assert job.held_seconds >= 0.5


@pytest.mark.parametrize(("sent", "reason"), [(signal.SIGKILL, None), (signal.SIGTERM, EndReason.DISRUPTED)])
def test_a_worker_ended_from_outside_is_killed_and_by_a_shutdown_disrupted(processes: Make, sent: signal.Signals, reason: EndReason | None) -> None:
    bench = processes("held")
    spec = bench.decide()
    bench.executor.start(spec)
    (number,) = bench.processes(spec)
    os.kill(number, sent)
    job = bench.ended(spec)
    assert (job.reason, job.exit_code, job.message) == (reason, -sent, f"ended by signal {sent.value}")


@pytest.mark.parametrize("how", ["deleted", "killed", "let go"])
def test_a_workers_child_never_outlives_it(processes: Make, how: str) -> None:
    bench = processes("parental")
    spec = bench.decide()
    bench.executor.start(spec)
    (number,) = bench.processes(spec)
    child = int((bench.place / "child").read_text())
    assert alive(child)
    if how == "deleted":
        bench.executor.delete(spec.name)
    else:
        if how == "killed":
            os.kill(number, signal.SIGKILL)
        else:
            (bench.place / GO).touch()
        assert bench.ended(spec).exit_code == (-9 if how == "killed" else 0)
    assert_gone(child)


def test_the_last_lines_of_a_workers_output_are_kept(processes: Make) -> None:
    bench = processes("chatty")
    job = bench.run(bench.decide())
    assert job.exit_code == 7
    assert job.log == tuple(f"line {number}" for number in range(1000 - LOG_LINES, 1000))


def test_a_worker_that_cannot_write_its_log_still_tells_by_its_exit_code(processes: Make) -> None:
    bench = processes("cramped")
    job = bench.run(bench.decide())
    assert (job.exit_code, job.log) == (5, ())


def test_a_thread_left_behind_does_not_keep_a_worker(processes: Make) -> None:
    bench = processes("forgetful")
    assert bench.run(bench.decide()).exit_code == 0


def test_what_a_worker_says_of_a_machine_at_fault_is_in_its_log(processes: Make) -> None:
    bench = processes("machine_fault")
    job = bench.run(bench.decide())
    assert "an error of the driver, on purpose" in job.log[-1]


def test_a_fork_server_that_died_costs_a_disruption_and_is_replaced(processes: Make) -> None:
    bench = processes("held")
    spec, other = bench.decide(0), bench.decide(1)
    bench.executor.start(spec)
    (number,) = bench.processes(spec)
    server = psutil.Process(number).ppid()
    assert server != os.getpid()
    os.kill(server, signal.SIGKILL)
    job = bench.ended(spec)
    assert job.reason is EndReason.DISRUPTED
    assert "fork server" in job.message
    assert_gone(number)
    bench.executor.delete(spec.name)
    (bench.place / GO).touch()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not bench.executor.jobs():
        assert time.monotonic() < deadline
        with contextlib.suppress(ExecutorUnavailable):  # for the moment in which the system still buries the old server
            bench.executor.start(other)
    assert bench.ended(other).exit_code == 0


@pytest.mark.parametrize("broken", ["tempfile.TemporaryFile", "multiprocessing.context.ForkServerProcess.start"])
def test_a_worker_that_cannot_be_started_now_is_started_later(processes: Make, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    bench = processes("instant")
    spec = bench.decide()

    def fail(*_: object) -> None:
        raise OSError(errno.EAGAIN, "no room")

    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)
        with pytest.raises(ExecutorUnavailable, match="no room"):
            bench.executor.start(spec)
        assert list(bench.executor.jobs()) == []
    assert bench.run(spec).exit_code == 0


@only_linux
def test_each_worker_is_a_process_and_a_session_of_its_own(processes: Make) -> None:
    bench = processes("telling")
    found = []
    for candidate in range(2):
        assert bench.run(bench.decide(candidate)).exit_code == 0
        evaluation = bench.folder.evaluation(candidate, 0)
        assert evaluation is not None
        assert isinstance(evaluation[0], Metrics)
        found.append(evaluation[0].machine.versions)
    assert [one["session"] for one in found] == ["own", "own"]
    assert len({one["process"] for one in found} | {str(os.getpid())}) == 3


PROGRAM = """
import sys
from pipeline.executor import JobSpec, JobStatus
from pipeline.processes import ProcessExecutor
from search.records import Resources
executor = ProcessExecutor(sys.argv[1], sys.argv[2], "torch_trainer:telling")
executor.start(JobSpec("job", "real", 0, 0, Resources(threads=3), ""))
while executor.jobs()[0].status is not JobStatus.ENDED:
    executor.wait(0.5)
print(executor.jobs()[0].exit_code, "torch" in sys.modules, *executor.jobs()[0].log)
executor.close()
"""


@only_linux
def test_the_fork_server_has_imported_torch_and_workers_keep_to_their_threads(processes: Make, tmp_path: Path) -> None:
    """The real trainer, in a process that has no fork server yet."""
    data = prepare_digits(tmp_path / "digits")
    recipe = replace(RUN.recipe, steps=2, milestones=(), curve_points=1)
    model = replace(RUN.model, channels=data.channels, size=data.size, classes=data.classes)
    bench = processes("none", replace(RUN, name="real", recipe=recipe, model=model, data=replace(RUN.data, digest=data.digest)))
    bench.decide(resources=Resources(threads=3))
    paths = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "store"), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("0 False"), done.stdout + done.stderr
    found = bench.folder.evaluation(0, 0)
    assert found is not None
    assert isinstance(found[0], Metrics)
    assert found[0].machine.versions == {"torch threads": "3", "torch in the fork server": "yes"}
