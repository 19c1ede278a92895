"""What `hiernas doctor` says of one thing: how it stands, what was found, what to do. Pure."""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import StrEnum

SKEW_WARN_SECONDS, SKEW_FAIL_SECONDS = 5.0, 60.0
"""S3 refuses requests whose clock is 15 minutes off, tokens of service accounts are minutes old: a minute is the first sign of it."""


class Verdict(StrEnum):
    """How one thing stands."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    UNKNOWN = "unknown"
    """There is no right to look, or nothing to see it by."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a run needs."""

    name: str
    verdict: Verdict
    found: str
    do: str = ""
    """What a person should do; empty when all is well."""


def ok(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, Verdict.OK, found)


def warning(name: str, found: str, do: str) -> Check:
    """A run will work, but not as one might think."""
    return Check(name, Verdict.WARNING, found, do)


def failed(name: str, found: str, do: str) -> Check:
    """A run will not work."""
    return Check(name, Verdict.FAILED, found, do)


def unknown(name: str, found: str, do: str) -> Check:
    """It could not be seen."""
    return Check(name, Verdict.UNKNOWN, found, do)


def clock(name: str, date: str, before: float, after: float) -> Check:
    """A server's Date header against this machine's time just before and after the request. The header has whole seconds."""
    try:
        there = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return unknown(name, f"its answers have no readable Date ({date!r})", "compare the clocks by hand")
    return skew(name, max(0.0, before - (there + 1.0), there - after))


def skew(name: str, seconds: float) -> Check:
    """How far another clock is from this machine's."""
    do = "set the clock of this machine, or of that server (NTP): credentials expire by it, and S3 refuses requests that are 15 minutes off"
    if seconds > SKEW_WARN_SECONDS:
        return (failed if seconds > SKEW_FAIL_SECONDS else warning)(name, f"{seconds:.0f} s from this machine's", do)
    return ok(name, f"within {max(1.0, seconds):.0f} s of this machine's")
