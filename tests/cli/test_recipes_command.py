"""``cfg-distill recipes``: list, copy, never overwrite unasked."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fenced import ROOT

from cfg_distill.cli import main, recipes


@pytest.fixture
def shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = folder / "package"
    (package / "tunes").mkdir(parents=True)
    (package / "tunes" / "quality.yaml").write_text(
        "# The quality student.\n# More.\n# Cost: 2 min, 1.1 GB (a page)\nmodel: {}\n"
    )
    (package / "quickstart.yaml").write_text("# The whole method.\nfits: {}\n")
    monkeypatch.setattr(recipes, "RECIPES", package)
    return package


def test_list(shipped: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "recipes/quickstart.yaml                    The whole method.",
        "recipes/tunes/quality.yaml  2 min, 1.1 GB  The quality student.",
    ]


@pytest.mark.parametrize("name", ["tunes/quality", "tunes/quality.yaml", "recipes/tunes/quality.yaml"])
def test_copy_refuses_what_exists(shipped: Path, folder: Path, capsys: pytest.CaptureFixture, name: str) -> None:
    assert main(["recipes", name]) == 0
    mine = folder / "quality.yaml"
    assert mine.read_text() == (shipped / "tunes" / "quality.yaml").read_text()
    mine.write_text("edited")
    assert main(["recipes", name]) == 2
    assert "`quality.yaml` exists" in capsys.readouterr().err and mine.read_text() == "edited"
    assert main(["recipes", name, "--overwrite"]) == 0
    assert mine.read_text() != "edited"


def test_copy_elsewhere(shipped: Path, folder: Path) -> None:
    assert main(["recipes", "quickstart", "--out", "new/study.yaml"]) == 0
    assert (folder / "new" / "study.yaml").read_text().startswith("# The whole method.")


def test_the_home_folder_behind_an_equals_sign(
    shipped: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """The shell leaves the `~` of `--out=~/x` alone."""
    home = folder / "home"
    monkeypatch.setenv("HOME", str(home))
    name = next(iter(recipes.shipped()))
    assert main(["recipes", name, "--out=~/mine.yaml"]) == 0
    assert main(["schema", "study", "--out=~/study.json"]) == 0
    assert sorted(file.name for file in home.iterdir()) == ["mine.yaml", "study.json"]
    assert not Path("~").exists()


def test_unknown_name(shipped: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["recipes", "tunes/qualty"]) == 2
    said = "no such recipe. Did you mean `tunes/quality`? `cfg-distill recipes` lists all.\n"
    assert capsys.readouterr().err.endswith(said)


def test_the_costs_are_those_of_the_page() -> None:
    page = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| `(recipes/[\w/]+\.yaml)` \| .+? \| .+? \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
    unknown = {("-", "-"), ("not measured", "not measured")}
    expected = {name: "" if (time, memory) in unknown else f"{time}, {memory}" for name, time, memory in told}
    assert {f"recipes/{name}.yaml": recipes.cost(file) for name, file in recipes.shipped().items()} == expected
