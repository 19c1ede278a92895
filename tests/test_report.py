"""The report of a run at every stage, and the genotype in words."""

import json
from pathlib import Path

import pytest
from published import PUBLISHED_TEXT

from pipeline.config import parse_recipe
from pipeline.drawing import draw_genotype, text_change, text_genotype
from pipeline.errors import ConfigError
from pipeline.report import write_report
from pipeline.run import RunFolder, attempt_key, candidate_key, history_key
from pipeline.store import MemoryStore
from search.evolution import Evolution
from search.genotype import Genotype
from search.graph import Model
from search.mutation import Change
from search.records import Attempt, Candidate, Constraints, DataReference, Hierarchical, Outcome, OutcomeKind, Resources, Run, Stamp, Why
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
    """One candidate, its attempt and its outcome; returns the outcome's digest."""
    change = Change(2, 1, 1, 0, 3, 4) if index else None
    parent = index - 1 if index else None
    folder.create(candidate_key(index), Candidate(index, Hierarchical(PUBLISHED_TEXT), parent, change, index, 5))
    folder.create(attempt_key(index, 0), Attempt(index, 0, Why.FIRST, "inline", "job", Resources(), (), 0, STAMP))
    evaluation = None if outcome is OutcomeKind.LOST else "e" * 64
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
    figures = {f"{name}.{kind}" for name in ("fitness", "parameters", "best") for kind in ("svg", "png")}
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "best-genotype.json"} | figures
    page = (tmp_path / "report.html").read_text()
    assert page.count('<img src="data:image/svg+xml;base64,') == 3
    assert "http" not in page
    assert "level 2, motif 1: 0→1 separable3x3 becomes maxpool3x3" in page


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
