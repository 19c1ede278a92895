"""What to do next: a pure function of the state and what was just observed. No store, no executor, no clock.

`plan` returns one stage at a time, most urgent first; the controller acts on it and asks again, so that each decision
is made knowing the ones before: (1) settle what ended, (2) give up, dispatch, start, answer, (3) breed, (4) clean up, finish.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.executor import Job, JobStatus, Waiting, job_name
from pipeline.trouble import halted
from search.limits import Desire, Limits
from search.records import (
    CONTROLLER,
    DISRUPTIONS,
    FREE,
    Attempt,
    EndReason,
    Evaluation,
    OutcomeKind,
    ReleaseReason,
    Resources,
    Why,
)
from search.state import State, Story

CURABLE = frozenset({Waiting.UNSCHEDULABLE, Waiting.QUOTA, Waiting.ADMISSION, Waiting.IMAGE, Waiting.POD})
"""Reasons to wait that another config may cure."""
RAMP = 16
"""Jobs that may wait in a cluster where fewer run."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Take an attempt's evaluation as the candidate's outcome."""

    candidate: int
    attempt: int
    evaluation: Evaluation
    digest: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The candidate has used up its attempts: an outcome without an evaluation."""

    candidate: int
    outcome: OutcomeKind


@dataclass(frozen=True, slots=True)
class EndAttempt:
    """Record how an open attempt ended."""

    candidate: int
    attempt: int
    reason: EndReason


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Decide on a new attempt, then start its job."""

    candidate: int
    why: Why
    rejected: tuple[int, ...]
    avoid: tuple[str, ...]
    """Nodes."""


@dataclass(frozen=True, slots=True)
class Start:
    """Create the job of an open attempt that has none (again)."""

    candidate: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Answer:
    """Write the evaluation of an attempt that the controller answers itself."""

    candidate: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Propose:
    """Breed the next candidate."""

    index: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """Delete a job whose attempt is concluded."""

    job: str


@dataclass(frozen=True, slots=True)
class Finish:
    """Give up the charge: nothing is left to do."""

    reason: ReleaseReason


Action = Accept | GiveUp | EndAttempt | Dispatch | Start | Answer | Propose | Cancel | Finish


@dataclass(slots=True)
class View:
    """What a controller sees at one moment."""

    controller: str
    """Its own id."""
    executor: str
    survives: bool
    """Whether this executor's attempts outlive a controller."""
    jobs: dict[str, Job]
    seen: set[str]
    """Jobs this controller has seen in a list."""
    evaluations: dict[tuple[int, int], tuple[Evaluation, str]] = field(default_factory=dict)
    """Valid evaluations found this round, with the SHA-256 of their bytes."""
    invalid: set[tuple[int, int]] = field(default_factory=set)
    """Attempts whose evaluation is not valid."""
    interrupted: bool = False
    """Ctrl-C: start nothing, let what runs finish."""
    now: bool = False
    """Ctrl-C again: end what runs."""
    resources: Resources | None = None
    """What a new attempt gets; None: not looked at."""
    refused: bool = False
    """The executor refused a job a moment ago: no more are tried for now."""
    waits: bool = False
    """The strategy waits for an outcome before it breeds again."""
    resting: frozenset[int] = frozenset()
    """Candidates whose last attempt failed a moment ago."""
    avoided: tuple[str, ...] = ()
    """Nodes on which no new attempt may run."""


def limits_of(state: State) -> Limits:
    """The limits in force; a controller has claimed, so there are some."""
    assert state.limits is not None
    return state.limits


def gpu_seconds(state: State, view: View) -> float:
    """GPU-seconds recorded, and held by what runs."""
    running = sum(
        view.jobs[attempt.job].held_seconds * attempt.resources.gpus
        for story in state.unfinished.values()
        if (attempt := story.running) and attempt.job in view.jobs
    )
    return state.totals.gpu_seconds + running


def holds(state: State, spent_gpu_seconds: float) -> str | None:
    """Why nothing new is started, in one word; None when nothing holds it."""
    limits = state.limits
    if limits is None:
        return None
    if state.desire in (Desire.STOP, Desire.STOP_NOW):
        return "stopped"
    if halted(state, limits):
        return "halted"
    if state.desire is Desire.PAUSE:
        return "paused"
    if limits.max_gpu_hours is not None and spent_gpu_seconds >= limits.max_gpu_hours * 3600:
        return "budget"
    return None


def plan(state: State, view: View) -> list[Action]:
    """The next stage's actions; an empty list means: wait."""
    return list(_settle(state, view)) or list(_work(state, view)) or list(_breed(state, view)) or list(_clean(state, view)) or list(_finish(state, view))


def accepted(story: Story, view: View) -> tuple[int, Evaluation, str] | None:
    """The first valid evaluation of any attempt of the candidate that was not rejected before."""
    for attempt in range(len(story.attempts)):
        found = view.evaluations.get((story.candidate.index, attempt))
        if found is not None and attempt not in story.rejected:
            return attempt, *found
    return None


def _settle(state: State, view: View) -> Iterator[Action]:
    now = view.now or state.desire is Desire.STOP_NOW
    over = view.interrupted or holds(state, 0.0) in ("stopped", "halted")
    for index, story in sorted(state.unfinished.items()):
        found = accepted(story, view) if story.outcome is None else None
        if found is not None:
            yield Accept(index, *found)
        elif (running := story.running) is not None:
            reason = EndReason.SUPERSEDED if story.outcome is not None else _ended(running, view)
            job = view.jobs.get(running.job)
            begun = job is not None and job.status is not JobStatus.PENDING  # else it waits, or was refused until now
            if reason is None and (now or (over and not begun)) and running.executor != CONTROLLER:
                reason = EndReason.STOPPED
            if reason is not None:
                yield EndAttempt(index, running.attempt, reason)


def _ended(attempt: Attempt, view: View) -> EndReason | None:
    """How an open attempt without a valid evaluation ended, or None: it goes on."""
    if attempt.executor == CONTROLLER:
        # Its evaluation is the controller's own work: missing, it is written again; not valid, nothing will mend it but a new attempt.
        return EndReason.REJECTED if (attempt.candidate, attempt.attempt) in view.invalid else None
    if attempt.executor != view.executor:
        return EndReason.HANDED_OVER
    if not view.survives and attempt.stamp.controller != view.controller:
        return EndReason.CONTROLLER_LOST
    job = view.jobs.get(attempt.job)
    other = view.resources is not None and attempt.resources != view.resources
    if job is None:
        # One that this controller has never seen, of an earlier one with other resources, may have been refused for them.
        return EndReason.GONE if attempt.job in view.seen else EndReason.STOPPED if view.survives and other else None
    if job.status is not JobStatus.ENDED:
        # What waits for settings or resources that a person has corrected since gives way to an attempt with the new ones;
        # and what waits for another node than those it avoids, to one that avoids no more than there is reason to.
        stale = job.waits is Waiting.UNSCHEDULABLE and not set(attempt.avoid) <= set(view.avoided)
        return EndReason.STOPPED if job.status is JobStatus.PENDING and job.waits in CURABLE and (job.outdated or other or stale) else None
    if (attempt.candidate, attempt.attempt) in view.invalid:
        return EndReason.REJECTED
    if job.reason is not None:
        return job.reason
    return {0: EndReason.EMPTY, 5: EndReason.MACHINE}.get(job.exit_code or 0, EndReason.KILLED)


def given_up(story: Story, limits: Limits) -> OutcomeKind | None:
    """The outcome of a candidate that has used up its attempts (DESIGN: whose fault), None while it may be tried again."""
    reasons = [end.reason for end in story.ends.values() if end.reason not in FREE]
    memory = reasons.count(EndReason.MEMORY)
    disruptions = sum(reason in DISRUPTIONS for reason in reasons)
    if memory >= 2:
        return OutcomeKind.OUT_OF_MEMORY
    if disruptions > limits.max_disruptions or len(reasons) - disruptions - memory >= limits.max_attempts:
        return OutcomeKind.LOST
    return None


def _most_pending(limits: Limits, view: View) -> int | None:
    """How many jobs may wait for a place; None: no bound. Unless a person says otherwise, a cluster is asked for no more than it has shown to have.

    So a search ramps up, doubling what runs, instead of throwing hundreds of pods at a registry and a store at once; and a
    cluster that is full, or still adds nodes, sees demand all the same.
    """
    if limits.max_pending is not None or not view.survives:
        return limits.max_pending
    return max(RAMP, sum(job.status is JobStatus.RUNNING for job in view.jobs.values()))


def _pending(state: State, view: View) -> int:
    """Open attempts that wait for a place: those whose job waits, and those whose job could not be created yet."""
    jobs = (view.jobs.get(attempt.job) for attempt in state.dispatched_attempts)
    return sum(job is None or job.status is JobStatus.PENDING for job in jobs)


def _work(state: State, view: View) -> Iterator[Action]:
    limits = limits_of(state)
    held = view.interrupted or view.now or holds(state, gpu_seconds(state, view)) is not None
    room = 0 if view.refused else limits.workers - state.open_attempts
    most = _most_pending(limits, view)
    if most is not None:
        room = min(room, most - _pending(state, view))
    for index, story in sorted(state.unfinished.items()):
        running = story.running
        if running is not None and running.executor == CONTROLLER:
            yield Answer(index, running.attempt)
        elif running is not None and running.job not in view.jobs and not (held or view.refused):
            yield Start(index, running.attempt)
        elif running is None and (outcome := given_up(story, limits)) is not None:
            yield GiveUp(index, outcome)
        elif running is None and not held and room > 0 and index not in view.resting:
            room -= 1
            rejected = tuple(sorted(at for candidate, at in view.invalid if candidate == index and at not in story.rejected))
            yield Dispatch(index, Why.RETRY if story.attempts else Why.FIRST, rejected, view.avoided)


def _breed(state: State, view: View) -> Iterator[Action]:
    limits = limits_of(state)
    if view.waits or view.interrupted or view.now or holds(state, gpu_seconds(state, view)) is not None:
        return
    proposed = len(state.stories)
    # What may not start holds back breeding too, so that candidates come from a fresh population.
    waiting = state.in_flight - state.open_attempts
    most = _most_pending(limits, view)
    room = limits.workers - state.in_flight
    if most is not None:
        room = min(room, most - waiting)
    for index in range(proposed, min(limits.max_evaluations, proposed + room)):
        yield Propose(index)


def _clean(state: State, view: View) -> Iterator[Action]:
    running = {attempt.job for story in state.unfinished.values() if (attempt := story.running)}
    for name in sorted(view.jobs):
        if name not in running and known(state, name):
            yield Cancel(name)


def known(state: State, name: str) -> bool:
    """Whether an attempt of ours has this job: a job is never deleted because it is unknown."""
    head, _, attempt = name.rpartition("-a")
    _, _, candidate = head.rpartition("-c")
    if not (candidate.isdigit() and attempt.isdigit() and int(candidate) < len(state.stories)):
        return False
    attempts = state.stories[int(candidate)].attempts
    return int(attempt) < len(attempts) and name == job_name(state.run.name, int(candidate), int(attempt))


def _finish(state: State, view: View) -> Iterator[Action]:
    if any(known(state, name) for name in view.jobs) or any(story.running for story in state.unfinished.values()):
        return
    hold = holds(state, gpu_seconds(state, view))
    if len(state.stories) >= limits_of(state).max_evaluations and not state.unfinished:
        yield Finish(ReleaseReason.FINISHED)
    elif hold == "stopped":
        yield Finish(ReleaseReason.STOPPED)
    elif hold == "halted":
        yield Finish(ReleaseReason.HALTED)
    elif view.interrupted or view.now:
        yield Finish(ReleaseReason.INTERRUPTED)
