"""``cfg-distill fit`` and ``validate``: LightningCLI over a recipe."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest

from cfg_distill.recipe.overrides import sorted_words

QUIET, VERBOSE, ALL = "--quiet", "--verbose", "--help=all"
_CLASSES = {"--model.help": "cfg_distill.CFGDistillation", "--data.help": "cfg_distill.data.PromptData"}
SHORT_HELP = """\
usage: cfg-distill {command} --config RECIPE [--config FILE ...] [options]

options:
  --config FILE              a recipe, or what differs from one; later files and options win
  --ckpt_path last           go on from the last checkpoint of the latest run; or name a checkpoint
  --model.start DIR          a student whose weights this one begins with
  --model.guidance.scale G   gamma, the scale of the teacher's guidance
  --trainer.max_steps N      optimiser steps
  --trainer.devices N        devices; --trainer.accelerator cpu, gpu or auto
  --ANY.KEY VALUE            any key of the recipe, by its path: docs/keys.md lists them
  --print_config             print the whole recipe with all defaults, and stop
  --quiet                    nothing but warnings and mistakes
  --verbose                  also what Lightning and the libraries say
  --help=all                 every option of the trainer, the model and the data
  --model.help, --data.help         the options of model or data; --model.help CLASS those of a class of yours

recipes: cfg-distill recipes      runs so far: cfg-distill runs"""


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check everything, then train or validate.

    Args:
        command: ``fit`` or ``validate``.
        argv: the words behind it.

    Raises:
        ConfigError: all problems of the configuration, before any weight is loaded.
    """
    if any(word in ("-h", "--help") for word in argv):
        print(SHORT_HELP.format(command=command))
        return
    words = ["--help" if word == ALL else word for word in _with_classes(argv) if word not in (QUIET, VERBOSE)]
    asked = sorted_words(words)  # a missing file is found before torch is imported
    words += _classes_of_help(asked.help)
    shown = asked.print_config is not None or bool(asked.help)
    with _saying(QUIET in argv, VERBOSE in argv, shown):
        from cfg_distill.recipe.command_line import start

        start(command, words)


def _with_classes(argv: Sequence[str]) -> Iterator[str]:
    """The words, and behind a ``--model.help`` or ``--data.help`` that names no class the one of every recipe.

    Example:
        >>> list(_with_classes(["--data.help", "my.Data"])), list(_with_classes(["--data.help"]))
        (['--data.help', 'my.Data'], ['--data.help', 'cfg_distill.data.PromptData'])
    """
    for word, following in zip_longest(argv, argv[1:], fillvalue="-"):
        yield word
        if word in _CLASSES and following.startswith("-"):
            yield _CLASSES[word]


def _classes_of_help(asked: Sequence[str]) -> list[str]:
    """The classes in ``--model.help CLASS`` and ``--data.help CLASS``, as options that choose them.

    LightningCLI has these helps only where a model or data is named by its class.

    Example:
        >>> _classes_of_help(["--data.help", "my.Data", "--trainer.help"])
        ['--data=my.Data']
    """
    given = " ".join(asked).replace("=", " ").split()
    return [
        f"{name.removesuffix('.help')}={value}"
        for name, value in pairwise(given)
        if name in _CLASSES and not value.startswith("-")
    ]


@contextlib.contextmanager
def _saying(quiet: bool, verbose: bool, shown: bool) -> Iterator[None]:
    """Say less or more than usual. Warnings and mistakes go to stderr, and are always said.

    Args:
        quiet: nothing else is said.
        verbose: also what the libraries say.
        shown: the user asked to be shown something, which is then said, too.

    Raises:
        ConfigError: both are asked for.
    """
    from cfg_distill.errors import ConfigError
    from cfg_distill.recipe.quiet import LOUD

    if quiet and verbose:
        raise ConfigError(f"Options `{QUIET}` and `{VERBOSE}`: expected one of them, but got both.")
    if verbose:
        os.environ[LOUD] = "1"
    try:
        if not quiet:
            yield
            return
        log = logging.getLogger("lightning.pytorch")
        level = log.level
        log.setLevel(logging.WARNING)
        try:
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stdout if shown else nowhere):
                yield
        finally:
            log.setLevel(level)
    finally:
        if verbose:
            del os.environ[LOUD]
