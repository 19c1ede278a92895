"""Requests by a person, as control records: `hiernas set`, `pause`, `resume`, `stop`."""

import getpass
import secrets
import socket
import time
from collections.abc import Mapping

from pipeline.errors import ConfigError
from pipeline.run import RunFolder, SlotTaken, control_key
from search.limits import Desire, Limits, Setting
from search.records import Request


def parse_changes(pairs: list[str]) -> dict[str, Setting]:
    """'workers=64 max_gpu_hours=none' as changes; ConfigError names what is wrong."""
    changes: dict[str, Setting] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key in changes:
            raise ConfigError(f"given {pair!r}; expected each limit once as name=value, for example workers=4")
        try:
            changes[key] = None if text.lower() in ("none", "null") else int(text) if text.lstrip("-").isdigit() else float(text)
        except ValueError:
            raise ConfigError(f"given {pair!r}; the value must be a number, or none for no limit") from None
    try:
        Limits(max_evaluations=1).changed(changes)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return changes


def request(folder: RunFolder, changes: Mapping[str, Setting], desire: Desire | None) -> int:
    """Write a request into the next slot and return its number; a lost slot means taking the next. ConfigError where the run was moved away."""
    if (moved := folder.moved()) is not None:
        raise ConfigError(folder.elsewhere(moved))
    record = Request(dict(changes), desire, secrets.token_hex(8), time.time(), f"{getpass.getuser()}@{socket.gethostname()}")
    number = len(folder.keys("control"))
    while True:
        try:
            folder.create(control_key(number), record)
            break
        except SlotTaken:
            number += 1
    if (moved := folder.moved()) is not None:
        raise ConfigError(f"{folder.elsewhere(moved)}. It went while this request was written, which may not have come along: repeat it there")
    return number
