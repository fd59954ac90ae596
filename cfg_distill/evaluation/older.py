"""Problems of rooms whose methods still return sentences. To go as soon as they return :class:`Problem`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

from cfg_distill.errors import Context, Problem, problems_of
from cfg_distill.folders import problems_of_folder
from cfg_distill.sampling import Sampling

_SENTENCE = re.compile(r"(?:Key|Option) `-*(?:[\w.]*\.)?(\w+)`: (.*)", re.DOTALL)


def converted(found: Iterable[str | Problem]) -> list[Problem]:
    problems = []
    for each in found:
        problem = Problem("", each) if isinstance(each, str) else each
        match = None if problem.path else _SENTENCE.fullmatch(problem.text)
        problems.append(Problem(match[1], match[2]) if match else problem)
    return problems


def of_folder(path: str) -> list[Problem]:
    if "key" in inspect.signature(problems_of_folder).parameters:
        return converted(problems_of_folder("path", path))
    return [problem.under("path") for problem in problems_of_folder(path)]  # type: ignore


def of_sampling(sampling: Sampling, longest: int | None) -> list[Problem]:
    if "context" in inspect.signature(Sampling.problems).parameters:
        return problems_of(sampling, Context(sampling.samples, longest))
    return converted(sampling.problems(longest))
