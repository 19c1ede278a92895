"""A genotype as a drawing: matrices are exact, but people see an architecture in its edges. Its words are in pipeline.words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.words import Placed, edges_of, motif_name, motifs_by_level, operation_name
from search.genotype import Genotype
from search.graph import Edge, living_edges
from search.space import Space

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3
"""Panels side by side."""
_PANEL = 4.6
"""Width of a panel in inches; a panel alone in its row has the whole figure's."""
_PRIMITIVES = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf", "#ff7f0e")
_MOTIFS = ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#4d8a12", "#a66f00", "#0b7fab", "#8c2d04")
"""Other colours than the primitives', so that nobody takes motif 2 for a depthwise convolution. A motif's title has its colour."""
_GREY = "#c8c8c8"
_RISE = 0.42
"""How high an edge swings for each node that it passes: enough to clear the names on the straight edges."""


def draw_genotype(space: Space, genotype: Genotype) -> "Figure":
    """One panel a motif, the cell last in a row of its own; what no path from source to sink uses is grey."""
    from matplotlib.figure import Figure

    rows = [motifs[at : at + COLUMNS] for motifs in motifs_by_level(genotype) for at in range(0, len(motifs), COLUMNS)]
    widest = max(len(row) for row in rows)
    living = living_edges(genotype)
    figure = Figure(figsize=(_PANEL * COLUMNS, sum(_height(row) for row in rows)), layout="constrained")
    grid = figure.add_gridspec(len(rows), widest, height_ratios=[_height(row) for row in rows])
    for at, row in enumerate(rows):
        for column, (level, number, motif) in enumerate(row):
            axes = figure.add_subplot(grid[at, column] if len(row) > 1 else grid[at, :])
            _panel(axes, space, (level, number, motif), living[level - 2][number - 1], _PANEL * COLUMNS / len(row))
            axes.set_title(motif_name(space, level, number), fontsize=12, color=_title_colour(space, level, number))
    return figure


def draw_motif(space: Space, genotype: Genotype, level: int, number: int) -> "Figure":
    """One motif by itself, for a page that puts them side by side; the cell is twice as wide."""
    from matplotlib.figure import Figure

    motif = genotype.levels[level - 2][number - 1]
    width = 3.2 * max(1.0, (motif.nodes - 1) / 3) if level < len(space.levels) + 1 else 7.8
    figure = Figure(figsize=(width, _height([(level, number, motif)]) - 0.5), layout="constrained")
    axes = figure.add_subplot()
    _panel(axes, space, (level, number, motif), living_edges(genotype)[level - 2][number - 1], width)
    axes.set_title(motif_name(space, level, number), fontsize=11, color=_title_colour(space, level, number))
    return figure


def uses(genotype: Genotype) -> dict[tuple[int, int], int]:
    """(level, number) of every motif → how many living edges of the cell, or of motifs that it uses, are this motif."""
    living = living_edges(genotype)
    top = len(genotype.levels) + 1
    found = {(level, number): 0 for level, motifs in enumerate(genotype.levels, start=2) for number in range(1, len(motifs) + 1)} | {(top, 1): 1}
    for level in range(top, 2, -1):
        for number, edges in enumerate(living[level - 2], start=1):
            for _, _, operation in edges if found[level, number] else ():
                found[level - 1, operation] += 1
    return found


def _title_colour(space: Space, level: int, number: int) -> str:
    return "black" if level == len(space.levels) + 1 else _MOTIFS[(number - 1) % len(_MOTIFS)]


def _height(row: list[Placed]) -> float:
    return 1.9 + 0.35 * max(motif.nodes for _, _, motif in row)


def _panel(axes: Any, space: Space, placed: Placed, living: Sequence[Edge], inches: float) -> None:
    level, _, motif = placed
    joined = {node for edge in living for node in edge[:2]}
    gap = 0.15 * (motif.nodes - 0.2) / inches  # a circle's radius and a little air, in data units
    for edge in edges_of(motif):
        source, target, operation = edge
        colours = _PRIMITIVES if level == 2 else _MOTIFS
        colour = colours[(operation - 1) % len(colours)] if edge in living else _GREY
        _arrow(axes, source, target, operation_name(space, level, operation), colour, gap)
    for node in range(motif.nodes):
        colour = "black" if node in joined else _GREY
        axes.plot([node], [0], "o", markersize=17, markerfacecolor="white", markeredgecolor=colour, zorder=3)
        axes.text(node, 0, str(node), ha="center", va="center", fontsize=9, color=colour, zorder=4)
    for node, name in ((0, "source"), (motif.nodes - 1, "sink")):
        axes.text(node, -0.34, name, ha="center", va="center", fontsize=7.5, color="#606060", zorder=4)
    reach = _RISE * (motif.nodes - 1) + 0.2
    axes.set_xlim(-0.4, motif.nodes - 0.6)
    axes.set_ylim(-_RISE * max(motif.nodes - 2, 1) - 0.2, reach)  # below swing the edges from odd nodes only, which are shorter
    axes.set_axis_off()


def _arrow(axes: Any, source: int, target: int, name: str, colour: str, gap: float) -> None:
    """Edges to the next node are straight; longer ones swing out, above from even nodes and below from odd ones."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    span = target - source
    top = 0.0 if span == 1 else _RISE * span * (1 if source % 2 == 0 else -1)
    middle = (source + target) / 2
    bend = 2 * top  # a quadratic curve rises to half the height of its control point
    path = Path([(source, 0), (middle, bend), (target, 0)], [Path.MOVETO, Path.CURVE3, Path.CURVE3])
    shown = _cut(path, gap / span)
    axes.add_patch(FancyArrowPatch(path=shown, arrowstyle="-|>", mutation_scale=12, color=colour, linewidth=1.4, zorder=1))
    grey = colour == _GREY
    style: dict[str, Any] = {"ha": "center", "fontsize": 8, "color": "#909090" if grey else "black", "zorder": 5}
    if span == 1:  # two lines above the arrow: between two circles there is no room for both
        axes.text(middle, 0.06, name.replace("3x3", "\n3x3").replace("1x1", "\n1x1"), va="bottom", linespacing=0.95, **style)
    else:
        box = {"boxstyle": "round,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.9}
        axes.text(middle, top, name, va="center", bbox=box, **style)


def _cut(path: Any, share: float) -> Any:
    """The part of a quadratic curve between the rims of its two circles."""
    from matplotlib.path import Path

    (x0, y0), (x1, y1), (x2, y2) = path.vertices

    def mixed(s: float, t: float) -> tuple[float, float]:
        weights = ((1 - s) * (1 - t), s * (1 - t) + t * (1 - s), s * t)
        return sum(w * x for w, x in zip(weights, (x0, x1, x2), strict=True)), sum(w * y for w, y in zip(weights, (y0, y1, y2), strict=True))

    low, high = share, 1 - share
    return Path([mixed(low, low), mixed(low, high), mixed(high, high)], path.codes)
