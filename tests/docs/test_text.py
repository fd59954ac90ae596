"""docs/text.md: its commands and its snippets are what the code takes; what it says of the prompts is true."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import yaml
from fenced import ROOT, blocks
from made_study import read_study

from cfg_distill.cli import main
from cfg_distill.data import read_prompts
from cfg_distill.generators import CausalLM
from cfg_distill.study.check import problems_of

PAGE = "docs/text.md"


@pytest.mark.slow
def test_its_commands_run(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran = []
    for block in blocks(PAGE):
        for words in block.commands() if block.language == "sh" else []:
            if words[0] != "cfg-distill":  # they need a network
                assert words[:2] == ["pip", "install"] or words[1:3] == ["vllm", "serve"]
            elif words[1] == "study":  # half an hour
                assert problems_of(read_study(words[2])) == []
            elif words[1] == "fit":  # of a model from a hub
                assert [Path(ROOT, word).is_file() for word in words if word.endswith(".yaml")] == [True, True]
            else:
                short = {"--max-new-tokens": "4", "--samples": "2" if words[1] == "evaluate" else "1"}
                for option in short.keys() & set(words):
                    at = words.index(option)
                    del words[at : at + 2]
                assert main([*words[1:], *chain(*short.items())]) == 0
                ran.append(words[1])
    assert ran == ["generate"] * 3 + ["evaluate"] * 2
    assert capsys.readouterr().out.count("Describe a harbor town") == 3


def test_its_snippet_is_a_generator() -> None:
    (snippet,) = [yaml.safe_load(block.text) for block in blocks(PAGE) if block.language == "yaml"]
    generator = CausalLM(**snippet["model"]["generator"]["init_args"])
    assert snippet["model"]["generator"]["class_path"] == "cfg_distill.generators.CausalLM"
    assert generator.system == "You are a poet of few words."


def test_its_numbers_of_prompts() -> None:
    page = " ".join((ROOT / PAGE).read_text(encoding="utf-8").split())
    counts = [len(read_prompts(f"recipes/smollm2/prompts/{name}.txt")) for name in ("train", "validation", "report")]
    counted = "The prompts are {} for training, {} for the choice of settings and {} for the report.".format(*counts)
    assert counted in page
    seen = [read_prompts(f"recipes/smollm2/prompts/{name}.txt") for name in ("train", "validation", "report")]
    for name, number in (
        ("report_64", 64),
        ("report_second", 64),
        ("report_third", 96),
        ("report_fourth", 96),
        ("report_fifth", 96),
    ):
        report = read_prompts(f"recipes/smollm2/prompts/{name}.txt")
        assert len(set(map(str, report))) == number and not {str(each) for each in chain(*seen)} & set(map(str, report))
        seen.append(report)
