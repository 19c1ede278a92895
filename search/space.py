"""Search spaces: which genotypes exist (Liu et al. 2018, sections 2 and 5; PAPERS: levels and motif numbers)."""

from dataclasses import dataclass
from enum import StrEnum

from search.genotype import Genotype, Motif


class Primitive(StrEnum):
    """Level-1 operations. Convolutions are followed by batch norm and ReLU; stride 1, padded to keep the size."""

    CONV_1X1 = "conv1x1"
    DEPTHWISE_3X3 = "depthwise3x3"
    SEPARABLE_3X3 = "separable3x3"
    MAX_POOL_3X3 = "maxpool3x3"
    AVG_POOL_3X3 = "avgpool3x3"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True)
class Level:
    """How many motifs a level has, and how many nodes each has (source and sink included)."""

    motifs: int
    nodes: int

    def __post_init__(self) -> None:
        if not 1 <= self.motifs <= 1000:
            raise ValueError(f"motifs is {self.motifs}; allowed: 1 to 1000")
        if not 2 <= self.nodes <= 64:
            raise ValueError(f"nodes is {self.nodes}; allowed: 2 to 64")


@dataclass(frozen=True, slots=True)
class Space:
    """Primitives (numbered from 1 in this order; 0 is none) and the levels above them, level 2 first."""

    name: str
    primitives: tuple[Primitive, ...]
    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        if not self.primitives or len(set(self.primitives)) != len(self.primitives):
            raise ValueError(f"primitives are {list(self.primitives)}; they must be at least one and all different")
        if Primitive.IDENTITY not in self.primitives:
            raise ValueError("primitives lack 'identity', which the trivial genotype is made of")
        if not self.levels or self.levels[-1].motifs != 1:
            raise ValueError("the last level must have exactly 1 motif: the cell")

    def operations(self, level: int) -> int:
        """Number of operations that an edge of `level` (2 or more) chooses from, none not counted."""
        return len(self.primitives) if level == 2 else self.levels[level - 3].motifs

    def check(self, genotype: Genotype) -> Genotype:
        """The genotype itself if it belongs to this space, else ValueError."""
        if len(genotype.levels) != len(self.levels):
            raise ValueError(f"genotype has {len(genotype.levels)} levels above the primitives, space {self.name!r} has {len(self.levels)}")
        for at, (level, motifs) in enumerate(zip(self.levels, genotype.levels, strict=True), start=2):
            if len(motifs) != level.motifs:
                raise ValueError(f"level {at} of the genotype has {len(motifs)} motifs, space {self.name!r} has {level.motifs}")
            for number, motif in enumerate(motifs, start=1):
                if motif.nodes != level.nodes:
                    raise ValueError(f"level {at}, motif {number} has {motif.nodes} nodes, space {self.name!r} has {level.nodes}")
                highest = max(entry for row in motif.rows for entry in row)
                if highest > self.operations(at):
                    raise ValueError(f"level {at}, motif {number} uses operation {highest}; allowed: 0 (none) to {self.operations(at)}")
        return genotype

    def trivial(self) -> Genotype:
        """Every motif a chain of identities, the cell a chain of such motifs (PAPERS: initialisation)."""
        identity = self.primitives.index(Primitive.IDENTITY) + 1
        return Genotype(tuple(tuple(_chain(level.nodes, identity if at == 0 else 1) for _ in range(level.motifs)) for at, level in enumerate(self.levels)))


def _chain(nodes: int, operation: int) -> Motif:
    return Motif(tuple((0,) * (node - 1) + (operation,) for node in range(1, nodes)))


PAPER_PRIMITIVES = tuple(Primitive)

SPACES = {
    space.name: space
    for space in (
        Space("liu2018-hierarchical", PAPER_PRIMITIVES, (Level(6, 4), Level(1, 5))),
        Space("liu2018-flat", PAPER_PRIMITIVES, (Level(1, 11),)),
    )
}
"""The paper's spaces by name."""
