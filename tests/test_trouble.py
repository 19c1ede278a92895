"""A platform that fails attempts: what is avoided, how long is waited, and when the run halts rather than go on paying."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from small_run import COUNT, check_finished, controller, errors

from pipeline.controller import Controller
from pipeline.errors import ExecutorUnavailable
from pipeline.executor import Job, JobSpec, JobStatus, Refused, Waiting
from pipeline.inline import InlineExecutor
from pipeline.plan import RAMP
from pipeline.requests import request
from pipeline.run import RunFolder
from pipeline.status import summary
from pipeline.store import MemoryStore, Store
from pipeline.trouble import LONGEST_PAUSE_SECONDS, SUSPECT_SECONDS, failures_in_a_row, halted_by, suspects
from pipeline.why import why
from search.limits import Desire, Limits
from search.records import EndReason, Outcome, OutcomeKind, ReleaseReason, Resources, Stamp


class Cluster:
    """Nodes of two places that run a job for some looks, but for broken ones, which fail it at the first, and so always have room."""

    name = "kubernetes"
    survives = True
    parallel = 4

    def __init__(self, store: Store, nodes: str, broken: str) -> None:
        self.nodes, self.broken = nodes, broken
        self.ends: tuple[EndReason | None, int | None] = (None, 5)
        self.refuses = False
        self.long = 3
        """Looks until a job has ended."""
        self.hangs = False
        """Whether creating is not answered: a webhook that is down."""
        self.see: dict[str, str] | None = None
        """Where jobs fail now, while all others run."""
        self._inline = InlineExecutor(store, "nowhere", "trainers:instant")
        self.specs: dict[str, JobSpec] = {}
        self._looks: dict[str, int] = {}
        self.at: dict[str, str] = {}
        self.started: list[tuple[JobSpec, str | None]] = []

    def start(self, spec: JobSpec) -> None:
        if self.refuses:
            raise Refused("on purpose")
        if self.hangs:
            raise ExecutorUnavailable("a webhook does not answer")
        if spec.name not in self.specs:
            self.specs[spec.name], self._looks[spec.name] = spec, 0
            self.started.append((spec, self.place(spec)))

    def place(self, spec: JobSpec) -> str | None:
        """Where it is, or would go: to the node with most room."""
        if spec.name not in self.at:
            free = {node: 2 - list(self.at.values()).count(node) for node in self.nodes if node not in spec.avoid}
            best = max(free, key=lambda node: (free[node] > 0, node not in spec.rather_not, free[node]), default=None)
            if best is None or free[best] <= 0:
                return None
            self.at[spec.name] = best
        return self.at[spec.name]

    def jobs(self) -> list[Job]:
        return [self._see(spec) for spec in self.specs.values()]

    def _see(self, spec: JobSpec) -> Job:
        if self.see is not None:
            return Job(spec.name, JobStatus.ENDED, None, "", 5, self.see[spec.name], 2.0) if spec.name in self.see else Job(spec.name, JobStatus.RUNNING)
        node = self.place(spec)
        if node is None:
            return Job(spec.name, JobStatus.PENDING, waits=Waiting.UNSCHEDULABLE)
        if node in self.broken:
            reason, code = self.ends
            return Job(spec.name, JobStatus.ENDED, reason, "no GPU is of use", code, node, 2.0)
        self._looks[spec.name] += 1
        if self._looks[spec.name] < self.long:
            return Job(spec.name, JobStatus.RUNNING, node=node, held_seconds=1.0)
        self._inline.start(spec)
        return replace(next(job for job in self._inline.jobs() if job.name == spec.name), node=node)

    def delete(self, name: str) -> None:
        self.specs.pop(name, None)
        self.at.pop(name, None)
        self._inline.delete(name)

    def wait(self, seconds: float) -> None: ...

    def close(self) -> None: ...


def begun(store: Store, nodes: str, broken: str, **limits: int) -> tuple[Controller, Cluster]:
    one = controller(store, limits=Limits(**({"max_evaluations": COUNT, "workers": 4} | limits)))
    cluster = Cluster(store, nodes, broken)
    one.executor = cluster
    assert one.claim()
    return one, cluster


def go_on(one: Controller, pause: float = 5.0, until: Callable[[], bool] = lambda: False) -> ReleaseReason | None:
    for _ in range(2000):
        _, reason = one.step()
        if reason is not None or until():
            return reason
        one.clock.sleep(pause)
    raise AssertionError("it goes on for ever")


NOT_STARTED = (EndReason.NOT_STARTED, None)
"""A node that refuses every pod: a device plugin, an image that never comes."""


@pytest.mark.parametrize("ends", [(None, 5), NOT_STARTED], ids=["fails", "refuses"])
def test_a_broken_node_is_avoided_and_costs_no_candidate(ends: tuple[EndReason | None, int | None]) -> None:
    store = MemoryStore()
    one, cluster = begun(store, "abc", "a")
    cluster.ends = ends
    assert go_on(one) is ReleaseReason.FINISHED
    check_finished(store)
    assert {outcome.outcome for outcome in one.state.history} == {OutcomeKind.EVALUATED}
    assert {outcome.node for outcome in one.state.history} == {"b", "c"}
    assert 3 <= sum(node == "a" for _, node in cluster.started) <= 3 + 4  # and those that had begun there
    attempts = [attempt for story in one.state.stories for attempt in story.attempts]
    assert {attempt.avoid for attempt in attempts} == {(), ("a",)}
    assert RunFolder(store, one.folder.name).load() == one.state


def test_a_retry_rather_runs_elsewhere() -> None:
    one, cluster = begun(MemoryStore(), "ab", "a", max_evaluations=2, workers=1)
    assert go_on(one) is ReleaseReason.FINISHED
    assert {(spec.attempt, spec.rather_not, spec.avoid, node) for spec, node in cluster.started} == {(0, (), (), "a"), (1, ("a",), (), "b")}


def machine_ends(*ends: tuple[int, str]) -> Controller:
    """A run in which attempts of these candidates failed on these nodes, one after the other."""
    one, cluster = begun(MemoryStore(), "abcd", "abcd", max_evaluations=9, workers=9, max_attempts=9)
    cluster.see = {}
    for candidate, node in ends:
        one.step()
        name = next(name for name, spec in cluster.specs.items() if spec.candidate == candidate)
        cluster.see = {name: node}
        one.step()
        cluster.see = {}
        one.clock.sleep(LONGEST_PAUSE_SECONDS)
    return one


@pytest.mark.parametrize(
    ("ends", "found"),
    [
        ([(0, "a"), (1, "a")], {}),  # may be chance
        ([(0, "a"), (1, "a"), (2, "a")], {"a": 3}),
        ([(0, "a"), (0, "a"), (0, "a")], {}),  # may be the candidate
        ([(0, "a"), (1, "a"), (1, "a")], {"a": 3}),
        ([(0, "a"), (1, "a"), (2, "a"), (2, "b")], {}),  # so it was that candidate: it fails anywhere
        ([(0, "a"), (1, "a"), (2, "b"), (3, "c")], {}),
    ],
)
def test_a_node_is_suspect_for_what_failed_there_and_nowhere_else(ends: list[tuple[int, str]], found: dict[str, int]) -> None:
    one = machine_ends(*ends)
    assert suspects(one.state, one.clock.now()) == found


def test_a_node_is_tried_again_after_an_hour_a_resume_or_a_success() -> None:
    one = machine_ends((0, "a"), (1, "a"), (2, "a"))
    last = max(end.stamp.at for _, end in one.state.troubles.values())
    assert suspects(one.state, last + 1).keys() == {"a"}
    assert suspects(one.state, last + SUSPECT_SECONDS + 1) == {}
    one.state.well["a"] = Outcome(0, 3, 0, OutcomeKind.EVALUATED, 0.5, 1.0, 0.0, "0" * 64, None, Stamp("", last, 0, 0), "a")
    assert suspects(one.state, last + 1) == {}  # none of these attempts has ended after it
    one.state.well.clear()
    request(one.folder, {}, Desire.RUN)
    one.step()
    assert suspects(one.state, last + 1) == {}


def test_two_nodes_that_refuse_every_pod_cost_no_candidate_though_each_is_sent_from_one_to_the_other() -> None:
    store = MemoryStore()
    one, cluster = begun(store, "abcd", "ab", workers=8)
    cluster.ends = NOT_STARTED
    cluster.long = 40  # the other two are full for a while
    assert go_on(one) is ReleaseReason.FINISHED
    check_finished(store)
    assert {outcome.outcome for outcome in one.state.history} == {OutcomeKind.EVALUATED}
    assert suspects(one.state, one.clock.now()).keys() == {"a", "b"}


def test_where_every_node_refuses_every_pod_the_run_halts_and_loses_no_candidate() -> None:
    store = MemoryStore()
    one, cluster = begun(store, "abcd", "abcd", workers=8, max_attempts=2)
    cluster.ends = NOT_STARTED
    assert go_on(one) is ReleaseReason.HALTED
    assert one.state.history == []
    assert failures_in_a_row(one.state) >= 20


@pytest.mark.parametrize("nodes", ["a", "ab", "abcd"])
def test_where_everything_fails_the_run_halts_soon(nodes: str) -> None:
    store = MemoryStore()
    one, cluster = begun(store, nodes, nodes)
    began = one.clock.now()
    assert go_on(one) is ReleaseReason.HALTED
    assert one.clock.now() - began < 900
    assert errors(store) == []
    assert 20 <= failures_in_a_row(one.state) <= len(one.state.failures) <= 20 + 2 * 4
    assert {spec.avoid for spec, _ in cluster.started} == {()}


def test_where_one_node_after_the_other_fails_the_run_halts() -> None:
    store = MemoryStore()
    one, _ = begun(store, "abc", "abc", max_failures=4)
    assert go_on(one) is ReleaseReason.HALTED
    assert errors(store) == []
    assert sum(outcome.outcome is OutcomeKind.LOST for outcome in one.state.history) <= 4
    said = halted_by(one.state)
    assert "attempts in a row came to nothing, the last one machine on node " in said
    assert ": no GPU is of use — `hiernas show" in said
    assert f"hiernas resume {one.folder.name}" in said


def test_a_halted_run_stays_halted_until_it_is_resumed_and_then_finishes() -> None:
    store = MemoryStore()
    one, _ = begun(store, "a", "a", max_failures=5)
    assert go_on(one) is ReleaseReason.HALTED
    assert not controller(store).claim()  # nothing to do
    request(one.folder, {}, Desire.RUN)
    two = controller(store)
    two.executor = Cluster(store, "a", "")
    assert two.claim()
    assert failures_in_a_row(two.state) == 0
    assert go_on(two) is ReleaseReason.FINISHED
    check_finished(store)


@pytest.mark.parametrize("reason", [EndReason.DISRUPTED, EndReason.NODE_LOST])
def test_disruptions_neither_halt_nor_wait_nor_blame_a_node(reason: EndReason) -> None:
    one, cluster = begun(MemoryStore(), "ab", "a", max_failures=1, max_disruptions=2, max_evaluations=3)
    cluster.ends = reason, 143
    assert go_on(one, pause=0.0) is ReleaseReason.FINISHED
    assert {attempt.avoid for story in one.state.stories for attempt in story.attempts} == {()}
    assert one.state.failures == {}


def test_candidates_out_of_memory_one_after_the_other_halt_the_run_too() -> None:
    store = MemoryStore()
    one, cluster = begun(store, "a", "a", max_failures=3)
    cluster.ends = EndReason.MEMORY, 137
    assert go_on(one) is ReleaseReason.HALTED
    assert [outcome.outcome for outcome in one.state.history][:3] == [OutcomeKind.OUT_OF_MEMORY] * 3
    assert len(one.state.failures) == len(one.state.history) <= 3 + 6
    assert "out of memory" in halted_by(one.state)


def test_what_ends_at_once_counts_as_one_and_what_began_before_a_resume_not_at_all() -> None:
    """A person deletes all Jobs, a rack loses its power."""
    one, cluster = begun(MemoryStore(), "a", "", max_evaluations=40, workers=40, max_failures=3)
    cluster.see = {}
    one.step()
    cluster.see = dict.fromkeys(cluster.specs, "a")
    one.step()
    assert len(one.state.failures) > 3
    assert failures_in_a_row(one.state) == 1
    cluster.see = {}
    one.clock.sleep(LONGEST_PAUSE_SECONDS)
    one.step()
    request(one.folder, {}, Desire.RUN)
    cluster.see = dict.fromkeys(cluster.specs, "a")
    one.step()
    assert failures_in_a_row(one.state) == 0
    cluster.see = None
    assert go_on(one) is ReleaseReason.FINISHED


def test_a_halted_run_goes_on_by_itself_if_what_still_runs_comes_to_an_evaluation() -> None:
    one, cluster = begun(MemoryStore(), "ab", "", max_failures=1, workers=2, max_evaluations=3)
    one.step()
    cluster.broken = "a"
    one.step()
    assert summary(one.state, 0.0)["state"] == "halted"
    assert summary(one.state, 0.0)["in_charge"]
    cluster.broken = ""
    assert go_on(one) is ReleaseReason.FINISHED


@pytest.mark.parametrize("survives", [True, False])
@pytest.mark.parametrize("desire", [Desire.STOP, None])
def test_an_attempt_whose_job_was_never_begun_holds_up_no_end(survives: bool, desire: Desire | None) -> None:
    """Its record landed, and the answer was lost; or it waits for a place."""
    store = MemoryStore()
    one, cluster = begun(store, "a" if not survives else "", "", workers=1)
    cluster.survives = survives
    if survives:
        one.step()
        assert [job.status for job in cluster.jobs()] == [JobStatus.PENDING]
    else:
        cluster.refuses = True
        one.step()
    assert one.state.open_attempts == 1
    if desire is not None:
        request(one.folder, {}, desire)
    else:
        one.interrupts = 1
    cluster.refuses = False
    reasons = [one.step()[1] for _ in range(3)]
    expected = ReleaseReason.STOPPED if desire is not None else ReleaseReason.INTERRUPTED
    assert expected in reasons or (survives and desire is None)  # there a controller just leaves
    if expected in reasons:
        assert [end.reason for end in one.state.stories[0].ends.values()] == [EndReason.STOPPED]


def test_an_evaluation_begins_the_count_anew() -> None:
    one, _ = begun(MemoryStore(), "abc", "a", max_failures=8)
    go_on(one, until=lambda: bool(one.state.failures))
    assert go_on(one) is ReleaseReason.FINISHED
    assert one.state.troubles
    assert one.state.failures == {}


def test_a_retry_waits_ever_longer_and_holds_nobody_up() -> None:
    one, cluster = begun(MemoryStore(), "a", "a", max_attempts=5, max_failures=1000, max_evaluations=2, workers=1)
    cluster.ends = EndReason.DEADLINE, 143
    assert go_on(one, pause=1.0) is ReleaseReason.FINISHED
    for story in one.state.stories:
        waited = [attempt.stamp.at - story.ends[attempt.attempt - 1].stamp.at for attempt in story.attempts[1:]]
        assert [round(seconds, -1) for seconds in waited] == [10, 60, LONGEST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS]
    assert [spec.candidate for spec, _ in cluster.started][:2] == [0, 0]  # one worker, so one candidate at a time


def test_what_waits_for_a_node_that_is_gone_is_tried_anew_where_there_is_one() -> None:
    one, cluster = begun(MemoryStore(), "ab", "a", max_evaluations=60)
    go_on(one, until=lambda: any(spec.avoid == ("a",) for spec in cluster.specs.values()))
    cluster.nodes, cluster.broken = "a", ""  # b is gone, a was mended
    assert go_on(one) is ReleaseReason.FINISHED
    reasons = {end.reason for story in one.state.stories for end in story.ends.values()}
    assert reasons == {EndReason.MACHINE, EndReason.STOPPED}


def test_status_names_the_nodes_and_why_says_what_to_do() -> None:
    one, _ = begun(MemoryStore(), "abc", "a", max_evaluations=1000)
    go_on(one, until=lambda: bool(suspects(one.state, one.clock.now())))
    at = one.clock.now()
    assert summary(one.state, at)["suspect_nodes"] == suspects(one.state, at)
    assert summary(one.state, at)["failures_in_a_row"] == failures_in_a_row(one.state)
    lines = why(one.state, "hiernas", Nothing(), at)  # type: ignore[arg-type]
    assert any("node a is avoided" in line and "no GPU is of use" in line and "kubectl cordon a" in line for line in lines)


class Nothing:
    """An API in whose namespace nothing is."""

    def list(self, *_: object, **__: object) -> list[object]:
        return []

    def get(self, *_: object) -> object:
        return {"metadata": {"uid": "0"}}


# -- attempts that were decided and whose job the cluster refuses


@pytest.mark.parametrize(("desire", "started", "open_attempts"), [(Desire.PAUSE, 0, 1), (Desire.STOP, 0, 0)])
def test_a_job_that_was_refused_is_not_begun_while_the_run_is_paused_or_stopped(desire: Desire, started: int, open_attempts: int) -> None:
    store = MemoryStore()
    one, cluster = begun(store, "a", "", workers=1)
    cluster.refuses = True
    one.step()
    assert one.state.open_attempts == 1
    request(one.folder, {}, desire)
    cluster.refuses = False
    one.clock.sleep(1000)
    _, reason = one.step()
    assert (len(cluster.started), one.state.open_attempts) == (started, open_attempts)
    assert reason is (ReleaseReason.STOPPED if desire is Desire.STOP else None)
    request(one.folder, {}, Desire.RUN)
    if reason is not None:
        one = controller(store)
        one.executor = cluster
        assert one.claim()
    assert go_on(one) is ReleaseReason.FINISHED
    check_finished(store)


def test_while_jobs_cannot_be_created_no_more_is_bred_than_a_cluster_is_asked_for_at_once() -> None:
    """However often it tries: candidates come from a fresh population, not from the one of the moment when a quota was full."""
    one, cluster = begun(MemoryStore(), "abcdefgh", "", max_evaluations=400, workers=200)
    go_on(one, until=lambda: len(one.state.history) >= 8)
    cluster.refuses = True
    for _ in range(50):
        one.step()
        one.clock.sleep(120.0)
    assert one.state.open_attempts == RAMP
    assert one.state.in_flight == 2 * RAMP


def test_a_job_that_cannot_be_created_keeps_no_other_from_being_deleted() -> None:
    one, cluster = begun(MemoryStore(), "a", "", workers=2)
    one.step()
    cluster.hangs = True
    first = next(iter(cluster.specs))
    cluster.see = {first: "a"}  # it fails, and is tried again
    for _ in range(4):
        one.step()
        one.clock.sleep(LONGEST_PAUSE_SECONDS)
    assert first not in cluster.specs
    assert one.refusal is not None
    assert "webhook" in one.refusal
    cluster.hangs, cluster.see = False, None
    assert go_on(one) is ReleaseReason.FINISHED
    assert one.refusal is None


def test_a_job_that_vanishes_has_held_its_gpus_all_the_same() -> None:
    one, cluster = begun(MemoryStore(), "ab", "", max_evaluations=1, workers=1)
    one.resources = Resources(1, gpus=4)
    one.step()
    one.step()
    (name,) = cluster.specs
    node = cluster.at[name]
    cluster.specs.clear()
    cluster.at.clear()
    one.step()
    (end,) = one.state.stories[0].ends.values()
    assert (end.reason, end.node, end.held_seconds, end.gpu_seconds) == (EndReason.GONE, node, 1.0, 4.0)


def test_local_attempts_avoid_no_node() -> None:
    """There is but this machine."""
    one, cluster = begun(MemoryStore(), "a", "a", max_failures=12, max_attempts=2)
    cluster.survives = False
    assert go_on(one) is ReleaseReason.HALTED
    assert {spec.avoid for spec, _ in cluster.started} == {()}


def test_a_local_search_sleeps_while_a_retry_rests() -> None:
    store = MemoryStore()
    one = controller(store, limits=Limits(max_evaluations=1, max_attempts=2))
    one.executor = InlineExecutor(store, "nowhere", "trainers:broken_machine")
    rounds = 0

    def count(*_: object) -> None:
        nonlocal rounds
        rounds += 1

    assert one.work(count, 0.5) is ReleaseReason.FINISHED
    assert rounds < 60  # ten seconds
