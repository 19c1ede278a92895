"""`hiernas doctor` on a store: is it there, and does it keep its one promise, that the first write wins, when many write at once?

Leaves small objects under `_doctor/`, a folder that no run can have. Its large ones there are all that this program ever deletes from a bucket.
"""

import math
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.directory import DirectoryStore
from pipeline.doctor import checks
from pipeline.doctor.checks import Check
from pipeline.errors import HiernasError
from pipeline.store import Store, open_store

FOLDER = "_doctor"
"""Of what doctor writes. No run can have that name."""
WRITERS, KEYS, OBJECT_BYTES = 8, 24, 2048
"""So many writers, each over connections of its own, race for so many keys of about a record's size."""
LARGE_WRITERS, LARGE_KEYS, LARGE_BYTES = 4, 20, 6 * 1024**2
"""The same with large objects, which a bucket keeps for longer between looking and writing: small ones do not find out a server whose window
is narrow, as moto's is. How often that one is refused, `python tests/bad_store.py` measures; its result is in bench/results/."""
LARGE_SECONDS = 60.0
"""No large race begins after that: over a slow line fewer must do."""
RACE = "store: create-only"
LISTED = 5
GIB = 1024**3
LOW_BYTES, FULL_BYTES = 5 * GIB, GIB // 4
COLD = frozenset({"GLACIER", "DEEP_ARCHIVE"})
"""Storage classes whose objects cannot be read at once."""
_SPARE = ("checkpoints/", "logs/")
"""Folders of a run whose objects are no decisions."""


def store(url: str, run: str) -> Iterator[Check]:
    """Every check of a store; nothing more is asked of one that cannot be opened."""
    try:
        opened = open_store(url)
        place = f"{FOLDER}/{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(4)}"
        yield checks.ok("store", f"{url} answers and takes writes")
        if isinstance(opened, DirectoryStore):
            yield space("store: space", opened.root)
        yield create_only(url, place)
        yield reading(opened, open_store(url, make=False), place)
        if isinstance(opened, DirectoryStore):
            yield _folder_clock(opened, place)
        else:
            yield from _bucket(opened, run)
    except HiernasError as error:
        yield checks.failed("store", str(error), "nothing can be recorded before that is mended")


# -- create-only


def create_only(url: str, place: str) -> Check:
    """Whether exactly one of many concurrent writers wins each key, and all of them are told the same. Ends at the first key where it is not so.

    A race can show that a store is bad, never that it is good: so what was tried is told.
    """
    opened = open_store(url, make=False)
    small = [f"{place}/{number:06d}" for number in range(KEYS)]
    if (bad := _race_all(url, small, WRITERS, OBJECT_BYTES, math.inf)[0]) is not None:
        return bad
    tried = f"{WRITERS} writers at once of {KEYS} keys"
    if isinstance(opened, DirectoryStore):  # a link takes as long for large files as for small ones
        return checks.ok(RACE, f"one winner each: {tried}; these small objects stay in {url.rstrip('/')}/{place}/")
    large = [f"{place}/large/{number:06d}" for number in range(LARGE_KEYS)]
    try:
        bad, done = _race_all(url, large, LARGE_WRITERS, LARGE_BYTES, LARGE_SECONDS)
    finally:
        gone = [_discard(opened, key) for key in large]
    if bad is not None:
        return bad
    stay = f"small objects{'' if all(gone) else f' and {done} of {LARGE_BYTES // 1024**2} MiB, which may not be deleted,'} stay in {url.rstrip('/')}/{place}/"
    return checks.ok(RACE, f"one winner each: {tried}, {LARGE_WRITERS} of {done} keys of {LARGE_BYTES // 1024**2} MiB (no race is a proof); {stay}")


def _race_all(url: str, keys: Sequence[str], writers: int, size: int, seconds: float) -> tuple[Check | None, int]:
    """What is wrong at the first key where something is, and how many keys were raced for."""
    stores = [open_store(url, make=False) for _ in range(writers)]
    began = time.monotonic()
    for done, key in enumerate(keys):
        if time.monotonic() - began > seconds:
            return None, done
        offered, answers = race(stores, key, size)
        if not one_winner(offered, answers, open_store(url, make=False).read(key) if done == 0 else stores[0].read(key)):
            told = (
                f"{_winners(offered, answers)} of {writers} writers at once of {key} were told that theirs is stored; expected one, and all others told of it"
            )
            return checks.failed(RACE, told, "choose another object store: on this one two controllers could both believe that theirs is the record"), done + 1
    return None, len(keys)


def _discard(opened: Any, key: str) -> bool:
    return bool(opened.discard(key))


def race(stores: Sequence[Store], key: str, size: int) -> tuple[list[bytes], list[bytes]]:
    """What each writer offered and what it was answered. One thread a store; all begin at the same moment."""
    offered = [f"writer {number} of {key} ".encode().ljust(size, bytes([65 + number % 26])) for number in range(len(stores))]
    answers = [b""] * len(stores)
    start = threading.Barrier(len(stores))
    errors: list[HiernasError] = []

    def write(number: int) -> None:
        try:
            stores[number].list(f"{FOLDER}/none/")  # connects
            start.wait()
            answers[number] = stores[number].create(key, offered[number])
        except threading.BrokenBarrierError:
            pass
        except HiernasError as error:
            errors.append(error)
            start.abort()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(len(stores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return offered, answers


def _winners(offered: Sequence[bytes], answers: Sequence[bytes]) -> int:
    return sum(mine == told for mine, told in zip(offered, answers, strict=True))


def one_winner(offered: Sequence[bytes], answers: Sequence[bytes], stored: bytes) -> bool:
    return _winners(offered, answers) == 1 and set(answers) == {stored}


def reading(writer: Store, opened: Store, place: str) -> Check:
    """Whether another connection lists at once what was just written, whole and from the middle on."""
    name = "store: reads"
    expected = [f"{place}/list/{number:06d}" for number in range(LISTED)]
    for key in expected:
        writer.create(key, b"listed")
    found, rest = opened.list(f"{place}/list/"), opened.list(f"{place}/list/", expected[LISTED // 2])
    if found != expected or rest != expected[LISTED // 2 + 1 :] or opened.read(expected[-1]) != b"listed":
        return checks.failed(
            name,
            f"{len(expected)} objects were written, its lists have {len(found)} and, from the middle on, {len(rest)}",
            "choose a store that reads its writes",
        )
    return checks.ok(name, "what was just written is read and listed")


# -- folders


def space(name: str, folder: Path) -> Check:
    """Free disk space there."""
    free = shutil.disk_usage(folder).free
    what = f"{free / GIB:.1f} GiB are free in {folder}"
    if free < LOW_BYTES:
        return (checks.failed if free < FULL_BYTES else checks.warning)(name, what, "free some space: a search waits when the disk is full")
    return checks.ok(name, what)


def _folder_clock(opened: DirectoryStore, place: str) -> Check:
    """A file's time is the file server's, where the folder is not this machine's own."""
    before = time.time()
    opened.create(f"{place}/clock", b"clock")
    written = (opened.root / place / "clock").stat().st_mtime
    return checks.skew("store: clock", max(0.0, before - written - 1.0, written - time.time()))


# -- buckets


def _bucket(opened: Any, run: str) -> Iterator[Check]:
    before = time.time()
    date = opened.server_date()
    yield checks.clock("store: clock", date, before, time.time())
    try:
        rules = opened.lifecycle()
    except HiernasError as error:
        yield checks.unknown(
            "store: lifecycle",
            f"the bucket's rules may not be read ({error})",
            "make sure that no rule deletes or archives objects there (s3:GetLifecycleConfiguration)",
        )
        return
    found = list(lifecycle(rules, [opened.full_key(f"{part}/") for part in (run, "_datasets")]))
    yield from found or [checks.ok("store: lifecycle", f"no rule deletes or archives records ({len(rules)} rules in all)")]


def lifecycle(rules: Sequence[dict[str, Any]], places: Sequence[str]) -> Iterator[Check]:
    """What the bucket's rules would do to objects below these prefixes."""
    name = "store: lifecycle"
    for rule in rules:
        where = _prefix_of(rule)
        touched = [place for place in places if where is not None and (place.startswith(where) or where.startswith(place))]
        if rule.get("Status") != "Enabled" or where is None or not touched or any(where.startswith(f"{touched[0]}{part}") for part in _SPARE):
            continue
        said = f"rule {rule.get('ID') or 'without a name'!s} ({f'prefix {where!r}' if where else 'the whole bucket'})"
        expiration = rule.get("Expiration") or {}
        if "Days" in expiration or "Date" in expiration:
            when = f"after {expiration['Days']} days" if "Days" in expiration else f"at {expiration['Date']}"
            yield checks.failed(name, f"{said} deletes objects {when}", f"take {touched[0]!r} out of that rule: a record that is gone damages its run for good")
        moves = rule.get("Transitions") or []
        cold = sorted({str(one.get("StorageClass")) for one in moves} & COLD)
        if cold:
            yield checks.failed(
                name,
                f"{said} moves objects to {', '.join(cold)}",
                f"take {touched[0]!r} out of that rule: records there cannot be read without being restored first",
            )
        elif moves:
            classes = ", ".join(sorted({str(one.get("StorageClass")) for one in moves}))
            yield checks.warning(name, f"{said} moves objects to {classes}", "records stay readable; each read costs more there")


def _prefix_of(rule: dict[str, Any]) -> str | None:
    """Of the objects a rule means; None if it means tagged ones only: ours have no tags."""
    given = rule.get("Filter") or {}
    both = given.get("And") or {}
    if "Tag" in given or both.get("Tags"):
        return None
    return str(given.get("Prefix") or both.get("Prefix") or rule.get("Prefix") or "")
