"""Records to bytes and back. Strict: what is read back is exactly what could have been written.

Every object carries its schema, version, run id and key, so that a misplaced or foreign one is caught.
Reading refuses duplicate keys, NaN and Infinity, unknown or missing fields, wrong types and values out of range.
"""

import hashlib
import json
from typing import Annotated, Any, Literal, NoReturn

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, TypeAdapter, ValidationError, create_model

from search.records import (
    Attempt,
    Candidate,
    Claim,
    End,
    Failure,
    Metrics,
    Moved,
    Outcome,
    Record,
    Release,
    Request,
    Reused,
    Run,
)

VERSION = 1
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

Tagged = Annotated[Claim | Release, Discriminator("kind")]


def _entry(given: Any) -> str:
    """Which entry of the history: outcomes have no field `kind`."""
    return "moved" if isinstance(given, dict) and "kind" in given else "outcome"


Entry = Annotated[Annotated[Outcome, Tag("outcome")] | Annotated[Moved, Tag("moved")], Discriminator(_entry)]
_TYPES: dict[str, tuple[str, Any]] = {
    "run.json": ("run", Run),
    "controllers": ("controller", Tagged),
    "candidates": ("candidate", Candidate),
    "attempts": ("attempt", Attempt),
    "evaluations": ("evaluation", Annotated[Metrics | Failure | Reused, Discriminator("kind")]),
    "ends": ("end", End),
    "history": ("outcome", Entry),
    "control": ("request", Request),
}
FOLDERS = tuple(_TYPES)


def _only(value: str | int) -> Any:
    return Literal[value]


def _envelope(schema: str, record: Any) -> type[BaseModel]:
    return create_model(
        f"Envelope_{schema}",
        __config__=STRICT,
        schema_name=(_only(schema), ...),
        version=(_only(VERSION), ...),
        run_id=(str, ...),
        key=(str, ...),
        record=(record, ...),
    )


_ENVELOPES = {folder: _envelope(schema, record) for folder, (schema, record) in _TYPES.items()}
_DUMP: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (Run, Claim, Release, Candidate, Attempt, Metrics, Failure, Reused, End, Outcome, Moved, Request)
}


def is_canonical(record: Record, data: bytes, key: str, run_id: str) -> bool:
    """Whether these bytes of a record are those that are written for it, but for fields with a default that an older version did not know."""
    return _dump(_as_far_as(json.loads(encode(record, key, run_id)), json.loads(data))) == data


def _as_far_as(made: Any, given: Any) -> Any:
    """`made` without what is not in `given`."""
    if isinstance(made, dict) and isinstance(given, dict):
        return {name: _as_far_as(value, given[name]) for name, value in made.items() if name in given}
    return made


def _dump(plain: Any) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False).encode() + b"\n"


class BadRecord(ValueError):
    """Bytes that are no valid record for their key."""


def sha256(data: bytes) -> str:
    """Hexadecimal digest, as records name each other."""
    return hashlib.sha256(data).hexdigest()


def encode(record: Record, key: str, run_id: str) -> bytes:
    """One line of canonical JSON: sorted keys, no spaces, a newline at the end; the same record gives the same bytes."""
    plain = {
        "schema_name": _TYPES[_folder(key)][0],
        "version": VERSION,
        "run_id": run_id,
        "key": key,
        "record": _DUMP[type(record)].dump_python(record, mode="json"),
    }
    return _dump(plain)


def decode(data: bytes, key: str, run_id: str | None) -> Any:
    """The record in `data`, which must be the one for this key and run (None: any run). BadRecord says what is wrong."""
    try:
        json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        envelope = _ENVELOPES[_folder(key)].model_validate_json(data)
    except ValidationError as error:
        raise BadRecord(f"{key}: {explain(error)}") from error
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"{key}: not readable as JSON: {error}") from error
    found: Any = envelope
    if found.key != key:
        raise BadRecord(f"{key}: holds the object of {found.key!r}: it was moved or copied by hand")
    if run_id is not None and found.run_id != run_id:
        raise BadRecord(f"{key}: belongs to run id {found.run_id}, this run is {run_id}")
    return found.record


def cut(text: str) -> str:
    """A given value as messages show it: at most some 80 characters."""
    return text if len(text) <= 80 else text[:77] + "…"


def explain(error: ValidationError) -> str:
    """The first thing wrong, as 'field: rule (given …)', and how many more there are."""
    errors = error.errors(include_url=False)
    first = errors[0]
    place = ".".join(str(part) for part in first["loc"] if part != "record") or "the whole"
    rule = first["msg"].removeprefix("Value error, ")
    given = repr(first.get("input"))
    shown = "" if first["type"] in ("missing", "json_invalid") else f" (given {cut(given)})"
    more = f"; and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"{place}: {rule}{shown}{more}"


def _folder(key: str) -> str:
    folder = key.split("/", 1)[0]
    if folder not in _TYPES:
        raise BadRecord(f"{key}: no record has such a key; known folders: {', '.join(FOLDERS)}")
    return folder


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
