"""Every metric of a controller: names, units and meanings in one place (docs/metrics.md is made from it).

They are computed after each round, and a collector hands out the last numbers, so a scrape never sees half a round. Counters
are functions of the records: a restarted controller goes on counting where the run is. Histograms and requests begin anew.
"""

import threading
from collections import Counter as Count
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric

from pipeline.controller import Controller
from pipeline.executor import JobStatus, Waiting
from pipeline.plan import View, gpu_seconds, holds
from pipeline.store import Store
from search.records import EndReason, Metrics, OutcomeKind
from search.state import State

BEAT_SECONDS = 300.0
"""A controller whose last round began longer ago does not live."""
PHASE_BUCKETS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0, 30_000.0)
LATENCY_BUCKETS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
PHASES = ("wait", "train", "evaluate", "held", "total")
USES = ("useful", "failed", "lost")


@dataclass(frozen=True, slots=True)
class Description:
    """One metric. Every one carries the label `run` besides `labels`; none has a label per candidate."""

    name: str
    kind: str
    meaning: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    """What its label may be."""


METRICS = {
    one.name: one
    for one in (
        Description("hiernas_evaluations_total", "counter", "Outcomes in the history, by kind.", ("outcome",), tuple(OutcomeKind)),
        Description("hiernas_attempts_total", "counter", "Attempts that ended without being accepted, by reason.", ("reason",), tuple(EndReason)),
        Description(
            "hiernas_gpu_seconds_total", "counter",
            "GPU-seconds held and recorded: useful (the outcome has a fitness), failed (it has none), lost (attempts that came to nothing).",
            ("use",), USES,
        ),
        Description("hiernas_gpu_seconds_running", "gauge", "GPU-seconds held so far by what runs now; not recorded yet."),
        Description("hiernas_workers", "gauge", "Attempts open, by state of their job; missing: decided, but without a job now.", ("state",), (*JobStatus, "missing")),
        Description("hiernas_workers_limit", "gauge", "Attempts that may be open at once."),
        Description("hiernas_pending", "gauge", "Jobs that wait, by reason (`hiernas status --why` says more).", ("reason",), tuple(Waiting)),
        Description("hiernas_refused", "gauge", "1 while the cluster refuses to create jobs, else 0."),
        Description("hiernas_in_flight", "gauge", "Candidates without an outcome."),
        Description("hiernas_evaluations_limit", "gauge", "Candidates that are proposed at most."),
        Description("hiernas_gpu_seconds_limit", "gauge", "Budget of GPU-seconds; absent without one."),
        Description("hiernas_best_fitness", "gauge", "Best fitness so far, 0 to 1; absent before the first."),
        Description("hiernas_last_accept_timestamp_seconds", "gauge", "When the last outcome was accepted, in seconds since 1970; absent before the first."),
        Description("hiernas_held", "gauge", "1 while the run starts nothing new (paused, stopped, halted, budget), by why; else 0.", ("why",), ("paused", "stopped", "halted", "budget")),
        Description(
            "hiernas_phase_duration_seconds", "histogram",
            "Of accepted attempts: wait (decided to seen running), train, evaluate, held (a node's resources), total (decided to accepted).",
            ("phase",), PHASES,
        ),
        Description("hiernas_dispatch_latency_seconds", "histogram", "From seeing a result to having created the next job."),
        Description("hiernas_store_requests_total", "counter", "Requests to the store by this controller.", ("operation", "result"), ("create", "read", "list", "ok", "error")),
        Description("hiernas_build_info", "gauge", "Always 1; its label says which version runs.", ("version",)),
    )
}  # fmt: skip


class CountedStore:
    """A store that counts what is asked of it."""

    def __init__(self, store: Store) -> None:
        self._store, self.parallel = store, store.parallel
        self.requests: Count[tuple[str, str]] = Count()

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
        except KeyError:
            result = "ok"
            raise
        finally:
            self.requests[operation, result] += 1


class Exporter:
    """Observes a controller's rounds and serves /metrics and /healthz."""

    def __init__(self, run: str, store: CountedStore | None = None) -> None:
        self._run, self._store = run, store
        self._controller: Controller | None = None
        self._families: list[Metric] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._phases = self._histogram("hiernas_phase_duration_seconds", PHASE_BUCKETS)
        self._latency = self._histogram("hiernas_dispatch_latency_seconds", LATENCY_BUCKETS)
        self._outcomes: int | None = None  # of the history, those already measured
        self._running: dict[str, float] = {}  # when each job was first seen running
        self._server: ThreadingHTTPServer | None = None

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        found = METRICS[name]
        return Histogram(name, found.meaning, ("run", *found.labels), buckets=buckets, registry=self._registry)

    # -- observing, in the controller's thread

    def __call__(self, controller: Controller, view: View) -> None:
        """See Controller.work."""
        self._controller = controller
        self._measure(controller, view)
        self._families = list(self._describe(controller, view))

    def _measure(self, controller: Controller, view: View) -> None:
        state, now = controller.state, controller.clock.now()
        for job in view.jobs.values():
            if job.status is JobStatus.RUNNING:
                self._running.setdefault(job.name, now)
        for outcome in state.history[self._outcomes :] if self._outcomes is not None else ():
            attempt = state.stories[outcome.candidate].attempts[outcome.attempt]
            found = view.evaluations.get((outcome.candidate, outcome.attempt))
            if found is not None and isinstance(found[0], Metrics):
                self._phase("train", sum(one.train_seconds for one in found[0].repeats))
                self._phase("evaluate", sum(one.evaluate_seconds for one in found[0].repeats))
                self._phase("held", outcome.held_seconds)
                self._phase("total", max(0.0, outcome.stamp.at - attempt.stamp.at))
                if attempt.job in self._running:
                    self._phase("wait", max(0.0, self._running[attempt.job] - attempt.stamp.at))
        self._outcomes = len(state.history)
        known = {story.running.job for story in state.unfinished.values() if story.running}
        self._running = {name: at for name, at in self._running.items() if name in known}
        for seconds in controller.latencies:
            self._latency.labels(self._run).observe(seconds)
        controller.latencies.clear()

    def _phase(self, phase: str, seconds: float) -> None:
        self._phases.labels(self._run, phase).observe(seconds)

    def _describe(self, controller: Controller, view: View) -> Iterator[Metric]:
        state = controller.state
        limits, totals = state.limits, state.totals
        yield self._counter("hiernas_evaluations_total", {kind: totals.outcomes.get(kind, 0) for kind in OutcomeKind})
        yield self._counter("hiernas_attempts_total", {reason: totals.ends.get(reason, 0) for reason in EndReason})
        yield self._counter("hiernas_gpu_seconds_total", _uses(state))
        yield self._gauge("hiernas_gpu_seconds_running", {"": gpu_seconds(state, view) - totals.gpu_seconds})
        running = [story.running.job for story in state.unfinished.values() if story.running and story.running.executor == controller.executor.name]
        states = Count(view.jobs[name].status.value if name in view.jobs else "missing" for name in running)
        yield self._gauge("hiernas_workers", {name: states[name] for name in METRICS["hiernas_workers"].values})
        waits = Count(job.waits or Waiting.STARTING for job in view.jobs.values() if job.status is JobStatus.PENDING)
        yield self._gauge("hiernas_pending", {reason: waits[reason] for reason in Waiting})
        yield self._gauge("hiernas_refused", {"": int(controller.refusal is not None)})
        yield self._gauge("hiernas_in_flight", {"": state.in_flight})
        hold = holds(state, gpu_seconds(state, view))
        yield self._gauge("hiernas_held", {why: int(why == hold) for why in METRICS["hiernas_held"].values})
        if limits is not None:
            yield self._gauge("hiernas_workers_limit", {"": limits.workers})
            yield self._gauge("hiernas_evaluations_limit", {"": limits.max_evaluations})
            if limits.max_gpu_hours is not None:
                yield self._gauge("hiernas_gpu_seconds_limit", {"": limits.max_gpu_hours * 3600})
        if state.best is not None and state.best.fitness is not None:
            yield self._gauge("hiernas_best_fitness", {"": state.best.fitness})
        if state.history:
            yield self._gauge("hiernas_last_accept_timestamp_seconds", {"": state.history[-1].stamp.at})
        yield self._gauge("hiernas_build_info", {version("hiernas"): 1})

    def _counter(self, name: str, values: Mapping[str, float]) -> Metric:
        return self._fill(CounterMetricFamily(name.removesuffix("_total"), METRICS[name].meaning, labels=("run", *METRICS[name].labels)), values)

    def _gauge(self, name: str, values: Mapping[str, float]) -> Metric:
        return self._fill(GaugeMetricFamily(name, METRICS[name].meaning, labels=("run", *METRICS[name].labels)), values)

    def _fill(self, family: CounterMetricFamily | GaugeMetricFamily, values: Mapping[str, float]) -> Metric:
        for value, number in values.items():
            family.add_metric([self._run, *([str(value)] if value else [])], number)
        return family

    # -- serving, in threads of their own

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        yield from self._families
        if self._store is not None:
            found = METRICS["hiernas_store_requests_total"]
            family = CounterMetricFamily(found.name.removesuffix("_total"), found.meaning, labels=("run", *found.labels))
            for (operation, result), number in sorted(self._store.requests.copy().items()):
                family.add_metric([self._run, operation, result], number)
            yield family

    def describe(self) -> Iterator[Metric]:
        """For the registry, which must not collect before there is anything."""
        return iter(())

    def healthy(self) -> bool:
        """Whether the controller's loop goes on; before its first round there is nothing to doubt."""
        controller = self._controller
        return controller is None or controller.clock.monotonic() - controller.beat < BEAT_SECONDS

    def text(self) -> bytes:
        """What a scrape gets."""
        return generate_latest(self._registry)

    def serve(self, port: int, host: str = "") -> int:
        """Listen until `close`; returns the port."""
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, kind, body = 404, "text/plain", b"hiernas serves /metrics and /healthz\n"
                if self.path.partition("?")[0] == "/metrics":
                    status, kind, body = 200, CONTENT_TYPE_LATEST, exporter.text()
                elif self.path == "/healthz":
                    status, body = (200, b"ok\n") if exporter.healthy() else (503, b"the loop has not begun a round for a long time\n")
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                """Scrapes are no news."""

        server = ThreadingHTTPServer((host, port), Handler)
        server.daemon_threads = True
        self._server = server
        threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
        return int(server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def _uses(state: State) -> dict[str, float]:
    totals = state.totals
    lost = max(0.0, totals.gpu_seconds - totals.useful_gpu_seconds - totals.failed_gpu_seconds)
    return {"useful": totals.useful_gpu_seconds, "failed": totals.failed_gpu_seconds, "lost": lost}
