"""What report.html says: a run's records as sentences and tables. It draws nothing and writes nothing."""

import time
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from pipeline.codec import BadRecord
from pipeline.run import RunFolder
from pipeline.status import summary
from pipeline.words import text_change, text_genotype
from search.genotype import Genotype
from search.records import Claim, Failure, Metrics, Outcome, OutcomeKind, Reused
from search.state import State

Row = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of the page: its data URI, what it shows for those who do not see it, and the caption below it."""

    source: str
    alt: str
    caption: str
    wide: bool = False


def page(folder: RunFolder, state: State, trained: dict[int, Metrics], charts: list[Picture], motifs: list[Picture]) -> str:
    """The whole of report.html; `trained` as from trained_candidates."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("pipeline").joinpath("report.html").read_text(encoding="utf-8"))
    best = state.best
    return template.render(
        run=state.run,
        headline=_headline(state, trained),
        missing="The run has no outcome yet." if not state.history else "No candidate of the run has a fitness yet.",
        facts=_facts(state, trained),
        charts=charts,
        best=best,
        genotype=state.stories[best.candidate].candidate.work.genotype if best else "",
        matrices=text_genotype(state.run.space, Genotype.from_text(state.stories[best.candidate].candidate.work.genotype)) if best else "",
        motifs=motifs,
        network=_network(trained.get(_source(folder, best))) if best else [],
        lineage=_lineage(state, best) if best else [],
        failures=_failures(folder, state),
        ends=sorted(Counter(end.reason.value for story in state.stories for end in story.ends.values()).items()),
        cost=_cost(state, trained),
        machines=_machines(trained),
        settings=_settings(state),
    )


def trained_candidates(folder: RunFolder, state: State) -> dict[int, Metrics]:
    """The accepted evaluations of trained candidates, by candidate; one that is not valid is left out."""
    found: dict[int, Metrics] = {}
    for outcome in state.history:
        if outcome.outcome is OutcomeKind.EVALUATED and isinstance(evaluation := _evaluation(folder, outcome), Metrics):
            found[outcome.candidate] = evaluation
    return found


def _evaluation(folder: RunFolder, outcome: Outcome) -> Metrics | Failure | Reused | None:
    try:
        found = folder.evaluation(outcome.candidate, outcome.attempt)
    except BadRecord:
        return None
    # Other bytes than those accepted are not what the search went on.
    return found[0] if found and found[1] == outcome.evaluation else None


def _source(folder: RunFolder, outcome: Outcome) -> int:
    """The candidate that was trained for this outcome."""
    evaluation = _evaluation(folder, outcome) if outcome.outcome is OutcomeKind.REUSED else None
    return evaluation.source if isinstance(evaluation, Reused) else outcome.candidate


def _headline(state: State, trained: dict[int, Metrics]) -> str:
    run, best = state.run, state.best
    text = f"A search by {run.strategy.kind} over the space {run.space.name} on the data set {run.data.name}: {len(state.history)} candidates evaluated"
    text += f", {len(trained)} networks trained." if trained else "."
    if best is not None and best.fitness is not None:
        text += f" The best, candidate {best.candidate}, names {best.fitness:.2%} of the validation images right."
    return text


def _facts(state: State, trained: dict[int, Metrics]) -> list[Row]:
    found = summary(state, time.time())
    best = found["best"]
    lost = state.totals.outcomes.get(OutcomeKind.EVALUATED, 0) - len(trained)
    warning = (
        [("not readable", f"{lost} accepted evaluations, though their fitness is on record: `hiernas verify {state.run.name}` names them")] if lost else []
    )
    return [
        *warning,
        ("state", found["state"]),
        ("evaluated", f"{found['evaluated']} of {found['max_evaluations'] or 'a number not set yet'}"),
        ("in flight", found["in_flight"]),
        ("outcomes", ", ".join(f"{count} {kind}" for kind, count in found["outcomes"].items()) or "none"),
        ("failed", found["failed"]),
        ("best", f"candidate {best['candidate']}, fitness {best['fitness']:.2%}" if best else "none"),
        ("digest of the history", found["digest"] or "none"),
    ]


def _network(metrics: Metrics | None) -> list[Row]:
    """The best network in numbers."""
    if metrics is None:
        return []
    repeats = ", ".join(f"{repeat.accuracy:.2%}" for repeat in metrics.repeats)
    return [
        ("accuracy of each training", repeats),
        ("parameters", f"{metrics.parameters:,}"),
        ("multiply-adds", f"{metrics.multiply_adds:,} an image"),
        ("trained in", f"{sum(repeat.train_seconds for repeat in metrics.repeats):.1f} s on {metrics.machine.device}"),
    ]


def _lineage(state: State, best: Outcome) -> list[Row]:
    """(candidate, change, outcome, fitness, against its parent) from the ancestor drawn at random to the winner."""
    rows: list[Row] = []
    index: int | None = best.candidate
    while index is not None:
        story = state.stories[index]
        candidate, outcome = story.candidate, story.outcome
        fitness = outcome.fitness if outcome else None
        change = text_change(state.run.space, candidate.change) if candidate.change else "drawn at random"
        parent = state.stories[candidate.parent].outcome if candidate.parent is not None else None
        gain = (
            f"{(fitness - parent.fitness) * 100:+.2f}".replace("+0.00", "0.00")
            if fitness is not None and parent is not None and parent.fitness is not None
            else ""
        )
        rows.append((index, change, outcome.outcome.value if outcome else "none yet", f"{fitness:.2%}" if fitness is not None else "none", gain))
        index = candidate.parent
    return rows[::-1]


def _failures(folder: RunFolder, state: State) -> list[Row]:
    return [
        (outcome.number, outcome.candidate, outcome.attempt, outcome.outcome.value, _message(folder, state, outcome))
        for outcome in state.history
        if outcome.fitness is None
    ]


def _message(folder: RunFolder, state: State, outcome: Outcome) -> str:
    """What the accepted evaluation says, else what the end of that attempt says."""
    if outcome.evaluation is not None:
        found = _evaluation(folder, outcome)
        return found.message if isinstance(found, Failure) else "its evaluation is missing or not valid"
    end = state.stories[outcome.candidate].ends.get(outcome.attempt)
    return f"{end.reason.value}: {end.message}" if end else ""


def _cost(state: State, trained: dict[int, Metrics]) -> list[Row]:
    """What the search took."""
    claims = [record for record in state.controllers if isinstance(record, Claim)]
    attempts = sum(len(story.attempts) for story in state.stories)
    rows: list[Row] = []
    if claims:
        last = state.history[-1].stamp.at if state.history else claims[-1].at
        rows += [
            ("began", _moment(claims[0].at)),
            ("latest outcome", f"{_moment(last)}, {_length(last - claims[0].at)} after the beginning, pauses included"),
            ("starts of a controller", len(claims)),
        ]
    rows += [
        ("attempts", attempts),
        ("time held by attempts", f"{_length(state.totals.held_seconds)}, summed over all of them"),
        ("GPU time held", f"{state.totals.gpu_seconds / 3600:.2f} hours"),
    ]
    if trained:
        seconds = sorted(metrics.total_seconds for metrics in trained.values())
        rows.append(("one training", f"{seconds[len(seconds) // 2]:.1f} s in the median, {seconds[0]:.1f} to {seconds[-1]:.1f} s"))
        rows.append(("most memory", f"{max(metrics.peak_memory_bytes for metrics in trained.values()) / 1024**3:.2f} GiB"))
    return rows


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _length(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _machines(trained: dict[int, Metrics]) -> list[Row]:
    """(what, how many evaluations) for each different machine."""
    found: Counter[str] = Counter()
    for metrics in trained.values():
        machine = metrics.machine
        versions = ", ".join(f"{name} {version}" for name, version in sorted(machine.versions.items()))
        found[f"{machine.device}, {machine.threads} thread{'s' if machine.threads > 1 else ''}, {machine.precision}; {versions}"] += 1
    return list(found.most_common())


def _settings(state: State) -> list[tuple[str, list[Row]]]:
    """(part of run.json, its fields), the limits in force last."""
    run = asdict(state.run)
    parts: list[tuple[str, list[Row]]] = [("search", [(name, run[name]) for name in ("name", "seed", "algorithm", "run_id")])]
    parts += [(name, _rows(run[name])) for name in ("strategy", "recipe", "space", "model", "data", "constraints")]
    limits: list[Row] = _rows(asdict(state.limits)) if state.limits else [("limits", "not set before the first start")]
    return [*parts, ("limits in force", limits)]


def _rows(fields: dict[str, Any]) -> list[Row]:
    return [(key, _plain(value)) for key, value in fields.items()]


def _plain(value: Any) -> str:
    """A value of a record as a person writes it."""
    if isinstance(value, (list, tuple)):
        return ("; " if any(isinstance(one, dict) for one in value) else ", ").join(map(_plain, value)) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(one)}" for key, one in value.items())
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
