"""Every metric of a controller: names, units and meanings in one place (docs/metrics.md is made from it).

They are computed after each round, and a scrape gets the last numbers, so it never sees half a round. Counters are functions
of the records: they never fall, and a restarted controller goes on counting where the run is. Only histograms and requests to
the store begin anew with each controller; requests are counted as they happen, since a round that fails tells nothing.
"""

import logging
import socket
import threading
from bisect import bisect_left
from collections import Counter as Count
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from itertools import accumulate, product, takewhile
from socketserver import TCPServer

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from pipeline.controller import Controller
from pipeline.errors import ConfigError
from pipeline.executor import JobStatus, Waiting
from pipeline.plan import View, gpu_seconds, holds
from pipeline.store import Store
from search.records import Claim, EndReason, Metrics, Outcome, OutcomeKind, Release
from search.state import State

log = logging.getLogger("hiernas.metrics")
BEAT_SECONDS = 300.0
"""A controller whose last round began longer ago does not live."""
CLIENT_SECONDS = 10.0
"""A client that says nothing for so long is left."""
QUEUED = frozenset({Waiting.UNSCHEDULABLE, Waiting.QUOTA, Waiting.ADMISSION, Waiting.SUSPENDED})
"""Waiting for a place; the other reasons are of a place found."""


@dataclass(frozen=True, slots=True)
class Description:
    """One metric. Every one carries the label `run` besides `labels`; none has a label per candidate."""

    name: str
    kind: str
    unit: str
    meaning: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What each label may be; empty: not known beforehand."""
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""


METRICS = {
    one.name: one
    for one in (
        Description("hiernas_evaluations_total", "counter", "outcomes", "Outcomes in the history, by kind.", {"outcome": tuple(OutcomeKind)}),
        Description(
            "hiernas_attempts_total", "counter", "attempts",
            "Attempts that were recorded as ended, by reason. An accepted attempt is none of them, unless its evaluation came to light after its end.",
            {"reason": tuple(EndReason)},
        ),
        Description(
            "hiernas_gpu_seconds_total", "counter", "GPU-seconds",
            "Held by candidates with an outcome: useful (accepted, with a fitness), failed (accepted, without one), lost (their other attempts).",
            {"use": ("useful", "failed", "lost")},
        ),
        Description(
            "hiernas_gpu_seconds_open", "gauge", "GPU-seconds",
            "Held so far by what runs, and by ended attempts of candidates without an outcome: not in the counter yet, but counted against the budget.",
        ),
        Description("hiernas_gpu_seconds_limit", "gauge", "GPU-seconds", "Budget; absent without one."),
        Description(
            "hiernas_workers", "gauge", "attempts", "Attempts open, by state of their job; missing: decided, but without a job now.",
            {"state": (*JobStatus, "missing")},
        ),
        Description("hiernas_workers_limit", "gauge", "attempts", "Attempts that may be open at once."),
        Description("hiernas_pending", "gauge", "attempts", "Attempts whose job waits, by reason (`hiernas status RUN --why` says more).", {"reason": tuple(Waiting)}),
        Description("hiernas_refused", "gauge", "0 or 1", "1 while the cluster refuses to create jobs, or does not answer when asked to."),
        Description("hiernas_in_flight", "gauge", "candidates", "Candidates without an outcome."),
        Description("hiernas_evaluations_limit", "gauge", "candidates", "Candidates that are proposed at most."),
        Description("hiernas_best_fitness", "gauge", "0 to 1", "Best fitness so far; absent before the first."),
        Description("hiernas_last_accept_timestamp_seconds", "gauge", "seconds since 1970", "When the last outcome was accepted; absent before the first."),
        Description(
            "hiernas_last_progress_timestamp_seconds", "gauge", "seconds since 1970",
            "When an outcome was accepted, a controller took charge or a person asked for something, whichever was last.",
        ),
        Description(
            "hiernas_held", "gauge", "0 or 1", "1 while the run starts nothing new, by why.",
            {"why": ("paused", "stopped", "halted", "budget")},
        ),
        Description("hiernas_suspect_nodes", "gauge", "nodes", "Nodes that are avoided because attempts fail there (`hiernas status RUN --why` names them)."),
        Description("hiernas_in_charge", "gauge", "0 or 1", "1 while the controller has the run in its charge, 0 once it has released it: finished, stopped, halted, or told to leave."),
        Description("hiernas_claims_total", "counter", "controllers", "Controllers that took charge of the run, one after the other."),
        Description(
            "hiernas_phase_duration_seconds", "histogram", "seconds",
            "Of trained and accepted attempts: queue (decided to having a place), start (from there to seen running), train, evaluate, "
            "held (a node's resources), total (decided to accepted). queue and start only of attempts that were seen running.",
            {"phase": ("queue", "start", "train", "evaluate", "held", "total")},
            (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0, 100_000.0),
        ),
        Description(
            "hiernas_dispatch_latency_seconds", "histogram", "seconds", "From seeing a result to having created the next job.",
            buckets=(0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        ),
        Description(
            "hiernas_store_requests_total", "counter", "requests", "Requests to the store by this controller, repetitions inside the S3 client not counted.",
            {"operation": ("create", "read", "list"), "result": ("ok", "error")},
        ),
        Description("hiernas_build_info", "gauge", "1", "Always 1; its label says which version runs.", {"version": ()}),
    )
}  # fmt: skip


class CountedStore:
    """A store that counts what is asked of it."""

    def __init__(self, store: Store) -> None:
        self._store, self.parallel = store, store.parallel
        self._lock = threading.Lock()  # a store is asked by several threads at once
        self._requests: dict[tuple[str, ...], int] = dict.fromkeys(product(*METRICS["hiernas_store_requests_total"].labels.values()), 0)

    @property
    def requests(self) -> dict[tuple[str, ...], int]:
        """How many so far, by operation and result."""
        with self._lock:
            return dict(self._requests)

    def create(self, key: str, data: bytes) -> bytes:
        """See Store."""
        with self._count("create"):
            return self._store.create(key, data)

    def read(self, key: str) -> bytes:
        """See Store."""
        with self._count("read"):
            return self._store.read(key)

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        with self._count("list"):
            return self._store.list(prefix, after)

    @contextmanager
    def _count(self, operation: str) -> Iterator[None]:
        result = "error"
        try:
            yield
            result = "ok"
        except KeyError:  # no such object: an answer like any other
            result = "ok"
            raise
        finally:
            with self._lock:
                self._requests[operation, result] += 1


class _Buckets:
    """What was observed of one series of a histogram."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """(suffix of the name, label, number); the format says how many were at most each bound."""
        counts = list(accumulate(self._counts))
        for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
            yield "_bucket", {"le": bound}, count
        yield "_count", {}, counts[-1]
        yield "_sum", {}, self._sum


@dataclass(slots=True)
class _Wait:
    """When a job was last seen without a place, and first seen running."""

    queued: float | None = None
    running: float | None = None


class Exporter(Collector):
    """Observes a controller's rounds and serves /metrics, /healthz and /readyz."""

    def __init__(self, run: str, store: CountedStore | None = None) -> None:
        self._run, self.store, self._version = run, store, version("hiernas")
        self._controller: Controller | None = None
        self._left = False
        self._families: list[Metric] = []  # replaced as a whole by each round, never changed
        self._histograms = {
            name: {labels: _Buckets(one.buckets) for labels in product(*one.labels.values())} for name, one in METRICS.items() if one.kind == "histogram"
        }
        self._outcomes: int | None = None  # of the history, those already measured
        self._controllers, self._claims = 0, 0  # of `controllers/`, those already seen, and how many were claims
        self._waits: dict[str, _Wait] = {}  # by job
        self._lost = 0.0
        self._server: ThreadingHTTPServer | None = None

    # -- observing, in the controller's thread; what it costs does not depend on how long the run is

    def __call__(self, controller: Controller, view: View) -> None:
        """See Controller.work."""
        self._controller = controller
        self._watch(controller, view)
        self._measure(controller.state, view)
        for seconds in controller.latencies:
            self._histograms["hiernas_dispatch_latency_seconds"][()].observe(seconds)
        controller.latencies.clear()
        self._families = list(self._describe(controller, view))

    def leave(self) -> None:
        """The controller has ended, and this process waits on purpose: it is well, and has no numbers any more."""
        self._controller, self._families, self._left = None, [], True

    def _watch(self, controller: Controller, view: View) -> None:
        now = controller.clock.now()
        for job in view.jobs.values():
            if job.status is JobStatus.PENDING and job.waits in QUEUED:
                self._waits.setdefault(job.name, _Wait()).queued = now
            elif job.status is JobStatus.RUNNING:
                wait = self._waits.setdefault(job.name, _Wait())
                wait.running = wait.running or now

    def _measure(self, state: State, view: View) -> None:
        if self._outcomes is None:  # those before were accepted by others, or before anybody measured
            own = takewhile(lambda outcome: outcome.stamp.controller == view.controller, reversed(state.history))
            self._outcomes = len(state.history) - sum(1 for _ in own)
        for outcome in state.history[self._outcomes :]:
            self._phases(state, view, outcome)
        self._outcomes = len(state.history)
        self._claims += sum(isinstance(one, Claim) for one in state.controllers[self._controllers :])
        self._controllers = len(state.controllers)
        open_jobs = {story.running.job for story in state.unfinished.values() if story.running}
        self._waits = {name: wait for name, wait in self._waits.items() if name in open_jobs}

    def _phases(self, state: State, view: View, outcome: Outcome) -> None:
        if outcome.outcome is not OutcomeKind.EVALUATED:
            return
        attempt = state.stories[outcome.candidate].attempts[outcome.attempt]
        decided = attempt.stamp.at
        seconds = {"held": outcome.held_seconds, "total": outcome.stamp.at - decided}
        wait = self._waits.get(attempt.job)
        if wait is not None and wait.running is not None:
            placed = wait.queued or decided
            seconds |= {"queue": placed - decided, "start": wait.running - placed}
        evaluation, _ = view.evaluations.get((outcome.candidate, outcome.attempt), (None, ""))
        if isinstance(evaluation, Metrics):
            seconds["train"] = sum(one.train_seconds for one in evaluation.repeats)
            seconds["evaluate"] = sum(one.evaluate_seconds for one in evaluation.repeats)
        for phase, value in seconds.items():
            self._histograms["hiernas_phase_duration_seconds"][phase,].observe(max(0.0, value))  # a clock may have been set back

    def _describe(self, controller: Controller, view: View) -> Iterator[Metric]:
        state = controller.state
        limits, totals, spent = state.limits, state.totals, gpu_seconds(state, view)
        yield self._each("hiernas_evaluations_total", {kind: totals.outcomes.get(kind, 0) for kind in OutcomeKind})
        yield self._each("hiernas_attempts_total", {reason: totals.ends.get(reason, 0) for reason in EndReason})
        # The difference of sums trembles in its last digits; a counter that falls would read as one that began anew.
        self._lost = max(self._lost, round(totals.gpu_seconds - totals.useful_gpu_seconds - totals.failed_gpu_seconds - _unsettled(state), 3))
        uses = {"useful": totals.useful_gpu_seconds, "failed": totals.failed_gpu_seconds, "lost": self._lost}
        yield self._each("hiernas_gpu_seconds_total", uses)
        yield self._one("hiernas_gpu_seconds_open", max(0.0, spent - sum(uses.values())))
        open_jobs = [story.running.job for story in state.unfinished.values() if story.running and story.running.executor == controller.executor.name]
        states = Count(view.jobs[name].status.value if name in view.jobs else "missing" for name in open_jobs)
        yield self._each("hiernas_workers", {name: states[name] for name in METRICS["hiernas_workers"].labels["state"]})
        pending = [view.jobs[name] for name in open_jobs if name in view.jobs and view.jobs[name].status is JobStatus.PENDING]
        reasons = Count(job.waits or Waiting.STARTING for job in pending)
        yield self._each("hiernas_pending", {reason: reasons[reason] for reason in Waiting})
        yield self._one("hiernas_refused", controller.refusal is not None)
        yield self._one("hiernas_in_flight", state.in_flight)
        hold = holds(state, spent)
        yield self._each("hiernas_held", {why: why == hold for why in METRICS["hiernas_held"].labels["why"]})
        yield self._one("hiernas_suspect_nodes", len(view.avoided))
        yield self._one("hiernas_in_charge", not isinstance(state.controllers[-1], Release))
        yield self._one("hiernas_claims_total", self._claims)
        yield self._one("hiernas_last_progress_timestamp_seconds", _progress(state))
        if limits is not None:
            yield self._one("hiernas_workers_limit", limits.workers)
            yield self._one("hiernas_evaluations_limit", limits.max_evaluations)
            if limits.max_gpu_hours is not None:
                yield self._one("hiernas_gpu_seconds_limit", limits.max_gpu_hours * 3600)
        if state.best is not None and state.best.fitness is not None:
            yield self._one("hiernas_best_fitness", state.best.fitness)
        if state.history:
            yield self._one("hiernas_last_accept_timestamp_seconds", state.history[-1].stamp.at)
        for name, series in self._histograms.items():
            yield self._histogram(name, series)
        yield self._each("hiernas_build_info", {self._version: 1})

    def _one(self, name: str, number: float) -> Metric:
        return self._family(name, {(): number})

    def _each(self, name: str, numbers: Mapping[str, float]) -> Metric:
        return self._family(name, {(value,): number for value, number in numbers.items()})

    def _family(self, name: str, numbers: Mapping[tuple[str, ...], float]) -> Metric:
        return self._fill(name, ((name, self._labels(name, values), number) for values, number in numbers.items()))

    def _histogram(self, name: str, series: Mapping[tuple[str, ...], _Buckets]) -> Metric:
        return self._fill(
            name, ((name + suffix, self._labels(name, values) | bound, number) for values, one in series.items() for suffix, bound, number in one.samples())
        )

    def _labels(self, name: str, values: tuple[str, ...]) -> dict[str, str]:
        return {"run": self._run} | {label: str(value) for label, value in zip(METRICS[name].labels, values, strict=True)}

    def _fill(self, name: str, samples: Iterable[tuple[str, dict[str, str], float]]) -> Metric:
        family = Metric(name.removesuffix("_total"), METRICS[name].meaning, METRICS[name].kind)
        for sample in samples:
            family.add_sample(*sample)
        return family

    # -- serving, in threads of their own

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        yield from self._families
        if self.store is not None:
            yield self._family("hiernas_store_requests_total", self.store.requests)

    def healthy(self) -> bool:
        """Whether the controller's loop goes on; before its first round there is nothing to doubt."""
        controller = self._controller
        return controller is None or controller.clock.monotonic() - controller.beat < BEAT_SECONDS

    def text(self) -> bytes:
        """What a scrape gets."""
        return generate_latest(self)

    def serve(self, port: int, host: str = "") -> int:
        """Listen until `close`, on all addresses if no host is given; returns the port."""
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            timeout = CLIENT_SECONDS

            def do_GET(self) -> None:
                path = self.path.partition("?")[0]
                status, kind, body = 404, "text/plain", b"hiernas serves /metrics, /healthz and /readyz\n"
                if path == "/metrics":
                    status, kind, body = 200, CONTENT_TYPE_LATEST, exporter.text()
                elif path == "/healthz":
                    status, body = (200, b"ok\n") if exporter.healthy() else (503, b"the loop has not begun a round for a long time\n")
                elif path == "/readyz":
                    status, body = (503, b"it has stopped, and waits for somebody to mend what it reported\n") if exporter._left else (200, b"ok\n")
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are no news."""

        try:
            server = self._server = _Server(host, port, Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"metrics cannot be served on port {port}: {error}; free it, or give another one with --metrics-port") from error
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return int(server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class _Server(ThreadingHTTPServer):
    """Without a host it listens on all addresses of both kinds, so that it is found in clusters that have IPv6 alone."""

    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        if not host and socket.has_dualstack_ipv6():
            self.address_family = socket.AF_INET6
        super().__init__((host, port), handler)

    def server_bind(self) -> None:
        """As in HTTPServer, without asking name servers for this host's name."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        TCPServer.server_bind(self)

    def handle_error(self, *about: object) -> None:
        """A client that goes away is no news either."""
        log.debug("request broken off client=%s", about[-1], exc_info=True)


def _unsettled(state: State) -> float:
    """GPU-seconds of ended attempts of candidates without an outcome: one of them may still be accepted, or be the one given up with."""
    return sum(end.gpu_seconds for story in state.unfinished.values() if story.outcome is None for end in story.ends.values())


def _progress(state: State) -> float:
    controller = state.controllers[-1]
    times = [controller.at if isinstance(controller, Claim) else controller.stamp.at]
    times += [state.requests[-1].at] if state.requests else []
    times += [state.history[-1].stamp.at] if state.history else []
    return max(times)
