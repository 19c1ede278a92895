"""A whole search in one thread and from one seed, in a world that fails in every way it may: the real controller, the real worker.

Controllers, workers and people are greenlets; each operation on the store or the executor is a point at which the world may
switch to another of them, delay it, lose its answer, kill it or freeze it for as long as it likes. One step is one actor's way
to its next such point, or one blow of fate. After each step that changed the store the invariants are checked.

    .venv/bin/python tests/simulation.py --seed 17 --trace     one seed again, told step by step
    .venv/bin/python tests/simulation.py --steps 1000000       many seeds (`make prove-simulation`)
"""

import argparse
import contextlib
import logging
import platform
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from greenlet import getcurrent, greenlet
from small_run import RUN, Passing
from trainers import instant

import pipeline.codec
import pipeline.run
import pipeline.snapshots
import pipeline.verify
from pipeline.codec import BadRecord
from pipeline.controller import Controller, Place
from pipeline.errors import ConfigError, DamagedRun, ExecutorUnavailable, MachineFault, Overtaken, StoreUnavailable
from pipeline.executor import Job, JobSpec, JobStatus, Refused, Waiting, job_name
from pipeline.requests import request
from pipeline.run import RunFolder, controller_key, end_key, evaluation_key
from pipeline.store import MemoryStore
from pipeline.verify import Level, verify
from pipeline.worker import Task, work
from search.evolution import Evolution
from search.limits import Desire, Limits
from search.records import Claim, Constraints, EndReason, Evaluation, Failure, FailureKind, Release, ReleaseReason, Resources
from search.space import PAPER_PRIMITIVES, Space
from search.space import Level as SpaceLevel

NAME = "simulated"
STRANGER = job_name(NAME, 99, 0)
STORM_STEPS = 1500
"""Steps a seed under faults; then the world calms down and the run must come to its end."""
CALM_STEPS = 6000
"""Steps within which a run that is left alone must be finished."""
SEGMENT = 3
"""Outcomes in a snapshot: so few that every seed's controllers write some."""
BLOWS = {"kill": 3, "freeze": 3, "long freeze": 2, "thaw": 3, "interrupt": 1, "start": 4, "person": 4, "platform": 12, "outage": 1, "refuse": 1}
"""What fate may do, and how often in relation to the rest."""
LIMITS = Limits(max_evaluations=16, workers=3, max_attempts=4, max_disruptions=6)
RUN_HERE = replace(
    RUN,
    name=NAME,
    space=Space("small", PAPER_PRIMITIVES, (SpaceLevel(2, 3), SpaceLevel(1, 3))),
    strategy=Evolution(initial=4, initial_mutations=8, reuse=True),
)


class Broken(AssertionError):
    """Something that must hold did not."""


class Ended(BaseException):
    """Thrown into what is left when a world ends."""


@dataclass(eq=False)
class Actor:
    """A process: what it runs, and what fate did to it."""

    name: str
    greenlet: greenlet
    wake: float = 0.0
    frozen_until: float = -1.0
    killed: bool = False
    done: bool = False


@dataclass(eq=False)
class Process:
    """A controller's process."""

    actor: Actor
    executor: "SimulatedExecutor"
    controller: Controller | None = None
    """None until it has read what its run is."""


@dataclass(eq=False)
class SimulatedJob:
    """A job as the platform keeps it."""

    spec: JobSpec
    since: float
    born: float
    status: JobStatus = JobStatus.PENDING
    workers: list[Actor] = field(default_factory=list)
    reason: EndReason | None = None
    exit_code: int | None = None
    ended: float | None = None
    node: str | None = None

    def seen(self, now: float) -> Job:
        """As a list of jobs shows it."""
        held = 0.0 if self.status is JobStatus.PENDING else (self.ended or now) - self.since
        waits = Waiting.UNSCHEDULABLE if self.status is JobStatus.PENDING else None
        return Job(self.spec.name, self.status, self.reason, exit_code=self.exit_code, node=self.node, held_seconds=max(0.0, held), waits=waits)


class World:
    """Everything there is, and the one who decides what happens next."""

    def __init__(self, seed: int, trace: bool = False) -> None:
        self.seed, self.random, self.trace = seed, random.Random(seed), trace
        self.now, self.steps, self.calm, self.over = 1_000_000.0, 0, False, False
        self.main = getcurrent()
        self.truth = MemoryStore()
        self.acknowledged: dict[str, bytes] = {}
        self.broken = ""  # what was found where an exception would be taken for a worker's own
        self.landed: dict[str, int] = {}  # step in which each object appeared
        self.floating: list[tuple[float, str, bytes]] = []
        self.late_starts: list[tuple[float, Platform, JobSpec]] = []
        self.actors: list[Actor] = []
        self.processes: list[Process] = []
        self.everyone: list[Actor] = []
        self.happened: Counter[str] = Counter()
        self.changed = True
        self.outage_until = self.released_at = 0.0
        # What this seed's world is like: some are rough in one way, some in another.
        self.roughness = self.random.choice((0.02, 0.1, 0.25))
        self.fateful = self.random.choice((0.03, 0.08, 0.2))
        self.cluster = Platform(self, "kubernetes")
        self.run = replace(
            RUN_HERE,
            seed=seed % 5,
            strategy=replace(RUN_HERE.strategy, reuse=self.random.random() < 0.5),  # type: ignore[type-var]
            constraints=Constraints(parameters=self.random.choice((None, None, 3000))),
        )
        RunFolder(self.truth, NAME).begin(self.run)

    # -- time and switching

    def tell(self, what: str, *arguments: object) -> None:
        """Count what happened, and print it when a seed is replayed."""
        self.happened[what] += 1
        if self.trace:
            actor = self.running()
            print(f"{self.steps:6d} {self.now - 1e6:10.2f} {actor.name if actor else 'world':12s} {what} {' '.join(map(str, arguments))}")

    def running(self) -> Actor | None:
        """The actor whose turn it is."""
        here = getcurrent()
        return next((actor for actor in self.actors if actor.greenlet is here), None)

    def pause(self, seconds: float = 0.0) -> None:
        """Let the world go on; come back after so many seconds at the earliest."""
        if self.over:
            raise Ended
        actor = self.running()
        assert actor is not None
        actor.wake = self.now + seconds
        self.main.switch()
        if self.over:
            raise Ended

    def chance(self, probability: float) -> bool:
        """Whether something bad happens now; never once the world is calm."""
        return not self.calm and self.random.random() < probability

    def spawn(self, name: str, function: Callable[[], object]) -> Actor:
        """A new process."""

        def body() -> None:
            try:
                function()
            except Ended:
                pass
            except Overtaken as overtaken:
                self.tell("overtaken", overtaken)
            except (StoreUnavailable, ExecutorUnavailable) as error:
                self.tell("exit 1", error)
            actor.done = True

        actor = Actor(name, greenlet(body, self.main), self.now)
        self.actors.append(actor)
        self.everyone.append(actor)
        return actor

    def kill(self, actor: Actor) -> None:
        """As SIGKILL: it never runs again, and nothing of it is tidied up."""
        actor.killed = True
        if actor in self.actors:
            self.actors.remove(actor)

    # -- steps

    def step(self) -> None:
        """One thing happens."""
        self.steps += 1
        self.now += self.random.expovariate(20.0)
        self._land()
        if self.chance(self.fateful):
            self._fate()
        elif not self.calm and not self.alive and self.random.random() < 0.1:
            self.start_controller()  # whatever keeps controllers running starts another
        else:
            self.cluster.advance()
            self._one_actor()
        if self.broken:
            raise Broken(f"seed {self.seed}, step {self.steps}: {self.broken}")
        if self.changed:
            self.check()

    def _one_actor(self) -> None:
        ready = [actor for actor in self.actors if actor.wake <= self.now and actor.frozen_until <= self.now]
        if not ready:
            times = [max(actor.wake, actor.frozen_until) for actor in self.actors]
            times += [at for at, *_ in self.floating] + [at for at, *_ in self.late_starts]
            self.now = max(self.now, min(times, default=self.now + 1.0))
            ready = [actor for actor in self.actors if actor.wake <= self.now and actor.frozen_until <= self.now]
            if not ready:
                return
        actor = self.random.choice(ready)
        actor.greenlet.switch()
        if actor.done and actor in self.actors:
            self.actors.remove(actor)

    def _land(self) -> None:
        for item in [item for item in self.floating if item[0] <= self.now]:
            self.floating.remove(item)
            self.tell("late write lands", item[1])
            self.write(item[1], item[2])
        for start in [start for start in self.late_starts if start[0] <= self.now]:
            self.late_starts.remove(start)
            self.tell("late start lands", start[2].name)
            start[1].create(start[2])

    def write(self, key: str, data: bytes) -> bytes:
        """What the store itself does with a write."""
        if not self.truth.list(key):
            self.landed[key] = self.steps
            self.changed = True
        return self.truth.create(key, data)

    @property
    def alive(self) -> list[Process]:
        """Controllers that have neither ended nor been killed; frozen ones are alive."""
        return [process for process in self.processes if not process.actor.done and not process.actor.killed]

    def _fate(self) -> None:
        alive = self.alive
        blow = self.random.choices(tuple(BLOWS), tuple(BLOWS.values()))[0]
        if blow == "start" and len(alive) < 4:
            self.start_controller()
        elif blow == "person":
            self.spawn("person", self._person)
        elif blow == "platform":
            self.random.choice([self.cluster, *(process.executor.platform for process in alive)]).disturb()
        elif blow == "outage":
            self.outage_until = self.now + self.random.uniform(0, 40)
            self.tell("store outage")
        elif blow == "refuse":
            self.cluster.refuses_until = self.now + self.random.uniform(0, 60)
            self.tell("quota exhausted")
        elif alive:
            process = self.random.choice(alive)
            if blow == "kill":
                self.kill_controller(process)
            elif blow in ("freeze", "long freeze"):
                process.actor.frozen_until = self.now + self.random.uniform(0, 30 if blow == "freeze" else 1000)
                self.tell("freeze", process.actor.name)
            elif blow == "thaw":
                process.actor.frozen_until = -1.0
            elif blow == "interrupt" and process.controller is not None:
                process.controller.interrupts += 1
                self.tell("interrupt", process.actor.name)

    # -- people and controllers

    def _person(self) -> None:
        folder = RunFolder(FaultyStore(self), NAME)
        choice = self.random.random()
        if choice < 0.5:
            key, values = self.random.choice(
                (
                    ("workers", (0, 1, 2, 5)),
                    ("max_evaluations", (8, 20, 24)),
                    ("max_pending", (None, 1, 2)),
                    ("max_attempts", (1, 2, 5)),
                    ("max_disruptions", (0, 2, 9)),
                    ("max_gpu_hours", (None, 0.01, 0.05)),
                    ("max_bugs", (1, 5)),
                    ("max_failures", (2, 20)),
                )
            )
            value = self.random.choice(values)
            self.tell("person sets", key, value)
            request(folder, {key: value}, None)
        else:
            desire = self.random.choice((Desire.RUN, Desire.PAUSE, Desire.STOP, Desire.STOP_NOW))
            self.tell("person wants", desire.value)
            request(folder, {}, desire)
            self.pause(self.random.expovariate(0.1))
            while True:  # and goes on before long; a request whose answer got lost is made again
                try:
                    request(folder, {self.random.choice(("workers", "max_evaluations")): self.random.choice((2, 20))}, Desire.RUN)
                    return
                except StoreUnavailable:
                    self.pause(5.0)

    def start_controller(self) -> Process:
        """A new process that wants to be in charge."""
        number = len(self.processes)
        survives = self.calm or self.random.random() < 0.7
        owner = "cluster" if survives else self.random.choice(("laptop", "desk"))
        platform = self.cluster if survives else Platform(self, "processes")
        executor = SimulatedExecutor(self, platform, survives)
        place = Place(f"{self.seed}/{number}", owner, f"{owner}/{number}")
        folder = RunFolder(FaultyStore(self), NAME)
        clock = SkewedClock(self, self.random.choice((0.0, 0.0, -500.0, 3600.0)))
        take_over = self.calm or self.random.random() < 0.5
        limits = replace(LIMITS, workers=self.random.choice((1, 3, 4)))

        def body() -> None:
            process.controller = Controller(folder, executor, clock, place, limits, Resources(gpus=1), take_over)
            try:
                reason = process.controller.work(lambda *_: None, 0.5)
            except Overtaken:
                self.followed(place)
                raise
            if reason is not None:
                self.released_at = self.now
                self.served(process.controller, reason)
            self.tell("released", reason.value if reason else "nothing to do")

        process = Process(self.spawn(f"controller{number}", body), executor)
        self.processes.append(process)
        self.tell("start controller", number, owner, "take over" if take_over else "")
        return process

    def kill_controller(self, process: Process) -> None:
        """SIGKILL; what cannot survive it dies with it, though not always at once."""
        self.tell("kill controller", process.actor.name)
        self.kill(process.actor)
        if not process.executor.survives:
            process.executor.platform.die()

    # -- what must hold

    def served(self, controller: Controller, reason: ReleaseReason) -> None:
        """What people asked for before the release is known to whoever released (an interrupted one leaves it to the next)."""
        if reason is ReleaseReason.INTERRUPTED:
            return
        records = controller.state.controllers
        claims = {one.controller for one in records if isinstance(one, Claim) and one.incarnation == controller.place.incarnation}
        own = max(at for at, one in enumerate(records) if isinstance(one, Release) and one.stamp.controller in claims)
        release = self.landed[f"{NAME}/{controller_key(own)}"]
        asked = sum(step < release for key, step in self.landed.items() if "/control/" in key)
        if len(controller.state.requests) < asked:
            raise Broken(f"seed {self.seed}, step {self.steps}: released with {len(controller.state.requests)} of {asked} requests served")

    def followed(self, place: Place) -> None:
        """Whoever says that it was overtaken was: the last claim is another's."""
        controllers = RunFolder(self.truth, NAME).load().controllers
        last = next((record for record in reversed(controllers) if isinstance(record, Claim)), None)
        if last is None or last.incarnation == place.incarnation:
            raise Broken(f"seed {self.seed}, step {self.steps}: {place.incarnation} says that it was overtaken, the last claim is {last}")

    def spent(self) -> None:
        """The sums are those of the single records: what an outcome says replaces what its attempt's end says."""
        state = RunFolder(self.truth, NAME).load()
        each: dict[tuple[int, int], float] = {}
        for story in state.stories:
            each |= {(end.candidate, end.attempt): end.gpu_seconds for end in story.ends.values()}
        each |= {(outcome.candidate, outcome.attempt): outcome.gpu_seconds for outcome in state.history}
        if abs(sum(each.values()) - state.totals.gpu_seconds) > 1e-6:
            raise Broken(f"seed {self.seed}, step {self.steps}: {state.totals.gpu_seconds} GPU-seconds spent, the records add up to {sum(each.values())}")

    def same(self) -> None:
        """Whatever snapshots controllers have written, and when: with them the records add up to what they add up to without."""
        if RunFolder(self.truth, NAME).load() != RunFolder(WithoutSnapshots(self.truth), NAME).load():
            raise Broken(f"seed {self.seed}, step {self.steps}: with the snapshots {self.truth.list(f'{NAME}/snapshots/')} the run is another one")

    def concluded(self, spec: JobSpec) -> bool:
        """Whether a worker that begins now finds that there is nothing to do."""
        if self.truth.list(f"{NAME}/{end_key(spec.candidate, spec.attempt)}"):
            return True
        folder = RunFolder(self.truth, NAME)
        attempts = [folder.read(key)[0] for key in folder.keys_of("attempts", spec.candidate)]
        rejected = {number for attempt in attempts for number in attempt.rejected}
        for attempt in attempts:
            with contextlib.suppress(BadRecord):
                if attempt.attempt not in rejected and folder.evaluation(spec.candidate, attempt.attempt) is not None:
                    return True
        return False

    def check(self) -> None:
        """The invariants of the folder, and: what was acknowledged is there, as it was."""
        self.changed = False
        wrong = [finding for finding in verify(self.truth, NAME) if finding.level is Level.ERROR]
        if wrong:
            raise Broken(f"seed {self.seed}, step {self.steps}: " + "; ".join(f"{finding.key} {finding.what}" for finding in wrong[:5]))
        for key, data in self.acknowledged.items():
            if self.truth.read(key) != data:
                raise Broken(f"seed {self.seed}, step {self.steps}: {key} is not what was acknowledged")
        if self.steps % 7 == 0:
            self.spent()
            self.same()

    def storm(self, steps: int) -> None:
        """Faults of every kind."""
        self.start_controller()
        for _ in range(steps):
            self.step()

    def left_alone(self) -> None:
        """No faults any more, and one controller: the run must finish, and leave nothing behind."""
        self.calm = True
        self.outage_until = self.cluster.refuses_until = self.now
        for process in self.processes:
            if not process.actor.done and not process.actor.killed and self.random.random() < 0.7:
                self.kill_controller(process)
            process.actor.frozen_until = min(process.actor.frozen_until, self.now + 60)
        self.floating = [(min(at, self.now + 60), key, data) for at, key, data in self.floating]
        self.late_starts = [(min(at, self.now + 60), platform, spec) for at, platform, spec in self.late_starts]
        began = self.steps
        while self.floating or self.late_starts or any(actor.name == "person" for actor in self.actors):
            self._bounded(began)
            self.step()
        request(
            RunFolder(self.truth, NAME),
            {"workers": 3, "max_pending": None, "max_gpu_hours": None, "max_bugs": 1000, "max_failures": 1000, "max_evaluations": 24},
            Desire.RUN,
        )
        self.changed = True
        while not self._finished():
            self.start_controller()
            while self.alive:  # one that thaws may take over from it; it may be one that was interrupted
                self._bounded(began)
                self.step()
        state = RunFolder(self.truth, NAME).load()
        if state.unfinished or len(state.history) != len(state.stories) or len(state.history) < 24:
            raise Broken(f"seed {self.seed}: finished without {sorted(state.unfinished)}, with {len(state.history)} of {len(state.stories)} outcomes")
        claim = next(one for one in reversed(state.controllers) if isinstance(one, Claim))
        # Local processes cannot delete a cluster's jobs, and nobody those that appear after the end.
        if claim.executor == self.cluster.kind and any(job.born < self.released_at for name, job in self.cluster.jobs.items() if name != STRANGER):
            raise Broken(f"seed {self.seed}: jobs left at the end: {sorted(self.cluster.jobs)}")
        self.same()
        self.happened["snapshots"] = len(self.truth.list(f"{NAME}/snapshots/"))
        self.happened.update(f"end {one.reason.value}" for story in state.stories for one in story.ends.values())
        self.happened.update(f"outcome {outcome.outcome.value}" for outcome in state.history)

    def _finished(self) -> bool:
        state = RunFolder(self.truth, NAME).load()
        last = state.controllers[-1] if state.controllers else None
        limits = state.limits
        return isinstance(last, Release) and last.reason is ReleaseReason.FINISHED and limits is not None and len(state.stories) >= limits.max_evaluations

    def _bounded(self, began: int) -> None:
        if self.steps - began > CALM_STEPS:
            state = RunFolder(self.truth, NAME).load()
            raise Broken(
                f"seed {self.seed}: left alone for {CALM_STEPS} steps and not finished: {len(state.history)} of {len(state.stories)} outcomes, "
                f"unfinished {sorted(state.unfinished)}, jobs {sorted(self.cluster.jobs)}, last {state.controllers[-1]}"
            )

    def close(self) -> None:
        """Let every actor that is left die."""
        self.over = True
        for actor in self.everyone:
            if not actor.greenlet.dead and actor.greenlet:
                actor.greenlet.throw(Ended)


@dataclass(frozen=True)
class SkewedClock:
    """The world's time, told wrong by some seconds."""

    world: World
    skew: float

    def now(self) -> float:
        """See Clock."""
        return self.world.now + self.skew

    def monotonic(self) -> float:
        """See Clock."""
        return self.world.now

    def sleep(self, seconds: float) -> None:
        """See Clock."""
        self.world.pause(seconds)


class WithoutSnapshots(Passing):
    """The store as if none had ever been written."""

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        return [key for key in super().list(prefix, after) if "/snapshots/" not in key]


class FaultyStore:
    """The world's store as one process reaches it: every answer may be late or lost, and originals may land later."""

    parallel = 1

    def __init__(self, world: World) -> None:
        self.world = world

    def _reach(self) -> None:
        world = self.world
        if world.chance(0.3) or world.now < world.outage_until:
            world.pause(world.random.expovariate(5.0))
        if world.now < world.outage_until or world.chance(world.roughness * 0.1):
            world.tell("store unavailable")
            raise StoreUnavailable("the store does not answer")

    def create(self, key: str, data: bytes) -> bytes:
        """See Store. As a client of S3: what is unknown is repeated with the same bytes."""
        world = self.world
        afloat = False  # an original of ours may still land: then the caller must not hear of failure, or it would write other bytes
        while True:
            world.pause(world.random.expovariate(20.0))
            if world.now < world.outage_until:
                if afloat:
                    continue
                raise StoreUnavailable("the store does not answer")
            if not world.chance(world.roughness):
                stored = world.write(key, data)
                world.pause(world.random.expovariate(50.0))
                world.acknowledged[key] = stored
                return stored
            fate = world.random.choice(("lost", "late", "landed", "landed"))
            world.tell(f"write {fate}", key)
            if fate == "late":
                afloat = True
                world.floating.append((world.now + world.random.choice((1.0, 20.0, 300.0)) * world.random.random(), key, data))
            elif fate == "landed":
                world.write(key, data)
            world.pause(world.random.expovariate(1.0))
            if not afloat and world.random.random() < 0.3:
                raise StoreUnavailable("the store's answer was lost")

    def read(self, key: str) -> bytes:
        """See Store."""
        self._reach()
        return self.world.truth.read(key)

    def list(self, prefix: str, after: str | None = None) -> list[str]:
        """See Store."""
        self._reach()
        return self.world.truth.list(prefix, after)


class Platform:
    """Where jobs run: a cluster that outlives controllers, or the processes of one of them."""

    def __init__(self, world: World, kind: str) -> None:
        self.world, self.kind = world, kind
        self.jobs: dict[str, SimulatedJob] = {}
        self.refuses_until = 0.0
        self.room = world.random.choice((1, 3, 10))
        self.nodes = ["one", "two", "three"]
        self.failing: set[str] = set()

    def create(self, spec: JobSpec) -> None:
        """A job begins to wait for a place."""
        if spec.name not in self.jobs:
            self.jobs[spec.name] = SimulatedJob(spec, self.world.now, self.world.now)

    def advance(self) -> None:
        """What a platform does by itself: give waiting jobs a place, notice that workers have exited."""
        running = sum(job.status is JobStatus.RUNNING for job in self.jobs.values())
        for job in self.jobs.values():
            fitting = [node for node in self.nodes if node not in job.spec.avoid]
            if job.status is JobStatus.PENDING and running < self.room and fitting and self.world.random.random() < 0.5:
                running += 1
                job.node = self.world.random.choice(fitting)
                job.status, job.since = JobStatus.RUNNING, self.world.now
                self._worker(job)

    def _worker(self, job: SimulatedJob) -> None:
        world, spec = self.world, job.spec

        def body() -> None:
            needless.append(world.concluded(spec))
            code = work(FaultyStore(world), spec.run, spec.candidate, spec.attempt, lambda: train, "nowhere")
            world.pause(world.random.expovariate(5.0))  # written, not yet exited
            world.tell("worker exits", spec.name, code)
            if job.status is JobStatus.RUNNING and actor in job.workers:
                self.end(job, None, code)

        needless: list[bool] = []

        def train(task: Task) -> Evaluation:
            if job.node in self.failing and not world.calm:
                raise MachineFault(f"{job.node} fails")
            if needless[0]:
                world.broken = f"{spec.name} trains though all was known when it began"
            return simulated_training(world, task)

        actor = world.spawn(f"w{spec.candidate}-{spec.attempt}", body)
        job.workers.append(actor)

    def end(self, job: SimulatedJob, reason: EndReason | None, code: int | None) -> None:
        """The job is over, as far as the platform knows."""
        job.status, job.reason, job.exit_code, job.ended = JobStatus.ENDED, reason, code, self.world.now

    def delete(self, name: str) -> None:
        """The job is gone; its worker nearly always."""
        job = self.jobs.pop(name, None)
        for worker in job.workers if job else ():
            if not self.world.chance(0.2):  # else: a node that nobody reaches; it goes on, and may write
                self.world.kill(worker)

    def die(self) -> None:
        """The controller's process is gone and with it all of its workers."""
        for name in list(self.jobs):
            self.delete(name)

    def disturb(self) -> None:
        """Something happens to one job."""
        world = self.world
        if world.chance(0.1):
            self.nodes = world.random.sample(("one", "two", "three"), world.random.choice((1, 2, 3)))
            self.failing = {node for node in self.nodes if world.random.random() < 0.3}
            world.tell("nodes", *self.nodes, "failing", *sorted(self.failing))
        if not self.jobs:
            return
        job = self.jobs[world.random.choice(sorted(self.jobs))]
        blow = world.random.choice(("kill", "evict", "node", "memory", "lose", "duplicate", "resurrect", "stranger"))
        world.tell(f"job {blow}", job.spec.name)
        running = job.status is JobStatus.RUNNING
        if blow == "lose":
            self.delete(job.spec.name)
        elif blow == "duplicate" and running:
            self._worker(job)
        elif blow == "stranger":  # of this run's name, of no attempt in its folder: not ours to delete
            self.create(JobSpec(STRANGER, NAME, 99, 0, Resources(), ""))
        elif blow == "resurrect":
            world.late_starts.append((world.now + world.random.uniform(0, 60), self, job.spec))
        elif running and blow in ("kill", "evict", "node", "memory"):
            reason, code = {
                "kill": (None, 137),
                "evict": (EndReason.DISRUPTED, 143),
                "node": (EndReason.NODE_LOST, None),
                "memory": (EndReason.MEMORY, 137),
            }[blow]
            if blow != "node":
                for worker in job.workers:
                    world.kill(worker)
            self.end(job, reason, code)


class SimulatedExecutor:
    """See Executor: one controller's way to a platform, over a network that fails."""

    parallel = 1

    def __init__(self, world: World, platform: Platform, survives: bool) -> None:
        self.world, self.platform, self.survives = world, platform, survives
        self.name = platform.kind

    def _reach(self) -> None:
        self.world.pause(self.world.random.expovariate(20.0))
        if self.survives and self.world.chance(self.world.roughness * 0.2):
            raise ExecutorUnavailable("the API server does not answer")

    def start(self, spec: JobSpec) -> None:
        """See Executor."""
        world = self.world
        if not world.truth.list(f"{NAME}/attempts/{spec.candidate:06d}-{spec.attempt}.json"):
            raise Broken(f"seed {world.seed}, step {world.steps}: {spec.name} is started before its attempt is recorded")
        self._reach()
        if world.now < self.platform.refuses_until:
            world.tell("refused", spec.name)
            raise Refused("exceeded quota")
        if self.survives and world.chance(world.roughness):
            fate = world.random.choice(("lost", "late", "landed"))
            world.tell(f"start {fate}", spec.name)
            if fate == "late":
                world.late_starts.append((world.now + world.random.uniform(0, 60), self.platform, spec))
            elif fate == "landed":
                self.platform.create(spec)
            raise ExecutorUnavailable("the API server's answer was lost")
        self.platform.create(spec)
        world.tell("start", spec.name)

    def jobs(self) -> Sequence[Job]:
        """See Executor."""
        self._reach()
        if not self.survives:
            self.platform.advance()
        return [job.seen(self.world.now) for job in self.platform.jobs.values()]

    def delete(self, name: str) -> None:
        """See Executor."""
        world = self.world
        job = self.platform.jobs.get(name)
        if job is not None:
            concluded = world.truth.list(f"{NAME}/{end_key(job.spec.candidate, job.spec.attempt)}") or any(
                f'"candidate":{job.spec.candidate},'.encode() in world.truth.read(key) for key in world.truth.list(f"{NAME}/history/")
            )
            if not concluded:
                raise Broken(f"seed {world.seed}, step {world.steps}: {name} is deleted though nothing is concluded about it")
        self._reach()
        self.platform.delete(name)
        world.tell("delete", name)

    def wait(self, seconds: float) -> None:
        """See Executor."""
        self.world.pause(seconds)

    def close(self) -> None:
        """See Executor."""


def simulated_training(world: World, task: Task) -> Evaluation:
    """Some seconds, then what a training can come to; the fitness tells attempts apart."""
    for _ in range(world.random.randrange(3)):
        world.pause(world.random.expovariate(0.2))
    index, attempt = task.candidate.index, task.attempt
    if world.chance(0.25):
        fate = world.random.choice(("diverged", "memory", "bug", "machine", "store", "garbage"))
        world.tell(f"training {fate}", index, attempt)
        if fate == "diverged":
            return Failure(index, attempt, FailureKind.DIVERGED, "loss is NaN", 1.0, None)
        if fate == "memory":
            return Failure(index, attempt, FailureKind.OUT_OF_MEMORY, "out of memory", 1.0, None)
        if fate == "bug":
            raise RuntimeError("a bug of ours")
        if fate == "machine":
            raise MachineFault("ECC error")
        if fate == "store":
            raise StoreUnavailable("the store does not answer")
        world.pause()
        world.write(f"{NAME}/{evaluation_key(index, attempt)}", world.random.choice((b"", b"{}", b"\0" * 100)))
    return instant(replace(task, candidate=replace(task.candidate, seed=task.candidate.seed + 7919 * attempt)))


# -- running it


@contextmanager
def swift() -> Iterator[None]:
    """The same functions, remembering what they gave for the same bytes: verify after each step is affordable then."""
    decoded: dict[tuple[bytes, str, str | None], object] = {}
    encoded: dict[tuple[int, str], bytes] = {}
    decode, encode = pipeline.codec.decode, pipeline.codec.encode

    def quick_decode(data: bytes, key: str, run_id: str | None) -> object:
        place = data, key, run_id
        if place not in decoded:
            decoded[place] = decode(data, key, run_id)
        return decoded[place]

    def quick_encode(record: object, key: str, run_id: str) -> bytes:
        place = id(record), key
        if place not in encoded:
            encoded[place] = encode(record, key, run_id)  # type: ignore[arg-type]  # records that quick_decode keeps alive
        return encoded[place]

    with (
        mock.patch.object(pipeline.verify, "decode", quick_decode),
        mock.patch.object(pipeline.verify, "encode", quick_encode),
        mock.patch.object(pipeline.run, "decode", quick_decode),
    ):
        yield


class Heard(logging.Handler):
    """Counts what controllers and workers log: which of their paths a storm has led them down."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.world.happened[f"log: {record.msg.partition(' run=')[0]}"] += 1


@contextmanager
def quiet() -> Iterator[None]:
    """Controllers are heard by their world and print nothing."""
    logger = logging.getLogger("hiernas")
    before = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.level, logger.propagate = before


def simulate(seed: int, steps: int = STORM_STEPS, trace: bool = False) -> World:
    """One seed: a storm, then calm, then the end. Broken says what did not hold."""
    world = World(seed, trace)
    heard = Heard(world)
    clock = SimpleNamespace(monotonic=lambda: world.now, time=lambda: world.now, sleep=world.pause)
    small = mock.patch.object(pipeline.snapshots, "SEGMENT", SEGMENT)
    with swift(), small, mock.patch("pipeline.worker.time", clock), mock.patch("pipeline.requests.time", clock):
        logging.getLogger("hiernas").addHandler(heard)
        try:
            world.storm(steps)
            world.left_alone()
        except (ConfigError, DamagedRun) as error:
            raise Broken(f"seed {seed}, step {world.steps}: {error}") from error
        finally:
            world.close()
            logging.getLogger("hiernas").removeHandler(heard)
    wrong = [finding for finding in verify(world.truth, NAME) if finding.level is Level.ERROR]
    if wrong:
        raise Broken(f"seed {seed}: {wrong[:5]}")
    return world


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="only this seed")
    parser.add_argument("--first", type=int, default=0, help="first of many seeds (default 0)")
    parser.add_argument("--steps", type=int, default=20_000, help="at least so many steps in all (default 20000)")
    parser.add_argument("--storm", type=int, default=STORM_STEPS, help=f"steps a seed under faults (default {STORM_STEPS})")
    parser.add_argument("--trace", action="store_true", help="with --seed: tell what happens")
    parser.add_argument("--out", type=Path, help="write the result there too")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    with contextlib.nullcontext() if given.trace else quiet():
        if given.seed is not None:
            logging.getLogger("hiernas").setLevel(logging.INFO)
            world = simulate(given.seed, given.storm, given.trace)
            print(f"seed {given.seed}: holds, {world.steps} steps")
            return 0
        return _many(given.first, given.steps, given.storm, given.out)


def _many(first: int, least: int, storm: int, out: Path | None) -> int:
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    began, total, seed, broken, happened = time.monotonic(), 0, first, 0, Counter[str]()
    while total < least:
        try:
            world = simulate(seed, storm)
        except Exception as error:
            broken += 1
            total += storm
            print(f"{type(error).__name__}: {error}\n  again: .venv/bin/python tests/simulation.py --seed {seed} --storm {storm} --trace", flush=True)
        else:
            total += world.steps
            happened += world.happened
        seed += 1
    lines = [
        f"{total} steps, {seed - first} seeds, {broken} broken, {time.monotonic() - began:.0f} s",
        f"command: .venv/bin/python tests/simulation.py --first {first} --steps {least} --storm {storm}",
        f"commit {commit or 'unknown'}, {time.strftime('%Y-%m-%d')}, Python {platform.python_version()}",
        "what happened, how often:",
        *(f"{count:10d} {what}" for what, count in sorted(happened.items())),
    ]
    print("\n".join(lines))
    if out is not None:
        out.write_text("\n".join(lines) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
