"""Bad input on the command line: the exit code of the design, a message that names place and remedy, nothing written."""

import argparse
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_run import COUNT, NAME, RUN, controller, work

from pipeline import launch
from pipeline.cli import main, parser
from pipeline.directory import DirectoryStore
from pipeline.run import RunFolder
from pipeline.words import text_change
from search.records import ReleaseReason

CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("initial: 10 ", "inital: 10 ", ("inital", "initial")),
        ("max_evaluations: 32", "max_evaluations: many", ("limits.max_evaluations", "many")),
        ("workers: 2", "workers: -1", ("workers", "-1", "allowed")),
        ("recipe: digits-small", "recipe: digit-small", ("digit-small", "digits-small")),
        ("space: liu2018-hierarchical", "space: liu2018", ("liu2018", "known")),
        ("run: demo", "run: De_mo", ("De_mo", "allowed")),
        ("seed: 2018", "seed: 2018\nseed: 1", ("seed", "twice")),
        ("seed: 2018", "seed: [", ("YAML",)),
        ("initial: 10 ", "initial_mutations: 10000000000  #", ("initial_mutations", "10000000000", "allowed: 0 to 100000")),
    ],
)
def test_a_wrong_config_names_the_place_and_what_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, words: tuple[str, ...]
) -> None:
    text = CONFIG.read_text()
    assert old in text
    path = tmp_path / "wrong.yaml"
    path.write_text(text.replace(old, new))
    assert main(["run", str(path), "--store", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    for word in words:
        assert word in error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()


def test_a_wrong_genotype_is_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "--genotype", "4.1-2.x-1-4"]) == 2
    assert "'x' is not an operation number" in capsys.readouterr().err


def test_an_unknown_run_is_bad_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "nothing", "--store", str(tmp_path)]) == 2
    assert "no run 'nothing'" in capsys.readouterr().err
    assert main(["status", "nothing", "--store", str(tmp_path / "absent")]) == 2


def test_a_limit_that_is_none_is_refused_by_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for change in ("workrs=4", "workers=many", "workers", "workers=none"):
        assert main(["set", "nothing", change, "--store", str(tmp_path)]) == 2
    capsys.readouterr()


def test_the_name_alone_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "first steps:" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "meant"), [("rum", "'run'"), ("statsu", "'status'"), ("verfy", "'verify'")])
def test_a_wrong_command_suggests_the_right_one(capsys: pytest.CaptureFixture[str], given: str, meant: str) -> None:
    with pytest.raises(SystemExit) as found:
        main([given, "demo"])
    assert found.value.code == 2
    error = capsys.readouterr().err
    assert f"did you mean {meant}?" in error
    assert "--help" in error


def test_a_command_like_no_other_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["xyzzy"])
    assert "'xyzzy' is unknown; known: run, submit, ls, status" in capsys.readouterr().err


def commands(one: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and all below it."""
    yield one
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from commands(below)


def test_every_command_shows_examples_that_parse() -> None:
    for command in commands(parser()):
        if command.prog == "hiernas data":
            continue
        examples = [line.partition("  ")[0] for line in map(str.strip, (command.epilog or "").splitlines()) if line.startswith("hiernas ")]
        assert examples, command.prog
        for example in examples:
            parser().parse_args(shlex.split(example)[1:])


def test_an_empty_store_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ls", "--store", str(tmp_path)]) == 0
    assert "hiernas run" in capsys.readouterr().out
    assert main(["ls", "--json", "--store", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "[]\n"


def test_show_tells_a_change_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = DirectoryStore(tmp_path)
    work(controller(store))
    candidate = RunFolder(store, NAME).load().stories[COUNT - 1].candidate
    assert candidate.change is not None
    assert main(["show", NAME, str(COUNT - 1), "--store", str(tmp_path)]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert (
        first
        == f"candidate {COUNT - 1}: bred from candidate {candidate.parent} by {text_change(RUN.space, candidate.change)}, after {candidate.after} outcomes"
    )
    assert main(["show", NAME, "0", "--store", str(tmp_path)]) == 0
    assert "candidate 0: drawn at random, after 0 outcomes" in capsys.readouterr().out


@pytest.mark.parametrize(("reason", "code"), [(ReleaseReason.INTERRUPTED, 143), (ReleaseReason.FINISHED, 0), (ReleaseReason.HALTED, 0), (None, 0)])
def test_a_controllers_pod_ends_well_only_when_its_search_has_ended(reason: ReleaseReason | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kubernetes starts it again unless it ends with 0: a drained node must not complete the Job of a search that goes on."""
    monkeypatch.setattr(launch, "launch_submitted", lambda *_: reason)
    assert main(["run", str(CONFIG), "--submitted", "--metrics-port", "1"]) == code
