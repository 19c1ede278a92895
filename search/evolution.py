"""Who is bred from whom: asynchronous tournament selection (Liu et al. 2018, section 3, algorithm 1) and random search.

Pure: a candidate is a function of (run, accepted history, index). It knows nothing of attempts, workers or time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Discriminator

from search import mutation
from search.genotype import Genotype
from search.graph import Model, Unbuildable, assemble
from search.mutation import Change
from search.space import Space
from search.stream import Stream

REDRAWS = 1000
"""How often an unwanted draw is repeated before it is taken as it is (a bound against an endless loop)."""


MAX_INITIAL_MUTATIONS = 100_000
"""A bound on what a controller does before its first candidate: a second or so."""


def _check_mutations(count: int) -> None:
    if not 0 <= count <= MAX_INITIAL_MUTATIONS:
        raise ValueError(f"initial_mutations is {count}; allowed: 0 to {MAX_INITIAL_MUTATIONS}")


@dataclass(frozen=True, slots=True)
class Evolution:
    """Asynchronous evolution: `initial` random genotypes, then mutants of tournament winners."""

    initial: int = 200
    initial_mutations: int = 1000
    tournament_percent: int = 5
    redraw_unchanged: bool = False
    """U3: draw again until the assembled network changes. The paper does not."""
    reuse: bool = False
    """U7: answer an identical network with the earlier result. The paper evaluates again."""
    kind: Literal["evolution"] = "evolution"

    def __post_init__(self) -> None:
        if self.initial < 1:
            raise ValueError(f"initial is {self.initial}; allowed: 1 or more")
        _check_mutations(self.initial_mutations)
        if not 1 <= self.tournament_percent <= 100:
            raise ValueError(f"tournament_percent is {self.tournament_percent}; allowed: 1 to 100")


@dataclass(frozen=True, slots=True)
class RandomSearch:
    """Random search: every genotype drawn by the initialisation, same fitness, best returned."""

    initial_mutations: int = 1000
    reuse: bool = False
    kind: Literal["random"] = "random"

    def __post_init__(self) -> None:
        _check_mutations(self.initial_mutations)


Strategy = Annotated[Evolution | RandomSearch, Discriminator("kind")]


@dataclass(frozen=True, slots=True)
class Scored:
    """A member of the population: an outcome that has a fitness."""

    candidate: int
    fitness: float

    def __post_init__(self) -> None:
        if not self.fitness == self.fitness:
            raise ValueError(f"candidate {self.candidate} has no fitness (NaN): it must not enter the population")


@dataclass(slots=True)
class Past:
    """What breeding may look at. `genotypes` of all earlier candidates; the population in the order of its acceptance."""

    accepted: int = 0
    """Length of the history (`after`), outcomes without fitness included."""
    genotypes: list[Genotype] = field(default_factory=list)
    population: list[Scored] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Proposal:
    """A genotype with where it comes from."""

    genotype: Genotype
    parent: int | None
    change: Change | None


def tournament_size(population: int, percent: int = 5) -> int:
    """U5: max(1, (n + 10) // 20) at the paper's 5 %, that is n·percent/100 rounded half up."""
    return max(1, (population * percent + 50) // 100)


def select(population: Sequence[Scored], percent: int, stream: Stream) -> Scored:
    """The fittest of a random sample without replacement; ties at random (U5)."""
    sample = [population[at] for at in stream.sample(len(population), tournament_size(len(population), percent))]
    best = max(member.fitness for member in sample)
    winners = [member for member in sample if member.fitness == best]
    return winners[stream.below(len(winners))] if len(winners) > 1 else winners[0]


def propose(space: Space, model: Model, strategy: Strategy, seed: int, past: Past, index: int) -> Proposal | None:
    """Candidate `index`, or None: wait for an outcome.

    U6: evolution starts once all initial genotypes are handed out. U5: with an empty population it waits, and draws
    another initial genotype when nothing is in flight either (every earlier candidate has an outcome, none a fitness).
    """
    drawn = isinstance(strategy, RandomSearch) or index < strategy.initial
    if not drawn and not past.population and past.accepted < index:
        return None
    if drawn or not past.population:
        genotype = mutation.initial(space, strategy.initial_mutations, Stream(seed, "initial", index))
        return Proposal(genotype, None, None)
    assert isinstance(strategy, Evolution)
    parent = select(past.population, strategy.tournament_percent, Stream(seed, "tournament", index))
    original = past.genotypes[parent.candidate]
    change = _change(space, model, strategy, original, Stream(seed, "mutation", index))
    return Proposal(mutation.apply(original, change), parent.candidate, change)


def _change(space: Space, model: Model, strategy: Evolution, original: Genotype, stream: Stream) -> Change:
    change = mutation.draw(space, original, stream)
    if strategy.redraw_unchanged:
        before = _network(space, original, model)
        for _ in range(REDRAWS):
            if _network(space, mutation.apply(original, change), model) != before:
                break
            change = mutation.draw(space, original, stream)
    return change


def _network(space: Space, genotype: Genotype, model: Model) -> str | None:
    try:
        return assemble(space, genotype, model).digest
    except Unbuildable:
        return None
