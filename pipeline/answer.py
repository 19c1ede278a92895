"""What needs no training: candidates that cannot be built, are over a limit, or whose network was evaluated before."""

from dataclasses import dataclass, field

from search.cost import cost
from search.evolution import Evolution, RandomSearch
from search.genotype import Genotype
from search.graph import Graph, Unbuildable, assemble, check_buildable
from search.records import Candidate, Constraints, Failure, FailureKind, OutcomeKind, Reused, Run
from search.state import State


@dataclass(slots=True)
class Networks:
    """Digest of each network with a result of its own → the first candidate that has it. Grows with the history."""

    read: int = 0
    first: dict[str, int] = field(default_factory=dict)
    open: dict[int, str] = field(default_factory=dict)
    """Digests of candidates without an outcome that can be built and keep the constraints: so that each network is assembled once."""

    def update(self, state: State) -> None:
        """Take in the outcomes accepted since the last call."""
        for outcome in state.history[self.read :]:
            digest = self.open.pop(outcome.candidate, None)
            if outcome.outcome is OutcomeKind.EVALUATED:
                self.first.setdefault(digest or network(state.run, state.stories[outcome.candidate].candidate).digest, outcome.candidate)
        self.read = len(state.history)


def network(run: Run, candidate: Candidate) -> Graph:
    """The candidate's assembled network; Unbuildable when there is none."""
    return assemble(run.space, Genotype.from_text(candidate.work.genotype), run.model)


def answer(state: State, networks: Networks, candidate: Candidate, attempt: int) -> Failure | Reused | None:
    """The evaluation of a candidate that needs no training; None when it must be trained."""
    run = state.run
    reuse = isinstance(run.strategy, (Evolution, RandomSearch)) and run.strategy.reuse
    if candidate.index not in networks.open:
        try:
            if not reuse and run.constraints == Constraints():
                check_buildable(state.past.genotypes[candidate.index])  # all that is asked: a fraction of what assembling costs
                return None
            graph = assemble(run.space, state.past.genotypes[candidate.index], run.model)
        except Unbuildable as error:
            return Failure(candidate.index, attempt, FailureKind.UNBUILDABLE, str(error), 0.0, None)
        over = over_limit(graph, run.constraints, run.recipe.batch)
        if over is not None:
            return Failure(candidate.index, attempt, FailureKind.OVER_LIMIT, over, 0.0, None)
        if not reuse:
            return None
        networks.open[candidate.index] = graph.digest
    networks.update(state)
    source = networks.first.get(networks.open[candidate.index])
    return None if source is None else _reused(state, candidate, attempt, source)


def _reused(state: State, candidate: Candidate, attempt: int, source: int) -> Reused:
    outcome = state.stories[source].outcome
    assert outcome is not None
    assert outcome.fitness is not None
    return Reused(candidate.index, attempt, outcome.fitness, source)


def over_limit(graph: Graph, constraints: Constraints, batch: int) -> str | None:
    """Which constraint the network breaks, in words; None when it keeps them all."""
    if constraints == Constraints():
        return None
    found = cost(graph, batch)
    for name in ("parameters", "multiply_adds", "memory_bytes"):
        limit, value = getattr(constraints, name), getattr(found, name)
        if limit is not None and value > limit:
            return f"{name} is {value}, the limit is {limit}"
    return None
