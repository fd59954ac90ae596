"""The page and the choice at the end of a study and of an evaluation, and what a second run leaves alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import tiny_folder

from cfg_distill.cli import main


def front() -> dict:
    return json.loads(Path("out/front.json").read_text())


def test_a_study_ends_with_a_choice_and_a_page(real: Path, change, capsys: pytest.CaptureFixture) -> None:
    for seed, name in enumerate(("one", "two"), start=1):
        tiny_folder(real / name, seed=seed)
    Path("report.txt").write_text("w6 w7\nw8 w9\n" + "".join(f"w{number}\n" for number in range(6)))  # enough to decide
    merges = {"half": {"models": ["one", "two"], "weights": [0.5, 0.5]}}
    systems = {"quality": {"model": "one"}, "diversity": {"model": "two"}}
    study = str(change({"fits": None, "merges": merges, "systems": systems}))
    assert main(["study", study]) == 0
    said = capsys.readouterr().out
    choice = front()["choice"]
    assert choice["margin"] == 0.02 and choice["against"] == "guidance 2"
    assert choice["reason"] in said and "Wrote out/report.html." in said
    page = Path("out/report.html").read_text()
    assert "<h3>half</h3>" in page or "<h3>half <span" in page
    assert "w6 w7" in page  # a prompt
    # A choice of the user outlives a second run, which has nothing to do.
    assert main(["choose", "out", "--margin", "9"]) == 0
    chosen, page = front()["choice"], Path("out/report.html").read_text()
    assert chosen["margin"] == 9 and chosen["system"] == "half" and "Ship <em>half</em>" in page
    steps = {file: file.read_bytes() for file in (*Path("out/steps").iterdir(), Path("out/timings.json"))}
    assert main(["study", study]) == 0
    assert front()["choice"] == chosen and Path("out/report.html").read_text() == page
    assert {file: file.read_bytes() for file in steps} == steps


def test_an_evaluation_writes_a_page(real: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["evaluate", "--model", "base", "--guidance", "1", "2", "--prompts", "report.txt", "--samples", "2"]
    assert main([*words, "--max-new-tokens", "4", "--out", "results"]) == 0
    assert "Wrote results/report.html." in capsys.readouterr().out
    page = Path("results/report.html").read_text()
    assert page.count('class="prompt"') == 3 and "base, guidance 2" in page
