"""The config of a run: YAML, read strictly. Every error names file, field, what was given and what is allowed."""

import difflib
import json
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.codec import STRICT, explain
from pipeline.errors import ConfigError
from search.dataset import DataError, Dataset
from search.evolution import Evolution, RandomSearch, Strategy
from search.graph import Model
from search.limits import Limits
from search.recipe import Recipe
from search.records import ALGORITHM, RUN_NAME, Constraints, DataReference, Resources, Run
from search.space import SPACES, Level, Space

MAX_CONFIG_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """Where attempts run, and what each may use. May differ at each start."""

    kind: Literal["processes", "inline"] = "processes"
    threads: int = 1
    """Processor threads an attempt. Part of what makes a fitness repeatable bit for bit."""
    memory_gib: float | None = None
    """Resident memory of an attempt; None: no limit."""
    time_limit_seconds: float | None = None
    """Of an attempt as a whole, as a last resort; a candidate's own limit is the recipe's."""

    def __post_init__(self) -> None:
        self.resources()

    def resources(self) -> Resources:
        """As the records keep it."""
        memory = None if self.memory_gib is None else int(self.memory_gib * 1024**3)
        return Resources(self.threads, memory, self.time_limit_seconds)


@dataclass(frozen=True, slots=True)
class Config:
    """A whole config file."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    run: str
    """Name of the run: a DNS label of at most 40 characters."""
    data: str
    """Name of a prepared data set (`hiernas data prepare NAME`)."""
    space: Space
    """Name of a search space, or the space itself."""
    strategy: Strategy
    recipe: Recipe
    """Name of a recipe, or a mapping with `extends: NAME` and what differs."""
    limits: Limits
    seed: int = 0
    constraints: Constraints = field(default_factory=Constraints)
    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    store: str = "runs"
    """Where records are written: a path or file://…, relative to the working directory."""
    data_root: str = "data"
    """Folder of the prepared data sets, relative to the working directory."""

    def __post_init__(self) -> None:
        if not RUN_NAME.fullmatch(self.run):
            raise ValueError(f"run is {self.run!r}; allowed: at most 40 of a-z, 0-9 and '-', no '-' at the ends")

    def dataset(self) -> Dataset:
        """The prepared data set's description; ConfigError when there is none."""
        path = Path(self.data_root) / self.data / "dataset.json"
        try:
            return Dataset.from_json(path.read_bytes())
        except FileNotFoundError:
            raise ConfigError(f"data set {self.data!r} is not prepared: {path} does not exist; run `hiernas data prepare {self.data}` first") from None
        except (DataError, OSError) as error:
            raise ConfigError(f"data set {self.data!r}: {path}: {error}") from error

    def what(self, run_id: str) -> Run:
        """The run that this config describes."""
        data = self.dataset()
        recipe = self.recipe
        model = Model(recipe.stem, recipe.width, recipe.cells, data.channels, data.size, data.classes)
        if recipe.batch > data.splits["train"].images:
            raise ConfigError(f"recipe.batch is {recipe.batch}, but data set {self.data!r} has {data.splits['train'].images} training images")
        return Run(
            self.run, run_id, ALGORITHM, self.seed, self.space, self.strategy, recipe, model,
            DataReference(data.name, data.digest), self.constraints,
        )  # fmt: skip


_PARTS: dict[str, type] = {
    "": Config,
    "limits": Limits,
    "executor": ExecutorConfig,
    "constraints": Constraints,
    "recipe": Recipe,
    "space": Space,
    "space.levels": Level,
    "strategy.evolution": Evolution,
    "strategy.random": RandomSearch,
}
_CONFIG = TypeAdapter(Config)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key that stands twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no text", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
        seen.add(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _read_yaml(text: str, place: str) -> dict[str, Any]:
    try:
        plain = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{place}: not readable as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(plain, dict):
        raise ConfigError(f"{place}: holds {type(plain).__name__}, expected a mapping of fields")
    return plain


def recipe_names() -> list[str]:
    """Recipes that come with the program."""
    return sorted(path.name.removesuffix(".yaml") for path in (resources.files("pipeline") / "recipes").iterdir() if path.name.endswith(".yaml"))


def _recipe(given: object, place: str, depth: int = 0) -> dict[str, Any]:
    """A recipe's fields with all that it extends."""
    if depth > 10:
        raise ConfigError(f"{place}: recipe: more than 10 recipes extend each other; is there a circle?")
    if isinstance(given, str):
        if given not in recipe_names():
            raise ConfigError(f"{place}: recipe: {given!r} is unknown; known: {', '.join(recipe_names())}{_near(given, recipe_names())}")
        plain = _read_yaml((resources.files("pipeline") / "recipes" / f"{given}.yaml").read_text(), f"recipe {given}")
        return _recipe(plain, f"recipe {given}", depth + 1) | {"name": given}
    if not isinstance(given, dict):
        raise ConfigError(f"{place}: recipe: given {given!r}, expected a recipe's name or a mapping with 'extends'")
    own = dict(given)
    base = own.pop("extends", None)
    merged = (_recipe(base, place, depth + 1) if base is not None else {}) | own
    if "name" not in own:
        merged["name"] = f"{base} with changes" if base else "own"
    return merged


def parse_recipe(given: object, place: str) -> Recipe:
    """A recipe by its name, or from a mapping."""
    try:
        return TypeAdapter(Recipe).validate_json(json.dumps(_recipe(given, place)))
    except ValidationError as error:
        raise ConfigError(f"{place}: {_explain(error)}") from error


def _near(word: str, words: list[str]) -> str:
    near = difflib.get_close_matches(word, words, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    loc = [str(part) for part in first["loc"]]
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        parent = ".".join(part for part in loc[:-1] if not part.isdigit())
        if parent in _PARTS:
            allowed = [one.name for one in fields(_PARTS[parent])]
            return f"field {'.'.join(loc)!r} is unknown; allowed here: {', '.join(allowed)}{_near(loc[-1], allowed)}"
    return f"field {explain(error)}"


def parse_config(text: str, place: str) -> Config:
    """A config from its text; `place` is named in errors."""
    plain = _read_yaml(text, place)
    if "recipe" in plain:
        plain["recipe"] = _recipe(plain["recipe"], place)
    space = plain.get("space")
    if isinstance(space, str):
        if space not in SPACES:
            raise ConfigError(f"{place}: field 'space': {space!r} is unknown; known: {', '.join(SPACES)}{_near(space, list(SPACES))}")
        plain["space"] = json.loads(TypeAdapter(Space).dump_json(SPACES[space]))
    try:
        return _CONFIG.validate_json(json.dumps(plain))
    except ValidationError as error:
        raise ConfigError(f"{place}: {_explain(error)}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{place}: holds a value that no field takes: {error}") from error


def load_config(path: Path) -> Config:
    """A config from its file."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes: no config is")
        return parse_config(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def differences(there: Run, given: Run) -> list[str]:
    """What of a run another config would change, a line each."""
    plain = TypeAdapter(Run)
    before, after = plain.dump_python(there, mode="json"), plain.dump_python(given, mode="json")
    return [f"{key}: {old!r} → {new!r}" for key, old, new in _walk("", before, after) if key not in ("run_id", "algorithm")]


def _walk(place: str, old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [found for key in keys for found in _walk(f"{place}.{key}".lstrip("."), old.get(key), new.get(key))]
    return [] if old == new else [(place, old, new)]
