"""Every command and every piece of code in README.md, CONTRIBUTING.md and the pages without a test of their own runs."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from fenced import ROOT, SHORT_FIT, blocks
from made_study import read_study

from cfg_distill.cli import COMMANDS, main
from cfg_distill.recipe.command_line import start
from cfg_distill.study.check import problems_of

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
            start("fit", each.words[1:], check_only=True)
    elif command == "fit" and "--trainer.devices" in words:
        # Two processes start below, once; here it is parsed, built and asked for its problems.
        start("fit", [*words, "--trainer.accelerator=cpu"], check_only=True)
    elif "--print_config" in words:
        with pytest.raises(SystemExit) as ended:
            main([command, *words])
        assert ended.value.code == 0
    else:
        more = SHORT.get(command, [])
        if command != "fit":  # which takes the last of several; others take an option once
            more = [word for word in more if word.partition("=")[0] not in words]
        assert main([command, *words, *more]) == 0, words


def commands_of(page: str) -> list[list[str]]:
    return [words for block in blocks(page) if block.language == "sh" for words in block.commands()]


def write_files(page: str, folder: Path) -> None:
    for block in blocks(page):
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def test_readme(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands_of("README.md"):
        run_command(words)
    assert "K:D major" in capsys.readouterr().out  # the tune that was generated
    assert {path.suffix for path in (desk / "tunes").iterdir()} == {".abc", ".mid", ".wav"}
    for name in ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (desk / "students" / "half" / name).is_file()

    # The Python block is for a reader without this package.
    (block,) = [block for block in blocks("README.md") if block.language == "python" and block.file is None]
    assert "cfg_distill" not in block.text
    exec(compile(block.text, "README.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) > 20


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700


def test_the_table_of_readme_is_an_excerpt() -> None:
    """Its rows are rows of docs/evidence.md, and its verdicts are the page's."""
    short, long = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/evidence.md"))
    rows = re.findall(r"^\| ([\w ./-]+) \| (\d|-) \| (0\.\d+ ±\S+) \| (0\.\d+ ±\S+) \|$", short, re.MULTILINE)
    assert len(rows) == 7
    for name, *cells in rows:
        assert re.search(
            rf"^\| {re.escape(name)}( \(.+\))? \| {re.escape(' | '.join(cells))} \|", long, re.MULTILINE
        ), name
    told = re.findall(r"^- (Holds|Undecided|Fails): ", short, re.MULTILINE)
    assert [word.lower() for word in told] == re.findall(r"^\| .+ \| (holds|undecided|fails) \|$", long, re.MULTILINE)


def test_quickstart(desk: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # README's own fit validates.
    monkeypatch.setitem(SHORT, "fit", [*SHORT_FIT, "--trainer.limit_val_batches=0"])
    write_files("docs/quickstart.md", desk)
    for words in commands_of("docs/quickstart.md"):
        run_command(words)
    assert "recipes/tunes/quality.yaml" in capsys.readouterr().out


def test_contributing() -> None:
    commands = commands_of("CONTRIBUTING.md")
    assert ["make", "test"] in commands
    for words in commands:
        run_command(words)


@pytest.mark.slow
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
    assert config["model"]["optimizer"]["init_args"]["lr"] == 3e-4
    assert config["trainer"]["callbacks"]["ema"]["init_args"]["decay"] == 0.99
    config = yaml.safe_load((desk / "runs" / "diversity" / "version_2" / "config.yaml").read_text())
    assert config["trainer"]["callbacks"]["beta"]["init_args"]["ratio"] == 0.3
    assert "checkpoint" in config["trainer"]["callbacks"]
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


PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))
_LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        other = page.parent / target if target else page
        assert other.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(other), f"{page.name} links to {target}#{anchor}"


def test_no_page_is_left_out_of_the_index() -> None:
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    assert {target for target, _ in _LINK.findall(index)} >= {page.name for page in (ROOT / "docs").glob("*.md")} - {
        "index.md"
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_whole(page: Path) -> None:
    """Every row of a table has as many cells as its head."""
    columns = 0
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        columns = columns or cells
        assert cells == columns, f"{page.name}: {line}"


def test_no_page_installs_from_an_index() -> None:
    """The package is not published: whoever takes the name on an index would be installed."""
    for page in PAGES:
        assert not re.search(r"pip install.* \"?cfg-distill\b", page.read_text(encoding="utf-8")), page.name


SHOWN = (
    "README.md", "docs/quickstart.md", "docs/recipes.md", "docs/plan.md", "docs/report.md", "docs/listening.md",
    "docs/ladder.md",
)  # fmt: skip


def test_every_command_is_shown() -> None:
    commands = [words for page in SHOWN for words in commands_of(page)]
    shown = {words[1] for words in commands if words[0] == "cfg-distill"}
    assert shown >= COMMANDS.keys() - {"validate"}


def test_targets_of_make() -> None:
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    pages = "".join((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "CONTRIBUTING.md"))
    named = set(re.findall(r"`make ([a-z-]+)`", pages))
    assert named >= {"quickstart", "test", "lint", "bench"}
    assert named <= set(targets)


def test_the_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["preferred-citation"]["url"] == "https://arxiv.org/abs/2410.06084"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
