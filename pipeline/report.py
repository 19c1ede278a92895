"""`hiernas report`: a run as one HTML file that needs nothing else, its figures as files, and the best genotype as JSON.

Everything comes from the run's records; a report can be written of a run at any moment, also of one that has found nothing yet.
"""

import base64
import errno
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.answer import network
from pipeline.drawing import draw_genotype, draw_motif, uses
from pipeline.errors import ConfigError, HiernasError
from pipeline.page import Picture, page, trained_candidates
from pipeline.run import RunFolder
from pipeline.words import motif_name
from search.cost import cost
from search.genotype import Genotype
from search.records import Metrics, Outcome, OutcomeKind
from search.state import State, Story

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150
PAGE, BEST = "report.html", "best-genotype.json"
FIGURES, KINDS = ("fitness", "parameters", "best"), ("svg", "png")
"""Figures are files of both kinds. With the page and the best genotype they are all that a report consists of."""


def write_report(folder: RunFolder, out: Path) -> None:
    """Write report.html, the figures and best-genotype.json into `out`.

    What a run without a fitness cannot have is left out, and removed where an earlier report left it; nothing else is touched.
    """
    state = folder.load()
    trained = trained_candidates(folder, state)
    figures = _figures(state, trained)
    try:
        out.mkdir(parents=True, exist_ok=True)
        sources = {name: _save(out, name, figure) for name, figure in figures.items()}
        if state.best is not None:
            _write(out / BEST, json.dumps(_best(state, state.best), indent=2).encode() + b"\n")
        else:
            for name in (BEST, *(f"{figure}.{kind}" for figure in FIGURES for kind in KINDS)):
                (out / name).unlink(missing_ok=True)
        _write(out / PAGE, page(folder, state, trained, _charts(state, sources), _motifs(state)).encode())
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> HiernasError:
    """What stands in the way of a report, and what to do."""
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        return ConfigError(f"--out {str(out)!r}: it, or a folder above it, is a file; expected a folder, or a path where one can be made")
    place = error.filename2 or error.filename or out
    message = f"--out {str(out)!r}: {place} cannot be written: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HiernasError(f"{message}; free some space and write the report again")
    return ConfigError(f"{message}; choose another folder, or make this one writable")


def _write(path: Path, data: bytes) -> None:
    """The whole file or none of it: a reader never sees half a report."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _svg(figure: "Figure") -> bytes:
    """The same figure gives the same bytes."""
    import matplotlib

    svg = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hiernas"}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()


def _uri(svg: bytes) -> str:
    """As an image of its own: the ids of several inline drawings would clash."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _save(out: Path, name: str, figure: "Figure") -> str:
    """Write a figure as SVG and PNG; returns the SVG as a data URI."""
    svg, png = _svg(figure), io.BytesIO()
    figure.savefig(png, format="png", dpi=DOTS_PER_INCH)
    for kind, data in zip(KINDS, (svg, png.getvalue()), strict=True):
        _write(out / f"{name}.{kind}", data)
    return _uri(svg)


def _figures(state: State, trained: dict[int, Metrics]) -> dict[str, "Figure"]:
    """One of each name in FIGURES; none without a fitness."""
    if state.best is None:
        return {}
    genotype = Genotype.from_text(_story(state, state.best).candidate.work.genotype)
    drawn = _draw_fitness(state), _draw_parameters(state, trained), draw_genotype(state.run.space, genotype)
    return dict(zip(FIGURES, drawn, strict=True))


def _charts(state: State, sources: dict[str, str]) -> list[Picture]:
    """The charts with what they show in words, for those who do not see them."""
    if state.best is None:
        return []
    numbers, line = _best_so_far(state)
    known = [outcome.fitness for outcome in state.history if outcome.fitness is not None]
    rises = f"The best so far is {line[-1]:.2%}, found at outcome {numbers[line.index(line[-1])]}; it began at {line[0]:.2%}."
    spread = f"{len(known)} candidates have a fitness, from {min(known):.2%} to {max(known):.2%}."
    return [
        Picture(
            sources["fitness"], f"Scatter chart of fitness over outcomes. {spread} {rises}",
            f"Fitness over evaluations. Each mark is an accepted outcome. {rises} Squares are the initial population, drawn at random; "
            "the others were bred by mutating the winner of a tournament.",
        ),
        Picture(
            sources["parameters"], f"Scatter chart of fitness against the number of parameters. {spread} The best is candidate {state.best.candidate}.",
            "Fitness against the size of the network. Up and to the left is better: more images named right with fewer parameters. Each network stands once; the ring marks the best.",
        ),
    ]  # fmt: skip


def _motifs(state: State) -> list[Picture]:
    """The best genotype, the cell first, then the motifs that it is made of, those that it uses before the others."""
    if state.best is None:
        return []
    space, genotype = state.run.space, Genotype.from_text(_story(state, state.best).candidate.work.genotype)
    top = len(genotype.levels) + 1
    pictures = []
    for (level, number), count in sorted(uses(genotype).items(), key=lambda item: (-item[0][0], item[1] == 0, item[0][1])):
        name = motif_name(space, level, number)
        times = "once" if count == 1 else f"{count} times"
        used = "The cell: its edges are motifs" if level == top else f"Used {times}" if count else "Not used: it changes nothing"
        alt = f"{name} as a graph of {genotype.levels[level - 2][number - 1].nodes} nodes; its edges stand in the text below"
        pictures.append(Picture(_uri(_svg(draw_motif(space, genotype, level, number))), alt, used, wide=level == top))
    return pictures


def _story(state: State, outcome: Outcome) -> Story:
    return state.stories[outcome.candidate]


@dataclass(frozen=True, slots=True)
class _Group:
    """Candidates of one kind, as both charts mark them: by shape as well as by colour."""

    label: str
    style: dict[str, Any]
    outcomes: list[Outcome]

    @property
    def fitnesses(self) -> list[float | None]:
        return [outcome.fitness for outcome in self.outcomes]


def _groups(state: State) -> list[_Group]:
    """The kinds of candidates that there are, of those with a fitness."""
    kinds: list[tuple[str, dict[str, Any], Callable[[bool, bool], bool]]] = [
        ("drawn at random: the initial population", {"marker": "s", "color": "#d95f02", "s": 34}, lambda bred, reused: not bred and not reused),
        ("bred by mutation", {"marker": "o", "color": "#1f77b4", "s": 30}, lambda bred, reused: bred and not reused),
        (
            "same network as an earlier one: not trained again",
            {"marker": "o", "facecolors": "none", "edgecolors": "#7f7f7f", "s": 26},
            lambda _, reused: reused,
        ),
    ]
    found = [
        _Group(label, style, [one for one in state.history if one.fitness is not None and belongs(_is_bred(state, one), one.outcome is OutcomeKind.REUSED)])
        for label, style, belongs in kinds
    ]
    return [group for group in found if group.outcomes]


def _is_bred(state: State, outcome: Outcome) -> bool:
    return _story(state, outcome).candidate.parent is not None


def _axes(xlabel: str, title: str) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel, fontsize=11)
    axes.set_ylabel("fitness (validation accuracy)", fontsize=11)
    axes.set_title(title, fontsize=12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure, axes


def _best_so_far(state: State) -> tuple[list[int], list[float]]:
    """Numbers of the outcomes from the first with a fitness, counted from 1, and the best fitness up to each."""
    numbers: list[int] = []
    line: list[float] = []
    for outcome in state.history:
        if line or outcome.fitness is not None:
            numbers.append(outcome.number + 1)
            line.append(max(outcome.fitness or 0.0, line[-1] if line else 0.0))
    return numbers, line


def _draw_fitness(state: State) -> "Figure":
    figure, axes = _axes("outcomes, in the order in which they were accepted", f"Fitness over evaluations, run {state.run.name}")
    axes.plot(*_best_so_far(state), color="black", linewidth=1.4, drawstyle="steps-post", label="best so far", zorder=1)
    for group in _groups(state):
        axes.scatter([outcome.number + 1 for outcome in group.outcomes], group.fitnesses, label=group.label, zorder=2, **group.style)
    failed = [outcome.number + 1 for outcome in state.history if outcome.fitness is None]
    if failed:
        axes.scatter(failed, [0.02] * len(failed), marker="x", color="#c00000", s=30, label="failed: no fitness", transform=axes.get_xaxis_transform())
    _legend(figure)
    return figure


def _parameters(state: State, trained: dict[int, Metrics], outcome: Outcome) -> int:
    """As the evaluation counted them; where there is none that is valid, the network is assembled again."""
    if outcome.candidate in trained:
        return trained[outcome.candidate].parameters
    return cost(network(state.run, _story(state, outcome).candidate)).parameters


def _draw_parameters(state: State, trained: dict[int, Metrics]) -> "Figure":
    figure, axes = _axes("parameters of the network", f"Fitness against parameters, run {state.run.name}")
    for group in _groups(state):
        if group.outcomes[0].outcome is OutcomeKind.REUSED:
            continue  # each lies on its source
        sizes = [_parameters(state, trained, outcome) for outcome in group.outcomes]
        axes.scatter(sizes, group.fitnesses, label=group.label, **group.style)
    assert state.best is not None
    axes.scatter([_parameters(state, trained, state.best)], [state.best.fitness], s=170, facecolors="none", edgecolors="black", linewidths=1.5, label="best")
    _legend(figure)
    return figure


def _legend(figure: "Figure") -> None:
    """Below the chart, where it hides no point."""
    figure.legend(loc="outside lower center", ncols=2, fontsize=9, frameon=False)


def _best(state: State, best: Outcome) -> dict[str, Any]:
    genotype = Genotype.from_text(_story(state, best).candidate.work.genotype)
    return {
        "run": state.run.name,
        "candidate": best.candidate,
        "fitness": best.fitness,
        "space": state.run.space.name,
        "genotype": genotype.to_text(),
        "levels": genotype.to_json(),
        "digest": genotype.digest,
    }
