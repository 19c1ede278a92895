"""Mutation and initialisation (Liu et al. 2018, sections 3.1 and 3.2; PAPERS: all draws uniform)."""

from dataclasses import dataclass

from search.genotype import Genotype
from search.space import Space
from search.stream import Stream


@dataclass(frozen=True, slots=True)
class Change:
    """What one mutation did: edge predecessor → successor of a motif; levels count from 2, motifs from 1, nodes from 0."""

    level: int
    motif: int
    successor: int
    predecessor: int
    old: int
    new: int


def draw(space: Space, genotype: Genotype, stream: Stream) -> Change:
    """Draw one mutation: level, motif, successor, predecessor below it (U4), operation (none included, may equal the old: U3)."""
    level = 2 + stream.below(len(space.levels))
    shape = space.levels[level - 2]
    motif = stream.below(shape.motifs)
    successor = 1 + stream.below(shape.nodes - 1)
    predecessor = stream.below(successor)
    new = stream.below(space.operations(level) + 1)
    old = genotype.levels[level - 2][motif][successor, predecessor]
    return Change(level, motif + 1, successor, predecessor, old, new)


def apply(genotype: Genotype, change: Change) -> Genotype:
    """The genotype after the change."""
    motif = genotype.levels[change.level - 2][change.motif - 1]
    return genotype.replace(change.level, change.motif - 1, motif.replace(change.successor, change.predecessor, change.new))


def initial(space: Space, mutations: int, stream: Stream) -> Genotype:
    """The trivial genotype after many random mutations (PAPERS: 1000)."""
    genotype = space.trivial()
    for _ in range(mutations):
        change = draw(space, genotype, stream)
        if change.new != change.old:
            genotype = apply(genotype, change)
    return genotype
