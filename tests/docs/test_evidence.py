"""Tables of pages are made of the numbers in docs/evidence/, and so are the verdicts of the full study."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import guard_study
import neighbour_paths
import neighbours
import pytest
import soup_study

DOCS = Path(__file__).parents[2] / "docs"


def module_of_evidence() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence", DOCS / "evidence.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("page", "study", "rows"),
    [
        ("evidence", "study", 14),
        ("quickstart", "quickstart", 13),
        ("text", "smollm2_soup", 19),
        ("smollm2", "smollm2", 23),
    ],
)
def test_the_table_and_the_verdicts_are_those_of_the_numbers(page: str, study: str, rows: int) -> None:
    evidence = module_of_evidence()
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    numbers = json.loads((DOCS / "evidence" / f"{study}.json").read_text(encoding="utf-8"))
    told = [evidence.row(system, study) for system in numbers["systems"] if system["name"] in evidence.SYSTEMS]
    assert sum(row in text for row in told) == rows
    for claim in numbers["claims"]:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {claim['name']}: "))
        assert f"| {claim['verdict']} |" in line


def test_the_table_of_the_neighbours_is_that_of_the_numbers() -> None:
    numbers = json.loads((DOCS / "evidence" / "neighbours.json").read_text(encoding="utf-8"))
    page = (DOCS / "neighbours.md").read_text(encoding="utf-8")
    assert neighbours.on_page(page) == neighbours.table_on_page(numbers)
    assert {int(name.stem[5:]) for name in (DOCS / "evidence" / "neighbours").iterdir()} == set(
        numbers["training_seeds"]
    )


@pytest.mark.parametrize(("study", "rows"), [("guidance_2", 6), ("guidance_3", 7), ("tune_soups", 3)])
def test_the_table_of_the_levers_is_that_of_the_numbers(study: str, rows: int) -> None:
    evidence = module_of_evidence()
    text = (DOCS / "evidence.md").read_text(encoding="utf-8")
    numbers = json.loads((DOCS / "evidence" / f"{study}.json").read_text(encoding="utf-8"))
    assert sum(evidence.row(system, study).partition(" | ")[2] in text for system in numbers["systems"]) == rows


def test_the_tables_of_the_soups_are_those_of_the_numbers() -> None:
    page = (DOCS / "smollm2.md").read_text(encoding="utf-8")
    for name, found in json.loads(soup_study.OUT.read_text(encoding="utf-8")).items():
        assert "\n".join(soup_study.rows(name, found)) in page


def test_the_guard_on_the_page_is_that_of_the_numbers() -> None:
    page = " ".join((DOCS / "text.md").read_text(encoding="utf-8").split())
    numbers = json.loads(guard_study.OUT.read_text(encoding="utf-8"))
    for name, verdict in (("quality", "holds"), ("beyond", "undecided")):
        value = numbers[name]["value"]
        assert f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" in page
        assert numbers[name]["verdict"] == verdict
    assert f"the base has {numbers['base']['value']['mean']:.3f}" in page


def test_the_paths_from_the_base_are_those_of_the_numbers() -> None:
    numbers = json.loads((DOCS / "evidence" / "neighbours_paths.json").read_text(encoding="utf-8"))
    assert neighbour_paths.table_of_paths(numbers) in (DOCS / "neighbours.md").read_text(encoding="utf-8")


def test_where_a_path_first_has_a_quality() -> None:
    path = [[15, 0.4, 0.8], [30, 0.6, 0.7], [45, 0.5, 0.9]]
    assert neighbour_paths.reached(path, 0.5) == pytest.approx(0.75)
    assert (neighbour_paths.reached(path, 0.3), neighbour_paths.reached(path, 0.7)) == (0.8, None)
