"""What a plan reads of a recipe: the module, its prompts, and what of trainer and callbacks takes memory."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from cfg_distill.data import PromptData
from cfg_distill.distillation import CFGDistillation
from cfg_distill.distillation.ahead import problems_of_sampler, problems_of_sampler_in_shards
from cfg_distill.distillation.settings import PRECISIONS
from cfg_distill.distillation.sharding import FSDP2, problems_in_shards
from cfg_distill.errors import ConfigError, Context, Problem, problems_of
from cfg_distill.folders import expanded, open_weights, resolve
from cfg_distill.folders.hub import in_cache
from cfg_distill.generators import CausalLM, Dia, MusicGen, Prompt, PromptLike
from cfg_distill.planning.known import ARCHITECTURES, numbers_of_embedder, write_folder
from cfg_distill.recipe.bounds import TRAINER
from cfg_distill.recipe.checks import Walk, unknown_key
from cfg_distill.recipe.classes import find_class
from cfg_distill.recipe.files import class_name
from cfg_distill.recipe.overrides import Override, put
from cfg_distill.recipe.resolved import Recipe
from cfg_distill.recipe.trainer import NamedTrainer, problems_of_strategy
from cfg_distill.sampling import OwnLoop

_PATH = ("model", "generator", "path")
_KEYS = ("model", "data", "trainer", "seed_everything", "ckpt_path")
_OPTIONS = ("devices", "memory", "gpu", "json")
IN_SHARDS = ("fsdp2", "FSDP2")
"""Names of the strategy that cuts weights into shards."""
_PRECISIONS = {"32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


@dataclass
class Fit:
    """One fit, as far as a plan goes.

    Attributes:
        name: of the recipe.
        module: the distillation, without weights.
        prompts: of a batch of one device: the longest ones.
        validation: prompts of a validation batch; 0 for none.
        precision: of the trainer.
        strategy: of the trainer, by its name.
        accumulate: batches per step of the optimiser.
        averaged: whether StudentEMA keeps an average.
        embedders: numbers in each frozen encoder of rewards and metrics, by its name; None where nobody knows.
        data: bytes of other data that metrics load.
        notes: what the plan supposes.
    """

    name: str
    module: CFGDistillation
    prompts: list[PromptLike]
    validation: int
    precision: str
    strategy: str
    accumulate: int
    averaged: bool
    embedders: dict[str, int | None]
    data: int
    notes: list[str]

    @property
    def rows(self) -> int:
        """Samples of a batch of one device."""
        return len(self.prompts) * self.module.sampling.samples

    @property
    def micro_batch(self) -> int:
        """Samples that are scored at once."""
        return min(self.module.micro_batch or self.rows, self.rows)

    @property
    def problems_in_shards(self) -> list[Problem]:
        """Why fsdp2 does not run it."""
        return _problems_in_shards(self.module, self.precision)

    @property
    def is_mixed(self) -> bool:
        """Whether the precision casts the operands of products."""
        return self.precision.endswith("-mixed")


@contextlib.contextmanager
def fit_of(recipe: Recipe, found: Sequence[Problem] = ()) -> Iterator[Fit]:
    """The fit of a recipe, built and checked without weights, and without what a plan does not need.

    Args:
        recipe: files and overrides.
        found: problems that the caller has found, to be told together with those of the recipe.

    Raises:
        ConfigError: all problems of the model and its prompts, and those that were given. Neither weights nor encoders have to
            be at hand.
    """
    problems = list(found)
    if not recipe.files:
        problems.append(Problem("config", "expected a recipe, but it is missing. See cfg-distill recipes."))
        raise ConfigError(problems)
    with tempfile.TemporaryDirectory() as folder:
        values, notes, tokenizer = _with_architecture(recipe, Path(folder))
        try:
            module, data = _built(values)
        except ConfigError as error:
            raise ConfigError([*problems, *error.problems]) from error
        if tokenizer is not None:
            module.student.tokenizer = tokenizer
        given = str(recipe.at("trainer.precision", "32-true"))
        precision = _PRECISIONS.get(given, given)
        if precision not in PRECISIONS:
            text = f"expected one of {', '.join(PRECISIONS)}, but got {given}. Write one of these."
            problems.append(Problem("trainer.precision", text))
        strategy = recipe.at("trainer.strategy", "auto")
        problems += problems_of_strategy(strategy) or _problems_of_kind(strategy)
        if class_name(strategy) in IN_SHARDS:
            problems += _problems_in_shards(module, precision)
        if not module.sampler.is_own_loop:
            # An engine that does not run yet stops a fit, and not a plan.
            problems += [each.under("model") for each in problems_of_sampler(module, Context(), is_readable=False)]
            notes.append(
                f"Not counted: {module.sampler}, which draws the samples. The rollout below is our own loop's."
            )
            module.sampler = OwnLoop()
        if problems := [*problems, *_problems(module, data)]:
            raise ConfigError(problems)
        data.setup("fit")
        embedders = _embedders(values)
        if unknown := [name for name, numbers in embedders.items() if numbers is None]:
            notes.append(f"Not counted, since neither config nor weights are at hand: {', '.join(unknown)}.")
        yield Fit(
            name=recipe.run_name,
            module=module,
            prompts=_longest(module, data.prompts["train"], data.batch_size),
            validation=(data.validation_batch_size or data.batch_size) if _validates(recipe, data) else 0,
            precision=precision,
            strategy=class_name(strategy) or "auto",
            accumulate=int(recipe.at("trainer.accumulate_grad_batches", 1)),
            averaged=any(class_name(each) == "StudentEMA" for each in _members(recipe.at("trainer.callbacks", {}))),
            embedders=embedders,
            data=_data_of_metrics(values),
            notes=notes,
        )


def _problems_in_shards(module: CFGDistillation, precision: str) -> list[Problem]:
    return [
        each.under("model") for each in [*problems_in_shards(module, precision), *problems_of_sampler_in_shards(module)]
    ]


def _problems_of_kind(strategy: Any) -> list[Problem]:
    """Why no distillation runs under a strategy that is given as a class."""
    if not isinstance(strategy, dict):
        return []
    try:
        find_class(strategy.get("class_path"), (SingleDeviceStrategy, DDPStrategy, FSDP2), "a DDPStrategy or FSDP2")
    except ConfigError as error:
        return [each.under("trainer.strategy") for each in error.problems]
    return []


def _longest(module: CFGDistillation, prompts: Sequence[PromptLike], number: int) -> list[PromptLike]:
    """The longest prompts, the longest first; of few prompts some twice. A text encoder reads what takes no position."""

    def length(prompt: PromptLike) -> tuple[int, int]:
        given = Prompt.of(prompt)
        return module.student.prompt_positions([prompt]), sum(
            map(len, (given.text, *map(str, given.conditions.values())))
        )

    ordered = sorted(prompts, key=length, reverse=True)
    return (ordered * -(-number // len(ordered)))[:number]


def _validates(recipe: Recipe, data: PromptData) -> bool:
    return bool(data.prompts.get("validation")) and float(recipe.at("trainer.limit_val_batches", 1.0)) > 0


def _with_architecture(recipe: Recipe, folder: Path) -> tuple[dict[str, Any], list[str], Any]:
    """The values of a recipe, with a folder and a tokenizer in place of a published model that is not on this machine."""
    name = recipe.model_path
    if name not in ARCHITECTURES or Path(name).exists() or in_cache(name):
        return recipe.values, [], None
    tokenizer = write_folder(name, folder)
    note = f"`{name}` is not on this machine: its published sizes are used, and four characters count as a token."
    return put(recipe.values, Override(_PATH, str(folder))), [note], tokenizer


def _built(values: dict[str, Any]) -> tuple[CFGDistillation, PromptData]:
    """Model and data of a recipe.

    Raises:
        ConfigError: it trains another module, or keys and values are wrong.
    """
    problems = [unknown_key(key, key, (*_KEYS, *_OPTIONS)) for key in values if key not in _KEYS]
    building, checking = ArgumentParser(exit_on_error=False), ArgumentParser(exit_on_error=False)
    given: dict[str, Any] = {}
    for key, kind in (("model", CFGDistillation), ("data", PromptData)):
        spec = values.get(key) or {}
        if isinstance(spec, str) or "class_path" in spec:
            path = spec if isinstance(spec, str) else spec["class_path"]
            if class_name(path) != kind.__name__:
                text = f"expected {kind.__name__}, whose steps a plan knows, but got {path}. Plan a recipe of a distillation."
                raise ConfigError([*problems, Problem(key, text)])
            spec = {} if isinstance(spec, str) else spec.get("init_args") or {}
        given[key] = spec
        for parser in (building, checking):
            parser.add_class_arguments(kind, key, fail_untyped=False)
    checking.add_class_arguments(NamedTrainer, "trainer", fail_untyped=False)
    walk = Walk()
    bounds = {f"trainer.{key}": each for key, each in TRAINER.items()}
    walk.keys(checking, {**given, "trainer": values.get("trainer") or {}}, bounds=bounds)
    if problems := [*problems, *walk.problems]:
        raise ConfigError(problems)
    try:
        built = building.instantiate_classes(building.parse_object(copy.deepcopy(given)))
    except ArgumentError as error:
        raise ConfigError(" ".join(str(error).split())) from error
    return built.model, built.data


def _problems(module: CFGDistillation, data: PromptData) -> list[Problem]:
    student = module.student
    if not isinstance(student, CausalLM | MusicGen | Dia):
        text = (
            "expected a known architecture (CausalLM, MusicGen, Dia or a subclass), whose network its config alone makes,"
            f" but got {type(student).__name__}. Run the recipe for a few steps and measure."
        )
        return [Problem("model.generator", text)]
    found = problems_of(student, under="model.generator.init_args")
    unknown = [each for each in found if each.path.endswith("generator.init_args.path")]
    if unknown and not expanded(student.path).exists():
        advice = f" A plan needs a config.json, or one of the names that it knows: {', '.join(ARCHITECTURES)}."
        return [Problem(each.path, each.text + advice) for each in unknown]
    # An encoder that is not on this machine stops a fit, and not a plan.
    found = [each.under("model") for each in module.problems() if ".embedder" not in each.path]
    found += problems_of(data, under="data.init_args")
    if not found:
        data.setup("fit")
        found += [each.under("data.init_args") for each in module.problems_of_data(data)]
    return found


def _members(callbacks: Any) -> Sequence[Any]:
    if isinstance(callbacks, dict):
        return list(callbacks.values())
    return callbacks if isinstance(callbacks, list) else [callbacks]


def _embedders(values: dict[str, Any]) -> dict[str, int | None]:
    """Numbers in each encoder or model that a recipe's rewards and metrics name; those of one path share their weights."""
    found: dict[str, int | None] = {}
    model = values["model"]
    start = ((model.get("init_args") or {}) if "class_path" in model else model).get("generator")

    def look(node: Any) -> None:
        for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
            if value is start:
                continue
            if key in ("embedder", "generator") and class_name(value):
                if path := _path_of(value):
                    found[path] = _numbers_in(path)
            else:
                look(value)

    look(values)
    return found


def _data_of_metrics(values: dict[str, Any]) -> int:
    """Bytes of the data that the metrics of a recipe load. Metrics that inherit it from one class share it."""
    holders = {holder for kind in _metrics(values) for holder in kind.__mro__ if "data_bytes" in vars(holder)}
    return sum(vars(holder)["data_bytes"] for holder in holders)


def _metrics(node: Any) -> set[type]:
    """The classes of the metrics that a recipe names under a key ``metrics``."""
    found: set[type] = set()
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        if key != "metrics":
            found |= _metrics(value)
            continue
        for each in _members(value):
            name = each if isinstance(each, str) else (each or {}).get("class_path")
            if name:
                found.add(find_class(name, (nn.Module,), "a metric"))
    return found


def _path_of(spec: Any) -> str:
    spec = {"class_path": spec} if isinstance(spec, str) else spec
    given = (spec.get("init_args") or {}).get("path")
    if given is not None:
        return str(given)
    default = inspect.signature(find_class(spec["class_path"], (nn.Module,), "an embedder")).parameters.get("path")
    return "" if default is None or default.default is inspect.Parameter.empty else str(default.default)


def _numbers_in(path: str) -> int | None:
    """Numbers in the weights of a folder by the heads of its files, or those of a published model.

    Raises:
        ConfigError: a file is cut short or damaged.
    """
    try:
        files = sorted(expanded(resolve(path)).glob("*.safetensors"))
    except ConfigError:
        return None
    if not files:
        return numbers_of_embedder(path)
    total = 0
    for file in files:
        with open_weights(file) as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                total += math.prod(opened.get_slice(name).get_shape())
    return total
