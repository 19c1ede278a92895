"""What a run's records add up to: a fold, record by record, kept so that each step costs the same however long the run.

It holds no decision of its own. A record that contradicts what was folded before raises Inconsistent:
the caller says which object that was and stops; nothing is skipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from search.evolution import Past, Scored, propose
from search.genotype import Genotype
from search.limits import Desire, Limits
from search.records import (
    CONTROLLER,
    PLATFORM,
    Attempt,
    Candidate,
    Claim,
    End,
    EndReason,
    Hierarchical,
    Moved,
    Outcome,
    OutcomeKind,
    Release,
    Request,
    Run,
    Stamp,
)
from search.stream import derive


class Inconsistent(ValueError):
    """A record does not fit those before it."""


def derive_candidate(run: Run, past: Past, index: int) -> Candidate | None:
    """Candidate `index` bred from `past`, or None (wait). `hiernas verify` calls this for every candidate."""
    proposal = propose(run.space, run.model, run.strategy, run.seed, past, index)
    if proposal is None:
        return None
    work = Hierarchical(proposal.genotype.to_text())
    return Candidate(index, work, proposal.parent, proposal.change, past.accepted, derive(run.seed, "training", index))


@dataclass(slots=True)
class Story:
    """One candidate with everything recorded about it."""

    candidate: Candidate
    attempts: list[Attempt] = field(default_factory=list)
    ends: dict[int, End] = field(default_factory=dict)
    outcome: Outcome | None = None

    def is_open(self, attempt: int) -> bool:
        """An attempt is open until it has an end or is the accepted one."""
        return attempt not in self.ends and not (self.outcome and self.outcome.attempt == attempt)

    @property
    def running(self) -> Attempt | None:
        """The one attempt that is open (attempt k+1 is written only after end k)."""
        return self.attempts[-1] if self.attempts and self.is_open(len(self.attempts) - 1) else None

    @property
    def rejected(self) -> set[int]:
        """Attempts whose evaluations a later attempt named as not valid."""
        return {number for attempt in self.attempts for number in attempt.rejected}


@dataclass(slots=True)
class Totals:
    """Sums over the history and the ends, kept as they come."""

    outcomes: dict[OutcomeKind, int] = field(default_factory=dict)
    ends: dict[EndReason, int] = field(default_factory=dict)
    held_seconds: float = 0.0
    gpu_seconds: float = 0.0
    useful_gpu_seconds: float = 0.0
    """Of outcomes with a fitness."""
    failed_gpu_seconds: float = 0.0
    """Of the other outcomes."""
    bugs_since_resume: int = 0

    @property
    def failed(self) -> int:
        """Outcomes without a fitness."""
        good = (OutcomeKind.EVALUATED, OutcomeKind.REUSED)
        return sum(count for kind, count in self.outcomes.items() if kind not in good)


@dataclass(slots=True)
class State:
    """The fold of a run's records."""

    run: Run
    controllers: list[Claim | Release] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    stories: list[Story] = field(default_factory=list)
    history: list[Outcome] = field(default_factory=list)
    last_digest: str | None = None
    """SHA-256 of the last outcome's bytes."""
    moved: Moved | None = None
    """Where the run goes on: nothing is decided here any more."""
    past: Past = field(default_factory=Past)
    unfinished: dict[int, Story] = field(default_factory=dict)
    """Candidates without an outcome, or with an attempt that is open: all that needs looking at."""
    dispatched: set[int] = field(default_factory=set)
    """Those with an open attempt that is not the controller's own."""
    totals: Totals = field(default_factory=Totals)
    best: Outcome | None = None
    desire: Desire = Desire.RUN
    resumed_at: int = 0
    """Requests up to and including the last that said RUN."""
    limits: Limits | None = None
    """None before the first claim."""
    troubles: dict[tuple[int, int], tuple[Attempt, End]] = field(default_factory=dict)
    """Attempts that the platform failed, by candidate and attempt."""
    failures: dict[tuple[int, int], tuple[Attempt, Stamp]] = field(default_factory=dict)
    """Those of them since a worker's evaluation was last accepted, and candidates out of memory since; with the stamps of their ends."""
    well: dict[str, Outcome] = field(default_factory=dict)
    """The last outcome that came of a worker's evaluation from each node."""
    good_after: int = 0
    """Length of the history with the last accepted evaluation of a worker."""

    @property
    def last_claim(self) -> Claim | None:
        """The latest claim; whoever made it may have released the run since."""
        return next((record for record in reversed(self.controllers) if isinstance(record, Claim)), None)

    @property
    def charge(self) -> Claim | None:
        """The claim of who is in charge; None where nobody has claimed, or the last one has released the run."""
        last = self.controllers[-1] if self.controllers else None
        return last if isinstance(last, Claim) else None

    @property
    def in_flight(self) -> int:
        """Candidates without an outcome."""
        return len(self.stories) - len(self.history)

    @property
    def open_attempts(self) -> int:
        """Attempts that are open; those that the controller answers itself do not count as work in flight."""
        return len(self.dispatched)

    @property
    def dispatched_attempts(self) -> Iterator[Attempt]:
        """The attempts that are open and not the controller's own."""
        return (attempt for index in self.dispatched if (attempt := self.stories[index].running) is not None)

    def claim_or_release(self, record: Claim | Release) -> None:
        """Fold the next of `controllers/`."""
        self.controllers.append(record)
        if isinstance(record, Claim) and self.limits is None:
            self.limits = record.limits
            for request in self.requests:
                self.limits = self.limits.changed(request.changes)

    def request(self, record: Request) -> None:
        """Fold the next of `control/`."""
        self.requests.append(record)
        if self.limits is not None:
            self.limits = self.limits.changed(record.changes)
        if record.desire is not None:
            self.desire = record.desire
            if record.desire is Desire.RUN:
                self.resumed_at = len(self.requests)
                self.totals.bugs_since_resume = 0

    def candidate(self, record: Candidate) -> None:
        """Fold the next of `candidates/`."""
        if record.index != len(self.stories):
            raise Inconsistent(f"candidate {record.index} where {len(self.stories)} was due")
        story = Story(record)
        self.stories.append(story)
        self.unfinished[record.index] = story
        self.past.genotypes.append(Genotype.from_text(record.work.genotype))

    def attempt(self, record: Attempt) -> None:
        """Fold an attempt; those of one candidate come in order, each after the end of the one before."""
        story = self._story(record.candidate, "attempt")
        if record.attempt != len(story.attempts):
            raise Inconsistent(f"attempt {record.attempt} of candidate {record.candidate} where {len(story.attempts)} was due")
        story.attempts.append(record)
        self._settle(story)

    def end(self, record: End) -> None:
        """Fold an end."""
        story = self._story(record.candidate, "end")
        if record.attempt >= len(story.attempts):
            raise Inconsistent(f"end of attempt {record.attempt} of candidate {record.candidate}, which was never made")
        story.ends[record.attempt] = record
        self.totals.ends[record.reason] = self.totals.ends.get(record.reason, 0) + 1
        if not (story.outcome and story.outcome.attempt == record.attempt):
            self._spend(record.held_seconds, record.gpu_seconds)
        if record.reason in PLATFORM:
            self.troubles[record.candidate, record.attempt] = story.attempts[record.attempt], record
            self._fail(story.attempts[record.attempt], record.stamp)
        self._settle(story)

    def outcome(self, record: Outcome, digest: str) -> None:
        """Fold the next of `history/`, whose bytes have this SHA-256."""
        story = self._story(record.candidate, "outcome")
        self._follow(record)
        if story.outcome is not None:
            raise Inconsistent(f"outcome {record.number} is a second one for candidate {record.candidate} (first: {story.outcome.number})")
        if record.attempt >= len(story.attempts):
            raise Inconsistent(f"outcome {record.number} accepts attempt {record.attempt} of candidate {record.candidate}, which was never made")
        story.outcome = record
        self.history.append(record)
        self.last_digest = digest
        self.past.accepted = len(self.history)
        self._count(story, record)
        self._settle(story)

    def move(self, record: Moved) -> None:
        """Fold the last of `history/`."""
        self._follow(record)
        self.moved = record

    def _follow(self, record: Outcome | Moved) -> None:
        """Check that it is the next of `history/`."""
        if self.moved is not None:
            raise Inconsistent(f"entry {record.number} follows entry {self.moved.number}, with which the run was moved to {self.moved.to}")
        if record.number != len(self.history):
            raise Inconsistent(f"outcome {record.number} where {len(self.history)} was due")
        if record.previous != self.last_digest:
            raise Inconsistent(
                f"outcome {record.number} follows one with digest {record.previous}, the one before it has {self.last_digest}: one of the two was changed"
            )

    def _count(self, story: Story, record: Outcome) -> None:
        self.totals.outcomes[record.outcome] = self.totals.outcomes.get(record.outcome, 0) + 1
        if record.outcome is OutcomeKind.BUG and record.stamp.control >= self.resumed_at:
            self.totals.bugs_since_resume += 1
        if record.evaluation is None:
            if record.outcome is OutcomeKind.OUT_OF_MEMORY:
                self._fail(story.attempts[record.attempt], record.stamp)
        elif story.attempts[record.attempt].executor != CONTROLLER:
            self.good_after = len(self.history)
            self.failures = {place: one for place, one in self.failures.items() if one[1].after >= self.good_after}
            if record.node is not None:
                self.well[record.node] = record
        ended = story.ends.get(record.attempt)
        if ended is not None:  # history's figure replaces the end's
            self._spend(-ended.held_seconds, -ended.gpu_seconds)
        self._spend(record.held_seconds, record.gpu_seconds)
        if record.fitness is None:
            self.totals.failed_gpu_seconds += record.gpu_seconds
        else:
            self.totals.useful_gpu_seconds += record.gpu_seconds
            self.past.population.append(Scored(record.candidate, record.fitness))
            if self.best is None or self.best.fitness is None or record.fitness > self.best.fitness:
                self.best = record

    def _fail(self, attempt: Attempt, stamp: Stamp) -> None:
        """Note a failure, unless an evaluation has come after it: records may be folded in another order than they were written."""
        if stamp.after >= self.good_after:
            self.failures[attempt.candidate, attempt.attempt] = attempt, stamp

    def _spend(self, held_seconds: float, gpu_seconds: float) -> None:
        self.totals.held_seconds += held_seconds
        self.totals.gpu_seconds += gpu_seconds

    def _story(self, index: int, what: str) -> Story:
        if not 0 <= index < len(self.stories):
            raise Inconsistent(f"{what} of candidate {index}, which was never proposed")
        return self.stories[index]

    def _settle(self, story: Story) -> None:
        if story.outcome is not None and story.running is None:
            self.unfinished.pop(story.candidate.index, None)
        else:
            self.unfinished[story.candidate.index] = story
        if story.running is not None and story.running.executor != CONTROLLER:
            self.dispatched.add(story.candidate.index)
        else:
            self.dispatched.discard(story.candidate.index)
