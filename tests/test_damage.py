"""What people, backup tools and disks do to a run's folder: each is named with its place, exit code 4, and nothing hangs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_run import LIMITS, NAME, RUN, controller, work

from pipeline.cli import main
from pipeline.directory import DirectoryStore
from pipeline.errors import DamagedRun
from pipeline.run import RunFolder
from pipeline.store import MAX_OBJECT_BYTES
from search.records import ReleaseReason


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a finished run."""
    root = tmp_path_factory.mktemp("whole") / "runs"
    assert work(controller(DirectoryStore(root), limits=LIMITS)) is ReleaseReason.FINISHED
    return root


@pytest.fixture
def root(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(whole, tmp_path / "runs")
    return tmp_path / "runs"


def told(command: str, root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and everything printed."""
    code = main([*command.split(), "--store", str(root)])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    return code, printed.out + printed.err


@pytest.mark.parametrize(
    "name", ["history/a b.json", "ends/000001-0.json~", "history/ä.json", "history/000001 (1).json", "attempts/000005-².json", ".DS_Store"]
)
def test_files_that_tools_leave_beside_ours_are_no_records(root: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    path = root / NAME / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    for command in (f"verify {NAME}", f"status {NAME}", f"show {NAME} 3", "ls"):
        assert told(command, root, capsys)[0] == 0


def test_a_folder_that_is_no_run_is_not_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / NAME, root / "My Run")
    code, text = told("ls", root, capsys)
    assert (code, text.count("evaluated, best")) == (0, 1)


def test_a_damaged_run_does_not_hide_the_others(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(root / NAME, root / "another")
    code, text = told("ls", root, capsys)
    assert code == 4
    assert "folder was renamed" in text
    assert text.count("evaluated, best") == 1
    assert main(["ls", "--json", "--store", str(root)]) == 4
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == [NAME]


def _large(path: Path) -> None:
    os.truncate(path, MAX_OBJECT_BYTES + 1)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _endless(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("key", ["run.json", "history/000003.json", "candidates/000003.json"])
@pytest.mark.parametrize("damage", [_large, _pipe, _endless, _folder, Path.unlink])
def test_what_is_no_object_in_the_place_of_one_is_named(root: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], key: str) -> None:
    damage(root / NAME / key)
    for command in (f"verify {NAME}", f"status {NAME}"):
        code, text = told(command, root, capsys)
        assert code == 4, text
        assert key in text


def test_a_run_is_not_begun_over_the_records_of_one_that_lost_its_run_json(root: Path) -> None:
    (root / NAME / "run.json").unlink()
    with pytest.raises(DamagedRun, match="other records"):
        RunFolder(DirectoryStore(root), NAME).begin(RUN)
    assert not (root / NAME / "run.json").exists()


def test_an_evaluation_that_is_no_object_is_the_platforms_fault(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It was accepted: verify says so; the history holds its digest and its fitness, so the run can still be read."""
    _large(root / NAME / "evaluations" / "000003-0.json")
    assert told(f"status {NAME}", root, capsys)[0] == 0
    code, text = told(f"verify {NAME}", root, capsys)
    assert code == 4
    assert "evaluations/000003-0.json" in text


def test_a_report_says_which_evaluations_it_could_not_read(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / NAME / "evaluations" / "000003-0.json").write_text("{")
    assert told(f"report {NAME} --out {tmp_path}/report", root, capsys)[0] == 0
    assert "1 accepted evaluations" in (tmp_path / "report" / "report.html").read_text()
