"""Bad input on the command line: the exit code of the design, a message that names place and remedy, nothing written."""

from pathlib import Path

import pytest

from pipeline.cli import main

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
