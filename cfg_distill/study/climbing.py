"""The ladder of a study: real and degenerate samples as rows of its table, so that the range of each metric shows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cfg_distill.data import read_prompts
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.folders import expanded, source
from cfg_distill.folders.profile import is_trusted, profile_of
from cfg_distill.study.config import Study
from cfg_distill.study.parts import Evaluation

MODEL, NONE = "model", "none"
"""Values of ``evaluation.ladder`` beside names of ladders."""


class Named(NamedTuple):
    """The ladder of a study.

    Attributes:
        name: a short name or a class path; empty for no ladder.
        remark: why a ladder that the model names is not taken; empty where there is nothing to say.
    """

    name: str
    remark: str = ""


def ladder_of(study: Study) -> Named:
    """The ladder that the study file names, or that the folder of its first baseline names.

    A study file is the user's own code; a model folder is data, and names classes of this package alone.

    Raises:
        ConfigError: the profile of that folder cannot be read.
    """
    asked = study.evaluation.ladder
    if asked != MODEL:
        return Named("" if asked == NONE else asked)
    models = [*(each.model for each in study.baselines.values()), *(each.model for each in study.sweeps.values())]
    start = next((model for model in models if model not in (*study.fits, *study.merges)), "")
    if not start or not (expanded(start).is_dir() or source(start)):
        return Named("")  # nothing, or a hub name, which is not asked before the study begins
    profile = profile_of(start)
    named = "" if profile is None else profile.ladder
    if not named or is_trusted(named):
        return Named(named)
    text = (
        f"Note: `{start}` names the ladder `{named}`, and a model folder is data: it may not decide what is imported. Set"
        " `evaluation.ladder` to it for the rows of real and degenerate samples."
    )
    return Named("", text)


def problems_of_ladder(name: str, evaluation: Evaluation) -> list[Problem]:
    """Why a ladder cannot be climbed; it takes torch to see, and loads nothing."""
    from cfg_distill.evaluation.validating import ladder_named

    try:
        _, ladder = ladder_named(name)
        prompts = ladder.prompts_among(read_prompts(evaluation.sampled, evaluation.field))
        found = ladder.problems(prompts)
    except ConfigError as error:
        found = error.problems
    return [Problem("evaluation.ladder", problem.text) for problem in found]


@dataclass(frozen=True)
class ClimbLadder:
    """Score the real and degenerate samples of a ladder by the metrics of a study.

    Attributes:
        ladder: a short name or a class path.
        evaluation: its prompts and metrics. The prompts of the study are taken where the ladder has samples of them.
        file: for the rows: a list of systems as :meth:`cfg_distill.evaluation.System.save` writes one.
    """

    ladder: str
    evaluation: Evaluation
    file: str

    def run(self, report: Callable[[int, int], None]) -> dict[str, Any]:
        from cfg_distill.evaluation.validating import ladder_named
        from cfg_distill.evaluation.verdicts import rungs_as_systems
        from cfg_distill.files import write_text
        from cfg_distill.study.jobs import loaded_metrics

        given = self.evaluation
        name, ladder = ladder_named(self.ladder)
        prompts = ladder.prompts_among(read_prompts(given.sampled, given.field))
        rows = rungs_as_systems(ladder.load().rungs(prompts), loaded_metrics(given.metrics), name)
        write_text(Path(self.file), json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        return {}
