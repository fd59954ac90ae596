"""Tables of pages are made of the numbers in docs/evidence/, and so are the verdicts of the full study."""

from __future__ import annotations

import json
from pathlib import Path

import neighbour_paths
import neighbours
import optimum
import pytest
import soup_study
import text_optimum
import tune_optimum
import tune_realism
from scripts import script

DOCS = Path(__file__).parents[2] / "docs"
evidence = script(DOCS / "evidence.py")


@pytest.mark.parametrize(
    ("page", "study", "rows"),
    [
        ("evidence", "study", 11),
        ("quickstart", "quickstart", 14),
        ("text", "smollm2_soup", 15),
        ("smollm2", "smollm2", 23),
    ],
)
def test_the_table_and_the_verdicts_are_those_of_the_numbers(page: str, study: str, rows: int) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    numbers = json.loads((DOCS / "evidence" / f"{study}.json").read_text(encoding="utf-8"))
    told = [evidence.row(system, study) for system in numbers["systems"] if system["name"] in evidence.SYSTEMS]
    assert sum(row in text for row in told) == rows
    for claim in numbers["claims"]:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {claim['name']}: "))
        assert f"| {claim['verdict']} |" in line


@pytest.mark.parametrize(
    ("page", "file", "columns"),
    [("evidence", "optimum", tune_optimum.COLUMNS), ("smollm2", "text_optimum", text_optimum.COLUMNS)],
)
def test_the_table_of_an_optimum_is_that_of_the_numbers(page: str, file: str, columns: tuple[str, ...]) -> None:
    numbers = json.loads((DOCS / "evidence" / f"{file}.json").read_text(encoding="utf-8"))
    assert optimum.table(numbers, columns) in (DOCS / f"{page}.md").read_text(encoding="utf-8")


def test_the_table_of_realism_is_that_of_the_numbers() -> None:
    numbers = json.loads((DOCS / "evidence" / "realism.json").read_text(encoding="utf-8"))
    assert tune_realism.table(numbers["rows"], numbers["first"]) in (DOCS / "evidence.md").read_text(encoding="utf-8")


def test_the_table_of_the_neighbours_is_that_of_the_numbers() -> None:
    numbers = json.loads((DOCS / "evidence" / "neighbours.json").read_text(encoding="utf-8"))
    page = (DOCS / "neighbours.md").read_text(encoding="utf-8")
    assert neighbours.on_page(page) == neighbours.table_on_page(numbers)
    assert {int(name.stem[5:]) for name in (DOCS / "evidence" / "neighbours").iterdir()} == set(
        numbers["training_seeds"]
    )


@pytest.mark.parametrize(
    ("page", "study", "rows"),
    [
        ("evidence", "study_first", 14),
        ("evidence", "study_second", 14),
        ("evidence", "guidance_2", 6),
        ("evidence", "guidance_3", 8),
        ("evidence", "tune_soups", 3),
        ("evidence", "two_encoders", 9),
        ("evidence", "music", 6),
        ("evidence", "distilled", 3),
        ("smollm2", "smollm2_soup_five", 5),
        ("smollm2", "smollm2_soup_three", 7),
        ("smollm2", "smollm2_ignored", 7),
    ],
)
def test_the_table_of_a_trial_is_that_of_the_numbers(page: str, study: str, rows: int) -> None:
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    numbers = json.loads((DOCS / "evidence" / f"{study}.json").read_text(encoding="utf-8"))
    systems = [system for system in numbers["systems"] if system["name"] in evidence.SYSTEMS]
    assert sum(evidence.row(system, study).partition(" | ")[2] in text for system in systems) == rows


def test_the_tables_of_the_soups_are_those_of_the_numbers() -> None:
    page = (DOCS / "smollm2.md").read_text(encoding="utf-8")
    for name, found in json.loads(soup_study.OUT.read_text(encoding="utf-8")).items():
        assert "\n".join(soup_study.rows(name, found)) in page


def test_the_paths_from_the_base_are_those_of_the_numbers() -> None:
    numbers = json.loads((DOCS / "evidence" / "neighbours_paths.json").read_text(encoding="utf-8"))
    assert neighbour_paths.table_of_paths(numbers) in (DOCS / "neighbours.md").read_text(encoding="utf-8")


def test_where_a_path_first_has_a_quality() -> None:
    path = [[15, 0.4, 0.8], [30, 0.6, 0.7], [45, 0.5, 0.9]]
    assert neighbour_paths.reached(path, 0.5) == pytest.approx(0.75)
    assert (neighbour_paths.reached(path, 0.3), neighbour_paths.reached(path, 0.7)) == (0.8, None)
