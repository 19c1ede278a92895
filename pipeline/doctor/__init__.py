"""`hiernas doctor`: everything a run will need, checked before it. Reads, reviews and dry runs; what it writes are small probe objects in the store.

Each check is one line: how it stands, what was found, what to do. None stops the others, but for those that stand on it.
"""

import json
import math
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import psutil

from pipeline.cluster import ClusterConfig
from pipeline.config import Config, differences
from pipeline.doctor import checks, probe
from pipeline.doctor.checks import Check, Verdict
from pipeline.errors import ConfigError, HiernasError
from pipeline.run import RunFolder
from pipeline.store import open_store
from search.records import Run

if TYPE_CHECKING:
    from pipeline.api import Api

GIB = 1024**3
_COLOURS = {Verdict.OK: "32", Verdict.WARNING: "33", Verdict.FAILED: "31;1", Verdict.UNKNOWN: "36"}
_SHOWN = {Verdict.FAILED: "FAILED"}
_PACKAGES = ("torch", "safetensors", "numpy")
"""What a worker on this machine imports."""


def examine(config: Config, text: str, url: str, smoke: bool) -> Iterator[Check]:
    """Every check of a run in the store at `url`; `text` is the config's own. `smoke`: also train a tiny candidate, if nothing has failed."""
    sound = True
    for one in _examine(config, url):
        sound = sound and one.verdict is not Verdict.FAILED
        yield one
    if smoke and not sound:
        yield checks.unknown("smoke", "not tried: a check before it has failed", "mend that first")
    elif smoke:
        from pipeline.doctor.smoke import smoke as try_it

        yield from try_it(config, text, url, None if config.cluster is None else _api())


def _examine(config: Config, url: str) -> Iterator[Check]:
    fresh: Run | None = None
    try:
        fresh = config.what(secrets.token_hex(16))
        yield checks.ok("data set", f"{config.data!r} is prepared, every file has its digest")
    except HiernasError as error:
        yield checks.failed("data set", str(error), "no search begins before that")
    yield from probe.store(url, config.run)
    there = None
    try:
        there = _run_there(config, url)
        if there is None:
            yield checks.ok("run", f"{config.run!r} would be a new run in {url}")
        elif fresh is not None and (changed := differences(there, fresh)):
            told = f"run {config.run!r} is there and searches for something else: {'; '.join(changed)}"
            yield checks.failed("run", told, "give the new search another name (field 'run'), or restore the config")
        else:
            yield checks.ok("run", f"{config.run!r} is there and would go on")
    except HiernasError as error:
        yield checks.failed("run", str(error), "it cannot go on as it is")
    if config.cluster is not None:
        yield from _cluster(config, config.cluster, url, there.run_id if there is not None else None)
    else:
        yield from _machine(config)


def _run_there(config: Config, url: str) -> Run | None:
    """The run of that name in the store; ConfigError if it was moved away."""
    folder = RunFolder(open_store(url, make=False), config.run)
    if not folder.exists():
        return None
    state = folder.load()
    if state.moved is not None:
        raise ConfigError(folder.elsewhere(state.moved))
    return state.run


def _api() -> "Api":
    try:
        from pipeline.api import Api
    except ModuleNotFoundError as error:
        raise ConfigError(f"this needs the package {error.name!r}; install hiernas[cluster]") from error
    return Api()


def _cluster(config: Config, cluster: ClusterConfig, url: str, run_id: str | None) -> Iterator[Check]:
    try:
        api = _api()
    except ConfigError as error:
        yield checks.failed("cluster", str(error), "the rest was not looked at")
        return
    from pipeline.doctor.premises import examine as examine_site
    from pipeline.doctor.site import Site

    yield from examine_site(Site(api, config, cluster, url, run_id))


# -- this machine, where attempts run here


def _machine(config: Config) -> Iterator[Check]:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        yield checks.failed("packages", f"a worker here needs {', '.join(missing)}, which are not installed", "install hiernas[worker]")
    else:
        yield checks.ok("packages", f"{', '.join(_PACKAGES)} are installed")
    workers = 1 if config.executor.kind == "inline" else config.limits.workers
    total = psutil.virtual_memory().total / GIB
    yield memory(config.executor.memory_gib, workers, total)
    yield processors(config.executor.threads, workers, _processors())
    yield probe.space("temporary space", Path(os.environ.get("TMPDIR") or "/tmp"))  # noqa: S108  # looked at, not used


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory(each: float | None, workers: int, total: float) -> Check:
    """All in GiB. A limit is a bound and not a need, so many of them may add up to more than there is."""
    if each is None:
        return checks.warning(
            "memory",
            f"{total:.1f} GiB; executor.memory_gib is not set",
            "set it: a network that takes too much is then a result, and not the end of this machine",
        )
    if each > total:
        return checks.failed("memory", f"this machine has {total:.1f} GiB, one worker may take {each:g}", "lower executor.memory_gib, or take a larger machine")
    if each * workers > total:
        return checks.warning(
            "memory",
            f"this machine has {total:.1f} GiB, {workers} workers may take {each * workers:g}",
            f"lower limits.workers to {math.floor(total / each)} or executor.memory_gib",
        )
    return checks.ok("memory", f"{workers} × {each:g} GiB fit in {total:.1f}")


def processors(threads: int, workers: int, there: int) -> Check:
    """Threads against processors: too many only slow each other."""
    if threads * workers > there:
        return checks.warning(
            "processors", f"{there} for {workers} workers of {threads} threads", "lower limits.workers: trainings share processors and slow each other"
        )
    return checks.ok("processors", f"{there} for {workers} workers of {threads} threads")


# -- how it is told


def line(check: Check, colour: bool) -> str:
    """One check as a person reads it."""
    word = f"{_SHOWN.get(check.verdict, check.verdict.value):8}"
    if colour:
        word = f"\x1b[{_COLOURS[check.verdict]}m{word}\x1b[0m"
    told = " ".join(f"{check.found}{f' — {check.do}' if check.do else ''}".split())
    return f"{word} {check.name:24} {told}"


def tell(found: Iterable[Check], out: TextIO, as_json: bool) -> bool:
    """Print each check as soon as it is made, or all as JSON; returns whether none has failed."""
    seen = []
    colour = out.isatty() and "NO_COLOR" not in os.environ
    for one in found:
        seen.append(one)
        if not as_json:
            print(line(one, colour), file=out, flush=True)
    counts = Counter(one.verdict for one in seen)
    if as_json:
        plain = [{"name": one.name, "verdict": one.verdict.value, "found": one.found, "do": one.do} for one in seen]
        print(json.dumps({"summary": {verdict.value: counts[verdict] for verdict in Verdict}, "checks": plain}), file=out)
    else:
        told = ", ".join(f"{counts[verdict]} {_SHOWN.get(verdict, verdict.value)}" for verdict in Verdict if counts[verdict])
        print(f"{len(seen)} checks: {told}", file=out)
    return not counts[Verdict.FAILED]
