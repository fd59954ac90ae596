"""The request for a blind listening test, and everything that is wrong with it, found before a clip is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cfg_distill.data import read_prompts
from cfg_distill.errors import ConfigError, Problem, nearest
from cfg_distill.files import expanded, problems_of_out
from cfg_distill.prompt import Prompt, PromptLike
from cfg_distill.report.clips import Clips, Finished, read_finished

KEY, KEPT = "key.json", "listening"
"""The key in the folder of a listening test, and the folder of a study that keeps a copy of each key."""
OURS = (KEY, "ratings.json", "ratings.txt", "page/index.html", "page/clips/*.flac", "page/clips/*.wav")
"""The files of a listening test, which may be replaced."""
MOST_SYSTEMS = 8
"""More systems than this are a wrong default: a rater hears one clip of each for every prompt."""


class Protocol(NamedTuple):
    """The size of a test.

    Attributes:
        prompts: prompts of which every system is rated.
        raters: raters, who answer every item each.
        variety: prompts of which the variety of two systems is compared.
    """

    prompts: int
    raters: int
    variety: int


PRESETS = {"short": Protocol(12, 3, 6), "paper": Protocol(101, 3, 50)}
"""``paper``: 101 prompts by 3 raters for quality and 50 prompts for variety (arXiv 2410.06084). ``short`` is ours."""


@dataclass(frozen=True)
class ListenRequest:
    """A listening test of a study.

    Args:
        study: the folder of the study, or its file.
        out: the folder to write.
        preset: the size of the test where the next three are None.
        prompts: prompts of which every system is rated.
        raters: number of raters; it is noted in the key.
        variety: prompts of which variety is compared; 0 for no such question.
        systems: systems of the study; empty takes those of its claims.
        against: the system that all others are compared with; None takes the guided one of the claims.
        group: samples of each group whose variety is compared.
        prompt_file: prompts of another file, of which samples are drawn; None takes the study's.
        seed: of the order and of samples that are drawn.
        overwrite: replace a listening test in ``out``.
    """

    study: Path
    out: Path
    preset: str = "short"
    prompts: int | None = None
    raters: int | None = None
    variety: int | None = None
    systems: Sequence[str] = ()
    against: str | None = None
    group: int = 2
    prompt_file: Path | None = None
    seed: int = 0
    overwrite: bool = False

    @property
    def protocol(self) -> Protocol:
        """The preset, with what was given in its place."""
        preset = PRESETS[self.preset]
        given = (self.prompts, self.raters, self.variety)
        sizes = [theirs if own is None else own for own, theirs in zip(given, preset, strict=True)]
        if self.variety is None:  # no more than there are prompts
            sizes[2] = min(sizes[2], max(sizes[0], 0))
        return Protocol(*sizes)


@dataclass
class ListeningTest:
    """A request made ready.

    Attributes:
        finished: the study.
        systems: their names.
        against: one of them.
        prompts: that are rated.
        compared: places of the prompts whose variety is compared.
        group: samples per group.
        seed: of the order and of sampling.
        raters: number of raters.
    """

    finished: Finished
    systems: list[str]
    against: str
    prompts: list[PromptLike]
    compared: list[int]
    group: int
    seed: int
    raters: int
    clips: Clips = field(default_factory=dict)

    @property
    def needed(self) -> int:
        """Samples per prompt that the page takes."""
        return self.group if self.compared and len(self.systems) > 1 else 1

    def plays(self, system: str, prompt: int, number: int) -> bool:
        """Whether the page has a place for a clip."""
        return number == 0 or (prompt in self.compared and number < self.needed)

    @property
    def texts(self) -> list[str]:
        return [Prompt.of(prompt).text for prompt in self.prompts]


def evenly(total: int, chosen: int) -> list[int]:
    """Places of ``chosen`` of ``total`` things, spread evenly: the prompts of a file are often sorted.

    Example:
        >>> evenly(10, 4)
        [0, 2, 5, 7]
    """
    return [place * total // chosen for place in range(chosen)]


def ready(request: ListenRequest) -> tuple[ListeningTest, list[Problem]]:
    """The test that was asked for, and everything that is wrong with the request and its study.

    Raises:
        ConfigError: there is no finished study.
    """
    finished = read_finished(request.study)
    problems = _problems_of_numbers(request)
    systems, found = _systems(request, finished)
    problems += found
    against, found = _against(request, finished, systems)
    problems += found
    prompts: list[PromptLike] = list(next(iter(finished.systems.values())).prompts)
    if request.prompt_file is not None:
        try:
            prompts = read_prompts(request.prompt_file)
        except ConfigError as error:
            problems += [Problem("prompt_file", str(problem)) for problem in error.problems]
    size = request.protocol
    if size.prompts > len(prompts):
        where = f"`{request.prompt_file}`" if request.prompt_file else "the study"
        asked = "prompts" if request.prompts is not None else "preset"
        text = f"expected at most {len(prompts)} prompts, since {where} has no more, but got {size.prompts}. Give"
        problems.append(Problem(asked, f"{text} `@.prompts`, or a longer file as `@.prompt_file`."))
    if size.variety > max(size.prompts, 0):
        text = f"expected at most {size.prompts}, the number of prompts, but got {size.variety}."
        problems.append(Problem("variety", text))
    inputs = [str(finished.folder), *([str(request.prompt_file)] if request.prompt_file else [])]
    # A folder inside the study's is a good place, as long as the study itself writes nothing there.
    inside = expanded(request.out).resolve().is_relative_to(finished.folder.resolve() / KEPT)
    problems += problems_of_out(request.out, inputs[1:] if inside else inputs, request.overwrite, OURS)
    test = ListeningTest(
        finished,
        systems,
        against,
        prompts,
        evenly(max(size.prompts, 1), max(size.variety, 0)),
        request.group,
        request.seed,
        size.raters,
    )
    return test, problems


def _problems_of_numbers(request: ListenRequest) -> list[Problem]:
    size = request.protocol
    least = {"prompts": (size.prompts, 1), "raters": (size.raters, 1), "variety": (size.variety, 0)}
    least["group"] = (request.group, 2)
    return [
        Problem(key, f"expected at least {smallest}, but got {value}.")
        for key, (value, smallest) in least.items()
        if value < smallest
    ]


def _systems(request: ListenRequest, finished: Finished) -> tuple[list[str], list[Problem]]:
    """The systems that are rated."""
    if request.systems:
        known, named = list(finished.systems), list(dict.fromkeys(request.systems))
        wrong = [name for name in named if name not in known]
        text = f"expected systems of the study, {known}, but got"
        return (
            [name for name in named if name in known],
            [Problem("systems", f"{text} `{name}`.{nearest(name, known)}") for name in wrong],
        )
    claimed = [] if finished.study.claims is None else finished.study.claims.named.values()
    named = [name for name in dict.fromkeys(claimed) if name in finished.systems]
    systems = named or list(finished.systems)
    if len(systems) <= MOST_SYSTEMS:
        return systems, []
    text = f"expected the systems to rate, since the study has {len(systems)} and no claims. Name some of {systems}."
    return systems, [Problem("systems", text)]


def _against(request: ListenRequest, finished: Finished, systems: Sequence[str]) -> tuple[str, list[Problem]]:
    """The system that all others are compared with."""
    if request.against is not None:
        if request.against in systems:
            return request.against, []
        text = f"expected one of the rated systems, {list(systems)}, but got `{request.against}`."
        return "", [Problem("against", f"{text}{nearest(request.against, systems)}")]
    claimed = None if finished.study.claims is None else finished.study.claims.guidance
    if claimed in systems:
        return str(claimed), []
    guided = [name for name in systems if finished.systems[name].kind == "guidance"]
    return next(iter([*guided, *systems]), ""), []
