"""Snapshots: many small objects of a run once more in one, so that a restart reads few (docs/decisions/0010-snapshots.md).

Derived, and never evidence: a snapshot holds the bytes of other objects, line by line, behind a line that says which run and
key they are for and their digest. Whoever reads one uses only what it holds of objects that are there, each decoded as strictly as
the object itself; a snapshot that is not exactly what this module writes is no snapshot. `hiernas verify` looks at none.
"""

import json
from collections.abc import Iterable

from pipeline.codec import BadRecord, sha256

FOLDER = "snapshots"
SEGMENT = 128
"""Outcomes in each. A restart reads a segment in one request and what lies behind the last one object by object: with three objects
an outcome that is N/128 + 3·64 requests on average, at 7,000 outcomes 247; the least, at segments of 68, is 205."""
VERSION = 1
HOLDS = frozenset({"candidates", "attempts", "ends", "history"})
"""Folders whose objects a snapshot may hold. Who is in charge and what was asked for is always read from the objects themselves."""


def snapshot_key(outcomes: int) -> str:
    """Slot of the segment whose last outcome makes the history so long."""
    return f"{FOLDER}/{outcomes:06d}.json"


def pack(objects: Iterable[bytes], key: str, run_id: str) -> bytes:
    """The snapshot of these objects, each of which is one line."""
    body = b"".join(objects)
    return _head(body, key, run_id) + body


def unpack(data: bytes, key: str, run_id: str) -> dict[str, bytes]:
    """Objects by their key. BadRecord where it is not whole, of another key, run or version, or holds what no snapshot holds."""
    head, end, body = data.partition(b"\n")
    if head + end != _head(body, key, run_id):
        raise BadRecord(f"{key}: is not whole, or was made for another run, key or version")
    found: dict[str, bytes] = {}
    for line in body.split(b"\n")[:-1]:
        own = _own_key(line)
        if own.partition("/")[0] not in HOLDS or own in found:
            raise BadRecord(f"{key}: holds {own!r}, which no snapshot does, or holds it twice")
        found[own] = line + b"\n"
    return found


def _head(body: bytes, key: str, run_id: str) -> bytes:
    head = {"schema_name": "snapshot", "version": VERSION, "run_id": run_id, "key": key, "sha256": sha256(body)}
    return json.dumps(head, sort_keys=True, separators=(",", ":")).encode() + b"\n"


def _own_key(line: bytes) -> str:
    """The key with which an object in canonical form begins; decoding it checks that it is its own."""
    begin, _, rest = line.partition(b'{"key":"')
    return "" if begin else rest.partition(b'"')[0].decode("ascii", "replace")
