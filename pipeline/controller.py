"""The loop: observe, plan, act (DESIGN, 'The loop'). It keeps nothing that it cannot rebuild from the store.

Each decision is written into its one slot before it has any effect. If other bytes are in a slot, either somebody else
is in charge now (Overtaken) or a predecessor's last write landed late: then everything is read again.
"""

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline import answer, plan, trouble
from pipeline.clock import Clock
from pipeline.codec import BadRecord, sha256
from pipeline.errors import ExecutorUnavailable, HiernasError, Overtaken, StoreUnavailable, Unavailable
from pipeline.executor import Executor, Job, JobSpec, JobStatus, Refused, job_name
from pipeline.labels import REFUSED, UNAVAILABLE, namespace_of
from pipeline.run import (
    RunFolder,
    SlotTaken,
    attempt_key,
    candidate_key,
    control_key,
    controller_key,
    end_key,
    evaluation_key,
    history_key,
)
from pipeline.store import at_once
from search.limits import Limits
from search.records import (
    ALGORITHM,
    CONTROLLER,
    Attempt,
    Claim,
    End,
    EndReason,
    Evaluation,
    Failure,
    Outcome,
    OutcomeKind,
    Record,
    Release,
    ReleaseReason,
    Resources,
    Reused,
    Stamp,
)
from search.state import State, Story, derive_candidate

LOOK_SECONDS = 10.0
"""How long a controller may act without looking whether another is in charge."""
STAGES = 100_000
"""More stages than one round can need: a bound against an endless loop in a faulty plan."""
BACK_OFF_SECONDS = 60.0
"""Longest pause between two tries of what was unavailable or refused."""
_TOLD = {
    EndReason.GONE: "its job vanished: somebody else has deleted it",
    EndReason.SUPERSEDED: "another attempt of its candidate was accepted",
    EndReason.STOPPED: "ended by request, or made anew with corrected settings",
    EndReason.CONTROLLER_LOST: "it ended with the controller that ran it",
    EndReason.HANDED_OVER: "another executor took over",
    EndReason.REJECTED: "its evaluation is not valid",
}
"""What an end says where the platform says nothing."""
log = logging.getLogger("hiernas.controller")
Got = TypeVar("Got")


@dataclass(frozen=True, slots=True)
class Place:
    """Who a controller is: `nonce` is random, and the ids of its claims are drawn from it; the rest see `records.Claim`."""

    nonce: str
    owner: str
    incarnation: str

    def claim_id(self, slot: int) -> str:
        """Id of its claim in that slot: a process may claim again after its own release, and stamps say which one."""
        return sha256(f"{self.nonce}/{slot}".encode())[:32]


class Controller:
    """One controller of one run. `claim`, then `step` until it returns a reason, or `work` for all of that."""

    def __init__(
        self,
        folder: RunFolder,
        executor: Executor,
        clock: Clock,
        place: Place,
        limits: Limits,
        resources: Resources,
        take_over: bool = False,
        tell: Callable[[str, str], None] = lambda _, __: None,
    ) -> None:
        self.folder, self.executor, self.clock, self.place = folder, executor, clock, place
        self.limits, self.resources, self.take_over = limits, resources, take_over
        self._tell = tell  # what keeps it from working, in one word and a sentence, for whoever looks at the platform
        self.state = State(folder.run)
        self.interrupts = 0
        """Ctrl-C so far: 1 drains, 2 ends what runs."""
        self._slot = -1
        self._claim = ""  # id of the claim in force
        self.refusal: str | None = None
        """Why no job is created now; None when nothing was refused lately."""
        self._seen: set[str] = set()
        self._last: dict[str, Job] = {}  # jobs of open attempts as they were last seen: one that vanishes has held its GPUs all the same
        self._strangers: set[str] = set()  # jobs whose attempt was not found in the folder even after reading it again
        self._fresh = True  # everything is read once after each load
        self._stale = False  # the folder may hold more than the state: it must be read again before anything is decided
        self._looked = clock.monotonic()
        self._networks = answer.Networks()
        self._rests: dict[int, float] = {}  # candidates whose attempt failed, and when the next may begin
        self._refusals = 0  # in a row
        self._probe_at = self._looked  # when the next job may be tried after a refusal
        self.beat = self._looked
        """When the last round began, or the last try of one: who watches this process sees that it is alive."""
        self.latencies: list[float] = []
        """Seconds from seeing a result to having created the next job; whoever measures takes them out."""
        self._observed = self._looked  # when this round saw its jobs
        self._accepted = False  # whether this round accepted something
        self._asked: list[JobSpec] = []  # jobs decided on and recorded, and not created yet
        self._cancelled: list[str] = []  # jobs whose attempt is concluded, and not deleted yet
        self._jitter = random.Random(place.nonce)  # noqa: S311  # spreads out retries, nothing else

    # -- taking charge

    def claim(self) -> bool:
        """Take charge, unless there is nothing to do: then False. Overtaken says who else is in charge."""
        run = self.folder.run
        if run.algorithm != ALGORITHM:
            raise HiernasError(
                f"run {run.name!r} was begun under algorithm number {run.algorithm}, this version has {ALGORITHM}: it can be read and "
                "reported, but continued only by a version with that number"
            )
        while True:
            self.executor.jobs()  # a controller that cannot see the jobs must not take charge
            self._load()
            records = self.state.controllers
            last = records[-1] if records else None
            if isinstance(last, Release) and self._idle(last.reason):
                return False
            self._check_claim(records, last)
            follows = last.controller if isinstance(last, Claim) else None
            claim = self.place.claim_id(len(records))
            record = Claim(
                claim, self.place.owner, self.place.incarnation, follows,
                self.executor.name, self.limits, self.clock.now(),
            )  # fmt: skip
            try:
                self.folder.create(controller_key(len(records)), record)
            except SlotTaken:
                continue  # somebody was quicker: look again
            self._slot, self._claim = len(records), claim
            self._load()
            self._look()
            log.info("took charge run=%s controller=%s follows=%s", run.name, claim, follows)
            return True

    def _idle(self, reason: ReleaseReason) -> bool:
        """Nothing would be done by whoever took charge now: the run is finished, stopped or halted, and its last release says so."""
        actions = plan.plan(self.state, self._view({}))
        return bool(actions) and all(action == plan.Finish(reason) for action in actions)

    def _check_claim(self, records: Sequence[Claim | Release], last: Claim | Release | None) -> None:
        if not isinstance(last, Claim):
            return
        mine = [at for at, record in enumerate(records) if isinstance(record, Claim) and record.incarnation == self.place.incarnation]
        if last.incarnation != self.place.incarnation and mine:
            raise self._overtaken(last)
        if last.owner != self.place.owner and not self.take_over and not _same_lease(last, self.place):
            raise Overtaken(
                f"run {self.folder.name!r} is in the charge of {last.owner} (since {last.at:.0f}, this is {self.place.owner}). "
                "If that controller is gone for good, start with --take-over"
            )

    def _overtaken(self, by: Claim | Release) -> Overtaken:
        if (moved := self.folder.moved(history_key(len(self.state.history) - 1) if self.state.history else None)) is not None:
            return Overtaken(f"{self.folder.elsewhere(moved)}. This controller has stopped, nothing is lost")
        who = f"{by.owner} ({by.incarnation})" if isinstance(by, Claim) else "another controller, which has finished since"
        return Overtaken(f"run {self.folder.name!r} was taken over by {who}: this controller has stopped, nothing is lost")

    def _look(self) -> None:
        """Fence: a higher claim than ours means that another is in charge."""
        newer = self.folder.keys("controllers", controller_key(self._slot))
        self._looked = self.clock.monotonic()
        for key in newer:
            record = self.folder.read(key)[0]
            if not self._own_release(record):
                raise self._overtaken(record)

    def _own_release(self, record: Claim | Release) -> bool:
        return isinstance(record, Release) and record.stamp.controller == self._claim

    def _load(self) -> None:
        self.state = self.folder.load()
        if self.state.moved is not None:
            raise Overtaken(self.folder.elsewhere(self.state.moved))
        self._networks = answer.Networks()
        self._fresh, self._stale = True, False
        self._rests = {}
        for story in self.state.unfinished.values():
            self._rest(story)

    # -- the loop

    def work(self, observer: Callable[["Controller", plan.View], None], pace_seconds: float) -> ReleaseReason | None:
        """Claim and step until the run needs no controller; None when there was nothing to do.

        Only the first claim raises Unavailable: a command with a wrong address must say so at once. Interrupted where attempts
        outlive the controller, it releases at once: they go on, and the next controller, whoever's it is, finds them.
        """
        reason = None
        claimed = self.claim()
        while claimed:
            while (reason := self._patiently(lambda: self._round(observer), pace_seconds)) is None:
                if self.leaves:
                    return self._leave()
                if self._rests and not self.state.dispatched:  # an executor without jobs may not wait at all
                    self._sleep(pace_seconds or 1.0)
                else:
                    self.executor.wait(pace_seconds)
            if reason is ReleaseReason.INTERRUPTED:
                break
            claimed = self._patiently(self.claim, pace_seconds)  # a person may have asked for something right behind the release
        return reason

    @property
    def leaves(self) -> bool:
        """Whether a person wants this controller, and it alone, to end."""
        return self.executor.survives and self.interrupts > 0

    def _leave(self) -> ReleaseReason:
        """Give up the charge while jobs run. If that cannot be written now, a restart or `--take-over` does without."""
        try:
            self._release(ReleaseReason.INTERRUPTED)
        except (Unavailable, SlotTaken) as error:
            log.warning("left without a release run=%s error=%s", self.folder.name, error)
        return ReleaseReason.INTERRUPTED

    def _round(self, observer: Callable[["Controller", plan.View], None]) -> ReleaseReason | None:
        if self.leaves:
            return None
        view, reason = self.step()
        observer(self, view)
        return reason

    def _patiently(self, act: Callable[[], Got], pace_seconds: float) -> Got:
        """Again and again, ever less often, while store or executor do not answer; a second Ctrl-C ends that."""
        failures = 0
        while True:
            self.beat = self.clock.monotonic()
            try:
                return act()
            except Unavailable as error:
                if self.interrupts > 1:
                    raise
                failures += 1
                log.warning("not available, trying again run=%s error=%s", self.folder.name, error)
                self._tell(UNAVAILABLE, str(error))
                self._sleep(self._back_off(pace_seconds, failures))

    def _back_off(self, shortest: float, failures: int) -> float:
        return min(BACK_OFF_SECONDS, shortest * 2.0 ** min(failures, 20)) * self._jitter.uniform(0.5, 1.0)

    def _sleep(self, seconds: float) -> None:
        """So long, or until Ctrl-C."""
        until, interrupts = self.clock.monotonic() + seconds, self.interrupts
        while (left := until - self.clock.monotonic()) > 0 and self.interrupts == interrupts:
            self.clock.sleep(min(left, 0.5))

    def step(self) -> tuple[plan.View, ReleaseReason | None]:
        """One round. Returns what was seen, and why the charge was given up once it was."""
        self._asked, self._cancelled = [], []  # what an error has left of an earlier round is planned anew
        if self._stale:
            self._load()
            last = self.state.controllers[-1]
            if isinstance(last, Release) and self._own_release(last):  # it had landed, only the answer was lost
                return self._view({}), last.reason
        view = self.observe()
        try:
            for _ in range(STAGES):
                self._refresh(view)
                actions = plan.plan(self.state, view)
                if not actions:
                    break
                for action in actions:
                    if isinstance(action, plan.Finish):
                        return (view, action.reason) if self._finish(action.reason) else (view, None)
                    self._act(action, view)
                self._ask(view)
        except SlotTaken as taken:
            self._stale = True
            self._look()
            log.warning("a predecessor's write landed late, reading again run=%s key=%s", self.folder.name, taken.key)
            self._load()
        except StoreUnavailable:
            self._stale = True  # it may have been a write, and it may have landed
            raise
        if not self._stale:
            self.folder.keep(self.state)
        return view, None

    def observe(self) -> plan.View:
        """Jobs first, then records: what a job's end promises must be looked for after the end was seen."""
        jobs = {job.name: job for job in self.executor.jobs()}
        self._observed, self._accepted = self.clock.monotonic(), False
        self._look()
        self._meet(jobs)
        for key in self._new_requests():
            self.state.request(self.folder.read(key)[0])
        view = self._view(jobs)
        if not self.executor.survives:
            view.interrupted, view.now = self.interrupts > 0, self.interrupts > 1
        view.refused = self.clock.monotonic() < self._probe_at
        undecided = {index: story for index, story in self.state.unfinished.items() if story.outcome is None and story.attempts}
        # After a load: one list, where asking for each could fail at each.
        written = self.folder.evaluated(min(undecided), len(self.state.stories)) if self._fresh and undecided else set()
        for index, story in undecided.items():
            if index in written or self._ended_or_vanished(story, jobs):
                self._read_evaluations(story, view)
        self._seen.update(jobs)
        known = self._last | jobs
        self._last = {attempt.job: known[attempt.job] for attempt in self.state.dispatched_attempts if attempt.job in known}
        self._fresh = False
        return view

    def _view(self, jobs: dict[str, Job]) -> plan.View:
        return plan.View(self._claim, self.executor.name, self.executor.survives, jobs, self._seen, resources=self.resources)

    def _new_requests(self) -> list[str]:
        """Keys of the requests that the state does not have yet."""
        return self.folder.keys("control", control_key(len(self.state.requests) - 1) if self.state.requests else None)

    def _meet(self, jobs: dict[str, Job]) -> None:
        """A job of an attempt that this controller does not know is a predecessor's, recorded late: read everything again."""
        strangers = {name for name in jobs if not plan.known(self.state, name)} - self._strangers
        if strangers:
            self._load()
            self._strangers |= {name for name in strangers if not plan.known(self.state, name)}
            log.warning("jobs of unknown attempts run=%s jobs=%s still_unknown=%d", self.folder.name, sorted(strangers), len(self._strangers))

    def _ended_or_vanished(self, story: Story, jobs: dict[str, Job]) -> bool:
        running = story.running
        if running is None:
            return True
        job = jobs.get(running.job)
        return job.status is JobStatus.ENDED if job else running.job in self._seen or running.executor == CONTROLLER

    def _read_evaluations(self, story: Story, view: plan.View) -> None:
        for attempt in range(len(story.attempts)):
            place = (story.candidate.index, attempt)
            try:
                found = self.folder.evaluation(*place)
            except BadRecord as error:
                if place not in view.invalid:
                    log.warning("evaluation is not valid run=%s candidate=%d attempt=%d error=%s", self.folder.name, *place, error)
                view.invalid.add(place)
            else:
                if found is not None:
                    view.evaluations[place] = found

    # -- acting: the record first, then its effect

    def _act(self, action: plan.Action, view: plan.View) -> None:
        self.beat = self.clock.monotonic()
        if self.beat - self._looked > LOOK_SECONDS:
            self._look()
        match action:
            case plan.Accept():
                self._accept(action, view)
            case plan.GiveUp():
                self._give_up(action, view)
            case plan.EndAttempt():
                self._end(action, view)
            case plan.Dispatch():
                self._dispatch(action, view)
            case plan.Start():
                self._start(self.state.stories[action.candidate].attempts[action.attempt], view)
            case plan.Answer():
                self._answer(self.state.stories[action.candidate], action.attempt, view)
            case plan.Propose():
                self._propose(action.index, view)
            case plan.Cancel():
                self._cancelled.append(action.job)
                if len(self._cancelled) >= self._batch:
                    self._ask(view)

    def _stamp(self) -> Stamp:
        return Stamp(self._claim, self.clock.now(), len(self.state.history), len(self.state.requests))

    def _write(self, key: str, record: Record) -> str:
        return self.folder.create(key, record)

    def _record_outcome(
        self, story: Story, attempt: int, kind: OutcomeKind, fitness: float | None, held: float, gpus: int, digest: str | None, node: str | None
    ) -> None:
        number = len(self.state.history)
        outcome = Outcome(number, story.candidate.index, attempt, kind, fitness, held, held * gpus, digest, self.state.last_digest, self._stamp(), node)
        self.state.outcome(outcome, self._write(history_key(number), outcome))
        log.info(
            "outcome run=%s candidate=%d attempt=%d outcome=%s fitness=%s",
            self.folder.name, story.candidate.index, attempt, kind.value, fitness,
        )  # fmt: skip

    def _accept(self, action: plan.Accept, view: plan.View) -> None:
        story = self.state.stories[action.candidate]
        attempt = story.attempts[action.attempt]
        kind, fitness, seconds = _result(action.evaluation)
        ran = view.jobs.get(attempt.job) or story.ends.get(action.attempt)
        held, node = (ran.held_seconds, ran.node) if ran is not None else (seconds, None)
        self._record_outcome(story, action.attempt, kind, fitness, held, attempt.resources.gpus, action.digest, node)
        self._accepted = True

    def _give_up(self, action: plan.GiveUp, view: plan.View) -> None:
        story = self.state.stories[action.candidate]
        self._read_evaluations(story, view)  # the last look before a candidate counts as lost
        if plan.accepted(story, view) is None:
            last = story.attempts[-1]
            end = story.ends[last.attempt]
            self._record_outcome(story, last.attempt, action.outcome, None, end.held_seconds, last.resources.gpus, None, end.node)

    def _end(self, action: plan.EndAttempt, view: plan.View) -> None:
        story = self.state.stories[action.candidate]
        attempt = story.attempts[action.attempt]
        job = view.jobs.get(attempt.job) or self._vanished(attempt.job)
        end = End(
            action.candidate, action.attempt, action.reason, job.message or _TOLD.get(action.reason, ""), job.exit_code, job.node,
            job.held_seconds, job.held_seconds * attempt.resources.gpus, job.log, self._stamp(),
        )  # fmt: skip
        self._write(end_key(action.candidate, action.attempt), end)
        self.state.end(end)
        self._rest(story)
        log.info("attempt ended run=%s candidate=%d attempt=%d reason=%s", self.folder.name, action.candidate, action.attempt, action.reason.value)

    def _vanished(self, name: str) -> Job:
        last = self._last.get(name, Job(name, JobStatus.ENDED))
        return Job(name, JobStatus.ENDED, node=last.node, held_seconds=last.held_seconds)

    def _rest(self, story: Story) -> None:
        """Let a candidate wait whose last attempt failed a moment ago. After a restart the rest of the time, as far as clocks agree."""
        pause = trouble.pause_seconds(story)
        if pause > 0:
            ago = self.clock.now() - story.ends[len(story.attempts) - 1].stamp.at
            self._rests[story.candidate.index] = self.clock.monotonic() + min(pause, max(0.0, pause - ago))

    def _refresh(self, view: plan.View) -> None:
        """What failed up to now, where the next stage is planned: who rests, which nodes are avoided. This machine cannot avoid itself."""
        now = self.clock.monotonic()
        self._rests = {index: until for index, until in self._rests.items() if now < until}
        view.resting = frozenset(self._rests)
        if self.executor.survives:
            running = {job.node for job in view.jobs.values() if job.node is not None and job.status is JobStatus.RUNNING}
            view.avoided = trouble.avoided(self.state, running, self.clock.now())

    def _dispatch(self, action: plan.Dispatch, view: plan.View) -> None:
        story = self.state.stories[action.candidate]
        number = len(story.attempts)
        answered = answer.answer(self.state, self._networks, story.candidate, number) is not None
        attempt = Attempt(
            action.candidate, number, action.why, CONTROLLER if answered else self.executor.name,
            job_name(self.folder.name, action.candidate, number), self.resources,
            action.rejected, self.state.open_attempts, self._stamp(), action.avoid,
        )  # fmt: skip
        self._write(attempt_key(action.candidate, number), attempt)
        self.state.attempt(attempt)
        if answered:
            self._answer(story, number, view)
        else:
            self._start(attempt, view)

    def _start(self, attempt: Attempt, view: plan.View) -> None:
        if view.refused:
            return  # one probe is enough: the attempt stays open, and its job is created later
        digest = self.folder.digest(attempt_key(attempt.candidate, attempt.attempt), attempt)
        before = trouble.failed_on(self.state.stories[attempt.candidate], attempt.attempt)
        spec = JobSpec(attempt.job, self.folder.name, attempt.candidate, attempt.attempt, attempt.resources, digest, attempt.avoid, before)
        self._asked.append(spec)
        if self._refusals or len(self._asked) >= self._batch:  # after a refusal one job is tried before any other
            self._ask(view)

    @property
    def _batch(self) -> int:
        """How many jobs are created or deleted at a time: some for each of an executor's connections; where it has one, each is begun once it is decided."""
        return 1 if self.executor.parallel == 1 else 4 * self.executor.parallel

    def _ask(self, view: plan.View) -> None:
        """Create and delete the jobs that were decided on, as many at the same time as the executor takes."""
        specs, self._asked = self._asked, []
        names, self._cancelled = self._cancelled, []
        for spec, refusal in zip(specs, at_once(self._try, specs, self.executor.parallel), strict=True):
            if refusal is None:
                self._started(spec, view)
            elif not view.refused:
                self._refused(spec, refusal, view)
        for name, _ in zip(names, at_once(self._delete, names, self.executor.parallel), strict=True):
            view.jobs.pop(name, None)

    def _try(self, spec: JobSpec) -> Refused | ExecutorUnavailable | None:
        """Create a job. One that is not answered (a webhook that hangs) is no reason to leave the rest of the round undone: it waits like one that is refused."""
        try:
            self.executor.start(spec)
        except (Refused, ExecutorUnavailable) as refusal:
            return refusal
        finally:
            self.beat = self.clock.monotonic()
        return None

    def _delete(self, name: str) -> None:
        self.executor.delete(name)
        self.beat = self.clock.monotonic()

    def _started(self, spec: JobSpec, view: plan.View) -> None:
        if not view.refused:
            self.refusal, self._refusals = None, 0
        if self._accepted:
            self.latencies.append(self.clock.monotonic() - self._observed)
        view.jobs[spec.name] = Job(spec.name, JobStatus.PENDING)

    def _refused(self, spec: JobSpec, refusal: Refused | ExecutorUnavailable, view: plan.View) -> None:
        self.refusal, view.refused = str(refusal), True
        self._refusals += 1
        self._probe_at = self.clock.monotonic() + self._back_off(1.0, self._refusals)
        log.warning("job not created run=%s job=%s reason=%s", self.folder.name, spec.name, refusal)
        self._tell(REFUSED, f"job {spec.name} cannot be created: {refusal}")

    def _answer(self, story: Story, attempt: int, view: plan.View) -> None:
        evaluation = answer.answer(self.state, self._networks, story.candidate, attempt)
        key = evaluation_key(story.candidate.index, attempt)
        if evaluation is not None:
            try:
                self._write(key, evaluation)
            except SlotTaken:
                log.info("answered before run=%s key=%s", self.folder.name, key)
        self._read_evaluations(story, view)

    def _propose(self, index: int, view: plan.View) -> None:
        candidate = derive_candidate(self.folder.run, self.state.past, index)
        if candidate is None:
            view.waits = True
        elif not view.waits:
            self._write(candidate_key(index), candidate)
            self.state.candidate(candidate)

    def _finish(self, reason: ReleaseReason) -> bool:
        """Release, unless a person has asked for something meanwhile."""
        while self.folder.keep(self.state):  # whoever looks at the run later reads few objects
            pass
        if self._new_requests():
            return False
        self._release(reason)
        return True

    def _release(self, reason: ReleaseReason) -> None:
        release = Release(reason, self._stamp())
        self._write(controller_key(self._slot + 1), release)
        self.state.claim_or_release(release)
        log.info("released run=%s reason=%s", self.folder.name, reason.value)


def _same_lease(last: Claim, place: Place) -> bool:
    """Whether both are pods under one Lease, thus of one run on one cluster, though the cluster's certificates changed in between."""
    here, there = (one.partition("/")[0] for one in (place.incarnation, last.incarnation))
    return here == there and namespace_of(last.owner) is not None and namespace_of(place.owner) is not None


def _result(evaluation: Evaluation) -> tuple[OutcomeKind, float | None, float]:
    """Outcome, fitness and seconds of an evaluation."""
    if isinstance(evaluation, Failure):
        return OutcomeKind(evaluation.failure.value), None, evaluation.total_seconds
    if isinstance(evaluation, Reused):
        return OutcomeKind.REUSED, evaluation.fitness, 0.0
    return OutcomeKind.EVALUATED, evaluation.fitness, evaluation.total_seconds
