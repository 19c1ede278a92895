"""A genotype as words and as a drawing: matrices are exact, but people see an architecture in its edges."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from search.genotype import Genotype, Motif
from search.mutation import Change
from search.space import Space

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
"""Panels side by side."""
_PANEL = 4.6
"""Width of a panel in inches; a panel alone in its row has the whole figure's."""
_EDGE_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#ff7f0e")
_GREY = "#c8c8c8"


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
    for level, number, motif in _motifs(genotype):
        edges = [f"{source}→{target} {operation_name(space, level, operation)}" for source, target, operation in _edges(motif)]
        rows = ["    " + " ".join(f"{entry:2d}" for entry in row) for row in motif.matrix()]
        blocks.append("\n".join([f"{motif_name(space, level, number)}: {', '.join(edges) or 'no edges'}", *rows]))
    return "\n\n".join(blocks)


def draw_genotype(space: Space, genotype: Genotype) -> "Figure":
    """One panel a motif, the cell last in a row of its own; what no path from source to sink uses is grey."""
    from matplotlib.figure import Figure

    rows = [motifs[at : at + COLUMNS] for motifs in map(list, _levels(genotype)) for at in range(0, len(motifs), COLUMNS)]
    widest = max(len(row) for row in rows)
    works = _works(genotype)
    figure = Figure(figsize=(_PANEL * COLUMNS, sum(_height(row) for row in rows)), layout="constrained")
    grid = figure.add_gridspec(len(rows), widest, height_ratios=[_height(row) for row in rows])
    for at, row in enumerate(rows):
        for column, (level, number, motif) in enumerate(row):
            axes = figure.add_subplot(grid[at, column] if len(row) > 1 else grid[at, :])
            _panel(axes, space, level, motif, works[level - 3] if level > 2 else None, _PANEL * COLUMNS / len(row))
            axes.set_title(motif_name(space, level, number), fontsize=11)
    return figure


def _levels(genotype: Genotype) -> Iterator[Iterator[tuple[int, int, Motif]]]:
    for level, motifs in enumerate(genotype.levels, start=2):
        yield ((level, number, motif) for number, motif in enumerate(motifs, start=1))


def _motifs(genotype: Genotype) -> Iterator[tuple[int, int, Motif]]:
    for level in _levels(genotype):
        yield from level


def _edges(motif: Motif) -> Iterator[tuple[int, int, int]]:
    """(predecessor, successor, operation) of the edges that are there, by predecessor."""
    for source in range(motif.nodes - 1):
        for target in range(source + 1, motif.nodes):
            if operation := motif[target, source]:
                yield source, target, operation


def _height(row: list[tuple[int, int, Motif]]) -> float:
    return 1.9 + 0.35 * max(motif.nodes for _, _, motif in row)


def _works(genotype: Genotype) -> list[list[bool]]:
    """For every level from 1 and every operation of it from 1: whether its sink can be reached."""
    works: list[list[bool]] = []
    for at, motifs in enumerate(genotype.levels):
        works.append([bool(_living(motif, works[at - 1] if at else None)) for motif in motifs])
    return works


def _living(motif: Motif, below: list[bool] | None) -> set[int]:
    """Nodes on a path from source to sink over operations that work; `below` is None above primitives, which all do."""
    edges = [(source, target) for source, target, operation in _edges(motif) if below is None or below[operation - 1]]
    forth, back = {0}, {motif.nodes - 1}
    for source, target in edges:
        if source in forth:
            forth.add(target)
    for source, target in reversed(edges):
        if target in back:
            back.add(source)
    return forth & back if motif.nodes - 1 in forth else set()


def _panel(axes: Any, space: Space, level: int, motif: Motif, below: list[bool] | None, inches: float) -> None:
    living = _living(motif, below)
    gap = 0.15 * (motif.nodes - 0.2) / inches  # a circle's radius and a little air, in data units
    for source, target, operation in _edges(motif):
        used = source in living and target in living and (below is None or below[operation - 1])
        colour = _EDGE_COLOURS[(operation - 1) % len(_EDGE_COLOURS)] if used else _GREY
        _arrow(axes, source, target, operation_name(space, level, operation), colour, gap)
    for node in range(motif.nodes):
        colour = "black" if node in living else _GREY
        axes.plot([node], [0], "o", markersize=17, markerfacecolor="white", markeredgecolor=colour, zorder=3)
        axes.text(node, 0, str(node), ha="center", va="center", fontsize=9, color=colour, zorder=4)
    reach = 0.32 * (motif.nodes - 1) + 0.2
    axes.set_xlim(-0.4, motif.nodes - 0.6)
    axes.set_ylim(-reach, reach)
    axes.set_axis_off()


def _arrow(axes: Any, source: int, target: int, name: str, colour: str, gap: float) -> None:
    """Edges to the next node are straight; longer ones swing out, above from even nodes and below from odd ones."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    span = target - source
    top = 0.0 if span == 1 else 0.3 * span * (1 if source % 2 == 0 else -1)
    middle = (source + target) / 2
    bend = 2 * top  # a quadratic curve rises to half the height of its control point
    path = Path([(source, 0), (middle, bend), (target, 0)], [Path.MOVETO, Path.CURVE3, Path.CURVE3])
    shown = _cut(path, gap / span)
    axes.add_patch(FancyArrowPatch(path=shown, arrowstyle="-|>", mutation_scale=12, color=colour, linewidth=1.4, zorder=1))
    box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axes.text(middle, top, name, ha="center", va="center", fontsize=7, color="black" if colour != _GREY else "#909090", bbox=box, zorder=5)


def _cut(path: Any, share: float) -> Any:
    """The part of a quadratic curve between the rims of its two circles."""
    from matplotlib.path import Path

    (x0, y0), (x1, y1), (x2, y2) = path.vertices

    def mixed(s: float, t: float) -> tuple[float, float]:
        weights = ((1 - s) * (1 - t), s * (1 - t) + t * (1 - s), s * t)
        return sum(w * x for w, x in zip(weights, (x0, x1, x2), strict=True)), sum(w * y for w, y in zip(weights, (y0, y1, y2), strict=True))

    low, high = share, 1 - share
    return Path([mixed(low, low), mixed(low, high), mixed(high, high)], path.codes)
