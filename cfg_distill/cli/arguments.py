"""Argument parsers of the light commands: argparse, with this package's errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cfg_distill.errors import ConfigError, nearest

if TYPE_CHECKING:
    from cfg_distill.evaluation import EvaluateRequest, GenerateRequest


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there is something to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default not in (None, False, []) and action.option_strings
        return super()._get_help_string(action) if shown else action.help


class Arguments(argparse.ArgumentParser):
    """An argument parser that raises :class:`ConfigError`, and names the nearest option to a misspelled one.

    Args:
        command: the word behind ``cfg-distill``.
        description: of the command, for its help.
        instead: what to do in place of an option that another command has: option -> sentence.
    """

    def __init__(self, command: str, description: str, instead: Mapping[str, str] | None = None) -> None:
        self.instead = instead or {}
        super().__init__(
            prog=f"cfg-distill {command}",
            description=description,
            allow_abbrev=False,
            formatter_class=_Defaults,
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
        if twice := [text for action in self._actions if (text := _again(action, given))]:
            raise ConfigError(twice)
        return self.parse_args(argv)

    def options(self) -> dict[str, str]:
        """The option of each argument by its name, to render problems of a request with; of one without, as the help has it."""
        return {each.dest: (each.option_strings or [str(each.metavar or each.dest)])[-1] for each in self._actions}

    @contextmanager
    def naming_options(self) -> Iterator[None]:
        """Problems raised in the block name the options of this command in place of keys."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError([problem.told(self.options()) for problem in error.problems]) from error

    @staticmethod
    def refuse_idle(argv: Sequence[str], options: Sequence[str], needed: str) -> None:
        """Refuse options that have no effect without another one, which was not given.

        Raises:
            ConfigError: those of the options that are among the words.
        """
        idle = [option for option in options if any(word.split("=", 1)[0] == option for word in argv)]
        if idle:
            raise ConfigError([f"Option `{option}`: has no effect without `{needed}`. Add it." for option in idle])

    def _unknown(self, option: str, known: list[str]) -> str:
        if option in self.instead:
            return f"Option `{option}`: no such option. {self.instead[option]}"
        hint = nearest(option, known) or f" Known: {', '.join(known)}."
        return f"Option `{option}`: no such option.{hint}"

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message[:1].upper()}{message[1:]}. See {self.prog} --help.")


def place(word: str) -> Path:
    """The type of an option that names what is written, or a checkpoint: the shell leaves the ``~`` of ``--out=~/x`` alone."""
    from cfg_distill.folders import expanded

    return expanded(word)


def _again(action: argparse.Action, given: Sequence[str]) -> str:
    """What is wrong with an option that is given again: argparse drops all values but the last. Empty if nothing is."""
    number = sum(option in action.option_strings for option in given)
    if number < 2 or action.nargs == 0 or isinstance(action, argparse._AppendAction):
        return ""
    several = action.nargs in ("+", "*")
    advice = ", with all its values behind it." if several else f", but got it {number} times. Keep one."
    return f"Option `{action.option_strings[-1]}`: expected once{advice}"


def add_sampling(parser: argparse.ArgumentParser, samples: int, temperatures: bool = False) -> None:
    """The sampling options that ``generate`` and ``evaluate`` share."""
    longest = "the longest sample; default: as long as the model sees"
    parser.add_argument("--samples", type=int, default=samples, metavar="N", help="samples per prompt")
    parser.add_argument("--max-new-tokens", type=int, metavar="N", help=longest)
    if temperatures:
        parser.add_argument(
            "--temperature", nargs="+", type=float, default=[1.0], metavar="T", help="1 is the model's own"
        )
    else:
        parser.add_argument("--temperature", type=float, default=1.0, metavar="T", help="1 is the model's own")
    parser.add_argument("--negative", metavar="TEXT", help="negative prompt, under guidance")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens; 0: all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest mass P; 1: all")


def add_trust(parser: argparse.ArgumentParser) -> None:
    """The modules that a model folder may name."""
    parser.add_argument(
        "--trust",
        nargs="+",
        default=[],
        metavar="MODULE",
        help="modules of yours that a model folder may name for its renderer and metrics",
    )


_ANNEAL = {"anneal.base": "--anneal", "anneal.power": "--anneal-power"}
"""The options of the fields of :class:`cfg_distill.evaluation.anneal.Anneal`."""


def add_common(parser: argparse.ArgumentParser, audio: str) -> None:
    """What ``generate`` and ``evaluate`` share beside the sampling: sound, a start model, weights, trust.

    Args:
        parser: of the command.
        audio: the form of sound files unless another one is asked for.
    """
    text = "length of sound, instead of --max-new-tokens; default: 10"
    parser.add_argument("--seconds", type=float, metavar="S", help=text)
    text = f"the form of sound files; flac loses nothing, ogg is smallest; default: {audio}"
    parser.add_argument("--audio", choices=("wav", "flac", "ogg"), default=audio, help=text)
    text = "begin each sample by this start model of --model, and end it by --model; it takes the passes of both"
    parser.add_argument("--anneal", metavar="BASE", help=text)
    text = "of --anneal: at position n of N, --model has the share (n / N)^P; default: 2"
    parser.add_argument("--anneal-power", type=float, metavar="P", help=text)
    dtypes = ("float32", "bfloat16", "float16")
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of the model's weights")
    add_trust(parser)


def take_anneal(given: argparse.Namespace) -> None:
    """Put the start model and the exponent into one value.

    Raises:
        ConfigError: an exponent, and no start model.
    """
    from cfg_distill.evaluation.anneal import Anneal

    power = vars(given).pop("anneal_power")
    if given.anneal is None and power is not None:
        raise ConfigError("Option `--anneal-power`: has no effect without a start model. Name one by --anneal.")
    if given.anneal is not None:
        given.anneal = Anneal(base=given.anneal) if power is None else Anneal(base=given.anneal, power=power)


def check(parser: Arguments, request: GenerateRequest | EvaluateRequest) -> None:
    """Print the remarks on a request of ``generate`` or ``evaluate``, which name the options of the command.

    Raises:
        ConfigError: everything that is wrong with the request, by its options.
    """
    options = parser.options() | _ANNEAL
    if problems := request.problems():
        raise ConfigError([problem.told(options) for problem in problems])
    for remark in request.remarks():
        print(remark.told(options), file=sys.stderr)


def refuse_existing(out: Path, overwrite: bool) -> list[str]:
    """A problem when the output exists and holds something that may not be overwritten.

    Args:
        out: the file or folder to write.
        overwrite: whether the user asked to overwrite.
    """
    if files := [parent for parent in out.parents if parent.is_file()]:
        return [f"Option `--out`: `{files[0]}` is a file, so nothing can lie in it. Name another one."]
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return []
    if not overwrite:
        return [f"Option `--out`: `{out}` exists. Name another one, or pass --overwrite."]
    return []
