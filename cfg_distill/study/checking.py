"""The checks of a study that take torch: they are jobs of its workers, which run before anything is trained or sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cfg_distill.data.reading import read_prompts, templated, together
from cfg_distill.errors import ConfigError, Context, Problem, PromptProblem, problems_of
from cfg_distill.evaluation.anneal import problems_of_anneal, problems_of_course
from cfg_distill.study.climbing import problems_of_ladder
from cfg_distill.study.parts import Evaluation, SystemConfig
from cfg_distill.study.sampled import guidance_of, sampling_of

if TYPE_CHECKING:
    from cfg_distill.metrics.base import SampleMetric
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
        from cfg_distill.evaluation.models import metrics_of

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

    def _problems_of_metrics_under(
        self, conditioner: Conditioner | None, metrics: Mapping[str, SampleMetric]
    ) -> list[Problem]:
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
        from cfg_distill.evaluation.chosen import conditioner_of, problems_of_metrics_on
        from cfg_distill.evaluation.models import metrics_of
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


def _asked(template: str | None, prompt: Any) -> list[Any]:
    return templated(template, [prompt])


def said_by(who: str, problems: Iterable[Problem]) -> list[Problem]:
    """Problems as they stand in a recipe or a step, with its name in front.

    Example:
        >>> print(said_by("fits.quality", [Problem("model.seed", "expected a whole number, but got 1.5.")])[0])
        fits.quality: Key `model.seed`: expected a whole number, but got 1.5.
    """
    return [Problem("", f"{who}: {problem}") for problem in problems]
