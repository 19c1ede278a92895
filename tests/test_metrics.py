"""What a scrape says is what the records say: every number is compared with sums over the folder's bytes, made here anew."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, SupportsIndex

import live_run
import pytest
import small_run
import trainers
from live_run import Live, Process, until
from prometheus_client.parser import text_string_to_metric_families
from small_run import NAME, RUN, FakeClock, Passing

from pipeline.controller import Controller
from pipeline.directory import DirectoryStore
from pipeline.errors import ConfigError, MachineFault, StoreUnavailable
from pipeline.executor import Job, JobSpec, JobStatus, Refused, Waiting
from pipeline.inline import InlineExecutor
from pipeline.metrics import BEAT_SECONDS, METRICS, CountedStore, Exporter
from pipeline.plan import View
from pipeline.requests import request
from pipeline.run import RunFolder, evaluation_key
from pipeline.store import Store
from pipeline.trouble import LONGEST_PAUSE_SECONDS
from pipeline.worker import Task
from search.evolution import Evolution
from search.limits import Desire, Limits
from search.records import CONTROLLER, Evaluation, Failure, FailureKind, ReleaseReason, Resources

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]
GPUS = 2
SEARCHED = replace(RUN, strategy=Evolution(initial=4, initial_mutations=0, reuse=True))
"""The first networks are all the same, so most of them are reused."""
LIMITS = Limits(max_evaluations=40, workers=3, max_gpu_hours=2.0)
BROKEN, LATE, RETRIED, DIVERGES, FAULTY = 18, 6, (9, 21), (11, 23), 13


def uneven(task: Task) -> Evaluation:
    """Trains, or fails in all the ways that there are, by the candidate's index."""
    index = task.candidate.index
    if index == BROKEN or (index in (LATE, *RETRIED) and task.attempt == 0):
        raise MachineFault("on purpose")
    if index == FAULTY:
        raise ZeroDivisionError("on purpose")
    if index in DIVERGES:
        return Failure(index, task.attempt, FailureKind.DIVERGED, "on purpose", 1.5, None)
    return trainers.instant(task)


class Staged:
    """Jobs that wait one look, run for one look and have ended at the third; what they hold follows from their name."""

    name = "staged"
    survives = False
    parallel = 1

    def __init__(self, store: Store) -> None:
        self._store, self._inline = store, InlineExecutor(store, "nowhere", "test_metrics:uneven")
        self._looks: Counter[str] = Counter()
        self._specs: dict[str, JobSpec] = {}
        self.refuses = False

    def start(self, spec: JobSpec) -> None:
        if self.refuses:
            raise Refused("on purpose")
        self._specs[spec.name] = spec
        self._inline.start(spec)
        if (spec.candidate, spec.attempt) == (LATE, 1):  # what the first attempt wrote comes to light after its end
            folder = RunFolder(self._store, spec.run)
            found = folder.evaluation(LATE, 1)
            assert found is not None
            folder.create(evaluation_key(LATE, 0), replace(found[0], attempt=0))

    def jobs(self) -> Sequence[Job]:
        found = []
        for job in self._inline.jobs():
            spec = self._specs[job.name]
            held = 7.3 * (spec.candidate % 5 + 1) + spec.attempt
            waits = (Waiting.STARTING, Waiting.UNSCHEDULABLE)[spec.candidate % 2]
            stages = [Job(job.name, JobStatus.PENDING, waits=waits), Job(job.name, JobStatus.RUNNING, held_seconds=held / 2)]
            found.append([*stages, replace(job, held_seconds=held)][min(2, self._looks[job.name])])
            self._looks[job.name] += 1
        return found

    def delete(self, name: str) -> None:
        self._inline.delete(name)

    def wait(self, seconds: float) -> None:
        """Time passes at each look."""

    def close(self) -> None:
        self._inline.close()


def searcher(store: Store, limits: Limits = LIMITS) -> Controller:
    """A controller whose jobs wait, run and end, on two GPUs each; it has taken charge."""
    one = small_run.controller(store, run=SEARCHED, limits=limits)
    one.executor, one.resources = Staged(store), Resources(gpus=GPUS)
    assert one.claim()
    return one


def rounds(one: Controller, exporter: Exporter, pause: float = LONGEST_PAUSE_SECONDS) -> Iterator[ReleaseReason | None]:
    """Round by round, so many seconds apart; the last one says why it was the last."""
    reason = None
    while reason is None:
        view, reason = one.step()
        exporter(one, view)
        yield reason
        one.clock.sleep(pause)


def get(port: int, path: str = "/metrics") -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def parsed(text: str) -> Numbers:
    found: Numbers = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            place = sample.name, frozenset(sample.labels.items())
            assert place not in found
            found[place] = sample.value
    return found


def scraped(port: int) -> Numbers:
    status, text = get(port)
    assert status == 200
    return parsed(text)


def at(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset({"run": NAME, **labels}.items())


def records(store: Store, folder: str) -> list[dict[str, Any]]:
    keys = store.list(f"{NAME}/{folder}/")
    return [json.loads(store.read(key))["record"] for key in sorted(keys)]


def expected(store: Store) -> Numbers:
    """Every number that follows from the records alone, by plain sums over all of them."""
    history, ends, attempts = (records(store, folder) for folder in ("history", "ends", "attempts"))
    outcomes, reasons = Counter(one["outcome"] for one in history), Counter(one["reason"] for one in ends)
    accepted = {one["candidate"]: one["attempt"] for one in history}
    ended = {(one["candidate"], one["attempt"]) for one in ends} | set(accepted.items())
    lost = [one["gpu_seconds"] for one in ends if one["candidate"] in accepted and accepted[one["candidate"]] != one["attempt"]]
    claims = [one for one in records(store, "controllers") if one["kind"] == "claim"]
    found: Numbers = {at("hiernas_evaluations_total", outcome=value): outcomes[value] for value in METRICS["hiernas_evaluations_total"].labels["outcome"]}
    found |= {at("hiernas_attempts_total", reason=value): reasons[value] for value in METRICS["hiernas_attempts_total"].labels["reason"]}
    found |= {
        at("hiernas_gpu_seconds_total", use="useful"): sum(one["gpu_seconds"] for one in history if one["fitness"] is not None),
        at("hiernas_gpu_seconds_total", use="failed"): sum(one["gpu_seconds"] for one in history if one["fitness"] is None),
        at("hiernas_gpu_seconds_total", use="lost"): sum(lost),
        at("hiernas_gpu_seconds_limit"): 7200,
        at("hiernas_in_flight"): len(records(store, "candidates")) - len(history),
        at("hiernas_workers_limit"): 3,
        at("hiernas_evaluations_limit"): 40,
        at("hiernas_claims_total"): len(claims),
        at("hiernas_in_charge"): int(records(store, "controllers")[-1]["kind"] == "claim"),
        at("sum of hiernas_workers"): sum(one["executor"] != CONTROLLER and (one["candidate"], one["attempt"]) not in ended for one in attempts),
    }
    if history:
        found[at("hiernas_last_accept_timestamp_seconds")] = history[-1]["stamp"]["at"]
        found[at("hiernas_best_fitness")] = max(one["fitness"] or 0.0 for one in history)
    return found


def compare(numbers: Numbers, store: Store) -> None:
    numbers = numbers | {at("sum of hiernas_workers"): total(numbers, "hiernas_workers")}
    for place, value in expected(store).items():
        assert numbers[place] == pytest.approx(value, abs=2e-3), place


def total(numbers: Numbers, name: str) -> float:
    return sum(value for (found, _), value in numbers.items() if found == name)


def counters(numbers: Numbers) -> Numbers:
    return {place: value for place, value in numbers.items() if place[0].endswith(("_total", "_bucket", "_count", "_sum"))}


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path)


@pytest.fixture
def serve() -> Iterator[Callable[[Exporter], int]]:
    served = []

    def begin(exporter: Exporter) -> int:
        served.append(exporter)
        return exporter.serve(0, "127.0.0.1")

    yield begin
    for exporter in served:
        exporter.close()


def test_each_number_of_each_round_is_the_sum_over_the_records_and_no_counter_falls(store: DirectoryStore, serve: Callable[[Exporter], int]) -> None:
    exporter = Exporter(NAME)
    port = serve(exporter)
    seen = []
    for _ in rounds(searcher(store), exporter):
        seen.append(scraped(port))
        compare(seen[-1], store)
    small_run.check_finished(store, 40)
    for before, after in pairwise(seen):
        assert counters(before).keys() == counters(after).keys()  # a series that comes late hides its first increase
        assert all(after[place] >= value for place, value in counters(before).items())
    last = seen[-1]
    # The search had all of it: otherwise the comparison above says little.
    for name, label, values in (
        ("hiernas_evaluations_total", "outcome", ("evaluated", "reused", "diverged", "bug", "lost")),
        ("hiernas_attempts_total", "reason", ("machine", "superseded")),
        ("hiernas_gpu_seconds_total", "use", ("useful", "failed", "lost")),
    ):
        assert all(last[at(name, **{label: value})] > 0 for value in values), name
    assert {one["attempt"] for one in records(store, "history") if one["candidate"] == LATE} == {0}
    for state in ("pending", "running"):
        assert any(numbers[at("hiernas_workers", state=state)] > 0 for numbers in seen)
    assert any(numbers[at("hiernas_pending", reason="unschedulable")] > 0 for numbers in seen)
    assert last[at("hiernas_in_charge")] == last[at("hiernas_in_flight")] == last[at("hiernas_gpu_seconds_open")] == 0


def test_open_gpu_seconds_are_what_runs_and_what_ended_without_an_outcome(store: DirectoryStore) -> None:
    one, exporter, reason = searcher(store), Exporter(NAME), None
    kinds = set()
    while reason is None:
        view, reason = one.step()
        exporter(one, view)
        one.clock.sleep(LONGEST_PAUSE_SECONDS)
        numbers = parsed(exporter.text().decode())
        accepted = {outcome["candidate"] for outcome in records(store, "history")}
        ended = [end["gpu_seconds"] for end in records(store, "ends") if end["candidate"] not in accepted]
        running = [job.held_seconds * GPUS for job in view.jobs.values() if job.status is JobStatus.RUNNING]
        assert numbers[at("hiernas_gpu_seconds_open")] == pytest.approx(sum(ended) + sum(running), abs=2e-3)
        kinds.add((bool(ended), bool(running)))
    assert len(kinds) == 4
    assert total(numbers, "hiernas_gpu_seconds_total") == pytest.approx(one.state.totals.gpu_seconds, abs=2e-3)


def test_phases_are_those_of_the_accepted_trainings(store: DirectoryStore) -> None:
    one, exporter = searcher(store), Exporter(NAME)
    for _ in rounds(one, exporter, pause=60):
        pass
    numbers = parsed(exporter.text().decode())
    history = [outcome for outcome in records(store, "history") if outcome["outcome"] == "evaluated"]
    decided = {(attempt["candidate"], attempt["attempt"]): attempt["stamp"]["at"] for attempt in records(store, "attempts")}
    sums = {
        "held": sum(outcome["held_seconds"] for outcome in history),
        "total": sum(outcome["stamp"]["at"] - decided[outcome["candidate"], outcome["attempt"]] for outcome in history),
        "train": 2.0 * len(history),  # trainers.instant: two repeats of 1 and 0.5 seconds
        "evaluate": 1.0 * len(history),
    }
    for phase, seconds in sums.items():
        assert numbers[at("hiernas_phase_duration_seconds_sum", phase=phase)] == pytest.approx(seconds)
        assert numbers[at("hiernas_phase_duration_seconds_count", phase=phase)] == len(history)
    # A minute a round: jobs of odd candidates wait it for a place, then all start within the rest.
    odd = sum(outcome["candidate"] % 2 for outcome in history)
    assert numbers[at("hiernas_phase_duration_seconds_bucket", phase="queue", le="30.0")] == len(history) - 1 - odd
    queue, start = (numbers[at("hiernas_phase_duration_seconds_sum", phase=phase)] for phase in ("queue", "start"))
    assert queue == pytest.approx(60 * odd, abs=1)
    assert start == pytest.approx(120 * (len(history) - 1) - 60 * odd, abs=1)
    # The accepted attempt of LATE was measured like the others, though its job had gone long before; it only has no wait any more.
    assert numbers[at("hiernas_phase_duration_seconds_count", phase="start")] == len(history) - 1
    assert numbers[at("hiernas_dispatch_latency_seconds_count")] > 0


def test_a_bucket_counts_what_is_at_most_its_bound(store: DirectoryStore) -> None:
    one, exporter = searcher(store), Exporter(NAME)
    for _ in rounds(one, exporter):
        pass
    held = [outcome["held_seconds"] for outcome in records(store, "history") if outcome["outcome"] == "evaluated"]
    numbers = parsed(exporter.text().decode())
    for bound in (*METRICS["hiernas_phase_duration_seconds"].buckets, float("inf")):
        le = "+Inf" if bound == float("inf") else str(bound)
        assert numbers[at("hiernas_phase_duration_seconds_bucket", phase="held", le=le)] == sum(seconds <= bound for seconds in held)
    assert numbers[at("hiernas_phase_duration_seconds_bucket", phase="evaluate", le="1.0")] == len(held)  # each took a second, the bound itself


def test_a_restarted_controller_goes_on_counting(store: DirectoryStore) -> None:
    first = Exporter(NAME)
    for _, _ in zip(range(13), rounds(searcher(store), first), strict=False):
        pass
    before = parsed(first.text().decode())
    second, one = Exporter(NAME), searcher(store)
    view, _ = one.step()
    second(one, view)
    after = parsed(second.text().decode())
    assert before[at("hiernas_evaluations_total", outcome="evaluated")] > 0
    for name in ("hiernas_evaluations_total", "hiernas_attempts_total", "hiernas_gpu_seconds_total", "hiernas_claims_total"):
        assert all(after[place] >= value for place, value in before.items() if place[0] == name)
    compare(after, store)
    assert after[at("hiernas_attempts_total", reason="controller_lost")] > 0
    assert after[at("hiernas_claims_total")] == before[at("hiernas_claims_total")] + 1
    for _ in rounds(one, second):
        pass
    compare(parsed(second.text().decode()), store)
    own = [one for one in records(store, "history") if one["stamp"]["controller"] == records(store, "controllers")[1]["controller"]]
    measured = parsed(second.text().decode())[at("hiernas_phase_duration_seconds_count", phase="total")]
    assert measured == sum(one["outcome"] == "evaluated" for one in own)


def test_progress_is_the_latest_of_outcome_claim_and_request(store: DirectoryStore) -> None:
    one, exporter = searcher(store), Exporter(NAME)

    def progress() -> float:
        view, _ = one.step()
        exporter(one, view)
        return parsed(exporter.text().decode())[at("hiernas_last_progress_timestamp_seconds")]

    assert progress() == records(store, "controllers")[-1]["at"]
    for _ in range(4):
        last = progress()
    assert last == records(store, "history")[-1]["stamp"]["at"]
    request(one.folder, {}, Desire.PAUSE)
    assert progress() == records(store, "control")[-1]["at"] > last  # a person's request carries this machine's time
    assert parsed(exporter.text().decode())[at("hiernas_held", why="paused")] == 1


def test_a_refused_job_shows_until_one_is_created(store: DirectoryStore) -> None:
    one, exporter = searcher(store), Exporter(NAME)
    assert isinstance(one.executor, Staged)
    seen = []
    for refuses in (True, False):
        one.executor.refuses = refuses
        one.clock.sleep(100)
        view, _ = one.step()
        exporter(one, view)
        numbers = parsed(exporter.text().decode())
        seen.append((numbers[at("hiernas_refused")], numbers[at("hiernas_workers", state="missing")]))
    assert seen == [(1, 3), (0, 0)]


def test_every_metric_is_served_as_described_and_none_beside_it(store: DirectoryStore) -> None:
    counted = CountedStore(store)
    one, exporter = searcher(store), Exporter(NAME, counted)
    for _ in rounds(one, exporter):
        pass
    families = {family.name + ("_total" if family.type == "counter" else ""): family for family in text_string_to_metric_families(exporter.text().decode())}
    assert families.keys() == METRICS.keys()
    for name, family in families.items():
        what = METRICS[name]
        assert (family.type, family.documentation) == (what.kind, what.meaning)
        for sample in family.samples:
            labels = {key: value for key, value in sample.labels.items() if key != "le"}
            assert labels.keys() == {"run", *what.labels}, name
            assert not {"job", "instance", "candidate"} & labels.keys()
            assert all(not values or labels[label] in values for label, values in what.labels.items()), name
    assert max(Counter(name for name, _ in parsed(exporter.text().decode())).values()) < 100


@pytest.mark.skipif(not shutil.which("promtool") and not os.environ.get("CI"), reason="there is no promtool; Debian's package prometheus has it")
def test_promtool_finds_nothing_to_lint(store: DirectoryStore) -> None:
    one, exporter = searcher(store), Exporter(NAME, CountedStore(store))
    for _ in rounds(one, exporter):
        pass
    result = subprocess.run(["promtool", "check", "metrics"], input=exporter.text(), capture_output=True, check=False)
    assert (result.returncode, result.stderr.decode(), result.stdout.decode()) == (0, "", "")


def test_a_scrape_during_rounds_never_fails_and_never_sees_half_a_round(store: DirectoryStore, serve: Callable[[Exporter], int]) -> None:
    exporter = Exporter(NAME, CountedStore(store))
    port = serve(exporter)
    over = threading.Event()
    texts: list[str] = []
    failures: list[BaseException] = []

    def scrape() -> None:
        try:
            while not over.is_set():
                status, text = get(port)
                assert status == 200
                texts.append(text)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=scrape) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in rounds(searcher(exporter.store or store), exporter):
        pass
    over.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(texts) > 10
    for numbers in map(parsed, set(texts)):
        evaluated = numbers.get(at("hiernas_evaluations_total", outcome="evaluated"))
        assert evaluated == numbers.get(at("hiernas_phase_duration_seconds_count", phase="total"))


class Counting(list[Any]):
    """A list that counts how much of it is looked at."""

    looks = 0

    def __iter__(self) -> Iterator[Any]:
        Counting.looks += len(self)
        return super().__iter__()

    def __reversed__(self) -> Iterator[Any]:
        for at in range(len(self) - 1, -1, -1):
            yield self[at]

    def __getitem__(self, at: SupportsIndex | slice) -> Any:
        found = super().__getitem__(at)
        Counting.looks += len(found) if isinstance(at, slice) else 1
        return found


def looks(one: Controller, view: View, exporter: Exporter) -> int:
    """How many records an observer looks at, of all there are."""
    state = one.state
    plain = state.history, state.stories, state.controllers
    state.history, state.stories, state.controllers = (Counting(records) for records in plain)
    Counting.looks = 0
    exporter(one, view)
    state.history, state.stories, state.controllers = plain
    return Counting.looks


def test_what_a_round_costs_does_not_grow_with_the_run(store: DirectoryStore) -> None:
    one, exporter, reason = searcher(store, replace(LIMITS, max_evaluations=90)), Exporter(NAME), None
    before = 0
    while reason is None:
        view, reason = one.step()
        new, before = len(one.state.history) - before, len(one.state.history)
        assert looks(one, view, exporter) <= 6 + 3 * new
    # A controller that takes over a long run looks at no more than its own outcomes, and one before.
    request(one.folder, {"max_evaluations": 95}, None)
    again = searcher(store)
    view, _ = again.step()
    assert looks(again, view, Exporter(NAME)) <= 6 + 3 * 5


class Uncertain(Passing):
    """Every fifth request is not answered."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.asked: Counter[tuple[str, str]] = Counter()

    def _answer(self, operation: str, act: Callable[[], Any]) -> Any:
        failed = sum(self.asked.values()) % 5 == 4
        self.asked[operation, "error" if failed else "ok"] += 1
        if failed:
            raise StoreUnavailable("on purpose")
        return act()

    def create(self, key: str, data: bytes) -> bytes:
        found: bytes = self._answer("create", lambda: self.store.create(key, data))
        return found

    def read(self, key: str) -> bytes:
        found: bytes = self._answer("read", lambda: self.store.read(key))
        return found


def test_requests_to_the_store_are_counted_by_what_came_of_them(store: DirectoryStore) -> None:
    uncertain = Uncertain(store)
    counted = CountedStore(uncertain)
    exporter = Exporter(NAME, counted)
    for number in range(10):
        for act in (lambda key: counted.create(key, b"x"), counted.read, lambda key: counted.read(key + "-missing")):
            try:
                act(f"{NAME}/{number}")
            except (StoreUnavailable, KeyError):
                pass
    numbers = parsed(exporter.text().decode())
    for operation in ("create", "read"):
        for result in ("ok", "error"):
            assert numbers[at("hiernas_store_requests_total", operation=operation, result=result)] == uncertain.asked[operation, result] > 0
    assert numbers[at("hiernas_store_requests_total", operation="list", result="ok")] == 0


def test_no_request_of_a_parallel_reader_is_lost(store: DirectoryStore) -> None:
    counted = CountedStore(store)
    counted.create(f"{NAME}/a", b"x")
    threads = [threading.Thread(target=lambda: [counted.read(f"{NAME}/a") for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted.requests["read", "ok"] == 1600


def test_health_is_lost_when_the_loop_hangs_and_only_then(store: DirectoryStore, serve: Callable[[Exporter], int]) -> None:
    exporter = Exporter(NAME)
    port = serve(exporter)
    assert get(port, "/healthz")[0] == 200  # a long run is read for a while before the first round
    one = searcher(store)
    assert isinstance(one.clock, FakeClock)
    view, _ = one.step()
    exporter(one, view)
    one.beat = one.clock.monotonic()
    assert get(port, "/healthz") == (200, "ok\n")
    one.clock.sleep(BEAT_SECONDS - 1)
    assert get(port, "/healthz")[0] == 200
    one.clock.sleep(2)
    assert get(port, "/healthz")[0] == 503
    assert at("hiernas_in_flight") in scraped(port)
    assert get(port, "/readyz") == (200, "ok\n")
    exporter.leave()  # it waits on purpose: nothing to restart, and nothing to tell
    assert get(port, "/healthz")[0] == 200
    assert get(port, "/readyz")[0] == 503
    assert scraped(port) == {}
    assert get(port, "/")[0] == 404


def test_without_a_host_both_kinds_of_addresses_are_served(store: DirectoryStore) -> None:
    exporter = Exporter(NAME)
    port = exporter.serve(0)
    try:
        assert get(port, "/healthz")[0] == 200
        if socket.has_dualstack_ipv6():
            with socket.create_connection(("::1", port), timeout=10):
                pass
    finally:
        exporter.close()
    exporter.close()
    with pytest.raises(urllib.error.URLError):
        get(port)


def test_a_port_that_is_taken_is_named(serve: Callable[[Exporter], int]) -> None:
    port = serve(Exporter(NAME))
    with pytest.raises(ConfigError, match=f"port {port}.*--metrics-port"):
        Exporter(NAME).serve(port, "127.0.0.1")
    with pytest.raises(ConfigError, match="port 70000"):
        Exporter(NAME).serve(70_000, "127.0.0.1")


def test_a_client_that_leaves_in_between_harms_nothing(serve: Callable[[Exporter], int], capfd: pytest.CaptureFixture[str]) -> None:
    port = serve(Exporter(NAME, CountedStore(DirectoryStore(Path(".")))))
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # leave with a reset
            connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    assert get(port)[0] == 200
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="finds what is left behind by other processes' environment, which only Linux shows")
def test_hiernas_run_serves_its_numbers_for_as_long_as_it_runs(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with contextlib.closing(Live(tmp_path, 6, 2, "trainers:held")) as live:
        own = {"PYTHONPATH": os.pathsep.join(sys.path), "HIERNAS_TEST": str(live.place), "HIERNAS_TEST_TRAINER": live.trainer}
        arguments = ["run", str(live.place / "config.yaml"), "--store", str(live.path), "--metrics-port", str(port)]
        controller = Process(arguments, os.environ | own)

        def running() -> float:
            try:
                return scraped(port).get(("hiernas_workers", frozenset({"run": live_run.NAME, "state": "running"}.items())), 0)
            except OSError:
                assert controller.running, controller.said
                return 0

        until(lambda: running() == 2, lambda: controller.said)
        assert get(port, "/healthz")[0] == 200
        live.let_go()
        assert controller.wait() == 0
        live.check_finished()
        with pytest.raises(OSError, match="refused"):
            get(port)
