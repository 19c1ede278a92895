"""The report of a run at every stage, and the genotype in words."""

import errno
import json
import os
from pathlib import Path

import pytest
from published import PUBLISHED_TEXT

import pipeline.report
from pipeline.config import parse_recipe
from pipeline.drawing import draw_genotype, uses
from pipeline.errors import ConfigError, HiernasError
from pipeline.report import write_report
from pipeline.run import RunFolder, attempt_key, candidate_key, evaluation_key, history_key
from pipeline.store import MemoryStore
from pipeline.words import text_change, text_genotype
from search.cost import cost
from search.evolution import Evolution
from search.genotype import Genotype
from search.graph import Model
from search.mutation import Change
from search.records import (
    Attempt,
    Candidate,
    Constraints,
    DataReference,
    Hierarchical,
    Machine,
    Metrics,
    Outcome,
    OutcomeKind,
    Repeat,
    Resources,
    Run,
    Stamp,
    Why,
)
from search.space import SPACES

SPACE = SPACES["liu2018-hierarchical"]
STAMP = Stamp("c" * 32, 1.0, 0, 0)


def begun() -> RunFolder:
    """A run of which only run.json is written."""
    recipe = parse_recipe("digits-small", "recipe")
    model = Model(recipe.stem, recipe.width, recipe.cells, channels=1, size=8, classes=10)
    folder = RunFolder(MemoryStore(), "tried")
    folder.begin(Run("tried", "0" * 32, 1, 7, SPACE, Evolution(initial=1), recipe, model, DataReference("digits", "a" * 64), Constraints()))
    return folder


def accept(folder: RunFolder, index: int, previous: str | None, outcome: OutcomeKind, fitness: float | None) -> str:
    """One candidate, its attempt and its outcome, of the evaluation that is there; returns the outcome's digest."""
    change = Change(2, 1, 1, 0, 3, 4) if index else None
    parent = index - 1 if index else None
    folder.create(candidate_key(index), Candidate(index, Hierarchical(PUBLISHED_TEXT), parent, change, index, 5))
    folder.create(attempt_key(index, 0), Attempt(index, 0, Why.FIRST, "inline", "job", Resources(), (), 0, STAMP))
    written = folder.evaluation(index, 0)
    evaluation = None if outcome is OutcomeKind.LOST else written[1] if written else "e" * 64
    return folder.create(history_key(index), Outcome(index, index, 0, outcome, fitness, 1.0, 0.0, evaluation, previous, STAMP))


def test_a_run_without_outcomes_has_a_report_that_says_so(tmp_path: Path) -> None:
    out = tmp_path / "new" / "report"
    write_report(begun(), out)
    assert [path.name for path in out.iterdir()] == ["report.html"]
    assert "The run has no outcome yet." in (out / "report.html").read_text()


def test_a_run_without_a_fitness_lists_its_failures(tmp_path: Path) -> None:
    folder = begun()
    accept(folder, 0, None, OutcomeKind.LOST, None)
    write_report(folder, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "No candidate of the run has a fitness yet." in page
    assert "<td>lost</td>" in page


def test_best_genotype_reads_back_and_the_page_needs_nothing_else(tmp_path: Path) -> None:
    folder = begun()
    first = accept(folder, 0, None, OutcomeKind.EVALUATED, 0.5)
    accept(folder, 1, first, OutcomeKind.EVALUATED, 0.75)
    write_report(folder, tmp_path)
    write_report(folder, tmp_path)  # over the first one
    best = json.loads((tmp_path / "best-genotype.json").read_text())
    assert (best["candidate"], best["fitness"]) == (1, 0.75)
    assert Genotype.from_json(best["levels"]) == Genotype.from_text(best["genotype"]) == Genotype.from_text(PUBLISHED_TEXT)
    assert best["digest"] == Genotype.from_text(PUBLISHED_TEXT).digest
    assert {path.name for path in tmp_path.iterdir()} == REPORT
    page = (tmp_path / "report.html").read_text()
    assert page.count('<img src="data:image/svg+xml;base64,') == 2 + 7  # charts, motifs
    assert "http" not in page
    assert "<script" not in page
    assert page.count("<img ") == page.count('" alt="') == 2 + 7
    assert "best so far is 75.00%, found at outcome 2; it began at 50.00%" in page
    assert '<td class="number">75.00%</td><td class="number">+25.00</td>' in page
    assert "level 2, motif 1: 0→1 separable3x3 becomes maxpool3x3" in page


REPORT = {"report.html", "best-genotype.json"} | {f"{name}.{kind}" for name in ("fitness", "parameters", "best") for kind in ("svg", "png")}


def evaluated(count: int) -> RunFolder:
    """A run of so many candidates with a fitness, without their evaluations."""
    folder, previous = begun(), None
    for index in range(count):
        previous = accept(folder, index, previous, OutcomeKind.EVALUATED, 0.5)
    return folder


def test_a_report_over_that_of_another_run_leaves_nothing_of_it_and_all_else(tmp_path: Path) -> None:
    write_report(evaluated(1), tmp_path)
    (tmp_path / "mine.svg").write_text("mine")
    assert {path.name for path in tmp_path.iterdir()} == REPORT | {"mine.svg"}
    write_report(begun(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "mine.svg"}


def test_parameters_are_those_that_the_evaluations_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, assembled, previous = begun(), [], None
    original = pipeline.report.network
    monkeypatch.setattr(pipeline.report, "network", lambda run, candidate: assembled.append(candidate.index) or original(run, candidate))
    for index in range(3):
        repeats, machine = (Repeat(0.5, 1.0, 1.0, 1.0, ()),), Machine("cpu", 1, "float32", {})
        if index != 1:
            folder.create(evaluation_key(index, 0), Metrics(index, 0, 0.5, repeats, 7_000_000 + index, 1, "d" * 64, 1, "a" * 64, 1.0, machine))
        previous = accept(folder, index, previous, OutcomeKind.EVALUATED, 0.5)
    drawn = {}
    monkeypatch.setattr(pipeline.report, "_save", lambda _, name, figure: drawn.update({name: figure}) or "")
    write_report(folder, tmp_path)
    sizes = sorted(float(x) for marks in drawn["parameters"].axes[0].collections for x, _ in marks.get_offsets())
    own = cost(original(folder.run, folder.load().stories[1].candidate)).parameters
    assert sizes == [own, 7_000_000, 7_000_000, 7_000_002]  # the best, candidate 0, stands twice
    assert assembled == [1]  # the one without an evaluation


@pytest.mark.parametrize("name", ["report.html", "best.svg"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    for folder in (begun(), evaluated(1)):
        with pytest.raises(ConfigError, match=rf"{tmp_path}.*{name} cannot be written: .*choose another folder"):
            write_report(folder, tmp_path)
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(("number", "kind", "remedy"), [(errno.ENOSPC, HiernasError, "free some space"), (errno.EACCES, ConfigError, "make this one writable")])
def test_a_report_that_cannot_be_written_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[HiernasError], remedy: str
) -> None:
    def fail(path: Path, data: bytes) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(HiernasError, match=rf"{tmp_path}.*{os.strerror(number)}.*{remedy}") as caught:
        write_report(evaluated(1), tmp_path)
    assert type(caught.value) is kind
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    for out in (tmp_path / "taken", tmp_path / "taken" / "below"):
        with pytest.raises(ConfigError, match="taken"):
            write_report(begun(), out)
    assert (tmp_path / "taken").read_text() == "mine"


def test_genotypes_in_words_and_drawn() -> None:
    genotype = Genotype.from_text(PUBLISHED_TEXT)
    text = text_genotype(SPACE, genotype)
    assert "level 2, motif 1: 0→1 maxpool3x3, 0→2 conv1x1, 0→3 separable3x3, 1→2 depthwise3x3" in text
    assert "cell: 0→1 motif 5, 0→2 motif 3" in text
    assert "     5  0  0  0  0" in text
    assert text_change(SPACE, Change(3, 1, 4, 0, 2, 0)) == "cell: 0→4 motif 2 becomes none"
    assert [axes.get_title() for axes in draw_genotype(SPACE, genotype).axes] == [f"level 2, motif {number}" for number in range(1, 7)] + ["cell"]
    flat = SPACES["liu2018-flat"]
    assert text_genotype(flat, flat.trivial()).splitlines()[2].startswith("cell: 0→1 identity, 1→2 identity")
    assert len(draw_genotype(flat, flat.trivial()).axes) == 1


def test_uses_count_the_edges_that_live() -> None:
    genotype = Genotype.from_text(PUBLISHED_TEXT)
    assert uses(genotype) == {(3, 1): 1, (2, 1): 1, (2, 2): 0, (2, 3): 4, (2, 4): 1, (2, 5): 4, (2, 6): 0}
    assert set(uses(SPACE.trivial()).items()) == {((3, 1), 1), ((2, 1), 4)} | {((2, number), 0) for number in range(2, 7)}


def test_the_report_says_on_which_machines_the_trainings_ran(tmp_path: Path) -> None:
    folder = begun()
    previous = None
    for index, device in enumerate(("cpu x86_64", "cpu arm64")):
        repeat = Repeat(0.5, 1.0, 2.0, 0.5, ())
        machine = Machine(device, 1, "float32", {"torch": "2.9"})
        metrics = Metrics(index, 0, 0.5, (repeat,), 1234, 5678, "d" * 64, 2**30, "a" * 64, 3.0, machine)
        folder.create(evaluation_key(index, 0), metrics)
        previous = accept(folder, index, previous, OutcomeKind.EVALUATED, 0.5)
    write_report(folder, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "different machines or versions" in page
    assert "cpu arm64, 1 thread, float32; torch 2.9" in page
    assert "<td>1,234</td>" in page
    assert "3.0 s in the median" in page
