"""Where attempts failed of late, and what follows: which nodes the next ones avoid, how long a retry waits, when the run halts.

A node that fails every attempt within seconds always has room, and would swallow one candidate after the other: it gets no more of
them for a while, as long as the run works elsewhere. Where it does not, the fault is no single node's, and `max_failures` halts the run.
Pure functions of the records, but for the time (DESIGN, 'Whose fault').
"""

from collections.abc import Set

from search.limits import Limits
from search.records import PLATFORM, End, EndReason
from search.state import State, Story

SUSPICIOUS = frozenset({EndReason.MACHINE, EndReason.NOT_STARTED})
SUSPECT_ENDS = 3
"""Attempts that ended so on a node which make it one to avoid, of two candidates at least: less may be chance, or the candidate."""
SUSPECT_SECONDS = 3600.0
"""So long ago at most; then it is tried again: drivers are restarted, disks are cleaned."""
WORKING_SECONDS = 600.0
"""Where an attempt runs, or an evaluation came from so lately, the run works."""
FIRST_PAUSE_SECONDS, PAUSE_FACTOR, LONGEST_PAUSE_SECONDS = 10.0, 6.0, 300.0
"""Before a second, a third, a further attempt: 10 s, a minute, five minutes. What failed at once may need a moment to come right."""


def suspects(state: State, at: float) -> dict[str, int]:
    """Nodes to avoid, with how many attempts ended `machine` or `not_started` there in the hour before `at` (seconds since 1970).

    Counted are ends since a worker's evaluation was last accepted from that node, of attempts since the last resume; of ends
    `machine` not those of candidates that ended so on two nodes.
    """
    ends = [
        (end.node, end)
        for attempt, end in state.troubles.values()
        if end.reason in SUSPICIOUS and end.node is not None and abs(at - end.stamp.at) < SUSPECT_SECONDS and attempt.stamp.control >= state.resumed_at
    ]
    nodes: dict[int, set[str]] = {}
    for node, end in ends:
        if end.reason is EndReason.MACHINE:  # what never started cannot be the candidate's doing
            nodes.setdefault(end.candidate, set()).add(node)
    found: dict[str, list[int]] = {}
    for node, end in ends:
        candidates_own = end.reason is EndReason.MACHINE and len(nodes[end.candidate]) > 1
        if not candidates_own and (node not in state.well or end.stamp.after > state.well[node].number):
            found.setdefault(node, []).append(end.candidate)
    return {node: len(candidates) for node, candidates in sorted(found.items()) if len(candidates) >= SUSPECT_ENDS and len(set(candidates)) > 1}


def avoided(state: State, running: Set[str], at: float) -> tuple[str, ...]:
    """Nodes that a new attempt avoids: the suspected ones, while the run works on others. `running`: nodes on which attempts run at this moment."""
    suspected = suspects(state, at)
    working = running | {node for node, last in state.well.items() if at - last.stamp.at < WORKING_SECONDS}
    return tuple(suspected) if working - suspected.keys() else ()


def failed_on(story: Story, attempt: int) -> tuple[str, ...]:
    """Nodes on which the platform failed earlier attempts: this one had better run elsewhere, if there is room."""
    return tuple(sorted({end.node for number, end in story.ends.items() if number < attempt and end.node is not None and end.reason in PLATFORM}))


def failures_in_a_row(state: State) -> int:
    """What `max_failures` bounds: failures with no evaluation between them.

    What was under way at the first of them counts as one with it: a drain, a person, a power cut end hundreds of attempts at once.
    """
    counted = [(attempt.stamp.at, ended.at) for attempt, ended in state.failures.values() if attempt.stamp.control >= state.resumed_at]
    first = min((ended for _, ended in counted), default=0.0)
    return bool(counted) + sum(decided > first for decided, _ in counted)


def halted(state: State, limits: Limits) -> bool:
    """Whether the run starts nothing more until it is resumed, or something that still runs comes to an evaluation."""
    return state.totals.bugs_since_resume >= limits.max_bugs or failures_in_a_row(state) >= limits.max_failures


def last_failure(state: State) -> End | None:
    """The newest attempt that counts towards `max_failures`."""
    found = [state.troubles[place][1] for place in state.failures.keys() & state.troubles.keys()]
    return max(found, key=lambda end: (end.stamp.at, end.candidate, end.attempt), default=None)


def halted_by(state: State) -> str:
    """Why a halted run is halted, with an example and what to do."""
    name, goes_on = state.run.name, f"`hiernas resume {state.run.name}` goes on"
    if state.limits is not None and state.totals.bugs_since_resume >= state.limits.max_bugs:
        return f"{state.totals.bugs_since_resume} candidates failed by a bug of the program: `hiernas report {name} --out DIR` lists them; once it is mended, {goes_on}"
    last = last_failure(state)
    told = f", the last one {last.reason.value}{f' on node {last.node}' if last.node else ''}: {last.message}" if last is not None else ": out of memory"
    return f"{failures_in_a_row(state)} attempts in a row came to nothing{told} — `hiernas show {name} {last.candidate if last is not None else 'N'}` tells more; once the cause is mended, {goes_on}"


def pause_seconds(story: Story) -> float:
    """How long the next attempt waits after the last one's end; 0 where the platform only took it away: that was no fault of the place it runs in next."""
    last = story.ends.get(len(story.attempts) - 1)
    if last is None or last.reason not in PLATFORM:
        return 0.0
    failed = sum(end.reason in PLATFORM for end in story.ends.values())
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * PAUSE_FACTOR ** min(failed - 1, 10))
