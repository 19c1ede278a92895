"""Genotypes and changes in words, for every place that shows them to people. It imports nothing that draws."""

from search.genotype import Genotype, Motif
from search.graph import Edge
from search.mutation import Change
from search.space import Space

Placed = tuple[int, int, Motif]
"""A motif with its level (from 2) and its number (from 1)."""


def motifs_by_level(genotype: Genotype) -> list[list[Placed]]:
    """Every motif, lowest level first."""
    return [[(level, number, motif) for number, motif in enumerate(motifs, start=1)] for level, motifs in enumerate(genotype.levels, start=2)]


def edges_of(motif: Motif) -> list[Edge]:
    """The edges that are there, whether they do something or not, by predecessor."""
    pairs = [(source, target) for source in range(motif.nodes - 1) for target in range(source + 1, motif.nodes)]
    return [(source, target, motif[target, source]) for source, target in pairs if motif[target, source]]


def operation_name(space: Space, level: int, operation: int) -> str:
    """What an entry of a motif of `level` stands for: 'none', a primitive, or 'motif 5' of the level below."""
    if operation == 0:
        return "none"
    return space.primitives[operation - 1].value if level == 2 else f"motif {operation}"


def motif_name(space: Space, level: int, number: int) -> str:
    """'level 2, motif 1', and 'cell' for the one motif of the top level; `number` counts from 1."""
    return "cell" if level == len(space.levels) + 1 else f"level {level}, motif {number}"


def text_change(space: Space, change: Change) -> str:
    """One mutation in words: 'level 2, motif 3: 0→3 conv1x1 becomes none'."""
    old, new = (operation_name(space, change.level, operation) for operation in (change.old, change.new))
    what = f"stays {old}" if change.old == change.new else f"{old} becomes {new}"
    return f"{motif_name(space, change.level, change.motif)}: {change.predecessor}→{change.successor} {what}"


def text_genotype(space: Space, genotype: Genotype) -> str:
    """Every motif, lowest level first: its edges in words, then the rows of its matrix."""
    blocks = [f"genotype  {genotype.to_text()}"]
    for level, number, motif in (placed for motifs in motifs_by_level(genotype) for placed in motifs):
        edges = [f"{source}→{target} {operation_name(space, level, operation)}" for source, target, operation in edges_of(motif)]
        rows = ["    " + " ".join(f"{entry:2d}" for entry in row) for row in motif.matrix()]
        blocks.append("\n".join([f"{motif_name(space, level, number)}: {', '.join(edges) or 'no edges'}", *rows]))
    return "\n\n".join(blocks)
