"""The ladder of text: written answers, samples of a model with and without guidance, and text that must not be paid.

Degenerate texts are made from the written ones where that makes the harder case: shuffled words are the words of a good answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Self

from cfg_distill.errors import ConfigError, Problem, problems_of
from cfg_distill.evaluation.ladder import Ladder, Rung, RungKind, samples_of
from cfg_distill.folders import find_file
from cfg_distill.generators import CausalLM, Guidance, Prompt, PromptLike, device
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw

BLAND = (
    "This is a very interesting topic. There are many things that can be said about it, and it is important to many people. It"
    " is good to think about it, and there are many different ways to look at it. In the end, it depends on the person.",
    "I am happy to help you with that. There are a lot of things to consider here, and I hope that this is useful. Please let"
    " me know if you have any questions. It is always a good idea to take your time and to think about it.",
    "It is a beautiful day, and everything is fine. The people are happy, and the sun is shining. It is a good thing, and it is"
    " very nice. Everyone likes it very much, and they are all having a great time together. It is really wonderful.",
    "Here is what I think about it. It is a great thing, and it can be very good for you. There are many reasons for this. "
    "First of all, it is important. Second, it is interesting. Finally, it is something that everyone can enjoy.",
)
"""Answers that fit any prompt."""
BLAND_ON = (
    "{S} is a very interesting topic. There are many things that can be said about {s}. It is important to many people, and {s}"
    " is something that everyone can enjoy.",
    "I am happy to write about {s}. There is a lot to say about {s}, and it is very good. I really like {s}, and I think that"
    " many people like it as well, because it is so nice.",
    "Here is something about {s}. It is a great thing, and it can be very good for you. First of all, {s} is important. Second,"
    " it is interesting. Finally, {s} is a lot of fun.",
    "Once upon a time, there was {s}. It was very nice, and everyone was happy. The people liked {s} very much, and they talked"
    " about it every day. It was really wonderful.",
)
"""The same with the subject of the prompt in it."""
GENERIC = (
    "The city council met on Tuesday to discuss the new budget. Members of the public were invited to comment on plans for"
    " the library and the swimming pool. A vote is expected next month, after the finance committee has seen the figures.",
    "Water boils at a lower temperature in the mountains, because the pressure of the air falls with height. Cooks therefore"
    " have to wait longer for potatoes and beans. Many households in the Andes use a pressure cooker for this reason.",
    "To change a tyre, first loosen the nuts a little while the wheel is still on the ground. Then raise the car with the jack,"
    " take off the nuts and pull the wheel towards you. Put on the spare, and tighten the nuts crosswise.",
    "The company was founded in 1962 and makes valves for the chemical industry. It employs about three hundred people at two"
    " sites. In the last financial year sales rose by four per cent, mainly thanks to strong demand from abroad.",
)
"""Fluent text that has nothing to do with any prompt."""
_WORDS = 60
"""Words of a repeated unit: more than are read."""


def read_answers(file: str) -> dict[str, list[str]]:
    """Prompts and their answers, from a file as recipes/smollm2/ladder.txt is: its head says how.

    Raises:
        ConfigError: there is no such file, or it holds an answer before the first prompt.
    """
    try:
        content = find_file(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"File `{file}`: expected prompts and answers, but it cannot be read: {error}") from error
    answers: dict[str, list[str]] = {}
    prompt = ""
    for paragraph in re.split(r"\n\s*\n", re.sub(r"^#.*\n?", "", content, flags=re.MULTILINE)):
        text = paragraph.strip()
        if text.startswith("> "):
            prompt = text[2:].strip()
            answers[prompt] = []
        elif text and not prompt:
            raise ConfigError(f"File `{file}`: expected a prompt (a line that begins with `> `) before {text[:40]!r}.")
        elif text:
            answers[prompt].append(text)
    return answers


def subject(prompt: str) -> str:
    """The last noun phrase of a prompt, roughly.

    Example:
        >>> subject("Write a haiku about a broken umbrella."), subject("Invent a game.")
        ('a broken umbrella', 'a game')
    """
    text = prompt.rstrip(" .")
    found = re.search(r"\b(?:about|of|between|from|for|on|in)\s+(.+)$", text)
    return found[1] if found else text.partition(" ")[2] or text


def repeated(unit: str) -> str:
    """A text said again and again."""
    return " ".join([unit] * (1 + _WORDS // max(1, len(unit.split()))))


def shuffled(text: str, draw: random.Random) -> str:
    """Its words in another order."""
    words = text.split()
    return " ".join(draw.sample(words, len(words)))


def first_sentence(text: str) -> str:
    """Up to the first sign that ends or divides a sentence.

    Example:
        >>> first_sentence("Horn, and no answer.")
        'Horn,'
    """
    return re.split(r"(?<=[.!?;:,])\s", text)[0]


def degenerate_texts(
    prompt: str, answers: Sequence[str], others: Sequence[str], draw: random.Random
) -> dict[str, list[str]]:
    """Groups of text that no metric of quality may pay, each as large as the group of written answers.

    Args:
        prompt: the prompt.
        answers: written answers to it.
        others: written answers to another prompt.
        draw: the source of random numbers.
    """
    count, topic, echo = len(answers), subject(prompt), f"Here is what you asked for. {prompt} Here it is: {prompt}"
    name = topic[:1].upper() + topic[1:]
    return {
        "bland": [BLAND[n % len(BLAND)] for n in range(count)],
        "bland on topic": [BLAND_ON[n % len(BLAND_ON)].format(s=topic, S=name) for n in range(count)],
        "generic fluent": [GENERIC[n % len(GENERIC)] for n in range(count)],
        "answers to others": list(others[:count]),
        "looping words": [repeated(" ".join(text.split()[:5])) for text in answers],
        "looping sentence": [repeated(first_sentence(text)) for text in answers],
        "shuffled words": [shuffled(text, draw) for text in answers],
        "copied prompt": [prompt] * count,
        "prompt repeated": [repeated(prompt)] * count,
        "prompt in a frame": [echo] * count,
        "words of the prompt": [repeated(shuffled(prompt.rstrip("."), draw)) for _ in answers],
        "truncated": [" ".join(text.split()[:6]) for text in answers],
        "one word": [max(re.findall(r"\w+", text) or [text], key=len) for text in answers],
        "empty": [""] * count,
    }


def rewritten_texts(answers: Sequence[str], draw: random.Random) -> dict[str, list[str]]:
    """Groups that hold one text, rewritten at no cost in meaning, as large as the group of written answers."""
    count, text = len(answers), answers[0]
    guises: Sequence[Callable[[str], str]] = (str, str.upper, str.lower, str.title)
    openings = ("", "Sure! ", "Here it is: ", "Of course. ")
    sentences = re.split(r"(?<=[.!?])\s+", text)
    return {
        "letter case": [guises[n % len(guises)](text) for n in range(count)],
        "punctuation": [re.sub(r"[.,;:]", sign, text) for sign in _cycled(("", " -", "...", " ;"), count)],
        "openings": [opening + text for opening in _cycled(openings, count)],
        "sentences moved": [
            " ".join(sentences[n % len(sentences) :] + sentences[: n % len(sentences)]) for n in range(count)
        ],
        "a word changed": [_with_word(text, draw) for _ in range(count)],
        "an empty one": ["", *[text] * (count - 1)],
        "all empty": [""] * count,
    }


def _cycled(choices: Sequence[str], count: int) -> list[str]:
    return [choices[n % len(choices)] for n in range(count)]


def _with_word(text: str, draw: random.Random) -> str:
    words = text.split()
    words[draw.randrange(len(words))] = draw.choice(("thing", "indeed", "quite", "there"))
    return " ".join(words)


class TextLadder(Ladder):
    """The ladder of text: derive from it and change its attributes for another model or other answers.

    Attributes:
        path: the base model: it draws the rungs ``base`` and ``guided``, and its tokens are what metrics read.
        guidance: the scale of the guided rung.
        longest: tokens of all texts: all are read to the same length.
        answers: the file of written answers; its head says how it is laid out.
        seed: of the samples and of all that is random.
    """

    path = "text:smollm2"
    guidance = 2.0
    longest = 48
    answers = "recipes/smollm2/ladder.txt"
    seed = 0

    @cached_property
    def generator(self) -> CausalLM:
        """The base model, not loaded."""
        return CausalLM(self.path)

    @cached_property
    def written(self) -> dict[str, list[str]]:
        """The written answers by prompt."""
        return read_answers(self.answers)

    def prompts(self) -> Sequence[PromptLike]:
        return list(self.written)

    def problems(self, prompts: Sequence[PromptLike]) -> list[Problem]:
        found = [Problem("", str(problem)) for problem in problems_of(self.generator)]
        texts = [Prompt.of(prompt).text for prompt in prompts]
        if unknown := [text for text in texts if text not in self.written]:
            more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
            text = (
                f"expected prompts with written answers in `{self.answers}`, but it has none to {unknown[0]!r}{more}."
            )
            found.append(Problem("", f"{text} Write some, or take the prompts of that file."))
        elif len(sizes := {len(self.written[text]) for text in texts}) != 1 or sizes & {0, 1}:
            found.append(
                Problem("", f"File `{self.answers}`: expected as many answers to each prompt, and at least 2.")
            )
        elif len(texts) < 2:
            found.append(
                Problem("", f"Expected at least 2 prompts, since an interval is taken over them, but got {len(texts)}.")
            )
        return found

    def load(self) -> Self:
        self.generator.load().to(device())
        return self

    def rungs(self, prompts: Sequence[PromptLike]) -> Iterator[Rung]:
        generator = self.load().generator
        texts = [Prompt.of(prompt).text for prompt in prompts]
        written = [self.written[text] for text in texts]

        def rung(name: str, kind: RungKind, groups: Sequence[Sequence[Any]]) -> Rung:
            return Rung(name, kind, samples_of(prompts, groups, generator, self.longest))

        yield rung("written", "real", written)
        sampling = Sampling(len(written[0]), self.longest)
        yield Rung(
            "guided", "guided", partial(draw, generator, prompts, sampling, Guidance(self.guidance), self.seed + 1)
        )
        yield Rung("base", "base", partial(draw, generator, prompts, sampling, None, self.seed))
        random_ = random.Random(self.seed)
        others = [*written[1:], written[0]]
        made = [degenerate_texts(*each, random_) for each in zip(texts, written, others, strict=True)]
        for name in made[0]:
            yield rung(name, "degenerate", [groups[name] for groups in made])
        # Rewritings of what is read of an answer, whole: cut after a sentence was moved, they would be other texts.
        read = samples_of(prompts, written, generator, self.longest).groups()
        yield Rung("written answers", "different", samples_of(prompts, read, generator))
        rewritten = [rewritten_texts(answers, random_) for answers in read]
        for name in rewritten[0]:
            yield Rung(name, "same", samples_of(prompts, [groups[name] for groups in rewritten], generator))
