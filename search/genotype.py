"""A genotype: the motifs of every level as pure data (Liu et al. 2018, section 2).

A motif is a small DAG with one source and one sink, kept as a strictly lower triangular matrix:
G[i][j] = k puts operation k of the level below on the edge from node j to node i, j < i; 0 is no edge.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

TEXT_LIMIT = 20_000
"""Longest text that is read, in characters. The paper's genotype has 119."""

MOTIFS_KEPT = 2**15
"""Read motifs that are remembered. A child shares all motifs but one with its parent, so a run has hardly more of them than candidates."""


@dataclass(frozen=True, slots=True)
class Motif:
    """One DAG. `rows[i - 1]` holds G[i][0 … i-1]; the source is node 0, the sink the last node."""

    rows: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("a motif needs at least 2 nodes, one row of one entry")
        for at, row in enumerate(self.rows, start=1):
            if len(row) != at:
                raise ValueError(f"node {at} of a motif has {len(row)} incoming entries, it needs {at}")
            if any(entry < 0 for entry in row):
                raise ValueError(f"node {at} of a motif has a negative entry: operations count from 0 (none)")

    @property
    def nodes(self) -> int:
        """Number of nodes, source and sink included."""
        return len(self.rows) + 1

    def __getitem__(self, edge: tuple[int, int]) -> int:
        """Operation on the edge into node `edge[0]` from node `edge[1]`."""
        successor, predecessor = edge
        return self.rows[successor - 1][predecessor]

    def replace(self, successor: int, predecessor: int, operation: int) -> "Motif":
        """The same motif with another operation on one edge."""
        rows = list(self.rows)
        row = list(rows[successor - 1])
        row[predecessor] = operation
        rows[successor - 1] = tuple(row)
        return Motif(tuple(rows))

    def matrix(self) -> list[list[int]]:
        """The full square matrix, zeros above the diagonal."""
        return [[0] * self.nodes] + [list(row) + [0] * (self.nodes - len(row)) for row in self.rows]


@dataclass(frozen=True, slots=True)
class Genotype:
    """Motifs of every level, level 2 first; the last level has one motif, the cell."""

    levels: tuple[tuple[Motif, ...], ...]

    def __post_init__(self) -> None:
        if not self.levels or any(not level for level in self.levels):
            raise ValueError("a genotype needs at least one level, and every level at least one motif")
        if len(self.levels[-1]) != 1:
            raise ValueError(f"the top level has {len(self.levels[-1])} motifs, it must have one: the cell")
        for at, (below, level) in enumerate(zip(self.levels, self.levels[1:], strict=False), start=3):
            highest = max(entry for motif in level for row in motif.rows for entry in row)
            if highest > len(below):
                raise ValueError(f"a motif of level {at} uses motif {highest}, but level {at - 1} has only {len(below)}")

    @property
    def cell(self) -> Motif:
        """The one motif of the top level."""
        return self.levels[-1][0]

    def replace(self, level: int, motif: int, changed: Motif) -> "Genotype":
        """The same genotype with one motif exchanged; `level` counts from 2 as in the paper, `motif` from 0."""
        motifs = list(self.levels[level - 2])
        motifs[motif] = changed
        levels = list(self.levels)
        levels[level - 2] = tuple(motifs)
        return Genotype(tuple(levels))

    def to_text(self) -> str:
        """One line that reads back: levels joined by ':', motifs by '+', nodes by '.', entries by '-'."""
        return ":".join("+".join(".".join("-".join(map(str, row)) for row in motif.rows) for motif in level) for level in self.levels)

    @staticmethod
    def from_text(text: str) -> "Genotype":
        """Read `to_text`'s form; ValueError names the motif and the rule it breaks."""
        if len(text) > TEXT_LIMIT:
            raise ValueError(f"genotype text has {len(text)} characters, at most {TEXT_LIMIT} are read")
        return Genotype(
            tuple(
                tuple(_motif_from_text(part, f"level {at}, motif {number}") for number, part in enumerate(level.split("+"), 1))
                for at, level in enumerate(text.strip().split(":"), start=2)
            )
        )

    def to_json(self) -> list[list[list[list[int]]]]:
        """Levels of motifs of rows, as plain lists."""
        return [[[list(row) for row in motif.rows] for motif in level] for level in self.levels]

    @staticmethod
    def from_json(levels: list[list[list[list[int]]]]) -> "Genotype":
        """Inverse of `to_json`."""
        return Genotype(tuple(tuple(Motif(tuple(tuple(row) for row in motif)) for motif in level) for level in levels))

    @property
    def digest(self) -> str:
        """SHA-256 of the text form: says 'same genotype' (the graph's digest says 'same network')."""
        return hashlib.sha256(self.to_text().encode()).hexdigest()


@lru_cache(MOTIFS_KEPT)
def _motif_from_text(part: str, place: str) -> Motif:
    rows = []
    for at, row in enumerate(part.split("."), start=1):
        entries = row.split("-")
        for entry in entries:
            if not (entry.isascii() and entry.isdigit() and len(entry) <= 4):
                raise ValueError(
                    f"genotype text: {place}, node {at}: {entry!r} is not an operation number; "
                    "expected digits, as in '4.1-2.3-2-4' (entries joined by '-', nodes by '.', motifs by '+', levels by ':')"
                )
        rows.append(tuple(int(entry) for entry in entries))
    try:
        return Motif(tuple(rows))
    except ValueError as error:
        raise ValueError(f"genotype text: {place}: {error}") from error
