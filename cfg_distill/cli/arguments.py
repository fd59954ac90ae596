"""Argument parsers of the light commands: argparse, with this package's errors."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from cfg_distill.errors import ConfigError


class Arguments(argparse.ArgumentParser):
    """An argument parser that raises :class:`ConfigError`, and names the nearest option to a misspelled one."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"cfg-distill {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the words.

        Raises:
            ConfigError: all misspelled options at once, or what else argparse refuses.
        """
        known = [option for action in self._actions for option in action.option_strings]
        given = [word.split("=", 1)[0] for word in argv if word.startswith("--") and len(word) > 2]
        unknown = [self._unknown(option, known) for option in dict.fromkeys(given) if option not in known]
        if unknown:
            raise ConfigError(unknown)
        return self.parse_args(argv)

    @staticmethod
    def _unknown(option: str, known: list[str]) -> str:
        nearest = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
        hint = f" Did you mean `{nearest[0]}`?" if nearest else f" Known: {', '.join(known)}."
        return f"Option `{option}`: no such option.{hint}"

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")


def refuse_existing(out: Path, overwrite: bool) -> list[str]:
    """A problem when the output exists and holds something, unless it may be overwritten."""
    if overwrite or not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    return [f"Option `--out`: `{out}` exists. Name another one, or pass --overwrite to replace it."]
