"""The limits of a search: one vocabulary in config, `hiernas set`, records and metrics."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum

Setting = int | float | None


class Desire(StrEnum):
    """What people want of a run; a request says one absolutely."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"
    STOP_NOW = "stop_now"


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that may change while a search runs."""

    max_evaluations: int
    """Candidates that are proposed; every proposed one gets its outcome."""
    workers: int = 2
    """Attempts open at once. Lowering it drains, it never kills."""
    max_pending: int | None = None
    """Attempts that may wait for a place to run; None: on a cluster as many as run there, but 16 at least; else no bound."""
    max_gpu_hours: float | None = None
    """GPU-hours held, counted at dispatch; then running attempts finish and the run pauses. None: no bound."""
    max_attempts: int = 3
    """Attempts a candidate that end by no disruption, before it counts as lost."""
    max_disruptions: int = 20
    """Disrupted attempts a candidate, before it counts as lost."""
    max_bugs: int = 3
    """Outcomes `bug` since the last resume, at which the run halts."""
    max_failures: int = 20
    """Attempts in a row that the platform fails, at which the run halts; an evaluation or a resume begins the count anew."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            optional = field.name in ("max_pending", "max_gpu_hours")
            if value is None and optional:
                continue
            whole = field.name != "max_gpu_hours"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"{field.name} is {value!r}; expected {'a whole number' if whole else 'a number'}{' or null' if optional else ''}")
            low = 0 if field.name in ("workers", "max_gpu_hours", "max_disruptions") else 1
            if not low <= value <= 10_000_000:
                raise ValueError(f"{field.name} is {value}; allowed: {low} to 10000000")

    def changed(self, changes: Mapping[str, Setting]) -> "Limits":
        """With some keys set to new values; ValueError for an unknown key or an impossible value."""
        known = [field.name for field in fields(self)]
        for key in changes:
            if key not in known:
                raise ValueError(f"{key!r} is no limit; allowed: {', '.join(known)}")
        return replace(self, **changes)  # type: ignore[arg-type]  # checked by __post_init__, names above

    def differences(self, other: "Limits") -> dict[str, Setting]:
        """Keys whose value in `other` is another, with that value."""
        return {field.name: getattr(other, field.name) for field in fields(self) if getattr(self, field.name) != getattr(other, field.name)}
