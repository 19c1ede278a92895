"""`hiernas report`: a run as one HTML file that needs nothing else, its figures as files, and the best genotype as JSON.

Everything comes from the run's records; a report can be written of a run at any moment, also of one that has found nothing yet.
"""

import base64
import io
import json
import os
from collections import Counter
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, StrictUndefined

from pipeline.answer import network
from pipeline.codec import BadRecord
from pipeline.drawing import draw_genotype, text_change, text_genotype
from pipeline.errors import ConfigError
from pipeline.run import RunFolder
from pipeline.status import summary
from search.cost import cost
from search.genotype import Genotype
from search.records import Failure, Outcome
from search.state import State, Story

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOTS_PER_INCH = 150


def write_report(folder: RunFolder, out: Path) -> None:
    """Write report.html, the figures and best-genotype.json into `out`; what a run without a fitness cannot have is left out."""
    state = folder.load()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"--out {str(out)!r}: it, or a folder above it, is a file; expected a folder, or a path where one can be made") from error
    sources = {name: _save(out, name, figure) for name, figure in _figures(state).items()}
    if state.best is not None:
        _write(out / "best-genotype.json", json.dumps(_best(state, state.best), indent=2).encode() + b"\n")
    _write(out / "report.html", _page(folder, state, sources).encode())


def _write(path: Path, data: bytes) -> None:
    """The whole file or none of it: a reader never sees half a report."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(data)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _save(out: Path, name: str, figure: "Figure") -> str:
    """Write a figure as SVG and PNG; returns the SVG as a data URI (as an image of its own: ids of inline ones would clash)."""
    import matplotlib

    svg, png = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hiernas"}):  # the same run gives the same bytes
        figure.savefig(svg, format="svg", metadata={"Date": None})
    figure.savefig(png, format="png", dpi=DOTS_PER_INCH)
    _write(out / f"{name}.svg", svg.getvalue())
    _write(out / f"{name}.png", png.getvalue())
    return "data:image/svg+xml;base64," + base64.b64encode(svg.getvalue()).decode()


def _figures(state: State) -> dict[str, "Figure"]:
    if state.best is None:
        return {}
    genotype = _story(state, state.best).candidate.work.genotype
    return {"fitness": _draw_fitness(state), "parameters": _draw_parameters(state), "best": draw_genotype(state.run.space, Genotype.from_text(genotype))}


def _story(state: State, outcome: Outcome) -> Story:
    return state.stories[outcome.candidate]


def _scored(state: State, bred: bool) -> list[tuple[Outcome, float]]:
    """Outcomes with a fitness, of the candidates that have a parent or of those drawn at random."""
    return [
        (outcome, outcome.fitness) for outcome in state.history if outcome.fitness is not None and (_story(state, outcome).candidate.parent is not None) is bred
    ]


def _groups(state: State) -> list[tuple[str, str, list[tuple[Outcome, float]]]]:
    """(label, colour, outcomes) of the two kinds of candidates, those that there are."""
    kinds = (("drawn at random (initial population)", "tab:orange", False), ("bred by mutation", "tab:blue", True))
    groups = [(label, colour, _scored(state, bred)) for label, colour, bred in kinds]
    return [group for group in groups if group[2]]


def _axes(xlabel: str, title: str) -> tuple["Figure", Any]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=xlabel, ylabel="fitness (validation accuracy)", title=title)
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _draw_fitness(state: State) -> "Figure":
    figure, axes = _axes("evaluations accepted", f"Fitness over evaluations, run {state.run.name}")
    for label, colour, outcomes in _groups(state):
        axes.scatter([outcome.number + 1 for outcome, _ in outcomes], [fitness for _, fitness in outcomes], s=18, color=colour, label=label)
    best = 0.0
    numbers: list[int] = []
    line: list[float] = []
    for outcome in state.history:
        best = max(best, outcome.fitness or 0.0)
        if line or outcome.fitness is not None:
            numbers.append(outcome.number + 1)
            line.append(best)
    axes.plot(numbers, line, color="black", linewidth=1.3, drawstyle="steps-post", label="best so far")
    axes.legend(fontsize=8)
    return figure


def _draw_parameters(state: State) -> "Figure":
    figure, axes = _axes("parameters of the network", f"Fitness against parameters, run {state.run.name}")
    for label, colour, outcomes in _groups(state):
        sizes = [cost(network(state.run, _story(state, outcome).candidate)).parameters for outcome, _ in outcomes]
        axes.scatter(sizes, [fitness for _, fitness in outcomes], s=18, color=colour, label=label)
    assert state.best is not None
    size = cost(network(state.run, _story(state, state.best).candidate)).parameters
    axes.scatter([size], [state.best.fitness], s=120, facecolors="none", edgecolors="black", label="best")
    axes.legend(fontsize=8)
    return figure


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


def _page(folder: RunFolder, state: State, sources: dict[str, str]) -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    template = environment.from_string(files("pipeline").joinpath("report.html").read_text(encoding="utf-8"))
    titles = {"fitness": "Fitness of each candidate in the order of acceptance", "parameters": "Fitness against the size of the network"}
    best = state.best
    return template.render(
        run=state.run,
        missing="The run has no outcome yet." if not state.history else "No candidate of the run has a fitness yet.",
        facts=_facts(state),
        figures=[(title, sources[name]) for name, title in titles.items() if name in sources],
        best=best,
        genotype=text_genotype(state.run.space, Genotype.from_text(_story(state, best).candidate.work.genotype)) if best else "",
        drawing=sources.get("best", ""),
        lineage=_lineage(state, best) if best else [],
        failures=_failures(folder, state),
        ends=sorted(Counter(end.reason.value for story in state.stories for end in story.ends.values()).items()),
        settings=_settings(state),
    )


def _facts(state: State) -> list[tuple[str, object]]:
    found = summary(state)
    best = found["best"]
    return [
        ("state", found["state"]),
        ("evaluated", f"{found['evaluated']} of {found['max_evaluations'] or 'a number not set yet'}"),
        ("proposed", found["proposed"]),
        ("in flight", found["in_flight"]),
        ("outcomes", ", ".join(f"{count} {kind}" for kind, count in found["outcomes"].items()) or "none"),
        ("failed", found["failed"]),
        ("best", f"candidate {best['candidate']}, fitness {best['fitness']:.4f}" if best else "none"),
        ("time held by attempts", f"{found['held_hours']:.3f} hours"),
        ("GPU time held", f"{found['gpu_hours']:.3f} hours"),
        ("executor", found["executor"] or "none yet"),
        ("digest of the history", found["digest"] or "none"),
    ]


def _lineage(state: State, best: Outcome) -> list[tuple[object, ...]]:
    """(candidate, change, outcome, fitness) from the ancestor drawn at random to the winner."""
    rows: list[tuple[object, ...]] = []
    index: int | None = best.candidate
    while index is not None:
        story = state.stories[index]
        candidate, outcome = story.candidate, story.outcome
        change = text_change(state.run.space, candidate.change) if candidate.change else "drawn at random" if candidate.parent is None else "none"
        fitness = f"{outcome.fitness:.4f}" if outcome and outcome.fitness is not None else "none"
        rows.append((index, change, outcome.outcome.value if outcome else "none yet", fitness))
        index = candidate.parent
    return rows[::-1]


def _failures(folder: RunFolder, state: State) -> list[tuple[object, ...]]:
    return [
        (outcome.number, outcome.candidate, outcome.attempt, outcome.outcome.value, _message(folder, state, outcome))
        for outcome in state.history
        if outcome.fitness is None
    ]


def _message(folder: RunFolder, state: State, outcome: Outcome) -> str:
    """What the accepted evaluation says, else what the end of that attempt says."""
    if outcome.evaluation is not None:
        try:
            found = folder.evaluation(outcome.candidate, outcome.attempt)
        except BadRecord as error:
            return f"its evaluation is not valid: {error}"
        return found[0].message if found and isinstance(found[0], Failure) else "its evaluation is missing"
    end = _story(state, outcome).ends.get(outcome.attempt)
    return f"{end.reason.value}: {end.message}" if end else ""


def _settings(state: State) -> list[tuple[str, str]]:
    run = asdict(state.run)
    shown = ("space", "strategy", "recipe", "model", "data", "constraints", "seed", "algorithm", "run_id")
    limits = asdict(state.limits) if state.limits else "not set before the first start"
    return [(name, json.dumps(run[name], ensure_ascii=False)) for name in shown] + [("limits", json.dumps(limits))]
