"""`hiernas doctor --smoke`: a run of one tiny candidate through everything that a search goes through, once for each pool of nodes.

A run of its own in `<store>/_doctor`, submitted like any other. Its objects leave the cluster with its Lease; its records stay.
"""

import contextlib
import secrets
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import yaml

from pipeline import labels, manifest
from pipeline.config import Config, parse_config
from pipeline.doctor import capacity, checks
from pipeline.doctor.checks import Check
from pipeline.doctor.probe import FOLDER
from pipeline.errors import HiernasError, StoreUnavailable
from pipeline.launch import launch, submit
from pipeline.run import RunFolder, evaluation_key
from pipeline.status import word
from pipeline.store import open_store
from search.records import Metrics
from search.state import State

if TYPE_CHECKING:
    from pipeline.api import Api

Object = dict[str, Any]
Pool = tuple[str, str] | None
STEPS = 4
"""Of the tiny training: enough to have trained, whatever the network."""
LOOK_SECONDS = 1.0
TELL_SECONDS = 15.0
ALLOWANCE_SECONDS = 600.0
"""On top of `cluster.start_seconds`: scheduling, the controller's start, the training itself."""
_ENDED = frozenset({"finished", "halted", "stopped", "budget", "moved"})


def smoke(config: Config, text: str, url: str, api: "Api | None") -> Iterator[Check]:
    """One check a pool; without `api` one on this machine."""
    store = f"{url.rstrip('/')}/{FOLDER}"
    name = f"smoke-{secrets.token_hex(3)}"
    if api is None:
        yield _here(tiny(config, text, name, None), store)
        return
    pools = _pools(api, config)
    runs = [_Trial(api, pool, store, *tiny(config, text, f"{name}-{number}", pool)) for number, pool in enumerate(pools)]
    try:
        for one in runs:
            one.submit()
        _watch(runs)
        for one in runs:
            yield one.check()
    finally:
        for one in runs:
            one.remove()


def tiny(config: Config, text: str, name: str, pool: Pool) -> tuple[Config, str]:
    """The config with one candidate and few steps, and its text. Width, batch and resources stay as they are: they are what is tried."""
    plain = yaml.safe_load(text)
    plain |= {
        "run": name,
        "strategy": {"kind": "random", "initial_mutations": 100},
        "recipe": {"extends": plain["recipe"], "steps": min(STEPS, config.recipe.steps), "milestones": [], "repeats": 1, "curve_points": 0},
        "limits": {"max_evaluations": 1, "workers": 1, "max_attempts": 1},
    }
    plain.pop("constraints", None)  # over a limit it would not be trained
    if pool is not None:
        cluster = plain["cluster"]
        plain["cluster"] = cluster | {"worker_pod": manifest.overlay(cluster.get("worker_pod") or {}, {"spec": {"nodeSelector": dict([pool])}})}
    made = yaml.safe_dump(plain, allow_unicode=True)
    parsed = parse_config(made, "the smoke test's config")
    return replace(parsed, executor=replace(parsed.executor, kind=config.executor.kind if config.cluster is None else "kubernetes")), made


def _pools(api: "Api", config: Config) -> list[Pool]:
    """Of nodes that can take a worker; [None] where nodes may not be read, are in no pool, or are made on demand."""
    from pipeline.api import ApiRefusal
    from pipeline.doctor.site import Site

    assert config.cluster is not None
    pod = Site(api, config, config.cluster, "", None).worker()["spec"]["template"]["spec"]
    requests = capacity.of_pod(capacity.with_defaults(pod, []))["requests"]
    try:
        able = [node for node in api.list("/api/v1/nodes") if not capacity.obstacles(node, pod, requests)]
    except ApiRefusal:
        return [None]
    pools = sorted({found for node in able if (found := capacity.pool(node)) is not None})
    return [*pools] or [None]


def _here(made: tuple[Config, str], store: str) -> Check:
    began = time.monotonic()
    try:
        launch(made[0], store, take_over=False)
        return _judged("smoke", made[0].run, store, f"{time.monotonic() - began:.1f} s in all")
    except HiernasError as error:
        return checks.failed("smoke", str(error), "a search would fail alike")


def _judged(name: str, run: str, store: str, times: str) -> Check:
    """From the records alone."""
    folder = RunFolder(open_store(store, make=False), run)
    state = folder.load()
    story = state.stories[0] if state.stories else None
    place = f"records stay in {store}/{run}"
    if story is not None and story.outcome is not None and story.outcome.attempt is not None:
        with contextlib.suppress(HiernasError):
            found, _ = folder.read(evaluation_key(0, story.outcome.attempt))
            if isinstance(found, Metrics):
                device = f"on {found.machine.device}"
                return checks.ok(name, f"{times}, train {found.repeats[0].train_seconds:.1f} s of {found.total_seconds:.1f} s of its process {device}; {place}")
    outcome = "no outcome" if story is None or story.outcome is None else f"outcome {story.outcome.outcome.value}"
    ends = "" if story is None else "".join(f"; attempt {number} ended: {end.reason.value} {end.message}" for number, end in sorted(story.ends.items()))
    return checks.failed(name, f"{outcome} ({word(state)}){ends}; {times}; {place}", f"`hiernas show {run} 0 --store {store}` tells more")


@dataclass
class _Trial:
    """A run on one pool."""

    api: "Api"
    pool: Pool
    store: str
    config: Config
    text: str
    pods: dict[str, Object] = field(default_factory=dict)
    """As last seen, by UID."""
    error: str = ""
    told: str = ""
    began: float = 0.0

    @property
    def name(self) -> str:
        return "smoke" if self.pool is None else f"smoke {self.pool[1]}"

    @property
    def namespace(self) -> str:
        assert self.config.cluster is not None
        return self.config.cluster.namespace

    def submit(self) -> None:
        self.began = time.time()
        try:
            submit(self.config, self.text, self.store)
        except HiernasError as error:
            self.error = str(error)

    def look(self) -> State | None:
        """The pods, then the records; None while the store does not answer."""
        from pipeline.api import ApiRefusal

        try:
            for pod in self.api.list(f"/api/v1/namespaces/{self.namespace}/pods", f"{labels.RUN}={self.config.run}"):
                self.pods[str(pod["metadata"]["uid"])] = pod
        except ApiRefusal:
            pass  # then the times are not known
        try:
            return RunFolder(open_store(self.store, make=False), self.config.run).load()
        except StoreUnavailable:
            return None

    def tell(self, state: State) -> None:
        """Why it waits, once each."""
        from pipeline.why import why

        told = "; ".join(why(state, self.namespace, self.api, time.time()))
        if told not in (self.told, "nothing waits"):
            print(f"hiernas: {self.name}: {told}", file=sys.stderr, flush=True)
        self.told = told

    def check(self) -> Check:
        if self.error:
            return checks.failed(self.name, self.error, "a search would fare alike")
        return _judged(self.name, self.config.run, self.store, self.times())

    def times(self) -> str:
        said = []
        for component in (labels.CONTROLLER, labels.WORKER):
            pods = [pod for pod in self.pods.values() if (pod["metadata"].get("labels") or {}).get("app.kubernetes.io/component") == component]
            if not pods:
                said.append(f"{component}: its pod was not seen")
                continue
            pod = min(pods, key=lambda one: str(one["metadata"].get("creationTimestamp")))
            made, scheduled, started = moments(pod)
            queue = max(0.0, scheduled - (self.began if component == labels.CONTROLLER else made)) if scheduled is not None else None
            start = max(0.0, started - scheduled) if scheduled is not None and started is not None else None
            said.append(
                f"{component}: queue {_seconds(queue)}, start {_seconds(start)}" + (f" on node {pod['spec'].get('nodeName')}" if scheduled is not None else "")
            )
        return f"{'; '.join(said)}; {time.time() - self.began:.0f} s in all"

    def remove(self) -> None:
        """Out of the cluster, with all that its Lease owns."""
        from pipeline.api import ApiRefusal, path_of

        path = path_of(self.namespace, "leases", labels.lease_name(self.config.run))
        try:
            self.api.delete(path)
        except (ApiRefusal, HiernasError) as error:
            print(
                f"hiernas: {self.name}: still in the cluster ({error}); remove it: kubectl -n {self.namespace} delete lease {self.config.run}", file=sys.stderr
            )


def _watch(runs: list[_Trial]) -> None:
    """Until each has ended, or the longest of their times is over."""
    end = time.monotonic() + max(_patience(one.config) for one in runs)
    waiting = [one for one in runs if not one.error]
    tell_at = time.monotonic() + TELL_SECONDS
    while waiting and time.monotonic() < end:
        time.sleep(LOOK_SECONDS)
        states = [(one, one.look()) for one in waiting]
        waiting = [one for one, state in states if state is None or word(state) not in _ENDED]
        if time.monotonic() > tell_at:
            tell_at = time.monotonic() + TELL_SECONDS
            for one, state in states:
                if one in waiting and state is not None:
                    one.tell(state)
    for one in waiting:
        one.error = f"not done after {time.time() - one.began:.0f} s: {one.told or 'nothing was told of it'}; {one.times()}; records stay in {one.store}/{one.config.run}"


def _patience(config: Config) -> float:
    assert config.cluster is not None
    return config.cluster.start_seconds + ALLOWANCE_SECONDS


def moments(pod: Object) -> tuple[float, float | None, float | None]:
    """When a pod was made, had a node, and ran; None: not yet."""
    status = pod.get("status") or {}
    scheduled = next(
        (one.get("lastTransitionTime") for one in status.get("conditions") or [] if (one.get("type"), one.get("status")) == ("PodScheduled", "True")), None
    )
    states = [state for one in status.get("containerStatuses") or [] for state in (one.get("state") or {}).values()]
    started = min((str(state["startedAt"]) for state in states if state.get("startedAt")), default=None)
    made = _instant(pod["metadata"].get("creationTimestamp"))
    return made or 0.0, _instant(scheduled), _instant(started)


def _instant(text: object) -> float | None:
    return None if not text else datetime.fromisoformat(str(text)).timestamp()


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} s"
