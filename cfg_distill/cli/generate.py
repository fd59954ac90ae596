"""``cfg-distill generate``: samples of a model folder, printed, and written as files on request."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cfg_distill.cli.arguments import Arguments, add_dtype, add_sampling, add_seconds, refuse_existing
from cfg_distill.errors import ConfigError

if TYPE_CHECKING:
    from cfg_distill.generators import Generator

_MOST_TOKENS = 512
_SOUNDS = Path("samples")
"""Where sound goes, which cannot be printed, when nobody says where."""
_NO_MODEL = (
    "Option `--model`: expected the model that draws the samples, but it is missing. Give `--model tunes:base` for tunes (it"
    " comes with this package), a hub name such as `facebook/musicgen-small` for music, or the folder of an export"
    " (`students/small`)."
)


def run(argv: Sequence[str]) -> None:
    parser = Arguments(
        "generate", "Draw samples of a model. With --out, tunes are written as ABC, MIDI and WAV, sound as WAV."
    )
    parser.add_argument("--model", metavar="DIR", help="a model folder, a hub name, or tunes:base")
    parser.add_argument(
        "--prompt", nargs="+", required=True, metavar="TEXT", help="one or more prompts, each in quotes"
    )
    parser.add_argument("--guidance", type=float, default=1.0, metavar="G", help="scale of guidance; 1 is none")
    parser.add_argument("--negative", metavar="TEXT", help="negative prompt, under guidance")
    parser.add_argument(
        "--negative-system", metavar="TEXT", help="system message of the negative branch; it keeps the prompt"
    )
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"a folder for the samples as files; default: none, for sound {_SOUNDS}"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds files")
    parser.add_argument("--melody", metavar="FILE", help="a sound file that a melody model follows")
    add_sampling(parser, samples=4, max_new_tokens=None)
    add_seconds(parser)
    add_dtype(parser)
    given = parser.read(argv)
    if given.model is None:
        raise ConfigError(_NO_MODEL)

    from cfg_distill.evaluation.written import show, write
    from cfg_distill.generators import Prompt, device, open_generator
    from cfg_distill.guidance import Guidance
    from cfg_distill.sampling import Sampling, positions_left, problems_of_lengths
    from cfg_distill.sampling.samples import draw

    generator = open_generator(given.model, dtype=given.dtype)
    guidance = Guidance(given.guidance, given.negative, negative_system=given.negative_system)
    found = generator.problems()
    readable = not found
    longest = generator.longest_sample if readable else None
    tunes = readable and _speaks_tunes(generator)
    num_tokens = _tokens_asked_for(given, generator) if readable else given.max_new_tokens
    sampling = Sampling(
        given.samples, 1 if num_tokens is None else num_tokens, given.temperature, given.top_k, given.top_p
    )
    found = [_as_option(problem) for problem in found + guidance.problems()]
    if readable:
        found += _problems_of_length(given, generator)
    timed = readable and generator.frame_rate is not None and given.max_new_tokens is None
    # A length in seconds has its own words for what is wrong with it.
    found += [
        _as_option(problem)
        for problem in sampling.problems(None if timed else longest)
        if not (timed and ".max_new_tokens`" in problem)
    ]
    for option in ("negative", "negative_system"):
        if getattr(given, option) is not None and not guidance.active:
            name = option.replace("_", "-")
            found.append(f"Option `--{name}`: has no effect without guidance. Set --guidance above 1.")
    if given.negative_system is not None and not found and not generator.takes_system:
        found.append(
            f"Option `--negative-system`: expected a model under a chat template that takes system messages, but"
            f" `{given.model}` is none. Give --negative instead."
        )
    if given.out is None and readable and generator.frame_rate is not None:
        given.out = _SOUNDS
    if given.out is not None:
        found += refuse_existing(given.out, given.overwrite)
    if tunes:
        found += _tell_what_was_not_understood(given.prompt)
    if found:
        raise ConfigError(found)

    prompts = [Prompt(text, melody=given.melody) for text in given.prompt] if given.melody else given.prompt
    if num_tokens is None:
        left = positions_left(generator, prompts, guidance)
        sampling.max_new_tokens = _MOST_TOKENS if left is None else max(1, min(_MOST_TOKENS, left))
    if found := problems_of_lengths(generator, prompts, sampling, guidance):
        raise ConfigError([problem.replace("Key `max_new_tokens`", "Option `--max-new-tokens`") for problem in found])
    generator.load().to(device())
    samples = draw(generator, prompts, sampling, guidance, given.seed)
    show(samples, tunes)
    if given.out is not None:
        write(samples, given.out, tunes)


def _tokens_asked_for(given: argparse.Namespace, generator: Generator) -> int | None:
    """Frames of sound or tokens of text; None for text of no given length."""
    from cfg_distill.generators.length import SECONDS, frames

    if generator.frame_rate is None or given.max_new_tokens is not None:
        return given.max_new_tokens
    return frames(generator, SECONDS if given.seconds is None else given.seconds)


def _problems_of_length(given: argparse.Namespace, generator: Generator) -> list[str]:
    """What is wrong with the length, and with options that only models of sound have."""
    from cfg_distill.audio import problems_of_audio_extra
    from cfg_distill.generators.length import SECONDS, problems_of_seconds

    if generator.frame_rate is None:
        found = [] if given.seconds is None else problems_of_seconds(generator, given.seconds)
        if given.melody is not None:
            found.append(f"Option `--melody`: is for models of sound, but `{given.model}` writes text.")
        return found
    found = []
    if given.seconds is not None and given.max_new_tokens is not None:
        found.append("Options `--seconds` and `--max-new-tokens`: both are the length. Give one of them.")
    elif given.max_new_tokens is None:
        found += problems_of_seconds(generator, SECONDS if given.seconds is None else given.seconds)
    return found + problems_of_audio_extra()


def _as_option(problem: str) -> str:
    """A problem of a recipe's key, in the words of this command line."""
    names = {"model.generator.path": "model", "model.guidance.scale": "guidance"}

    def option(match: re.Match) -> str:
        key = match[2]
        return f"{'Option ' if match[1] else ''}`--{names.get(key, key.split('.')[-1]).replace('_', '-')}`"

    return re.sub(r"(Key )?`((?:model\.|guidance\.|sampling\.)[a-z_.]+)`", option, problem)


def _speaks_tunes(generator: Generator) -> bool:
    """Whether the model's vocabulary holds the condition slots of the shipped text-to-music model."""
    from cfg_distill.tunes.prompts import prefix

    tokenizer = getattr(generator, "tokenizer", None)
    if tokenizer is None:
        return False
    vocabulary = tokenizer.get_vocab()
    return all(word in vocabulary for word in prefix({}).split())


def _tell_what_was_not_understood(prompts: Sequence[str]) -> list[str]:
    """Warn of words that mean nothing to the model; a problem for each prompt of which nothing was understood."""
    from cfg_distill.tunes.prompts import UNDERSTOOD, understand

    problems = []
    for prompt in prompts:
        try:
            unknown = understand(prompt).unknown_words
        except ConfigError as error:
            problems += [f"Option `--prompt`: {problem}" for problem in error.problems]
            continue
        if unknown:
            words = ", ".join(f"`{word}`" for word in unknown)
            print(f"Prompt {prompt!r}: {words} not understood; what is: {UNDERSTOOD}.", file=sys.stderr)
    return problems
