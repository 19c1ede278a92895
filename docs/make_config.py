"""Writes docs/config.md from the config's dataclasses: `make docs`. tests/test_docs.py tries each allowed and refused value."""

import json
import typing
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from described import table, text_under, words

from pipeline.cluster import ClusterConfig
from pipeline.config import Config, ExecutorConfig, parse_recipe, recipe_names
from search.evolution import Evolution, RandomSearch
from search.limits import Limits
from search.recipe import Recipe
from search.records import Constraints
from search.space import SPACES, Level, Space

PAGE = Path(__file__).parent / "config.md"
TOP = 10_000_000


@dataclass(frozen=True, slots=True)
class Key:
    """What may stand at a key: in words, and as values that are accepted and refused."""

    allowed: str
    good: tuple[Any, ...]
    bad: tuple[Any, ...]
    meaning: str = ""
    """Empty: what stands under the field in the code."""


def _whole(low: int, high: int | None = None, meaning: str = "", null: bool = False) -> Key:
    top = "" if high is None else f" to {high:,}"
    good = (low, *([] if high is None else [high]), *([None] if null else []))
    return Key(f"{low}{top or ' or more'}{', null' if null else ''}", good, (low - 1, 1.5, "two", *([] if high is None else [high + 1])), meaning)


def _number(low: float, high: float | None = None, meaning: str = "", null: bool = False) -> Key:
    top = " or more" if high is None else f" to {high:,.0f}"
    return Key(f"{low:g}{top}{', null' if null else ''}", (low, *([None] if null else [])), (low - 1, "two", *([] if high is None else [high + 1])), meaning)


def _flag(meaning: str = "") -> Key:
    return Key("true, false", (True, False), ("yes", 1), meaning)


KEYS: dict[str, Key] = {
    "run": Key("at most 40 of a–z, 0–9 and '-', none at the ends", ("a", "a-1", "x" * 40), ("", "A", "-a", "a_b", "x" * 41)),
    "seed": Key(
        "0 to 2^53 - 1", (0, 2018, 2**53 - 1), (-1, 2**53, 0.5, "one"), "All random numbers follow from it. Two runs that differ only in it are two independent searches."
    ),
    "data": Key(
        "at most 64 of a–z, 0–9, '-' and '_', a letter or digit first", ("digits", "a_b-1", "x" * 64), (1, "", "../etc", "x\0y", "-a", "A", "x" * 65),
        "Name of a prepared data set, for example by `hiernas data prepare digits`.",
    ),
    "space": Key(", ".join(f"`{name}`" for name in SPACES) + ", or a mapping: [below](#space)", tuple(SPACES), ("liu2018",)),
    "strategy": Key("a mapping: [below](#strategy)", ({"kind": "evolution"}, {"kind": "random"}), ("evolution", {"kind": "other"}, {}), "Who is bred from whom."),
    "recipe": Key(", ".join(f"`{name}`" for name in recipe_names()) + ", or a mapping: [below](#recipe)", tuple(recipe_names()), ("resnet",)),
    "limits": Key("a mapping: [below](#limits)", ({"max_evaluations": 1},), ({}, None), "Bounds that may change while the search runs."),
    "constraints": Key("a mapping: [below](#constraints)", ({},), ("none",), "Networks that are not trained."),
    "executor": Key("a mapping: [below](#executor)", ({},), ("processes",), "Where attempts run, and what each may use."),
    "cluster": Key("a mapping: [below](#cluster), null", (None, {"worker_image": "a", "controller_image": "b"}), ({}, "kind")),
    "store": Key("a path, `file:///…`, `s3://bucket/prefix`", ("runs", "file:///srv/runs", "s3://bucket/runs"), (1, "a\0b")),
    "data_root": Key("a path", ("data",), (1, "a\0b")),
    "strategy.evolution.kind": Key("`evolution`", ("evolution",), ("darts",), "Tells the strategies apart."),
    "strategy.evolution.initial": _whole(1, meaning="Genotypes drawn at random before evolution starts (the paper: 200)."),
    "strategy.evolution.initial_mutations": _whole(0, 100_000, meaning="Mutations of the trivial genotype that make a random one (the paper: 1,000)."),
    "strategy.evolution.tournament_percent": _whole(
        1, 100, "Share of the population that a tournament draws (the paper: 5 %); its fittest is the parent."
    ),
    "strategy.evolution.redraw_unchanged": _flag("Draw a mutation again until the assembled network changes. The paper does not."),
    "strategy.evolution.reuse": _flag("Answer a network that was evaluated before with the earlier result. The paper evaluates again."),
    "strategy.random.kind": Key("`random`", ("random",), ("darts",), "Tells the strategies apart."),
    "strategy.random.initial_mutations": _whole(0, 100_000, meaning="As above."),
    "strategy.random.reuse": _flag("As above."),
    "limits.max_evaluations": _whole(1, TOP),
    "limits.workers": _whole(0, TOP),
    "limits.max_pending": _whole(1, TOP, null=True),
    "limits.max_gpu_hours": _number(0, TOP, null=True),
    "limits.max_attempts": _whole(1, TOP),
    "limits.max_disruptions": _whole(0, TOP),
    "limits.max_bugs": _whole(1, TOP),
    "limits.max_failures": _whole(1, TOP),
    "constraints.parameters": _whole(0, meaning="Most parameters of a network; null: no limit.", null=True),
    "constraints.multiply_adds": _whole(0, meaning="Most multiply-adds an image; null: no limit.", null=True),
    "constraints.memory_bytes": _whole(0, meaning="Most memory that a training step is predicted to take, in bytes; null: no limit.", null=True),
    "executor.kind": Key(
        "`processes`, `inline`, `kubernetes`", ("processes", "inline"), ("slurm", "kubernetes"),
        "Local processes, one attempt after the other in this process (for debugging), or Kubernetes Jobs (with section `cluster`).",
    ),
    "executor.threads": _whole(1, 1024),
    "executor.memory_gib": Key("0.01 to 100,000, null", (0.01, 4, 100_000, None), (0, 0.001, -1, 100_001, 1e300, float("inf"), "two")),
    "executor.time_limit_seconds": Key("1 to 10,000,000, null", (1, 10_000_000, None), (0, 0.5, -1, 10_000_001, "two")),
    "executor.gpus": Key("0 to 1,024; with kind `kubernetes` only", (0,), (-1, 1, 0.5, 1025)),
    "cluster.worker_image": Key("an image's name", ("registry.example/hiernas-worker:1", "a@sha256:0"), ("", "a b", "-a", 1)),
    "cluster.controller_image": Key("an image's name", ("registry.example/hiernas-controller:1",), ("", "a b", "-a", 1)),
    "cluster.namespace": Key("a DNS label", ("hiernas", "team-a"), ("", "A", "a.b", "x" * 64)),
    "cluster.worker_store_secret": Key("a name, null", ("store", None), ("", "A b")),
    "cluster.store_secret": Key("a name, null", ("store", None), ("", "A b")),
    "cluster.environment": Key("names and texts", ({}, {"AWS_ENDPOINT_URL": "http://minio:9000"}), ({"a b": "c"}, {"AWS_SECRET_ACCESS_KEY": "x"}, {"A": 1})),
    "cluster.worker_account": Key("a name", ("default",), ("", "A b")),
    "cluster.controller_account": Key("a name", ("default",), ("", "A b")),
    "cluster.gpu_resource": Key("a resource's name", ("nvidia.com/gpu", "amd.com/gpu"), ("", "a b")),
    "cluster.queue": Key("a name, null", ("search", None), ("", "A b")),
    "cluster.unreachable_seconds": _whole(5, 86_400),
    "cluster.start_seconds": _whole(10, 86_400),
    "cluster.scratch_gib": Key("0.1 to 100,000", (0.1, 100_000), (0, 100_001, "two")),
    "cluster.worker_pod": Key("a mapping of `metadata`, `spec`", ({}, {"spec": {"priorityClassName": "low"}}), ({"kind": "Pod"}, "x")),
    "cluster.controller_pod": Key("a mapping of `metadata`, `spec`", ({}, {"metadata": {"labels": {"team": "a"}}}), ({"kind": "Pod"}, "x")),
    "recipe.name": Key("text", ("mine",), (1,), "For people. Left out: named after what it extends."),
    "recipe.stem": Key("`cifar`, `imagenet`", ("cifar", "imagenet"), ("resnet",), "How images enter, and how cells are grouped."),
    "recipe.width": Key("1 to 100,000", (1, 100_000), (0, 1.5, "two")),
    "recipe.cells": Key("1 to 100,000", (1, 100_000), (0, 1.5, "two")),
    "recipe.steps": _whole(1, meaning="Batches that a network is trained on."),
    "recipe.batch": _whole(2, meaning="Images a step; at most as many as there are training images."),
    "recipe.learning_rate": _number(0, meaning="At the first step."),
    "recipe.milestones": Key("steps above 0, rising", ([], [1], [10, 20]), ([20, 10], [0], 10)),
    "recipe.decay": _number(0, 1, "Factor of the learning rate at each milestone."),
    "recipe.momentum": _number(0, 1, "Of the gradient descent."),
    "recipe.weight_decay": _number(0, meaning="On all parameters."),
    "recipe.crop": Key("1 to the image's side with its `padding`, null", (1, None), (0, 1.5, "two")),
    "recipe.padding": _whole(0),
    "recipe.flip": _flag(),
    "recipe.repeats": _whole(1, 1_000),
    "recipe.curve_points": _whole(0, 10_000),
    "recipe.time_limit_seconds": Key("above 0, null", (0.5, 60, None), (0, -1)),
    "recipe.precision": Key(
        "`float32`", ("float32",), ("float16",), "Number format of the training; belongs to the recipe, never to the device found."
    ),
    "space.name": Key("text", ("mine",), (1,), "For people."),
    "space.primitives": Key(
        ", ".join(f"`{one.value}`" for one in next(iter(SPACES.values())).primitives) + "; all different, `identity` among them",
        (["identity"], ["conv1x1", "identity"]), ([], ["conv1x1"], ["identity", "identity"], ["conv5x5", "identity"]), "Level-1 operations.",
    ),
    "space.levels": Key(
        "mappings of `motifs` (1 to 1,000) and `nodes` (2 to 64); the last has 1 motif, the cell",
        ([{"motifs": 1, "nodes": 2}], [{"motifs": 1000, "nodes": 64}, {"motifs": 1, "nodes": 3}]),
        ([], [{"motifs": 2, "nodes": 3}], [{"motifs": 1, "nodes": 1}], [{"motifs": 1, "nodes": 65}]), "Level 2 first.",
    ),
}  # fmt: skip

_SECTIONS: list[tuple[str, str, type]] = [
    ("", "", Config),
    ("limits", "All but `max_evaluations` may be left out. `hiernas set RUN NAME=VALUE` changes them while a search runs.", Limits),
    ("strategy.evolution", "`kind: evolution`: asynchronous tournament selection.", Evolution),
    ("strategy.random", "`kind: random`: every genotype drawn at random.", RandomSearch),
    ("executor", "May differ at each start of a run.", ExecutorConfig),
    (
        "cluster",
        "For `executor.kind: kubernetes` and `hiernas submit`. What is laid over a pod goes key by key: null removes, "
        "lists of named things (containers, volumes, env) go by name, other lists are replaced. The container is called `worker` or `controller`.",
        ClusterConfig,
    ),
    ("constraints", "A candidate whose network is above one of them gets the outcome `over_limit` without being trained.", Constraints),
]

_HEAD = f"""# The config

*Made by `docs/make_config.py` (`make docs`) from the dataclasses that read it; a test tries the values. Edit there.*

One YAML file, read strictly: an unknown or misspelt key, a key that stands twice, a wrong type or an impossible value ends the
command with exit code 2 and a message that names file, key, what was given and what is allowed. YAML aliases
(`*name`) are refused too. A command that ends so has created nothing. Examples:
{", ".join(f"[configs/{path.name}](../configs/{path.name})" for path in sorted((PAGE.parent.parent / "configs").glob("*.yaml")))}.

`run`, `seed`, `data`, `space`, `strategy`, `recipe` and `constraints` say *what* is searched. They are fixed when the run begins:
a config that says something else for an existing run is refused. `limits` may be edited between starts; the next `hiernas run`
or `hiernas submit` writes the edit as a request, like `hiernas set`. `executor`, `cluster`, `store` and `data_root` say *where and
how*, and may differ at each start."""

_RECIPE = """A recipe that comes with the program by its name, or a mapping: `extends: NAME` and what differs, or all keys. The columns show
the recipes that come with the program."""

_SPACE = """A named space, or a mapping of your own:"""


def _default(kind: type, name: str) -> str:
    field = next(one for one in fields(kind) if one.name == name)
    if field.default is MISSING:
        return "*must be given*" if field.default_factory is MISSING else "no limits" if name == "constraints" else "all defaults"
    return f"`{json.dumps(field.default)}`"


def _meaning(place: str, kind: type, name: str) -> str:
    return (KEYS[place].meaning or text_under(kind, name)).replace("None:", "null:")


def _plain(hint: Any) -> str:
    """A type without links, which would lead to headings of another page."""
    return "mapping" if "](#" in words(hint) else words(hint)


def _rows(prefix: str, kind: type) -> list[list[str]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    rows = []
    for field in fields(kind):
        place = f"{prefix}.{field.name}".lstrip(".")
        default = "*must be given*" if field.name == "kind" and prefix.startswith("strategy") else _default(kind, field.name)
        rows.append([f"`{field.name}`", _plain(hints[field.name]), default, KEYS[place].allowed, _meaning(place, kind, field.name)])
    return rows


def _recipe() -> list[str]:
    recipes = [parse_recipe(name, "docs") for name in recipe_names()]
    rows = []
    for field in fields(Recipe):
        values = [getattr(recipe, field.name) for recipe in recipes]
        shown = [f"`{json.dumps(value)}`" for value in values]
        rows.append([f"`{field.name}`", KEYS[f"recipe.{field.name}"].allowed, *shown, _meaning(f"recipe.{field.name}", Recipe, field.name)])
    return table(["key", "allowed", *(f"`{name}`" for name in recipe_names()), "meaning"], rows)


def page() -> str:
    """The whole of docs/config.md."""
    lines = [_HEAD]
    for prefix, text, kind in _SECTIONS:
        title = prefix.partition(".")[0]
        heading = f"## {title}" if title else "## The keys"
        lines += ["", heading] if heading not in lines else []
        lines += ["", text] if text else []
        lines += ["", *table(["key", "type", "default", "allowed", "meaning"], _rows(prefix, kind))]
    lines += ["", "## recipe", "", _RECIPE, "", *_recipe(), "", "## space", "", _SPACE, ""]
    lines += table(
        ["key", "allowed", "meaning"],
        [[f"`{one.name}`", KEYS[f"space.{one.name}"].allowed, _meaning(f"space.{one.name}", Space, one.name)] for one in fields(Space)],
    )
    lines += ["", "The named ones have all six primitives.", ""]
    lines += table(
        ["name", "levels"], [[f"`{name}`", "; ".join(_level(at, one) for at, one in enumerate(space.levels, start=2))] for name, space in SPACES.items()]
    )
    return "\n".join(lines) + "\n"


def _level(at: int, level: Level) -> str:
    return f"level {at}: {level.motifs} motif{'s' if level.motifs > 1 else ''} of {level.nodes} nodes"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.name}")
