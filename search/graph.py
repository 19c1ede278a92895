"""The assembled network as plain data, made from a genotype without torch (Liu et al. 2018, sections 2 and 5.1).

Everything that must agree on what a network *is* reads this: parameter and multiply-add counts,
predicted memory, drawings, the torch module, and the digest that says 'same network'.
Dead parts are removed (PAPERS U1), identities passed through. Channel rule: reading A (PAPERS).
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from operator import itemgetter

from search.genotype import Genotype, Motif
from search.space import Primitive, Space


class Unbuildable(ValueError):
    """The cell's sink cannot be reached from its source (PAPERS U1)."""


class Kind(StrEnum):
    """What an operation computes. Every convolution is convolution, batch norm, ReLU; the linear layer has a bias."""

    INPUT = "input"
    CONV_3X3 = "conv3x3"
    CONV_1X1 = "conv1x1"
    DEPTHWISE_3X3 = "depthwise3x3"
    SEPARABLE_3X3 = "separable3x3"
    MAX_POOL_3X3 = "maxpool3x3"
    AVG_POOL_3X3 = "avgpool3x3"
    CONCAT = "concat"
    GLOBAL_POOL = "globalpool"
    LINEAR = "linear"


class Stem(StrEnum):
    """How images enter: one 3×3 convolution, or two of stride 2 (ImageNet); also the grouping of cells."""

    CIFAR = "cifar"
    IMAGENET = "imagenet"


@dataclass(frozen=True, slots=True)
class Model:
    """The frame that cells are put into: width of the first group, cells a group, and what the data is."""

    stem: Stem
    width: int
    cells: int
    channels: int
    size: int
    classes: int

    def __post_init__(self) -> None:
        for name in ("width", "cells", "channels", "size", "classes"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 1 to 100000")

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """(cells, width) of each group of one image size."""
        if self.stem is Stem.CIFAR:
            return tuple((self.cells, self.width << group) for group in range(3))
        return ((1, self.width), *((self.cells, self.width << group) for group in range(1, 4)))


@dataclass(frozen=True, slots=True)
class Operation:
    """One node of the network. Output: `width` channels of `size` × `size`; `sources` are earlier positions, in order.

    `path` says where in the unmerged network it stands ('group1.cell0/1-0/2-1': edges as successor-predecessor):
    its parameters' initial values are drawn from a stream of that name.
    """

    kind: Kind
    sources: tuple[int, ...]
    width: int
    size: int
    stride: int = 1
    path: str = ""


@dataclass(frozen=True, slots=True)
class Graph:
    """Operations in an order in which they can be computed; the first is the input, the last the logits."""

    operations: tuple[Operation, ...]

    @property
    def digest(self) -> str:
        """SHA-256 that says 'same network': over everything but the paths. No isomorphism search."""
        plain = [[op.kind, list(op.sources), op.width, op.size, op.stride] for op in self.operations]
        return hashlib.sha256(json.dumps(plain, separators=(",", ":")).encode()).hexdigest()


class _Builder:
    """Appends operations; a value is the position of the operation that makes it."""

    def __init__(self, channels: int, size: int) -> None:
        self.operations = [Operation(Kind.INPUT, (), channels, size)]

    def add(self, kind: Kind, sources: tuple[int, ...], width: int, path: str, stride: int = 1) -> int:
        size = (self.operations[sources[0]].size - 1) // stride + 1  # 3×3 with padding 1, 1×1 without
        self.operations.append(Operation(kind, sources, width, size, stride, path))
        return len(self.operations) - 1

    def width(self, value: int) -> int:
        return self.operations[value].width


def _primitive(builder: _Builder, primitive: Primitive, source: int, width: int, path: str) -> int:
    """Depthwise convolution, pooling and identity keep their input's width; the others give the cell's."""
    if primitive is Primitive.IDENTITY:
        return source
    keeps = primitive in (Primitive.DEPTHWISE_3X3, Primitive.MAX_POOL_3X3, Primitive.AVG_POOL_3X3)
    return builder.add(Kind(primitive.value), (source,), builder.width(source) if keeps else width, path)


def _merge(builder: _Builder, values: list[int], path: str) -> int:
    if len(values) == 1:
        return values[0]
    return builder.add(Kind.CONCAT, tuple(values), sum(map(builder.width, values)), path)


Edge = tuple[int, int, int]
"""Predecessor, successor, operation."""


def living_edges(genotype: Genotype) -> list[list[list[Edge]]]:
    """The edges that do something (U1), by successor, of every motif of every level from 2: those on a path from its source to its
    sink on which every operation works. Primitives work; a motif works if it has such a path, so none here means that it does not.
    """
    levels: list[list[list[Edge]]] = []
    for motifs in genotype.levels:
        below = levels[-1] if levels else None
        levels.append([_living(motif, below) for motif in motifs])
    return levels


def _living(motif: Motif, below: list[list[Edge]] | None) -> list[Edge]:
    """See living_edges; `below` is what lives of the level below, None above primitives."""
    edges = [
        (predecessor, successor, operation)
        for successor, row in enumerate(motif.rows, start=1)
        for predecessor, operation in enumerate(row)
        if operation and (below is None or below[operation - 1])
    ]
    forth, back = {0}, {motif.nodes - 1}
    for predecessor, successor, _ in edges:
        if predecessor in forth:
            forth.add(successor)
    for predecessor, successor, _ in reversed(edges):
        if successor in back:
            back.add(predecessor)
    return [edge for edge in edges if edge[0] in forth and edge[1] in back]


def check_buildable(genotype: Genotype) -> list[list[list[Edge]]]:
    """Its living edges; Unbuildable when the cell has none."""
    living = living_edges(genotype)
    if not living[-1][0]:
        raise Unbuildable("the cell's sink cannot be reached from its source: every path has an edge of kind none")
    return living


class _Cells:
    """Adds cells of one genotype to a network: living edges only."""

    def __init__(self, builder: _Builder, space: Space, genotype: Genotype) -> None:
        self._builder, self._space = builder, space
        self._nodes = [level.nodes for level in space.levels]
        self._living = check_buildable(genotype)

    def add(self, source: int, width: int, path: str) -> int:
        """One cell behind `source`."""
        return self._motif(len(self._living) + 1, 0, source, width, path)

    def _motif(self, level: int, number: int, source: int, width: int, path: str) -> int:
        """Motif `number` (from 0) of `level` behind `source`."""
        if level == 1:
            return _primitive(self._builder, self._space.primitives[number], source, width, path)
        values = {0: source}
        for successor, edges in groupby(self._living[level - 2][number], key=itemgetter(1)):
            incoming = [
                self._motif(level - 1, operation - 1, values[predecessor], width, f"{path}/{successor}-{predecessor}") for predecessor, _, operation in edges
            ]
            values[successor] = _merge(self._builder, incoming, f"{path}/{successor}")
        sink = values[self._nodes[level - 2] - 1]
        if level == 2 and len(self._living) > 1:
            # PAPERS: each level-2 motif is followed by a 1×1 convolution, to the cell's width. A flat space's one
            # motif is the cell itself: the separable convolution after the cell does that work there (our reading).
            return self._builder.add(Kind.CONV_1X1, (sink,), width, f"{path}/out")
        return sink


def _stem(builder: _Builder, model: Model) -> int:
    if model.stem is Stem.CIFAR:
        return builder.add(Kind.CONV_3X3, (0,), model.width, "stem")
    half = builder.add(Kind.CONV_3X3, (0,), max(1, model.width // 2), "stem0", stride=2)
    return builder.add(Kind.CONV_3X3, (half,), model.width, "stem1", stride=2)


def assemble(space: Space, genotype: Genotype, model: Model) -> Graph:
    """The whole network: stem, groups of cells with a separable convolution after each, pooling, linear layer.

    Raises Unbuildable when the cell has no path from its source to its sink.
    """
    space.check(genotype)
    builder = _Builder(model.channels, model.size)
    assembled = _Cells(builder, space, genotype)
    value = _stem(builder, model)
    for group, (cells, width) in enumerate(model.groups):
        for cell in range(cells):
            path = f"group{group}.cell{cell}"
            made = assembled.add(value, width, path)
            # The end of a group halves the size and doubles the width, but for the last one (U2).
            ends = cell == cells - 1 and group < len(model.groups) - 1
            value = builder.add(Kind.SEPARABLE_3X3, (made,), width * 2 if ends else width, f"{path}.after", 2 if ends else 1)
    pooled = len(builder.operations)
    builder.operations.append(Operation(Kind.GLOBAL_POOL, (value,), builder.width(value), 1, path="pool"))
    builder.operations.append(Operation(Kind.LINEAR, (pooled,), model.classes, 1, path="linear"))
    return Graph(tuple(builder.operations))


def last_uses(graph: Graph) -> Iterator[tuple[int, ...]]:
    """For each operation in order: the values that nothing after it reads, so that they can be freed."""
    last = {source: at for at, op in enumerate(graph.operations) for source in op.sources}
    for at in range(len(graph.operations)):
        yield tuple(value for value, use in last.items() if use == at)
