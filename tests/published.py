"""The cell that Liu et al. 2018 publish (figure of the evolved architecture) as a table, and random genotypes for tests."""

from search.genotype import Genotype, Motif
from search.mutation import initial
from search.space import Space
from search.stream import Stream

PUBLISHED_TEXT = "4.1-2.3-1-4+4.2-2.1-3-3+3.2-3.3-6-5+5.3-3.6-4-5+6.3-6.3-6-3+2.4-4.3-6-5:5.3-3.3-1-3.4-5-5-5"
"""As hiernas prints it."""

_OPERATIONS = {"1×1": 1, "dw": 2, "sep": 3, "max": 4, "avg": 5, "id": 6}
_MOTIFS = """
1→2 1→3 1→4 2→3 2→4 3→4
max 1×1 sep dw  1×1 max
max dw  1×1 dw  sep sep
sep dw  sep sep id  avg
avg sep id  sep max avg
id  sep sep id  id  sep
dw  max sep max id  avg
"""
_CELL = "1→2 5, 1→3 3, 1→4 3, 1→5 4, 2→3 3, 2→4 1, 2→5 5, 3→4 3, 3→5 5, 4→5 5"


def _motif(nodes: int, edges: dict[str, int]) -> Motif:
    """From 'predecessor→successor' (nodes from 1) to operation."""
    return Motif(tuple(tuple(edges[f"{j}→{i}"] for j in range(1, i)) for i in range(2, nodes + 1)))


def published_from_table() -> Genotype:
    """The paper's table, read edge by edge."""
    header, *rows = [line.split() for line in _MOTIFS.strip().splitlines()]
    motifs = tuple(_motif(4, {edge: _OPERATIONS[name] for edge, name in zip(header, row, strict=True)}) for row in rows)
    cell = _motif(5, {edge: int(number) for edge, number in (entry.split() for entry in _CELL.split(", "))})
    return Genotype((motifs, (cell,)))


def random_genotype(space: Space, number: int, mutations: int = 1000) -> Genotype:
    """The `number`-th genotype of the initialisation."""
    return initial(space, mutations, Stream(711, "tests", space.name, number))
