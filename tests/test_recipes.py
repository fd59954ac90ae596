"""Every shipped recipe is what it says: it parses, its classes take its arguments, its files are there."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from cfg_distill.cli import fit
from cfg_distill.cli.checks import Walk
from cfg_distill.cli.recipes import description, shipped
from cfg_distill.folders import RECIPES
from cfg_distill.metrics import SampleMetric
from cfg_distill.study.check import problems_of
from cfg_distill.study.config import read_study

NAMES = sorted(shipped())
CONTENT = {name: yaml.safe_load(shipped()[name].read_text()) for name in NAMES}
FITS = [name for name in NAMES if "trainer" in CONTENT[name]]
STUDIES = [name for name in NAMES if "fits" in CONTENT[name]]
METRICS = [name for name in NAMES if name not in FITS + STUDIES]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_describes_it(name: str) -> None:
    assert shipped()[name].read_text().startswith("# ")
    assert 20 < len(description(shipped()[name])) < 110


@pytest.mark.parametrize("name", FITS)
def test_a_fit_has_no_problems_in_any_folder(name: str, folder: Path) -> None:
    fit.run("fit", ["--config", f"recipes/{name}.yaml"], check_only=True)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_no_problems_in_any_folder(name: str, folder: Path) -> None:
    assert problems_of(read_study(f"recipes/{name}.yaml")) == []


@pytest.mark.parametrize("name", METRICS)
def test_a_file_of_metrics_names_metrics(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--metrics", type=dict[str, SampleMetric])
    walk = Walk()
    walk.keys(parser, {"metrics": CONTENT[name].get("metrics", CONTENT[name])})
    assert walk.problems == []


def test_prompts_of_the_recipes_are_shipped_texts() -> None:
    assert {path.name for path in (RECIPES / "tunes" / "prompts").iterdir()} >= {
        "train.txt",
        "validation.txt",
        "report.txt",
    }
