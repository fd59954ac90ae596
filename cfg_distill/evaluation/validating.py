"""Requests to validate metrics: which metrics a file names, which ladder they climb, and everything that is wrong with both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cfg_distill.data import read_prompts
from cfg_distill.data.reading import together
from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.evaluation.chosen import metrics_of
from cfg_distill.evaluation.ladder import Ladder
from cfg_distill.evaluation.renderers import class_paths, metrics_of_profiles, model_profile
from cfg_distill.evaluation.verdicts import SHARE, Validation, validate
from cfg_distill.files import expanded, read_yaml
from cfg_distill.folders import find_file, source
from cfg_distill.folders.profile import is_trusted
from cfg_distill.generators import PromptLike
from cfg_distill.metrics.base import SampleMetric
from cfg_distill.recipe.classes import find_class
from cfg_distill.recipe.files import with_metrics

LADDERS = {
    "tunes": "cfg_distill.tunes.rungs.TuneLadder",
    "text": "cfg_distill.evaluation.ladder_text.TextLadder",
    "sound": "cfg_distill.tunes.sounds.RenderedLadder",
}
"""The shipped ladders by their short names."""
REWARD = "cfg_distill.metrics.rewarded.RewardMetric"
_OF_SOUND = (
    *("CLAP", "AudioEmbedder", "CLAPAdherence", "SilenceRate", "ClippingRate", "AudioRepetition", "FAD", "KAD"),
    *("Noise", "SiblingCopies"),
)


@dataclass(frozen=True)
class ValidateRequest:
    """Metrics or rewards, and the ladder that they climb.

    Args:
        file: a metrics file, a study, a recipe of a fit (its rewards, and the metrics of its callbacks), or a model folder
            whose ``cfg_distill.json`` names metrics.
        ladder: ``tunes``, ``text``, ``sound`` or the class path of a :class:`Ladder`; empty takes the ladder that the model's
            folder names, or chooses by the metrics.
        prompts: a file of prompts; None takes the ladder's own.
        share: the share of the diversity of different samples that a group of rewritings may reach.
        trust: modules, beside this package, that a model's folder may name.
    """

    file: str | Path
    ladder: str = ""
    prompts: str | Path | None = None
    share: float = SHARE
    trust: Sequence[str] = ()

    def problems(self, context: Context = Context()) -> list[Problem]:
        """Everything that is wrong with the request; no weights are loaded."""
        return self.plan.problems

    @cached_property
    def plan(self) -> Climb:
        """The request made ready, as far as it can be."""
        return Climb(self)


@dataclass
class Climb:
    """A :class:`ValidateRequest` made ready, as far as it can be.

    Attributes:
        request: what was asked for.
        problems: everything that is wrong with it.
        metrics: by name, not loaded.
        ladder_name: the class path of the ladder.
        ladder: not loaded.
        prompts: of the ladder.
    """

    request: ValidateRequest
    problems: list[Problem] = field(default_factory=list)
    metrics: dict[str, SampleMetric] = field(default_factory=dict)
    ladder_name: str = ""
    ladder: Ladder | None = None
    prompts: list[PromptLike] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.request.share < 1:
            self.problems.append(Problem("share", f"expected a number in (0, 1), but got {self.request.share:g}."))
        try:
            named = named_in(self.request.file, self.request.trust)
        except ConfigError as error:
            self.problems += [Problem("file", str(problem)) for problem in error.problems]
            named = Named(ladder=self.request.ladder)
        self._make_metrics(named)
        if named.ladder or named.specs:  # else nothing tells which ladder it should be
            self._make_ladder(named)
            self._read_prompts()

    def _make_metrics(self, named: Named) -> None:
        judged = {name: {"class_path": REWARD, "init_args": {"reward": spec}} for name, spec in named.rewards.items()}
        for name, spec in (named.metrics | judged).items():
            try:
                self.metrics |= metrics_of({name: spec})
            except ConfigError as error:
                self.problems += error.problems
        if not self.problems and not self.metrics:
            text = f"expected metrics or rewards in `{self.request.file}`, but it names none that a ladder can judge."
            self.problems.append(Problem("file", f"{text} Name a metrics file, a study, or a recipe with a reward."))

    def _make_ladder(self, named: Named) -> None:
        asked = self.request.ladder
        self.ladder_name = LADDERS.get(asked, asked) or named.ladder or LADDERS[domain_of(named.specs)]
        if not asked and named.ladder and not is_trusted(named.ladder, self.request.trust):
            self.problems.append(
                Problem(
                    "trust",
                    f"the model names the ladder `{named.ladder}`, and a model folder is data: it may not decide what is"
                    f" imported. If you trust the module, name it here: `{named.ladder.rpartition('.')[0]}`.",
                )
            )
            return
        try:
            _, self.ladder = ladder_named(self.ladder_name)
        except ConfigError as error:
            self.problems += [Problem("ladder", problem.text) for problem in error.problems]

    def _read_prompts(self) -> None:
        if self.ladder is None:
            return
        try:
            given = self.request.prompts
            self.prompts = list(self.ladder.prompts() if given is None else read_prompts(given))
            self.problems += [
                Problem("prompts" if given else "ladder", str(each))
                for each in together(self.ladder.problems(self.prompts), given or "")
            ]
        except ConfigError as error:
            self.problems += [Problem("prompts", str(problem)) for problem in error.problems]

    def run(self, progress: Callable[[str], None] | None = None) -> Validation:
        """Load the metrics and climb. A metric whose weights cannot be had here is left out, and the reason kept.

        Raises:
            ConfigError: see :meth:`ValidateRequest.problems`; no metric can be run at all.
        """
        from cfg_distill.generators import device

        if self.problems or self.ladder is None:
            raise ConfigError(self.problems)
        not_run: dict[str, str] = {}
        for name, metric in self.metrics.items():
            try:
                metric.to(device()).load()
            except ConfigError as error:
                not_run[name] = " ".join(problem.text for problem in error.problems)
        ready = {name: metric for name, metric in self.metrics.items() if name not in not_run}
        if not ready:
            raise ConfigError(
                [Problem("file", f"metric `{name}` cannot be run here: {why}") for name, why in not_run.items()]
            )
        found = validate(ready, self.ladder.rungs(self.prompts), self.request.share, progress)
        found.not_run = not_run
        return found


@dataclass
class Named:
    """What a file names: metrics and rewards, name -> class_path and init_args, and the ladder of its model."""

    metrics: dict[str, Any] = field(default_factory=dict)
    rewards: dict[str, Any] = field(default_factory=dict)
    ladder: str = ""

    @property
    def specs(self) -> dict[str, Any]:
        """Metrics and rewards together."""
        return self.metrics | self.rewards


def ladder_named(name: str) -> tuple[str, Ladder]:
    """The class path of a ladder, and the ladder, not loaded.

    Args:
        name: ``tunes``, ``text``, ``sound`` or a class path.

    Raises:
        ConfigError: there is no such ladder.
    """
    class_path = LADDERS.get(name, name)
    if "." not in class_path:
        raise ConfigError(f"expected one of {', '.join(LADDERS)} or the class path of a ladder, but got `{name}`.")
    return class_path, find_class(class_path, (Ladder,), "a Ladder")()


def named_in(file: str | Path, trust: Sequence[str] = ()) -> Named:
    """The metrics, rewards and ladder that a metrics file, study, recipe or model folder names.

    Raises:
        ConfigError: it cannot be read.
    """
    if expanded(file).is_dir() or (":" in str(file) and source(str(file)) is not None):
        metrics, remarks = metrics_of_profiles([str(file)], trust)
        if remarks:
            raise ConfigError(remarks)
        return Named(metrics, {}, model_profile(str(file)).ladder)
    content = with_metrics(read_yaml(find_file(file)))
    if not {"model", "evaluation", "trainer", "data", "fits"} & content.keys():
        return Named(dict(content))
    metrics = {name: spec for found in _under("metrics", content) for name, spec in found.items()}
    rewards = dict(_rewards(content))
    return Named(metrics, rewards, _ladder_of(content))


def _under(key: str, node: Any) -> Iterator[Mapping[str, Any]]:
    """The mappings under a key, wherever it stands."""
    children = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        if name == key and isinstance(child, Mapping):
            yield child
        else:
            yield from _under(key, child)


def _rewards(content: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Rewards that a ladder can judge, by the names of their losses; of a mix, its parts."""
    for losses in _under("losses", content):
        for name, loss in losses.items():
            plain = loss.get("init_args", loss) if isinstance(loss, Mapping) else {}
            if isinstance(plain, Mapping) and isinstance(plain.get("reward"), str):
                yield f"{name} (reward)", _spec(plain["reward"])
            for reward in _under("reward", loss):
                parts = list(_under("rewards", reward))
                if parts:
                    yield from ((f"{name} {part}", _spec(spec)) for part, spec in parts[0].items())
                else:
                    yield f"{name} (reward)", reward


def _spec(given: Any) -> Any:
    """A part as class_path and init_args, where a recipe gives its class path alone."""
    return {"class_path": given} if isinstance(given, str) else given


def _ladder_of(content: Mapping[str, Any]) -> str:
    """The ladder that the folder of the first model in a recipe or study names; empty where none does."""
    for generator in _under("generator", content):
        settings = generator.get("init_args")
        path = generator.get("path") or (settings.get("path") if isinstance(settings, Mapping) else None)
        if path:
            return model_profile(str(path)).ladder
    points = [point for found in _under("baselines", content) for point in found.values()]
    model = points[0].get("model") if points and isinstance(points[0], Mapping) else None
    return model_profile(str(model)).ladder if model else ""


def domain_of(specs: Mapping[str, Any]) -> str:
    """``tunes``, ``sound`` or ``text``: by the class paths of metrics."""
    names = class_paths(specs)
    if any(name.startswith("cfg_distill.tunes.") for name in names):
        return "tunes"
    return "sound" if any(name.rpartition(".")[2] in _OF_SOUND for name in names) else "text"
