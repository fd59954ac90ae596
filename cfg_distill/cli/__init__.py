"""The command line. ``main`` imports only what the named command needs: light commands stay light."""

from __future__ import annotations

import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence

from cfg_distill import __version__
from cfg_distill.errors import ConfigError, Problem, Stopped, closest, nearest, shortened, together

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "fit": "train a student: fit --config recipes/NAME.yaml [overrides]",
    "validate": "validate a student: the options of fit",
    "plan": "memory, work and least time of a fit before it runs: plan --config RECIPE [--devices N] [--gpu h100]",
    "study": "fits, merges, baselines and evaluation in one file: study STUDY.yaml [--out DIR]",
    "evaluate": "quality and diversity of finished models: evaluate --model DIR ... --prompts FILE",
    "choose": "the point of a study to ship: choose STUDY [--margin M] [--out DIR]",
    "compare": "two studies on the same prompts: compare STUDY STUDY",
    "report": "write the page of a study anew: report STUDY [--inline]",
    "demo": "a page to play with the models of a study: demo STUDY [--port N]",
    "listen": "a page for a blind listening test of a study: listen STUDY --out DIR",
    "ratings": "opinions of a listening test: ratings FILE ... --study STUDY",
    "merge": "merge model folders: merge --models A B --weights 0.5 0.5 --out DIR",
    "generate": "draw samples: generate --model DIR --prompt TEXT",
    "export": "checkpoint to a plain Hugging Face folder: export --checkpoint FILE --out DIR",
    "validate-metrics": "test metrics on samples whose order is known: validate-metrics METRICS.yaml",
    "runs": "list the runs of fits: runs [DIR ...]",
    "init": "recipes and a study for your own model: init --model DIR --prompts FILE",
    "recipes": "list the recipes, or copy one to edit: recipes [NAME]",
    "schema": "what an editor needs to check recipes and studies: schema recipe|study|metrics",
    "completion": "completion for your shell: completion bash|zsh|fish",
}
_MEANT = {"list": "`runs` or `recipes`", "ls": "`runs` or `recipes`", "train": "`fit`", "sample": "`generate`"}
"""Words of other tools, which are no misspelt commands."""
_LIGHTNING = ("fit", "validate")
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT}
"""What the system refuses for reasons of its own, whatever the code does. Other errors of the system are bugs of ours."""


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: cfg-distill COMMAND [options]\n\n"
        "Distil classifier-free guidance into a model that needs none, and keep its samples diverse.\n\n"
        f"commands:\n{commands}\n\n"
        "options:\n  --help     this text; cfg-distill COMMAND --help says more\n  --version  the version\n\n"
        "Where to start: cfg-distill recipes"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 1 for a finding, 2 after a user's mistake, 128 + N after signal N.

    A bug of ours keeps its traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # no letter of a prompt or a sample is worth a traceback
            stream.reconfigure(errors="replace")
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:
        return 0  # the reader of our output (head, less) went away; nothing is wrong
    finally:
        _write_out()


def _write_out() -> None:
    """Write what is left of the output: at its end the interpreter would complain of what fails, with exit code 120."""
    if sys.stdout is None:  # closed by the shell
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            print(f"cfg-distill: The output cannot be written: {error.strerror}. Send it elsewhere.", file=sys.stderr)
            raise SystemExit(2) from None


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"cfg-distill {__version__}")
        return 0
    command, rest = words[0], words[1:]
    # A user's own classes, named by class_path, live in files of the current folder.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if command not in COMMANDS:
            raise ConfigError(_unknown(command))
        if command in _LIGHTNING:
            from cfg_distill.cli import fit

            fit.run(command, rest)
        else:
            # A command returns a code where its finding is one; else nothing, which is success.
            return importlib.import_module(f"cfg_distill.cli.{command.replace('-', '_')}").run(rest) or 0
    except ConfigError as error:
        _print_problems(command, error.problems)
        return 2
    except KeyboardInterrupt:
        return 130
    except Stopped as stopped:
        return stopped.code
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        if error.errno not in _REFUSALS or not (error.filename or full):
            raise
        name = f"`{shortened(str(error.filename), 120)}`" if error.filename else "A file or the output"
        advice = "Make room, change the permissions, or name another file or folder."
        _print_problems(command, [Problem("", f"{name} cannot be read or written: {error.strerror}. {advice}")])
        return 2
    return 0


def _unknown(command: str) -> str:
    found = closest(command, [*COMMANDS, *_MEANT])
    hint = f" Did you mean {_MEANT[found]}?" if found in _MEANT else nearest(command, COMMANDS)
    return f"Expected a command, one of {', '.join(COMMANDS)}, but got `{command}`.{hint}"


def _print_problems(command: str, problems: list[Problem]) -> None:
    from cfg_distill.recipe.processes import is_first

    # Every process of a distributed run meets the same mistake; the first one says it.
    if not is_first():
        return
    name = f"cfg-distill {command}" if command in COMMANDS else "cfg-distill"
    told = together(problems)
    if len(told) == 1:
        print(f"{name}: {told[0]}", file=sys.stderr)
        return
    listed = "\n".join(f"  {number}. {text}" for number, text in enumerate(told, start=1))
    print(f"{name}: {len(told)} problems, nothing was started:\n{listed}", file=sys.stderr)
