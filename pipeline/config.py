"""The config of a run: YAML, read strictly. Every error names file, field, what was given and what is allowed."""

import difflib
import hashlib
import json
import re
import stat
from dataclasses import dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.cluster import ClusterConfig
from pipeline.codec import STRICT, cut, explain
from pipeline.errors import ConfigError
from search.dataset import Dataset
from search.evolution import Evolution, RandomSearch, Strategy
from search.graph import Model
from search.limits import Limits
from search.recipe import Recipe
from search.records import ALGORITHM, RUN_NAME, Constraints, DataReference, Resources, Run
from search.space import SPACES, Level, Space

MAX_CONFIG_BYTES = 1024 * 1024
MAX_NUMBER_LENGTH = 100
"""Longest number that a config may hold, in characters: Python takes quadratic time for numbers of any length."""
MAX_SEED = 2**53 - 1
"""Largest whole number that every reader of JSON keeps exactly."""
MAX_PATH_LENGTH = 4096
DATA_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class ExecutorConfig:
    """Where attempts run, and what each may use. May differ at each start."""

    kind: Literal["processes", "inline", "kubernetes"] = "processes"
    threads: int = 1
    """Processor threads an attempt. Part of what makes a fitness repeatable bit for bit."""
    memory_gib: float | None = None
    """Resident memory of an attempt; None: no limit."""
    time_limit_seconds: float | None = None
    """Of an attempt as a whole, as a last resort; a candidate's own limit is the recipe's."""
    gpus: int = 0
    """GPUs an attempt, on a cluster. A training uses one."""

    def __post_init__(self) -> None:
        if not 0 <= self.gpus <= 1024:
            raise ValueError(f"gpus is {self.gpus}; allowed: 0 to 1024")
        if self.gpus and self.kind != "kubernetes":
            raise ValueError(f"gpus is {self.gpus}, but kind is {self.kind!r}: GPUs are handed out by a cluster; leave it 0 here")
        for name, low, high in (("memory_gib", 0.01, 100_000), ("time_limit_seconds", 1, 10_000_000)):
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ValueError(f"{name} is {value}; allowed: {low} to {high}, or null for no limit")
        self.resources()

    def resources(self) -> Resources:
        """As the records keep it."""
        memory = None if self.memory_gib is None else int(self.memory_gib * 1024**3)
        return Resources(self.threads, memory, self.time_limit_seconds, self.gpus)


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
    cluster: ClusterConfig | None = None
    """What the executor `kubernetes` and `hiernas submit` need to know of the cluster."""
    store: str = "runs"
    """Where records are written, unless `--store` says, or else the variable HIERNAS_STORE: a path or file://…, relative to the working directory, or s3://bucket/prefix (credentials and endpoint: the usual AWS environment)."""
    data_root: str = "data"
    """Folder of the prepared data sets, relative to the working directory."""

    def __post_init__(self) -> None:
        if not RUN_NAME.fullmatch(self.run):
            raise ValueError(f"run is {self.run!r}; allowed: at most 40 of a-z, 0-9 and '-', no '-' at the ends")
        if not DATA_NAME.fullmatch(self.data):
            raise ValueError(f"data is {self.data!r}; allowed: at most 64 of a-z, 0-9, '-' and '_', beginning with a letter or digit")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"seed is {self.seed}; allowed: 0 to {MAX_SEED}")
        if self.executor.kind == "kubernetes" and self.cluster is None:
            raise ValueError("cluster is missing; executor.kind 'kubernetes' needs it: at least worker_image and controller_image")
        for name in ("store", "data_root"):
            if "\0" in getattr(self, name) or len(getattr(self, name)) > MAX_PATH_LENGTH:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: at most {MAX_PATH_LENGTH} characters, no NUL among them")

    def resources(self) -> Resources:
        """What an attempt may use. In a cluster the candidate's own time limit bounds its pod too: a driver that hangs hears no other clock."""
        found = self.executor.resources()
        if self.executor.kind == "kubernetes" and found.time_limit_seconds is None:
            return replace(found, time_limit_seconds=self.recipe.time_limit_seconds)
        return found

    def dataset(self) -> Dataset:
        """The prepared data set's description; ConfigError when there is none."""
        path = Path(self.data_root) / self.data / "dataset.json"
        try:
            return Dataset.from_json(path.read_bytes())
        except FileNotFoundError:
            raise ConfigError(f"data set {self.data!r} is not prepared: {path} does not exist; run `hiernas data prepare {self.data}` first") from None
        except OSError as error:
            raise ConfigError(f"data set {self.data!r}: {path} cannot be read: {error.strerror}") from error
        except ValueError as error:  # DataError, or a path that this system cannot write
            raise ConfigError(f"data set {self.data!r}: {path}: {error}") from error

    def check_data(self, data: Dataset) -> None:
        """ConfigError unless the prepared files that a search reads are, on this machine, those that were described; reads each whole.

        The test split is not among them: it may be kept elsewhere.
        """
        again = f"delete the folder and run `hiernas data prepare {self.data}` again"
        for name, split in data.splits.items():
            if name == "test":
                continue
            path = Path(self.data_root) / self.data / split.file
            if path.exists() and not path.is_file():
                raise ConfigError(f"data set {self.data!r}: {path} is no regular file; {again}")
            try:
                with path.open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise ConfigError(f"data set {self.data!r}: {path} cannot be read ({error.strerror}); {again}") from error
            if found != split.sha256:
                raise ConfigError(f"data set {self.data!r}: {path} has SHA-256 {found}, dataset.json says {split.sha256}: it was altered; {again}")

    def what(self, run_id: str) -> Run:
        """The run that this config describes; ConfigError if it cannot be, or if the prepared data is not as described."""
        data = self.dataset()
        recipe = self.recipe
        try:
            model = Model(recipe.stem, recipe.width, recipe.cells, data.channels, data.size, data.classes)
        except ValueError as error:
            raise ConfigError(f"recipe.{_short(str(error))}") from error
        if recipe.batch > data.splits["train"].images:
            raise ConfigError(f"recipe.batch is {recipe.batch}, but data set {self.data!r} has {data.splits['train'].images} training images")
        side = data.size + 2 * recipe.padding
        if recipe.crop is not None and recipe.crop > side:
            raise ConfigError(
                f"recipe.crop is {recipe.crop}; allowed: 1 to {side}, or null for the full image: "
                f"images of data set {self.data!r} have {data.size} pixels a side and recipe.padding is {recipe.padding}"
            )
        self.check_data(data)
        return Run(
            self.run, run_id, ALGORITHM, self.seed, self.space, self.strategy, recipe, model,
            DataReference(data.name, data.digest), self.constraints,
        )  # fmt: skip


_PARTS: dict[str, type] = {
    "": Config,
    "limits": Limits,
    "executor": ExecutorConfig,
    "cluster": ClusterConfig,
    "constraints": Constraints,
    "recipe": Recipe,
    "space": Space,
    "space.levels": Level,
    "strategy.evolution": Evolution,
    "strategy.random": RandomSearch,
}
_CONFIG = TypeAdapter(Config)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key that stands twice, an alias (a few of them can make gigabytes), and endless numbers."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """See SafeLoader."""
        if self.check_event(yaml.events.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]  # PyYAML's stubs leave it out
            raise yaml.composer.ComposerError(None, None, f"alias *{event.anchor}: aliases are not allowed, write the value out", event.start_mark)
        found: yaml.Node | None = super().compose_node(parent, index)
        return found


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


def _number(loader: _Loader, node: yaml.ScalarNode) -> Any:
    if len(node.value) > MAX_NUMBER_LENGTH:
        raise yaml.constructor.ConstructorError(None, None, f"a number of {len(node.value)} characters; at most {MAX_NUMBER_LENGTH} are read", node.start_mark)
    return loader.construct_yaml_int(node) if node.tag.endswith(":int") else loader.construct_yaml_float(node)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_Loader.add_constructor("tag:yaml.org,2002:int", _number)
_Loader.add_constructor("tag:yaml.org,2002:float", _number)


def _short(message: str) -> str:
    """The message with every value (quoted, in brackets, or a word) longer than 80 characters cut."""
    return re.sub(r"'[^']*'|\[[^]]*\]|[^\s']+", lambda found: cut(found[0]), message)


def _shown(value: object) -> str:
    return cut(repr(value))


def _read_yaml(text: str, place: str) -> dict[str, Any]:
    try:
        plain = yaml.load(text, Loader=_Loader)  # noqa: S506  (a SafeLoader)
    except RecursionError as error:
        raise ConfigError(f"{place}: not readable as YAML: too deeply nested") from error
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError) as error:
        # All but the first are what PyYAML lets out where a value does not fit the tag that it was given or seems to have.
        raise ConfigError(f"{place}: not readable as YAML: {_short(' '.join(str(error).split()))}") from error
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
            raise ConfigError(f"{place}: recipe: {_shown(given)} is unknown; known: {', '.join(recipe_names())}{_near(given, recipe_names())}")
        plain = _read_yaml((resources.files("pipeline") / "recipes" / f"{given}.yaml").read_text(), f"recipe {given}")
        return _recipe(plain, f"recipe {given}", depth + 1) | {"name": given}
    if not isinstance(given, dict):
        raise ConfigError(f"{place}: recipe: given {_shown(given)}, expected a recipe's name or a mapping with 'extends'")
    own = dict(given)
    base = own.pop("extends", None)
    merged = (_recipe(base, place, depth + 1) if base is not None else {}) | own
    if "name" not in own:
        merged["name"] = f"{base if isinstance(base, str) else 'own'} with changes" if base else "own"
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
            return f"field {_shown('.'.join(loc))} is unknown; allowed here: {', '.join(allowed)}{_near(loc[-1], allowed)}"
    if first["type"] == "value_error":
        return _impossible(loc, first["msg"].removeprefix("Value error, "))
    return _short(f"field {explain(error)}")


def _impossible(loc: list[str], rule: str) -> str:
    """What a dataclass of the config says of its own fields, beginning with the field's name."""
    place = ".".join(loc)
    kind = _PARTS.get(".".join(part for part in loc if not part.isdigit()))
    rule = rule.removeprefix(f"{place}: ")
    if kind is not None and rule.split(" ", 1)[0] in [one.name for one in fields(kind)]:
        return _short(f"field {place}.{rule}" if place else f"field {rule}")
    return _short(f"field {place}: {rule}" if place else rule)


def parse_config(text: str, place: str) -> Config:
    """A config from its text; `place` is named in errors."""
    plain = _read_yaml(text, place)
    if "recipe" in plain:
        plain["recipe"] = _recipe(plain["recipe"], place)
    space = plain.get("space")
    if isinstance(space, str):
        if space not in SPACES:
            raise ConfigError(f"{place}: field 'space': {_shown(space)} is unknown; known: {', '.join(SPACES)}{_near(space, list(SPACES))}")
        plain["space"] = json.loads(TypeAdapter(Space).dump_json(SPACES[space]))
    try:
        return _CONFIG.validate_json(json.dumps(plain))
    except ValidationError as error:
        raise ConfigError(f"{place}: {_explain(error)}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"{place}: holds a value that no field takes: {_short(str(error))}") from error


def load_config(path: Path) -> Config:
    """A config from its file."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{path}: is no regular file")
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes: no config is")
        text = data.decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # no UTF-8, or a path with a NUL character
        raise ConfigError(f"{str(path)!r}: cannot be read: {error}") from error
    return parse_config(text, str(path))


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
