"""docs/tutorial.md: in an empty folder with a model, the page leads to students, a report and a merge (pytest -m slow)."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest
from fenced import blocks
from tiny import tiny_folder

from cfg_distill.cli import main
from cfg_distill.folders.history import history_of

BLOCKS = blocks("docs/tutorial.md")
COMMANDS = [words for block in BLOCKS if block.language == "sh" for words in block.commands()]


def test_it_takes_less_than_ten_commands() -> None:
    own = [words for words in COMMANDS if words[0] == "cfg-distill"]
    assert len(own) < 10 and len(own) == 8
    assert {words[0] for words in COMMANDS} == {"cfg-distill", "printf"}


@pytest.mark.slow
def test_the_page_alone_leads_to_a_merge(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_folder(desk / "my-model")
    template = "{% for message in messages %}{{ message.content }} w0 {% endfor %}"
    (desk / "my-model" / "chat_template.jinja").write_text(template)
    for block in BLOCKS:
        if block.file is not None:
            (desk / block.file).write_text(block.text, encoding="utf-8")
    for words in COMMANDS:
        if words[0] == "printf":
            subprocess.run(
                ["sh", "-c", " ".join(word if word == ">" else shlex.quote(word) for word in words)], check=True
            )
        elif "--print_config" in words:
            with pytest.raises(SystemExit) as ended:
                main(words[1:])
            assert ended.value.code == 0
        else:
            assert main(words[1:]) == 0, words
    said = capsys.readouterr().out
    assert "fits/diversity/version_0" in said and "finished  20/20" in said
    assert (desk / "study" / "report.html").is_file()
    made = history_of("students/ship")
    assert made is not None and made.knob == pytest.approx(0.3) and made.guidance == 2
    (block,) = [block for block in BLOCKS if block.language == "python"]
    exec(compile(block.text, "docs/tutorial.md", "exec"), {})
    assert capsys.readouterr().out.strip()
