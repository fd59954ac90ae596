"""The page on reports: its commands run on a made-up study, and its JSON has the keys that `choose` writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fenced import ROOT, blocks
from made_study import line, write_study
from tiny import tiny_folder

from cfg_distill.cli import COMMANDS, main
from cfg_distill.report import demo

PAGE = "docs/report.md"


@pytest.fixture
def studies(desk: Path) -> Path:
    """The two studies that the page names, with real models, and with the guards that it names."""
    systems = line()
    for each in systems:
        each.samples = 8  # of 96 samples, none with an event does not keep a share below 0.02
        for guard in ("rest_share", "copy_rate"):
            each.axes[guard], each.values[guard] = "guard", each.values["rests"]
    for name in ("quickstart", "mine"):
        study = write_study(desk / "runs" / name, systems, kind="text")
        for seed, folder in enumerate(("students/quality", "students/diversity", "merges/half")):
            tiny_folder(study / folder, seed=seed)
    return desk


def test_its_commands_run(studies: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = [words for block in blocks(PAGE) if block.language == "sh" for words in block.commands()]
    assert {words[1] for words in commands} == {"report", "choose", "merge", "compare", "demo"} <= set(COMMANDS)
    served: list[Path] = []
    monkeypatch.setattr(
        demo, "serve", lambda request: served.append(request.study)
    )  # tests/report/test_demo.py serves it
    for number, words in enumerate(commands):
        words = [f"my-model-{number}" if word == "my-model" else word for word in words]
        assert main(words[1:]) == 0, words
    assert (studies / "my-model-3" / "config.json").is_file() and served == [Path("runs/quickstart")]


def test_its_keys_are_those_that_are_written(studies: Path, capsys: pytest.CaptureFixture) -> None:
    (shown,) = [json.loads(block.text) for block in blocks(PAGE) if block.language == "json"]
    assert main(["choose", "runs/quickstart"]) == 0
    written = json.loads((studies / "runs/quickstart/front.json").read_text())["choice"]
    assert shown["choice"].keys() == written.keys()
    assert shown["choice"]["rejected"][0].keys() == written["rejected"][0].keys()


def test_its_sections_are_those_of_the_page() -> None:
    text = (ROOT / PAGE).read_text()
    named = set(re.findall(r"^\| ([\w ]+) \| ", text, re.MULTILINE)) - {"section", "on top"}
    template = (ROOT / "cfg_distill/report/templates/report.html.j2").read_text()
    assert named - {"knob"} == set(re.findall(r'<section id="(\w+)"', template))
    assert 'id="knob"' in template
