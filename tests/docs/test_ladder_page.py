"""docs/ladder.md: its ladder is taken out of the page, and its commands say what the page says they do."""

from __future__ import annotations

from pathlib import Path

import pytest
from fenced import blocks
from tiny import tiny_folder

from cfg_distill.cli import main

OWN = [block for block in blocks("docs/ladder.md") if block.heading == "A ladder for your own model"]


def test_the_ladder_of_the_page_runs_and_is_short(desk: Path, capsys: pytest.CaptureFixture) -> None:
    for block in OWN:
        if block.file is not None:
            (desk / block.file).write_text(block.text, encoding="utf-8")
    (profile,) = (block for block in OWN if block.language == "json")
    tiny_folder(desk / "my-model")
    (desk / "my-model" / "cfg_distill.json").write_text(profile.text, encoding="utf-8")
    of_file, of_folder = (block.commands()[0] for block in OWN if block.language == "sh")
    for command in (of_file, of_folder):
        assert main(command[1:]) == 1
        told = capsys.readouterr().out
        assert "distinct  bought by capitals\n" in told
        assert "Seen by no guard and no metric of quality: empty.\n" in told
    (ladder,) = (block for block in OWN if block.language == "python")
    lines = ladder.text[ladder.text.index("class ") :].splitlines()
    assert len([line for line in lines if line.strip()]) <= 20


def test_the_first_command_of_the_page_names_a_shipped_file() -> None:
    from cfg_distill.evaluation.validating import named_in

    (first, *_) = blocks("docs/ladder.md")
    (command,) = first.commands()
    assert command[1] == "validate-metrics" and named_in(command[2]).metrics
