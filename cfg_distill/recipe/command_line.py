"""The LightningCLI behind ``fit`` and ``validate``. Importing this module imports torch and lightning."""

from __future__ import annotations

import copy
import os
import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from cfg_distill.data import PromptData
from cfg_distill.errors import ConfigError, Problem, Stopped, problems_of
from cfg_distill.recipe.bounds import SEED, TRAINER
from cfg_distill.recipe.calibration import calibrated
from cfg_distill.recipe.checks import Walk, without_echoes
from cfg_distill.recipe.classes import find_class, keep_own_defaults
from cfg_distill.recipe.overrides import Words, put, sorted_words
from cfg_distill.recipe.processes import is_first, is_started_by_first, others_know_this_process, say_note
from cfg_distill.recipe.progress import StepLines, StepProgress
from cfg_distill.recipe.quiet import quieten
from cfg_distill.recipe.ranks import EndTogether
from cfg_distill.recipe.resolved import Recipe
from cfg_distill.recipe.runs import (
    RunMark,
    claimed,
    last_checkpoint,
    last_of_another_logger,
    problems_of_start,
    requeued,
    resumable,
    said_of_beginning,
)
from cfg_distill.recipe.saved import SaveRecipe
from cfg_distill.recipe.scoring import problems_of_scoring
from cfg_distill.recipe.stopping import Signals, StopAtStepEnd, requeue
from cfg_distill.recipe.trainer import (
    STRATEGIES,
    NamedTrainer,
    named_callbacks,
    paths_of,
    problems_of_settings,
    problems_of_states,
    said_of_monitor,
    write_out_devices,
)

_BOUNDS = {"seed_everything": SEED} | {f"trainer.{key}": bounds for key, bounds in TRAINER.items()}
_PARSING = (ArgumentError, MisconfigurationException, OverflowError)
_PRINTED = {"": "", "skip_default": "skip_default", "skip_unset": "skip_unset", "skip_null": "skip_unset"}


@runtime_checkable
class Distillation(Protocol):
    """A module that knows more of what can be wrong than its own settings. Any other LightningModule runs as well."""

    generator_spec: dict[str, Any]

    def summary(self) -> str: ...

    def problems_with(self, trainer: Trainer) -> Sequence[str | Problem]: ...

    def problems_of_data(self, data: Any, stage: str) -> Sequence[str | Problem]: ...


@runtime_checkable
class Placed(Protocol):
    """A callback that finds problems once the fit begins, and names its keys by the place that it is told."""

    recipe_path: str


class CommandLine(LightningCLI):
    """LightningCLI with this package's defaults: runs/<recipe>/version_N, and one error for all problems."""

    def __init__(self, command: str, words: Words, recipe: Recipe, check_only: bool = False, **settings: Any) -> None:
        self.command = command
        self.words = words
        self.recipe = recipe
        self.check_only = check_only
        self.callbacks: dict[str, Callback] = {}
        self.signals = Signals()
        self.mark = RunMark()
        self.stopping = StopAtStepEnd(self.signals)
        strict = {"exit_on_error": False}
        super().__init__(
            auto_configure_optimizers=False,
            seed_everything_default=0,
            save_config_callback=SaveRecipe,
            parser_kwargs={**strict, "prog": "cfg-distill", command: dict(strict)},
            trainer_class=NamedTrainer,
            args=[command],
            **settings,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # of the other command no parser is built
        return {self.command: LightningCLI.subcommands()[self.command]}

    # Parsing

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the one merged recipe: LightningCLI, given files and options, would merge them by other rules."""
        walk = Walk()
        own = self._subcommand_parsers[self.command]
        try:
            if self.words.help:
                parser.parse_args([self.command, *self.words.help])  # prints and exits
            values = copy.deepcopy(self.recipe.values)  # the parser puts objects of its own in place of dicts of dicts
            keep_own_defaults(values)
            self.config = parser.parse_object({"subcommand": self.command, self.command: values})
        except _PARSING as error:
            raise ConfigError(self._all_problems(walk, str(error))) from error
        good = walk.keys(own, self.recipe.values, bounds=_BOUNDS)
        problems = walk.passed + _problems_of_ckpt_path(self.config[self.command].get("ckpt_path"))
        if problems:
            raise ConfigError(without_echoes(problems, self._problems_inside(good)))
        if self.words.print_config is not None:
            self._print_config(own, self.words.print_config)

    def _print_config(self, parser: LightningArgumentParser, flags: str) -> None:
        asked = flags.split(",")
        if unknown := [flag for flag in asked if flag not in _PRINTED]:
            known = ", ".join(flag for flag in _PRINTED if flag)
            raise ConfigError(f"Option `--print_config`: expected flags among {known}, but got {', '.join(unknown)}.")
        chosen: dict[str, Any] = {"skip_unset": False} | {_PRINTED[flag]: True for flag in asked if flag}
        print(parser.dump(self.config[self.command], **chosen), end="")
        raise SystemExit(0)

    def _all_problems(self, walk: Walk, first: str) -> list[Problem]:
        """After a parser gave up: every problem of files and options, and of what can be built without them."""
        own = self._subcommand_parsers[self.command]
        values, of_options = self.recipe.of_files, []
        walk.keys(own, values, bounds=_BOUNDS)
        for override in self.words.overrides:
            tried, again = calibrated(put(values, override))[0], Walk()
            again.keys(own, tried, bounds=_BOUNDS)
            if new := [problem for problem in again.problems if problem not in walk.problems]:
                of_options += new
            else:  # This option is valid, and may supply a key that the files miss.
                values, walk = tried, again
        found = list(dict.fromkeys([*walk.problems, *of_options]))
        good = Walk().keys(own, values, bounds=_BOUNDS)
        return without_echoes(found, self._problems_inside(good)) or [Problem("", " ".join(first.split()))]

    def _problems_inside(self, values: dict[str, Any]) -> list[Problem]:
        """What model and data themselves find wrong, where they can be built, and what a trainer need not be built for."""
        settings: tuple[tuple[str, Any, bool], ...] = (
            ("model", self._model_class, self.subclass_mode_model),
            ("data", self._datamodule_class, self.subclass_mode_data),
        )
        found: list[Problem] = []
        distils = not self.subclass_mode_model
        for key, base, by_path in settings:
            parser = ArgumentParser(exit_on_error=False)
            add = parser.add_subclass_arguments if by_path else parser.add_class_arguments
            add(base, key, fail_untyped=False)
            try:
                built = parser.instantiate_classes(parser.parse_object({key: values.get(key) or {}}))
            except ConfigError as error:
                found += self._placed(error.problems, key)
            except Exception:
                continue  # it lacks what was wrong, and that has been said
            else:
                found += self._placed(problems_of(built.get(key)), key)
                distils |= isinstance(built.get(key), Distillation)
        return [*problems_of_settings(values.get("trainer") or {}, self.recipe.root, distils), *found]

    def _placed(self, problems: Sequence[str | Problem], key: str) -> list[Problem]:
        """Problems of the model or the data, under the path that their arguments have in the recipe.

        A sentence that names no key says its own subject. A path from the root of the recipe is left as it is.
        """
        prefix = f"{key}.init_args" if self.recipe.names_class(key) else key
        given = [Problem("", each) if isinstance(each, str) else each for each in problems]
        return [each if not each.path or each.prefix.startswith(f"{key}.") else each.under(prefix) for each in given]

    # Building

    def _parse_ckpt_path(self) -> None:
        """Do nothing: Lightning's own lets the checkpoint's hyper-parameters win over file and command line."""

    def before_instantiate_classes(self) -> None:
        """One seed serves the whole run: model and data take ``seed_everything`` unless they have their own."""
        config = self.config[self.command]
        write_out_devices(named_callbacks(config["trainer"]["callbacks"]).values())
        for part in ("model", "data"):
            settings = config[part].get("init_args", config[part])
            if "seed" in settings and settings["seed"] is None:
                settings["seed"] = int(config["seed_everything"] or 0)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ConfigError, MisconfigurationException, ValueError, TypeError) as error:
            if isinstance(error, ConfigError):
                own = self._placed(error.problems, "model")
            elif raised := _from_lightning(error):
                own = [Problem("", f"In `trainer`: {' '.join(str(raised).split())}")]
            else:
                raise
            self._dump_config()
            raise ConfigError(without_echoes(own, self._problems_inside(self.config_dump))) from error
        problems = [
            *self._placed(problems_of(self.model), "model"),
            *self._placed(problems_of(self.datamodule), "data"),
        ]
        for key, callback in self.callbacks.items():
            problems += [each.under(key) if each.path else each for each in problems_of(callback)]
        if isinstance(self.model, Distillation):
            problems += self._placed(self.model.problems_with(self.trainer), "model")
            if not problems and isinstance(self.datamodule, PromptData):
                self.datamodule.setup("fit")  # reads the prompts
                problems = self._placed(self.model.problems_of_data(self.datamodule, self.command), "data")
                problems += self._placed(problems_of_scoring(self.callbacks, self.datamodule), "data")
                problems = list(dict.fromkeys(problems))
        if problems:
            raise ConfigError(problems)

    def _run_subcommand(self, subcommand: str) -> None:
        if self.check_only:
            return
        with self.signals, self._folder():
            if subcommand == "fit" and self.trainer.is_global_zero:
                self._say_what_runs()
            try:
                with others_know_this_process():
                    super()._run_subcommand(subcommand)
                if subcommand == "fit" and self.trainer.is_global_zero:
                    self.mark.say_what_is_next(isinstance(self.model, Distillation))
            except Stopped as stopped:
                if subcommand == "fit" and is_first():
                    self._say_how_to_go_on(requeue(stopped.number))
                if is_started_by_first():
                    return  # Lightning takes any other code than 0 for a failure, and kills the first process
                raise

    @contextmanager
    def _folder(self) -> Iterator[None]:
        """Choose the folder of the run, unless the recipe has a logger of its own, and keep others out of it."""
        root = Path(self.trainer.default_root_dir)
        settings = self.config_init[self.command]
        recipe = str(self.recipe.files[0]) if self.recipe.files else ""
        trains = self.command == "fit"
        if not self._logs:
            asked = settings.get("ckpt_path")
            if asked in (None, "last") and (last := last_of_another_logger(root, asked == "last", trains)):
                settings["ckpt_path"] = str(last)
            elif asked == "last":
                say_note(said_of_beginning(root, asked, None))
            self._refuse_another_start(settings.get("ckpt_path"), recipe)
            yield
            return
        if settings.get("ckpt_path") is None and requeued(root):
            settings["ckpt_path"] = "last"
        resume = settings.get("ckpt_path") == "last"
        earlier = resumable(root) if resume else None
        note = said_of_beginning(root, settings.get("ckpt_path"), earlier) if trains else ""
        checkpoint = settings.get("ckpt_path") if earlier is None else last_checkpoint(earlier)
        self._refuse_another_start(checkpoint, recipe)
        with claimed(root, resume, recipe, trains) as version:
            self.trainer.logger = logger = TensorBoardLogger(root, "", version, default_hp_metric=False)
            self.mark.folder = Path(logger.log_dir)
            say_note(note)
            yield

    def _refuse_another_start(self, checkpoint: str | Path | None, recipe: str) -> None:
        if checkpoint in (None, "last") or not isinstance(self.model, Distillation):
            return
        if problems := problems_of_start(self.model.generator_spec, Path(checkpoint), recipe, self.command == "fit"):
            raise ConfigError(problems)

    def _say_what_runs(self) -> None:
        for note in self.recipe.notes:
            say_note(note)
        if isinstance(self.model, Distillation):
            print(self.model.summary(), flush=True)

    def _say_how_to_go_on(self, asked: str) -> None:
        step, total = self.trainer.global_step, self.trainer.max_steps
        where = f"Stopped at step {step} of {total}." if total > 0 else f"Stopped at step {step}."
        if asked:
            where += f" {asked}"
        if self.stopping.saved or (self.mark.folder is not None and last_checkpoint(self.mark.folder)):
            where += f" Go on: {shlex.join(['cfg-distill', self.command, *self.words.going_on()])}"
        else:
            where += " No last checkpoint was written, so the run cannot go on."
        print(where, file=sys.stderr, flush=True)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        if config.get("accelerator") == "auto" and MPSAccelerator.is_available():
            config["accelerator"] = "cpu"  # sampling takes float64, which MPS lacks
        root = config["default_root_dir"] = self.recipe.root
        problems = problems_of_settings(config, root, isinstance(self.model, Distillation))
        self._logs = config.get("logger") in (None, True) and not config.get("fast_dev_run")
        if self._logs:
            config["logger"] = False  # until the run has its folder
        if not config.get("plugins") and config.get("strategy") in (None, *STRATEGIES):
            config["plugins"] = [_default("callbacks.AtomicCheckpointIO", CheckpointIO)()]
        given = config.get("callbacks")
        own = list(named_callbacks(given).values())
        self.callbacks = dict(zip(paths_of(given), own, strict=True))
        for path, callback in self.callbacks.items():
            if isinstance(callback, Placed):
                callback.recipe_path = path
        if problems := [*problems, *problems_of_states(self.callbacks)]:
            raise ConfigError(problems)
        config["callbacks"] = [EndTogether(), *own]
        if config.get("enable_model_summary") is None:
            config["enable_model_summary"] = False  # Lightning's table counts no FLOPs of a model that generates
        shown = [] if any(isinstance(one, ProgressBar) for one in own) else _progress(config)
        trainer = super()._instantiate_trainer(config, [*callbacks, self.mark, *shown])
        # Lightning's order has no place behind the callbacks that save.
        vars(trainer)["callbacks"].append(self.stopping)
        return trainer


def start(command: str, argv: Sequence[str], check_only: bool = False) -> CommandLine:
    """Build the command line for what the recipe names, and run it, unless it shall only be checked.

    Args:
        command: ``fit`` or ``validate``.
        argv: the words behind it.
        check_only: stop when everything is built.

    Raises:
        ConfigError: all problems of the configuration, before any weight is loaded.
    """
    words = sorted_words(argv)
    recipe = Recipe.read(words.files, words.overrides)
    quieten()
    model_by_path, data_by_path = (recipe.names_class(key) for key in ("model", "data"))
    model = LightningModule if model_by_path else _default("distillation.CFGDistillation", LightningModule)
    data = LightningDataModule if data_by_path else _default("data.PromptData", LightningDataModule)
    try:
        return CommandLine(
            command,
            words,
            recipe,
            check_only=check_only,
            model_class=model,
            datamodule_class=data,
            subclass_mode_model=model_by_path,
            subclass_mode_data=data_by_path,
        )
    except (MisconfigurationException, RuntimeError) as error:
        if said := said_of_monitor(error):
            raise ConfigError(said) from error
        raise


def _problems_of_ckpt_path(given: Any) -> list[Problem]:
    """Why no run can go on from what ``--ckpt_path`` names. Lightning's ``best`` means a run of this process: there is none."""
    if given in (None, "last") or (given and Path(given).exists()):
        return []
    found = "`` (nothing)" if not given else f"`{given}`, which does not exist"
    return [Problem("ckpt_path", f"expected a checkpoint or `last`, but got {found}. Check the path.")]


def _progress(config: dict[str, Any]) -> list[Callback]:
    """A bar on a terminal, lines elsewhere; Lightning's own bar where steps are without end."""
    if not sys.stdout.isatty():
        config["enable_progress_bar"] = False
        every = config.get("log_every_n_steps")
        return [StepLines(50 if every is None else every)]  # 50: Lightning's default
    wanted = config.get("enable_progress_bar") is not False and config["max_steps"] > 0
    return [StepProgress()] if wanted else []


def _default(name: str, base: type) -> Any:
    """Imported when asked for: a recipe that trains another model needs none of the distillation."""
    return find_class(f"cfg_distill.{name}", (base,), f"a {base.__name__}")


def _from_lightning(error: BaseException) -> BaseException | None:
    """The error of Lightning itself, or of the library behind one of its loggers: then a setting of the trainer is wrong.

    None for any other.
    """
    places = [each.filename for each in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, MisconfigurationException) or f"{os.sep}lightning{os.sep}" in places[-1]:
        return error
    if any(os.path.join("lightning", "pytorch", "loggers") in each for each in places):
        return error
    # Of a part that may be given in several ways, jsonargparse raises an error of its own.
    before = error.__cause__ or error.__context__
    return None if before is None else _from_lightning(before)
