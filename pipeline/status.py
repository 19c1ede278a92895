"""Where a run stands, from its folder alone, as plain data that the command line prints or dumps as JSON."""

from typing import Any

from pipeline.plan import holds
from pipeline.run import RunFolder
from pipeline.trouble import failures_in_a_row, suspects
from pipeline.words import text_change
from search.records import OutcomeKind, Release
from search.state import State


def word(state: State) -> str:
    """One word for where the run stands: new, running, paused, budget, stopped, halted, finished, interrupted or moved."""
    if state.moved is not None:
        return "moved"
    if not state.controllers:
        return "new"
    last = state.controllers[-1]
    if isinstance(last, Release):
        return last.reason.value
    return holds(state, state.totals.gpu_seconds) or "running"


def summary(state: State, now: float) -> dict[str, Any]:
    """The JSON of `hiernas status`; `now`: seconds since 1970."""
    best = state.best
    last_claim = state.last_claim
    latest = max((outcome.stamp.at for outcome in state.history[-1:]), default=None)
    return {
        "run": state.run.name,
        "state": word(state),
        "in_charge": state.charge is not None,
        "strategy": state.run.strategy.kind,
        "evaluated": len(state.history),
        "max_evaluations": state.limits.max_evaluations if state.limits else None,
        "proposed": len(state.stories),
        "in_flight": state.in_flight,
        "open_attempts": state.open_attempts,
        "failed": state.totals.failed,
        "failures_in_a_row": failures_in_a_row(state),
        "suspect_nodes": suspects(state, now) if last_claim is not None and last_claim.executor == "kubernetes" else {},
        "reused": state.totals.outcomes.get(OutcomeKind.REUSED, 0),
        "outcomes": {kind.value: count for kind, count in sorted(state.totals.outcomes.items())},
        "best": None
        if best is None
        else {
            "candidate": best.candidate,
            "fitness": best.fitness,
            "genotype": state.stories[best.candidate].candidate.work.genotype,
        },
        "held_hours": round(state.totals.held_seconds / 3600, 6),
        "gpu_hours": round(state.totals.gpu_seconds / 3600, 6),
        "workers": state.limits.workers if state.limits else None,
        "executor": last_claim.executor if last_claim else None,
        "owner": last_claim.owner if last_claim else None,
        "last_outcome_at": latest,
        "digest": state.last_digest,
    } | ({} if state.moved is None else {"moved_to": state.moved.to})


def story(folder: RunFolder, index: int) -> list[str]:
    """One candidate's whole story, a line each."""
    state = folder.load()
    if not 0 <= index < len(state.stories):
        return []
    one = state.stories[index]
    change = one.candidate.change
    bred = "drawn at random" if change is None else f"bred from candidate {one.candidate.parent} by {text_change(state.run.space, change)}"
    lines = [f"candidate {index}: {bred}, after {one.candidate.after} outcomes", f"genotype  {one.candidate.work.genotype}"]
    for attempt in one.attempts:
        end = one.ends.get(attempt.attempt)
        how = f"ended: {end.reason.value} {end.message} (exit {end.exit_code}, {end.held_seconds:.1f} s)" if end else "open"
        if one.outcome and one.outcome.attempt == attempt.attempt:
            how = f"accepted as outcome {one.outcome.number}: {one.outcome.outcome.value}, fitness {one.outcome.fitness}, {one.outcome.held_seconds:.1f} s"
        lines.append(f"attempt {attempt.attempt} ({attempt.why.value}, {attempt.executor}): {how}")
        lines += [f"    {line}" for line in (end.log if end else ())]
    return lines
