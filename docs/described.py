"""How the scripts beside it read dataclasses: their fields, types in plain words, and the text that stands under each field."""

import ast
import dataclasses
import functools
import inspect
import sys
import types
import typing
from enum import StrEnum
from typing import Any, Literal

UNITS = {"seconds": "seconds", "bytes": "bytes", "hours": "hours", "gib": "GiB", "percent": "%"}
"""By the last word of a field's name."""
_PLAIN = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null"}


@functools.cache
def _module_texts(module: str) -> dict[str, dict[str, str]]:
    """Class → field → the string that stands under the field, of one module's source."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(sys.modules[module])).body:
        if isinstance(node, ast.ClassDef):
            texts = found.setdefault(node.name, {})
            for field, text in zip(node.body, node.body[1:], strict=False):
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
                    texts[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


def text_under(kind: type, field: str) -> str:
    """What the source says under a field; empty when it says nothing."""
    return _module_texts(kind.__module__).get(kind.__name__, {}).get(field, "")


def docstring(kind: type) -> str:
    """A class's docstring as one line."""
    return " ".join((kind.__doc__ or "").split())


def unit(field: str) -> str:
    """The unit that a field's name ends in; empty for none."""
    return UNITS.get(field.rsplit("_", 1)[-1], "")


def members(hint: Any) -> list[Any]:
    """The alternatives of a type: of a union each, of any other type itself."""
    if typing.get_origin(hint) is typing.Annotated:
        return members(typing.get_args(hint)[0])
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [inner for one in typing.get_args(hint) for inner in members(one)]
    return [hint]


def kinds_in(hint: Any) -> list[type]:
    """Dataclasses and enums that a type is made of, in order."""
    found: list[type] = []
    for one in members(hint):
        if isinstance(one, type) and (dataclasses.is_dataclass(one) or issubclass(one, StrEnum)):
            found.append(one)
        else:
            found += [kind for inner in typing.get_args(one) if not isinstance(inner, str) for kind in kinds_in(inner)]
    return found


def words(hint: Any) -> str:
    """A type in plain words; dataclasses and enums as links to their headings."""
    return " or ".join(_one(one) for one in members(hint))


def _one(hint: Any) -> str:
    if hint in _PLAIN:
        return _PLAIN[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin is tuple and arguments[-1] is Ellipsis:
        plural = {int: "whole numbers", float: "numbers", str: "texts"}.get(arguments[0])
        return f"list of {plural or words(arguments[0])}"
    if origin is tuple:
        return f"pair ({', '.join(words(one) for one in arguments)})"
    if origin is dict:
        return f"mapping of {words(arguments[0])} to {words(arguments[1])}"
    return f"[{hint.__name__}](#{hint.__name__.lower()})"


def cell(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return text.replace("|", "\\|")


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *[[cell(value) for value in row] for row in rows]]]
