"""Where attempts failed of late, and what follows: which nodes the next ones avoid, how long a retry waits (DESIGN, 'Whose fault').

A node that fails every attempt within seconds always has room, and would swallow one candidate after the other: it gets no more of
them for a while, even if nothing else is there, since waiting costs nothing. Where one node after the other fails, the fault is no
node's, and `max_failures` halts the run.
Pure functions of the records, but for the time.
"""

from collections import Counter
from collections.abc import Set

from search.records import PLATFORM, End, EndReason
from search.state import State, Story

SUSPECT_ENDS = 3
"""Failed attempts on a node within SUSPECT_SECONDS that make it one to avoid: two may be chance, eight are a machine's worth of GPUs."""
SUSPECT_SECONDS = 3600.0
"""Then it is tried again: drivers are restarted, disks are cleaned."""
FIRST_PAUSE_SECONDS, PAUSE_FACTOR, LONGEST_PAUSE_SECONDS = 10.0, 6.0, 300.0
"""Before a second, a third, a further attempt: 10 s, a minute, five minutes. What failed at once may need a moment to come right."""
_OF_THE_NODE = frozenset({EndReason.MACHINE, EndReason.KILLED, EndReason.EMPTY})


def suspects(state: State, at: float) -> dict[str, int]:
    """Nodes to avoid, with how many attempts failed there since the last resume in the hour before `at` (seconds since 1970)."""
    found = Counter(
        end.node
        for end in state.troubles.values()
        if end.node is not None and end.reason in _OF_THE_NODE and end.stamp.control >= state.resumed_at and abs(at - end.stamp.at) < SUSPECT_SECONDS
    )
    return {node: count for node, count in sorted(found.items()) if count >= SUSPECT_ENDS}


def avoids(story: Story, suspected: Set[str], working: Set[str]) -> tuple[str, ...]:
    """Nodes that the candidate's next attempt avoids: those suspected, and those it failed on while others of the `working` ones remain."""
    own = {end.node for end in story.ends.values() if end.node is not None and end.reason in _OF_THE_NODE}
    return tuple(sorted(suspected | own if working - suspected - own else suspected))


def last_failure(state: State) -> End | None:
    """The newest attempt that counts towards `max_failures`."""
    found = [state.troubles[place] for place in state.failures.keys() & state.troubles.keys()]
    return max(found, key=lambda end: (end.stamp.at, end.candidate, end.attempt), default=None)


def halted_by(state: State) -> str:
    """Why a halted run is halted, with an example and what to do."""
    name, goes_on = state.run.name, f"`hiernas resume {state.run.name}` goes on"
    if state.limits is not None and state.totals.bugs_since_resume >= state.limits.max_bugs:
        return f"{state.totals.bugs_since_resume} candidates failed by a bug of the program: `hiernas report {name} --out DIR` lists them; once it is mended, {goes_on}"
    last = last_failure(state)
    told = f", the last one {last.reason.value}{f' on node {last.node}' if last.node else ''}: {last.message}" if last is not None else ": out of memory"
    return f"{len(state.failures)} attempts in a row came to nothing{told} — `hiernas show {name} {last.candidate if last is not None else 'N'}` tells more; once the cause is mended, {goes_on}"


def pause_seconds(story: Story) -> float:
    """How long the next attempt waits after the last one's end; 0 after a disruption: that was no fault of the place it runs in next."""
    last = story.ends.get(len(story.attempts) - 1)
    if last is None or last.reason not in PLATFORM:
        return 0.0
    failed = sum(end.reason in PLATFORM for end in story.ends.values())
    return min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * PAUSE_FACTOR ** min(failed - 1, 10))
