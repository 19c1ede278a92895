"""What the documents say holds: made pages are as made, links lead somewhere, commands are those of the command line."""

import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from readme_commands import CLUSTER_MARK, MARK, PAGES, ROOT, blocks, mentioned

from pipeline.cli import parser
from pipeline.config import Config, parse_config
from pipeline.errors import ConfigError

sys.path.insert(0, str(ROOT / "docs"))
import make_config
import make_metrics
import make_records

IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("make", [make_records, make_config, make_metrics], ids=["records", "config", "metrics"])
def test_a_made_page_is_as_its_script_makes_it(make: Any) -> None:
    assert make.PAGE.read_text(encoding="utf-8") == make.page(), f"run `make docs`, then look at {make.PAGE.name}"


def test_no_meaning_is_left_over_from_a_renamed_field() -> None:
    assert make_records.unused() == []


def example() -> dict[str, Any]:
    plain: dict[str, Any] = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text())
    return plain


def with_value(place: str, value: Any) -> dict[str, Any]:
    """The demo's config with one key set."""
    config = example()
    match place.split("."):
        case [key]:
            config[key] = value
        case ["strategy", kind, key]:
            config["strategy"] = {"kind": kind} | {key: value}
        case ["recipe", key]:
            config["recipe"] = {"extends": "digits-small", key: value}
        case ["space", key]:
            config["space"] = {"name": "mine", "primitives": ["identity"], "levels": [{"motifs": 1, "nodes": 2}]} | {key: value}
        case ["cluster", key]:
            config["cluster"] = {"worker_image": "w", "controller_image": "c"} | {key: value}
        case [part, key]:
            config[part] = config.get(part, {}) | {key: value}
    return config


@pytest.mark.parametrize("place", make_config.KEYS)
def test_a_config_takes_what_the_page_allows_and_nothing_beside_it(place: str) -> None:
    key = make_config.KEYS[place]
    for value in key.good:
        parse_config(yaml.safe_dump(with_value(place, value)), "config")
    for value in key.bad:
        with pytest.raises(ConfigError):
            parse_config(yaml.safe_dump(with_value(place, value)), "config")


def test_the_page_has_every_key_of_a_config() -> None:
    assert {place for place in make_config.KEYS if "." not in place} == {field.name for field in fields(Config)}


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as a code host makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_to_something(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert there.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_command_is_one_of_the_command_line(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = []
    for arguments in mentioned(page):
        try:
            parser().parse_args(arguments)
        except SystemExit as exit:
            error = capsys.readouterr().err
            # In running text a command may stand without its arguments: then they are all that is missing.
            alone = all(re.fullmatch("[a-z]+", word) for word in arguments) and "required" in error and "unrecognized" not in error
            wrong += [] if exit.code == 0 or alone else [f"hiernas {' '.join(arguments)}: {error}"]
    assert wrong == []


def test_every_command_of_the_readme_is_run_by_the_checks() -> None:
    checks = (ROOT / ".ci" / "run").read_text()
    assert "tests/readme_commands.py" in checks
    assert "stage make test-cluster" in checks
    for info, commands in blocks(ROOT / "README.md"):
        for command in commands:
            assert MARK in info or CLUSTER_MARK in info or f"stage {command}" in checks, command


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    todo = [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        targets = {(page.parent / target).resolve() for target in re.findall(r"\]\(([^)#\s]+\.md)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))}
        todo += targets - reached
        reached |= targets
    assert set(PAGES) <= reached
