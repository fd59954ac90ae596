"""``cfg-distill generate``: samples of a model folder, printed, and written as files on request."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cfg_distill.cli.arguments import Arguments, add_sampling, refuse_existing
from cfg_distill.errors import ConfigError

if TYPE_CHECKING:
    from cfg_distill.samples import Samples

_MOST_TOKENS = 512


def run(argv: Sequence[str]) -> None:
    parser = Arguments("generate", "Draw samples of a model. Tunes are written as ABC, MIDI and WAV with --out.")
    parser.add_argument("--model", required=True, metavar="DIR", help="a model folder, a hub name, or tunes:base")
    parser.add_argument(
        "--prompt", nargs="+", required=True, metavar="TEXT", help="one or more prompts, each in quotes"
    )
    parser.add_argument("--guidance", type=float, default=1.0, metavar="G", help="scale of guidance; 1 is none")
    parser.add_argument("--negative", metavar="TEXT", help="negative prompt, under guidance")
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    parser.add_argument("--out", type=Path, metavar="DIR", help="a folder for the samples as files")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that holds files")
    add_sampling(parser, samples=4, max_new_tokens=None)
    given = parser.read(argv)

    from cfg_distill.generators import CausalLM
    from cfg_distill.guidance import Guidance
    from cfg_distill.samples import draw
    from cfg_distill.sampling import Sampling

    generator = CausalLM(given.model)
    guidance = Guidance(given.guidance, given.negative)
    num_tokens = 1 if given.max_new_tokens is None else given.max_new_tokens
    sampling = Sampling(given.samples, num_tokens, given.temperature, given.top_k, given.top_p)
    found = generator.problems()
    limit = None if found else generator.max_positions
    tunes = not found and _speaks_tunes(generator.tokenizer)
    found = [_as_option(problem) for problem in found + guidance.problems() + sampling.problems(limit)]
    if given.negative is not None and not guidance.active:
        found.append("Option `--negative`: has no effect without guidance. Set --guidance above 1.")
    if given.out is not None:
        found += refuse_existing(given.out, given.overwrite)
    if tunes:
        found += _tell_what_was_not_understood(given.prompt)
    if found:
        raise ConfigError(found)

    generator.load()
    if given.max_new_tokens is None:
        longest = generator.encode(given.prompt).tensors["input_ids"].shape[-1]
        sampling.max_new_tokens = min(_MOST_TOKENS, limit - longest) if limit else _MOST_TOKENS
    samples = draw(generator, given.prompt, sampling, guidance, given.seed)
    _show(samples, tunes)
    if given.out is not None:
        _write(samples, given.out, tunes)


def _as_option(problem: str) -> str:
    """A problem of a recipe's key, in the words of this command line."""
    names = {"model.generator.path": "model", "model.guidance.scale": "guidance"}

    def option(match: re.Match) -> str:
        key = match[2]
        return f"{'Option ' if match[1] else ''}`--{names.get(key, key.split('.')[-1]).replace('_', '-')}`"

    return re.sub(r"(Key )?`((?:model\.|guidance\.|sampling\.)[a-z_.]+)`", option, problem)


def _speaks_tunes(tokenizer: object) -> bool:
    """Whether the model's vocabulary holds the condition slots of the shipped text-to-music model."""
    from cfg_distill.tunes.prompts import prefix

    vocabulary = tokenizer.get_vocab()  # type: ignore[attr-defined]
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


def _show(samples: Samples, tunes: bool) -> None:
    for prompt, group in zip(samples.prompts, samples.groups(), strict=True):
        for number, output in enumerate(group, start=1):
            print(f"== {prompt} ({number} of {len(group)})")
            print(_abc(output, prompt) if tunes else output, end="\n\n")


def _abc(tokens: str, prompt: str) -> str:
    from cfg_distill.tunes.prompts import understand
    from cfg_distill.tunes.rendering import setting_of, to_abc

    return to_abc(setting_of(tokens, understand(prompt)), prompt).rstrip()


def _write(samples: Samples, out: Path, tunes: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for place, (prompt, group) in enumerate(zip(samples.prompts, samples.groups(), strict=True), start=1):
        words = "-".join(re.findall(r"\w+", prompt.lower()))[:60].strip("-") or "unconditional"
        for number, output in enumerate(group, start=1):
            stem = f"{place:02d}-{words}-{number}"
            if tunes:
                from cfg_distill.tunes.rendering import render

                render(output, out, stem, prompt)
            else:
                (out / f"{stem}.txt").write_text(output, encoding="utf-8")
    print(f"Wrote {len(samples.outputs)} samples to {out}.")
