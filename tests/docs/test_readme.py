"""Every command and every piece of code in README.md, docs/recipes.md and docs/faq.md runs; fits are shortened."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fenced import ROOT, SHORT_FIT, blocks

from cfg_distill.cli import COMMANDS, fit, main
from cfg_distill.study.check import command_of, problems_of
from cfg_distill.study.config import read_study

SHORT = {
    "fit": SHORT_FIT,
    "generate": ["--max-new-tokens=24"],
    "evaluate": ["--samples=2", "--max-new-tokens=8"],
}


def run_command(words: list[str]) -> None:
    """One command of a page, in this process."""
    program, *rest = words
    if program == "make":
        assert subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, check=False).returncode == 0, words
    elif program == "pip":  # needs a network; that the wheel works is tested elsewhere
        assert rest == ["install", "."]
    elif program == "tensorboard":
        scripts = importlib.metadata.entry_points(group="console_scripts")
        assert any(script.name == "tensorboard" for script in scripts)
        assert rest[0] == "--logdir"
        assert list(Path(rest[1]).rglob("events.out.tfevents.*"))
    else:
        assert program == "cfg-distill", f"nothing here knows how to run {words}"
        run_own(*rest)


def run_own(command: str, *words: str) -> None:
    if command == "study":
        study = read_study(words[0])
        assert problems_of(study) == []
        for each in study.fits.values():
            fit.run("fit", command_of(each)[1:], check_only=True)
    elif command == "fit" and "--trainer.devices" in words:
        # Two processes start below, once; here it is parsed, built and asked for its problems.
        fit.run("fit", [*words, "--trainer.accelerator=cpu"], check_only=True)
    elif "--print_config" in words:
        with pytest.raises(SystemExit) as ended:
            main([command, *words])
        assert ended.value.code == 0
    else:
        assert main([command, *words, *SHORT.get(command, [])]) == 0, words


def commands_of(page: str) -> list[list[str]]:
    return [words for block in blocks(page) if block.language == "sh" for words in block.commands()]


def write_files(page: str, folder: Path) -> None:
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def test_readme(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files("README.md", desk)
    for words in commands_of("README.md"):
        run_command(words)
    printed = capsys.readouterr().out
    assert "recipes/tunes/quality.yaml" in printed
    assert "K:D major" in printed  # the tune that was generated
    assert {path.suffix for path in (desk / "tunes").iterdir()} == {".abc", ".mid", ".wav"}
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (desk / "students" / "half" / name).is_file()

    # The last block is for a reader without this package.
    (block,) = [block for block in blocks("README.md") if block.language == "python" and block.file is None]
    assert "cfg_distill" not in block.text
    exec(compile(block.text, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 20


def test_recipes(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files("docs/recipes.md", desk)
    for words in commands_of("docs/recipes.md"):
        run_command(words)
    assert "cfg_distill.losses.ForwardKL" in capsys.readouterr().out
    points = json.loads((desk / "runs" / "points" / "front.json").read_text())["systems"]
    assert [point["relative_cost"] for point in points] == [1, 2]
    config = yaml.safe_load((desk / "runs" / "diversity" / "version_0" / "config.yaml").read_text())
    assert config["model"]["losses"]["diversity"]["init_args"]["weight"] == 9
    assert config["model"]["losses"]["kl"]["init_args"]["weight"] == 1
    config = yaml.safe_load((desk / "runs" / "diversity" / "version_1" / "config.yaml").read_text())
    assert config["trainer"]["accumulate_grad_batches"] == 2
    assert config["model"]["guidance"]["scale"] == 3
    assert (desk / "students" / "quality" / "config.json").is_file()


def test_faq(desk: Path) -> None:
    for name in ("my-finetuned-base", "my-old-student"):
        shutil.copytree(ROOT / "cfg_distill" / "tunes" / "weights" / "base", desk / name)
    for words in commands_of("docs/faq.md"):
        run_command(words)


@pytest.mark.slow
def test_two_devices(desk: Path) -> None:
    (words,) = [w for w in commands_of("docs/recipes.md") if "--trainer.accelerator" in w and "--trainer.devices" in w]
    short = [word for word in SHORT_FIT if "accelerator" not in word]
    done = subprocess.run(
        [sys.executable, "-m", "cfg_distill.cli", *words[1:], *short], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "with 2 processes" in done.stderr


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[\w-]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith("https://"):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_command_is_shown() -> None:
    commands = [*commands_of("README.md"), *commands_of("docs/recipes.md")]
    shown = {words[1] for words in commands if words[0] == "cfg-distill"}
    assert shown >= COMMANDS.keys() - {"validate"}


def test_targets_of_make() -> None:
    targets = re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    named = re.findall(r"`make (\w+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert set(named) == {"quickstart", "test"}
    assert set(named) <= set(targets)
