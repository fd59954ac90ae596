"""The dispatcher: light where it should be, exit codes, one message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cfg_distill.cli import COMMANDS, main

HEAVY = ("torch", "lightning", "transformers", "jsonargparse", "numpy", "matplotlib", "jinja2")


def imported_by(*commands: list[str]) -> set[str]:
    """The heavy packages that these commands import, in a fresh process."""
    code = (
        "import sys, contextlib, io; from cfg_distill.cli import main\n"
        f"for words in {list(commands)!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(words)\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_light_commands_import_nothing_heavy() -> None:
    light = [[], ["--help"], ["--version"], ["fitt"], ["recipes"], *([name, "--help"] for name in COMMANDS)]
    assert imported_by(*light) == set()


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("list", "`runs` or `recipes`"),
        ("ls", "`runs` or `recipes`"),
        ("train", "`fit`"),
        ("traim", "`fit`"),
        ("fitt", "`fit`"),
    ],
)
def test_an_unknown_command_is_told_with_all_and_the_one_that_is_meant(
    word: str, meant: str, capsys: pytest.CaptureFixture
) -> None:
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert all(name in said for name in COMMANDS) and said.endswith(f"but got `{word}`. Did you mean {meant}?\n")


@pytest.mark.parametrize("words", [[], ["--version"], ["recipes"], ["study", "--help"], ["completion", "bash"]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_mistake(words: list[str], unbuffered: str, tmp_path: Path) -> None:
    """As in `cfg-distill recipes | head -1`, under a shell that looks at exit codes."""
    reading, writing = os.pipe()
    os.close(reading)
    command = subprocess.run(
        [sys.executable, "-m", "cfg_distill.cli", *words], stdout=writing, stderr=subprocess.PIPE, check=False,
        cwd=tmp_path, env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
    )  # fmt: skip
    os.close(writing)
    assert (command.returncode, command.stderr) == (0, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("end", "code", "said"), [("> /dev/full", 2, " written: No space left on device. "), (">&-", 0, "")]
)
def test_an_output_that_takes_nothing(end: str, code: int, said: str, unbuffered: str) -> None:
    """A full disk, and one that the shell has closed."""
    if "full" in end and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    words = ["sh", "-c", f"{sys.executable} -m cfg_distill.cli recipes {end}"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert command.returncode == code and said in command.stderr, command.stderr
    assert command.stderr.count("\n") == (code != 0)


def test_help_names_every_command(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)


def test_help_of_a_fit_is_short(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from cfg_distill.recipe import command_line

    asked: list[list[str]] = []
    monkeypatch.setattr(command_line, "start", lambda command, words: asked.append(words))
    assert main(["fit", "--help"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) < 25 and "--help=all" in shown and "usage: cfg-distill fit" in shown
    assert main(["validate", "--help=all"]) == 0
    assert asked == [["--help"]] and capsys.readouterr().out == ""


def test_a_fit_says_less_or_more(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    from cfg_distill.recipe import command_line, quiet

    def start(command: str, words: list[str]) -> None:
        print("a line", words)
        print("a warning", file=sys.stderr)
        print("loud" if quiet.LOUD in os.environ else "as usual", file=sys.stderr)

    monkeypatch.setattr(command_line, "start", start)
    said = {}
    for option in ("", "--quiet", "--verbose"):
        assert main(["fit", *([option] if option else []), "--seed_everything=1"]) == 0
        said[option] = capsys.readouterr()
    line = "a line ['--seed_everything=1']\n"
    assert [said[option].out for option in said] == [line, "", line]
    assert [said[option].err.split()[-1] for option in said] == ["usual", "usual", "loud"]
    assert quiet.LOUD not in os.environ
    assert main(["fit", "--quiet", "--verbose"]) == 2
    assert "expected one of them, but got both" in capsys.readouterr().err


def test_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture) -> None:
    assert main(["generat", "--model", "x"]) == 2
    said = capsys.readouterr().err
    assert "got `generat`. Did you mean `generate`?" in said and "Traceback" not in said


def test_misspelled_options_are_named_together(capsys: pytest.CaptureFixture) -> None:
    assert main(["merge", "--modles", "a", "--wieghts=1", "--out", "x"]) == 2
    said = capsys.readouterr().err
    assert "2 problems" in said
    assert "`--modles`: no such option. Did you mean `--models`?" in said
    assert "`--wieghts`: no such option. Did you mean `--weights`?" in said


def test_missing_and_wrong_options(capsys: pytest.CaptureFixture) -> None:
    assert main(["merge", "--models", "x"]) == 2
    assert "required: --out" in capsys.readouterr().err
    assert main(["generate", "--model", "x", "--prompt", "y", "--samples", "many"]) == 2
    assert "--samples: invalid int value: 'many'" in capsys.readouterr().err


def test_a_list_that_is_given_twice_is_refused(capsys: pytest.CaptureFixture) -> None:
    """argparse drops the first one without a word."""
    assert main(["generate", "--model", "x", "--prompt", "a", "--prompt=b", "--trust", "c", "--trust", "d"]) == 2
    said = capsys.readouterr().err
    assert "Option `--prompt`: expected once, with all its values behind it." in said and "`--trust`" in said


def test_options_of_files_are_refused_where_none_is_written(capsys: pytest.CaptureFixture) -> None:
    words = ["evaluate", "--model", "tunes:base", "--prompts", "prompts.txt", "--inline", "--audio=ogg"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "Option `--inline`: has no effect without `--out`" in said and "`--audio`" in said


def test_only_the_first_process_speaks(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["fitt"]) == 2
    assert capsys.readouterr().err == ""


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from cfg_distill.cli import recipes

    monkeypatch.setattr(recipes, "shipped", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["recipes"])
