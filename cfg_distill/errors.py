"""A user's mistake: what is wrong with which key. The command line prints it without a traceback and exits with code 2.

Also the end by a signal, which is no mistake.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

_REFERENCE = re.compile(r"`@([./])([\w.\[\]+-]+)`")


@dataclass(frozen=True)
class Problem:
    """What is wrong with one key.

    A part knows its own keys and not where the user wrote it. So it names a key relative to itself, its holder puts the
    prefix in front (:meth:`under`), and the command line renders the whole as a path in YAML or as an option.

    Attributes:
        key: relative to the part that speaks: ``scale``. A slash in front makes it a path from the root of the recipe:
            ``/model.sampling.samples``. Empty: the part itself, or no key at all.
        text: what was expected, what was found, what to do. It may refer to other keys: `` `@.negative` `` is a sibling of
            the key, `` `@/model.dropout` `` a path from the root. Anything else in backticks is left as it is.
        prefix: where the part hangs; its holders make it.

    Example:
        >>> problem = Problem("scale", "expected a number of at least 0, but got -1. See `@.negative`.").under("model.guidance")
        >>> print(problem)
        Key `model.guidance.scale`: expected a number of at least 0, but got -1. See `model.guidance.negative`.
        >>> print(problem.told({"model.guidance.scale": "--guidance", "model.guidance.negative": "--negative"}))
        Option `--guidance`: expected a number of at least 0, but got -1. See `--negative`.
    """

    key: str
    text: str
    prefix: str = ""

    @property
    def path(self) -> str:
        """The whole key: prefix and key, or the path from the root."""
        return self.key[1:] if self.key.startswith("/") else joined(self.prefix, self.key)

    def under(self, prefix: str) -> Problem:
        """The same problem, of a part that hangs at ``prefix`` in its holder."""
        return replace(self, prefix=joined(prefix, self.prefix))

    def told(self, options: Mapping[str, str] | None = None) -> str:
        """The sentence for a person.

        Args:
            options: the command-line option of a path, for commands that have options in place of YAML keys.
        """
        options = options or {}
        text = self.without_key(options)
        if not self.path:
            return text
        name = options.get(self.path, self.path)
        kind = "Key" if self.path not in options else "Option" if name.startswith("-") else "Argument"
        return f"{kind} `{name}`{text}"

    def without_key(self, options: Mapping[str, str] | None = None) -> str:
        """What stands behind the key in the sentence: problems that share it differ in their key alone."""
        options = options or {}

        def reference(match: re.Match[str]) -> str:
            path = match[2] if match[1] == "/" else joined(self.prefix, match[2])
            return f"`{options.get(path, path)}`"

        text = _REFERENCE.sub(reference, self.text)
        if not self.path:
            return text
        # A key elsewhere in the recipe: say which part is not content with it.
        asking = self.prefix.removesuffix(".init_args")
        return f" for `{asking}`: {text}" if self.key.startswith("/") and "." in asking else f": {text}"

    def __str__(self) -> str:
        return self.told()


@dataclass(frozen=True)
class PromptProblem(Problem):
    """What is wrong with one prompt, so that prompts with the same problem can be reported together.

    Attributes:
        prompt: a :class:`cfg_distill.prompt.Prompt`, or its text.
        reason: what is wrong with it, and what to do; it may name the prompt as ``{prompt}``.

    Example:
        >>> print(PromptProblem.of("hm", "expected an Irish tune. Write one."))
        Prompt 'hm': expected an Irish tune. Write one.
        >>> print(PromptProblem.of("hm", "Nothing is understood in {prompt}. Write of tunes."))
        Nothing is understood in 'hm'. Write of tunes.
    """

    prompt: Any = ""
    reason: str = ""

    @classmethod
    def of(cls, prompt: Any, reason: str) -> Self:
        """The problem of a prompt."""
        return cls("", said_of([str(prompt)], reason), "", prompt, reason)


ITS_PROMPT = "{prompt}"
"""The prompt in the reason of a :class:`PromptProblem`."""


def said_of(prompts: Sequence[str], reason: str) -> str:
    """What is wrong with some prompts: the first three of them, and the reason, which may name them as ``{prompt}``."""
    named = listed([repr(shortened(each, 60)) for each in prompts], 3)
    if ITS_PROMPT in reason:
        return reason.replace(ITS_PROMPT, named)
    return f"Prompt{'s' * (len(prompts) > 1)} {named}: {reason}"


@dataclass(frozen=True)
class Context:
    """What a part is told when it is asked for its problems.

    Attributes:
        samples: G, samples per prompt; None where nobody has said.
        longest: the longest sample of the model in tokens or frames; None without a limit.
        training: whether the samples are learnt from.
        labels: K, how many labels the conditioner has; None without one.
        siblings_differ: whether they are codes, so that the samples of a prompt have different ones.
        length: the samples' longest, in tokens or frames, as they are drawn; None where nobody has said.
        seconds: the same in seconds, for sound.
        opening: how many positions of each sample are the start model's; 0 for none.
    """

    samples: int | None = None
    longest: int | None = None
    training: bool = False
    labels: int | None = None
    siblings_differ: bool = False
    length: int | None = None
    seconds: float | None = None
    opening: int = 0


class ConfigError(Exception):
    """One or several problems of what the user gave.

    Attributes:
        problems: each names a key, what was expected, what was found and what to do.
    """

    def __init__(self, problems: str | Problem | Sequence[str | Problem]) -> None:
        given = [problems] if isinstance(problems, str | Problem) else problems
        self.problems = [Problem("", each) if isinstance(each, str) else each for each in given]
        super().__init__("\n".join(map(str, self.problems)))

    def under(self, prefix: str) -> list[Problem]:
        """The problems, of a part that hangs at ``prefix``."""
        return [problem.under(prefix) for problem in self.problems]


class PartError(Exception):
    """A part of a recipe raised an exception, which is the cause of this one: which part, and on what.

    Attributes:
        part: the name of its class.
        key: where it hangs in the recipe.
        outputs: the numbers of the outputs that it failed on: one, or those of a prompt; none where that is unknown.
        given: what it was given, in words.
    """

    def __init__(self, part: str, key: str = "", outputs: Sequence[int] = (), given: str = "") -> None:
        super().__init__(part, key, outputs, given)
        self.part = part
        self.key = key
        self.outputs = outputs
        self.given = given

    def __str__(self) -> str:
        where = f"Key `{self.key}`: {self.part}" if self.key else self.part
        cause = self.__cause__
        said = "an exception" if cause is None else f"{type(cause).__name__}: {cause}"
        return f"{where} raised {said}{self.given}"


@contextmanager
def blamed(part: object, key: str) -> Iterator[None]:
    """Name a part, and where it hangs, in whatever goes wrong while it works.

    Parts hold parts, and each holder knows the key of its own part only. So the path grows from the inside to the outside.

    Args:
        part: what works.
        key: where it hangs in its holder: ``reward``.

    Raises:
        ConfigError: the part found a problem; its key is put under this one.
        PartError: the part raised any other exception, which is the cause.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(
            [each.under(f"{key}.init_args" if each.path else key) for each in error.problems]
        ) from error.__cause__
    except PartError as error:
        inner = f"{key}.init_args.{error.key}" if error.key else key
        raise PartError(error.part, inner, error.outputs, error.given) from error.__cause__
    except Exception as error:
        raise PartError(type(part).__name__, key) from error


class Stopped(BaseException):
    """A signal ended the command: no mistake, and no bug.

    Attributes:
        number: of the signal.
        code: the exit code by convention: 130 for Ctrl-C, 143 for SIGTERM.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.code = 128 + number
        super().__init__(f"stopped by signal {number}")


def problems_of(part: Any, context: Context = Context(), under: str = "") -> list[Problem]:
    """What a part finds wrong with its own settings; nothing when it has no method ``problems``.

    Sentences, and a method that takes the group size or nothing, are accepted from users' classes of version 0.1.

    Args:
        part: a loss, a reward, a callback, a model: anything from a recipe.
        context: what it may need to know.
        under: where it hangs.
    """
    if said := without_base_init(part):
        return [Problem("", said).under(under)]
    method = getattr(part, "problems", None)
    if not callable(method):
        return []
    parameters = inspect.signature(method).parameters
    arguments: tuple[Any, ...] = () if not parameters else (context.samples,) if "group" in parameters else (context,)
    found: str | Iterable[str | Problem] = method(*arguments)
    found = [found] if isinstance(found, str) else found
    return [(Problem("", each) if isinstance(each, str) else each).under(under) for each in found]


def without_base_init(part: Any) -> str:
    """A sentence on a module of torch whose constructor forgot to call that of its base class; empty for any other part."""
    kinds = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(part).__mro__)
    if "torch.nn.modules.module.Module" not in kinds or "_modules" in vars(part):
        return ""
    return f"`{type(part).__name__}.__init__` does not call `super().__init__()`. Call it first."


def problems_of_counts(**settings: int) -> list[Problem]:
    """Which of some settings, by their keys, is no number of at least 1."""
    return [Problem(key, f"expected at least 1, but got {value}.") for key, value in settings.items() if not value >= 1]


def problems_of_not_negative(**settings: float) -> list[Problem]:
    """Which of some settings, by their keys, is no number of at least 0."""
    return [Problem(key, f"expected at least 0, but got {value}.") for key, value in settings.items() if not value >= 0]


def problems_of_scale(key: str, scale: float, negative: str | None = None) -> list[Problem]:
    """A scale of guidance that cannot be: far above 1,000 logits overflow. ``negative``: the field of the negative prompt."""
    hint = f" To push away from a prompt, give it as `@.{negative}`." if negative else ""
    wrong = Problem(key, f"expected a number from 0 to 1000 (1 is no guidance), but got {scale:g}.{hint}")
    return [] if 0 <= scale <= 1000 else [wrong]


def problems_of_positive(**settings: float) -> list[Problem]:
    """Which of some settings, by their keys, is no finite number above 0."""
    return [
        Problem(key, f"expected a number above 0, but got {value}.")
        for key, value in settings.items()
        if not 0 < value < math.inf
    ]


def problems_of_shares(**settings: float) -> list[Problem]:
    """Which of some settings, by their keys, is no number in [0, 1)."""
    return [
        Problem(key, f"expected a number in [0, 1), but got {value}.")
        for key, value in settings.items()
        if not 0 <= value < 1
    ]


def joined(prefix: str, key: str) -> str:
    """A path: ``joined("trainer.callbacks", "[3].window")`` is ``trainer.callbacks[3].window``."""
    return f"{prefix}{key}" if not prefix or not key or key.startswith("[") else f"{prefix}.{key}"


def is_beneath(path: str, key: str) -> bool:
    """Whether a path is that of a key, or of something under it.

    Example:
        >>> [is_beneath(path, "fits.a") for path in ("fits.a", "fits.a.start", "fits.a[0]", "fits.ab", "fits")]
        [True, True, True, False, False]
    """
    return path == key or path.startswith((f"{key}.", f"{key}["))


def listed(names: Sequence[str], limit: int = 20) -> str:
    """The names, and how many more there are.

    Example:
        >>> listed(["2", "4", "5", "7"], 3), listed(["2", "4"], 3)
        ('2, 4, 5 and 1 more', '2, 4')
    """
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")


def together(problems: Iterable[Problem], few: int = 3) -> list[str]:
    """The sentences for a person, each once. More than ``few`` that differ in their key alone are one, with all keys.

    Example:
        >>> together([Problem(f"baselines.{n}.model", "`base` does not exist.") for n in (1, 2)], few=1)
        ['Keys `baselines.1.model`, `baselines.2.model`: `base` does not exist.']
    """
    alike: dict[str, dict[str, Problem]] = {}
    for problem in problems:
        alike.setdefault(problem.without_key() if problem.path else str(problem), {})[problem.path] = problem
    found = []
    for text, by_path in alike.items():
        if len(by_path) > few:
            found.append(f"Keys {', '.join(f'`{path}`' for path in by_path)}{text}")
        else:
            found += map(str, by_path.values())
    return found


def shortened(text: str, most: int = 40) -> str:
    """The beginning of a long text."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def nearest(word: str, known: Iterable[str]) -> str:
    """`` Did you mean `x`?`` with a space in front, of the known word nearest to a misspelled one; empty when none is near."""
    found = closest(word, known)
    return f" Did you mean `{found}`?" if found else ""


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to a misspelled one; None when none is near."""
    import difflib  # takes as long to import as the rest of this module

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return found[0] if found else None
