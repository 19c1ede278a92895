"""Genotypes, mutation and tournament selection, against a transcription of the paper's algorithm from PAPERS."""

from collections import Counter

import pytest
from published import PUBLISHED_TEXT, published_from_table, random_genotype

from search import mutation
from search.evolution import Evolution, Past, RandomSearch, Scored, propose, select, tournament_size
from search.genotype import Genotype
from search.graph import Model, Stem
from search.space import SPACES
from search.stream import Stream

SPACE = SPACES["liu2018-hierarchical"]
MODEL = Model(Stem.CIFAR, 8, 1, 1, 8, 10)


def test_a_genotype_reads_back_from_its_text_and_json() -> None:
    for number in range(50):
        genotype = random_genotype(SPACE, number)
        assert Genotype.from_text(genotype.to_text()) == genotype
        assert Genotype.from_json(genotype.to_json()) == genotype
    assert Genotype.from_text(PUBLISHED_TEXT) == published_from_table()


@pytest.mark.parametrize("text", ["", "x", "1.2", "1:1:1.1", "1.1-2:2", "1.1--2", "1.1-2.3-4:9", "1" * 30_000])
def test_a_wrong_genotype_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"genotype|motif|node|level"):
        SPACE.check(Genotype.from_text(text))


def test_a_mutation_draws_level_motif_edge_and_operation_uniformly() -> None:
    genotype = SPACE.trivial()
    stream = Stream(1, "test")
    draws = [mutation.draw(SPACE, genotype, stream) for _ in range(20_000)]

    def even(counts: Counter[int], values: int, total: int) -> None:
        assert len(counts) == values
        chi = sum((count - total / values) ** 2 / (total / values) for count in counts.values())
        assert chi < values + 5 * (2 * values) ** 0.5

    even(Counter(one.level for one in draws), 2, len(draws))
    second = [one for one in draws if one.level == 2]
    even(Counter(one.motif for one in second), 6, len(second))
    even(Counter(one.successor for one in second), 3, len(second))
    even(Counter(one.new for one in second), 7, len(second))
    last = [one for one in second if one.successor == 3]
    even(Counter(one.predecessor for one in last), 3, len(last))


@pytest.mark.parametrize(("population", "size"), [(1, 1), (9, 1), (10, 1), (29, 1), (30, 2), (200, 10), (7000, 350)])
def test_a_tournament_is_five_percent_rounded(population: int, size: int) -> None:
    assert tournament_size(population) == size == max(1, (population + 10) // 20)


def test_the_fittest_of_the_sample_wins_and_ties_are_drawn() -> None:
    population = [Scored(at, at / 100) for at in range(40)]
    assert select(population, 100, Stream(1, "t")).candidate == 39
    tied = [Scored(at, 0.5) for at in range(4)]
    assert {select(tied, 100, Stream(seed, "t")).candidate for seed in range(60)} == {0, 1, 2, 3}
    wins = Counter(select(population, 5, Stream(seed, "t")).candidate for seed in range(4000))
    assert wins[39] > wins[20] > wins[0] >= 0  # two drawn, the fitter wins: 39 in 1 of 20 tournaments, 0 never
    assert wins[0] == 0
    assert abs(wins[39] / 4000 - 0.05) < 0.012


def test_a_missing_or_nan_fitness_never_wins() -> None:
    with pytest.raises(ValueError, match="NaN"):
        Scored(1, float("nan"))


def test_evolution_proposes_what_a_transcription_of_the_paper_does() -> None:
    """Algorithm: hand out the initial genotypes, then mutate tournament winners of whatever is evaluated."""
    strategy = Evolution(initial=8, initial_mutations=100)
    past = Past()
    fitness: dict[int, float] = {}
    for index in range(120):
        proposal = propose(SPACE, MODEL, strategy, 7, past, index)
        assert proposal is not None
        if index < 8:
            genotype = SPACE.trivial()
            stream = Stream(7, "initial", index)
            for _ in range(100):
                genotype = mutation.apply(genotype, mutation.draw(SPACE, genotype, stream))
            expected = genotype, None
        else:
            stream = Stream(7, "tournament", index)
            evaluated = list(fitness)
            sample = [evaluated[at] for at in stream.sample(len(evaluated), max(1, (len(evaluated) + 10) // 20))]
            best = [one for one in sample if fitness[one] == max(fitness[other] for other in sample)]
            winner = best[stream.below(len(best))] if len(best) > 1 else best[0]
            parent = past.genotypes[winner]
            change = mutation.draw(SPACE, parent, Stream(7, "mutation", index))
            expected = mutation.apply(parent, change), winner
        assert (proposal.genotype, proposal.parent) == expected
        past.genotypes.append(proposal.genotype)
        if index >= 3:  # three are always in flight
            done = index - 3
            fitness[done] = Stream(3, "fitness", done).below(50) / 50
            past.population.append(Scored(done, fitness[done]))
            past.accepted += 1


def test_random_search_never_breeds() -> None:
    past = Past(accepted=3, genotypes=[SPACE.trivial()] * 3, population=[Scored(0, 0.9)])
    proposal = propose(SPACE, MODEL, RandomSearch(initial_mutations=10), 1, past, 3)
    assert proposal is not None
    assert proposal.parent is None


def test_evolution_waits_for_a_population_and_draws_again_when_there_is_none() -> None:
    strategy = Evolution(initial=2, initial_mutations=5)
    past = Past(accepted=1, genotypes=[SPACE.trivial()] * 2)
    assert propose(SPACE, MODEL, strategy, 1, past, 2) is None
    past.accepted = 2
    proposal = propose(SPACE, MODEL, strategy, 1, past, 2)
    assert proposal is not None
    assert proposal.parent is None
