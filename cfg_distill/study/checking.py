"""The checks of a study that take torch: they are jobs of its workers, which run before anything is trained or sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cfg_distill.data.reading import read_prompts, templated, together
from cfg_distill.errors import ConfigError, Context, Problem, PromptProblem, is_beneath, problems_of
from cfg_distill.evaluation.anneal import problems_of_anneal, problems_of_course
from cfg_distill.study.climbing import ladder_of, problems_of_ladder
from cfg_distill.study.config import Study
from cfg_distill.study.parts import Evaluation, SystemConfig
from cfg_distill.study.sampled import guidance_of, sampling_of

if TYPE_CHECKING:
    from cfg_distill.sampling import Conditioner

Report = Callable[[int, int], None]
"""Takes the parts that are done and the number of all parts: batches, say."""


@dataclass(frozen=True)
class CheckEvaluation:
    """Find the problems of an evaluation that take torch to see: metrics by class path, models, prompts that are too long.

    Attributes:
        evaluation: how every system is sampled and scored.
        models: folders and hub names that are there before the study.
        systems: what is sampled, each by the folder that its model begins with; none where the prompts cannot be read.
        ladder: the name of the ladder; empty for none.
    """

    evaluation: Evaluation
    models: list[str]
    systems: list[SystemConfig]
    ladder: str = ""

    def run(self, report: Report) -> dict[str, Any]:
        """Raises ConfigError: all problems."""
        from cfg_distill.generators import open_generator

        problems = self._problems_of_metrics()
        for model in self.models:
            problems += said_by(f"Model `{model}`", problems_of(open_generator(model)))
        if not problems:
            problems = self._problems_of_prompts()
        if self.ladder:
            problems += problems_of_ladder(self.ladder, self.evaluation)
        if problems:
            raise ConfigError(list(dict.fromkeys(problems)))
        return {}

    def _problems_of_metrics(self) -> list[Problem]:
        from cfg_distill.evaluation.chosen import metrics_of

        given = self.evaluation
        try:
            metrics = metrics_of(given.metrics)
        except ConfigError as error:
            return error.under("evaluation.metrics")
        problems = self._problems_of_metrics_under(None, metrics)
        for key, headline in vars(given.headline).items():
            wanted = "quality" if key == "quality" else "diversity"
            axis = metrics[headline].axis if headline in metrics else wanted
            if axis != wanted:
                text = f"expected a metric of {wanted}, but `{headline}` is one of {axis}."
                problems.append(Problem(f"evaluation.headline.{key}", text))
        return problems

    def _problems_of_metrics_under(self, conditioner: Conditioner | None, metrics: Mapping[str, Any]) -> list[Problem]:
        given = self.evaluation
        told: dict[str, Any] = {}
        if conditioner is not None:
            told = {"labels": conditioner.values, "siblings_differ": conditioner.siblings_differ}
        context = Context(samples=given.samples, length=given.max_new_tokens, **told)
        return [
            problem
            for name, metric in metrics.items()
            for problem in problems_of(metric, context, f"evaluation.metrics.{name}.init_args")
        ]

    def _problems_of_prompts(self) -> list[Problem]:
        from cfg_distill.evaluation.chosen import conditioner_of, metrics_of, problems_of_metrics_on
        from cfg_distill.generators import open_generator
        from cfg_distill.sampling import problems_of_lengths

        given = self.evaluation
        prompts = read_prompts(given.sampled, given.field) if self.systems else []
        key = "evaluation.development" if given.stage == "development" else "evaluation.prompts"
        metrics = metrics_of(given.metrics)
        found = problems_of_metrics_on(metrics, [*map(str, prompts)])
        problems = [
            each.under("evaluation.metrics" if each.path else key)
            for each in together(found, given.sampled, given.field)
        ]
        for system in self.systems:
            generator = open_generator(system.model)
            if problems_of(generator):
                continue  # a student's start: the check of its fit reports it
            asked = templated(system.prompt, prompts)
            sampling, guidance = sampling_of(given, system), guidance_of(system, given.max_new_tokens)
            found = problems_of_lengths(generator, asked, sampling, guidance)
            refused = [each for each in found if isinstance(each, PromptProblem)]
            found = [each for each in found if not isinstance(each, PromptProblem)]
            told = together(refused, given.sampled, given.field, partial(_asked, system.prompt))
            problems += [each.under(key) for each in told]  # without the model, since all of them say it
            problems += said_by(f"Model `{system.model}`", problems_of_course(system.schedule))
            problems += said_by(f"Model `{system.model}`", problems_of_anneal(system.anneal, generator))
            try:
                conditioner = conditioner_of(system.conditioner, given.samples)
            except ConfigError as error:
                keys = {"model.sampling.samples": "evaluation.samples"}
                problems += [Problem("", f"A system of `{system.model}`: {each.told(keys)}") for each in error.problems]
            else:
                problems += self._problems_of_metrics_under(conditioner, metrics)
            problems += said_by(f"Model `{system.model}`", ConfigError(found).under("evaluation"))
        return problems


@dataclass(frozen=True)
class CheckFit:
    """Find all problems of a recipe with its overrides, as ``cfg-distill fit`` finds them; no weights are loaded.

    Attributes:
        words: of the command line.
    """

    words: list[str]

    def run(self, report: Report) -> dict[str, Any]:
        """Raises ConfigError: all problems."""
        from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint

        from cfg_distill.recipe.command_line import start

        command = start(self.words[0], self.words[1:], check_only=True)
        writers = [each for each in command.callbacks.values() if isinstance(each, Checkpoint)]
        if not any(each.save_last if isinstance(each, ModelCheckpoint) else True for each in writers):
            text = (
                "expected one that writes `last.ckpt`, which the study exports and goes on from, but there is none. Add"
                " lightning.pytorch.callbacks.ModelCheckpoint with `save_last: true`."
            )
            raise ConfigError(Problem("trainer.callbacks", text))
        return {}


def jobs_of_checks(study: Study, known: Sequence[Problem] = ()) -> dict[str, CheckEvaluation | CheckFit]:
    """The checks that workers do before anything runs: the evaluation, and each fit under the name ``fits.NAME``.

    Args:
        study: the study.
        known: problems that are known already; the parts that have one are left out.
    """

    def is_fine(key: str) -> bool:
        return not any(is_beneath(problem.path, key) for problem in known)

    made = {*study.fits, *study.merges}
    groups = {"baselines": study.baselines, "systems": study.systems}
    fine = [system for key, group in groups.items() for name, system in group.items() if is_fine(f"{key}.{name}")]
    fine += [SystemConfig(sweep.model) for name, sweep in study.sweeps.items() if is_fine(f"sweeps.{name}")]
    models = sorted({model for system in fine for model in system.models} - made)
    evaluation, parts = study.evaluation, ("evaluation", "fits", "merges", "baselines", "sweeps", "systems")
    jobs: dict[str, CheckEvaluation | CheckFit] = {}
    if is_fine("evaluation.metrics"):
        sampled = systems_by_folder(study) if all(map(is_fine, parts)) else []
        ladder = ladder_of(study).name if sampled and is_fine("evaluation.ladder") else ""
        jobs["evaluation"] = CheckEvaluation(evaluation, models, sampled, ladder)
    for name, fit in study.fits.items():
        if fit.config and is_fine(f"fits.{name}.config") and is_fine(f"fits.{name}.overlays"):
            jobs[f"fits.{name}"] = CheckFit(fit.words)
    return jobs


def systems_by_folder(study: Study) -> list[SystemConfig]:
    """Every system with the folder of its model, each folder once per guidance.

    A student or a merge stands for the folder that its fit begins with: that one is there before the fits.
    """
    found: dict[tuple[Any, ...], SystemConfig] = {}
    for system in study.all_systems().values():
        folder = _folder_of(study, system.model)
        anneal = system.anneal and replace(system.anneal, base=_folder_of(study, system.anneal.base))
        if folder and (anneal is None or anneal.base):
            guidance = (system.guidance, system.schedule, system.negative, system.negative_system, system.drop)
            others = (system.prompt, anneal, str(system.conditioner))
            found.setdefault((folder, *guidance, *others), replace(system, model=folder, anneal=anneal))
    return list(found.values())


def _folder_of(study: Study, model: str) -> str:
    """The folder behind a model; empty for a generator that has none."""
    if model in study.merges:
        return _folder_of(study, study.merges[model].models[0])
    return study.fits[model].recipe.model_path if model in study.fits else model


def _asked(template: str | None, prompt: Any) -> list[Any]:
    return templated(template, [prompt])


def said_by(who: str, problems: Iterable[Problem]) -> list[Problem]:
    """Problems as they stand in a recipe or a step, with its name in front.

    Example:
        >>> print(said_by("fits.quality", [Problem("model.seed", "expected a whole number, but got 1.5.")])[0])
        fits.quality: Key `model.seed`: expected a whole number, but got 1.5.
    """
    return [Problem("", f"{who}: {problem}") for problem in problems]


def each_once(found: Mapping[Problem, Sequence[str]]) -> list[Problem]:
    """Problems by who has them, without those of a file that is named by another problem: the file has them once.

    Args:
        found: each problem with the names of its checks.
    """
    problems, files = [], set()
    for problem, names in found.items():
        if problem.text in files:
            continue
        if problem.text.startswith("File `"):
            files.add(problem.text)
        problems += [problem] if "evaluation" in names else said_by(", ".join(names), [problem])
    return problems
