"""One fit's recipe, resolved: its files merged and its overrides put in. No torch in here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfg_distill.folders import expanded, find_file
from cfg_distill.recipe.calibration import calibrated
from cfg_distill.recipe.files import class_name, merged_in_turn, run_name
from cfg_distill.recipe.overrides import Override, put


@dataclass(frozen=True)
class Recipe:
    """One fit's recipe with everything in its place: what the checks, the trainer and a study all read.

    Attributes:
        files: the files, found.
        values: their keys and values merged, later files over earlier ones, and the overrides over all of them.
        of_files: the same without the overrides.
        notes: what is not wrong, but easily overlooked.

    Example:
        >>> recipe = Recipe.read(["recipes/tunes/quality.yaml"], {"trainer.max_steps": 5, "model.losses.kl.weight": 2.0})
        >>> recipe.run_name, recipe.model_path, recipe.max_steps, recipe.at("model.losses.kl.weight")
        ('quality', 'tunes:base', 5, 2.0)
    """

    files: tuple[Path, ...]
    values: dict[str, Any]
    of_files: dict[str, Any]
    notes: tuple[str, ...] = ()

    @classmethod
    def read(cls, files: Sequence[str | Path], overrides: Mapping[str, Any] | Sequence[Override] = ()) -> Recipe:
        """Read and merge files, then put in the overrides.

        Args:
            files: paths; ``recipes/...`` also names the files of the package.
            overrides: dotted keys and their values, as in a study, or the overrides of a command line.

        Raises:
            ConfigError: a file that is missing or holds no keys and values. Wrong keys and values are found later.
        """
        found = tuple(find_file(file) for file in files)
        stages = list(merged_in_turn(found))
        of_files = values = stages[-1] if stages else {}
        if isinstance(overrides, Mapping):
            overrides = [Override.of(key, value) for key, value in overrides.items()]
        for override in overrides:
            values = put(values, override)
            stages.append(values)
        checkpoint = values.get("ckpt_path")
        if isinstance(checkpoint, str) and checkpoint.startswith("~"):  # Lightning takes it as it is
            values = {**values, "ckpt_path": str(expanded(checkpoint))}
        values, calibrations = calibrated(values)
        return cls(found, values, calibrated(of_files)[0], (*_notes(stages), *calibrations))

    def at(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path; ``init_args`` may be left out of it. Absent or empty: the default."""
        node: Any = self.values
        for key in path.split("."):
            if isinstance(node, dict) and "class_path" in node and key not in node:
                node = node.get("init_args")
            node = node.get(key) if isinstance(node, dict) else None
        return default if node is None else node

    def names_class(self, key: str) -> bool:
        """Whether it names a class of its own for ``model`` or ``data``, so that their keys lie under ``init_args``."""
        return isinstance(given := self.values.get(key), str) or (isinstance(given, dict) and "class_path" in given)

    @property
    def run_name(self) -> str:
        """The name of the folder of its runs, after the first file."""
        return run_name(self.files)

    @property
    def root(self) -> str:
        """The folder of its runs."""
        return str(self.at("trainer.default_root_dir") or f"runs/{self.run_name}")

    @property
    def generator_class(self) -> str:
        """The class path of the start model; empty where the recipe names none."""
        given = self.at("model.generator")
        return str(given if isinstance(given, str) else self.at("model.generator.class_path", ""))

    @property
    def model_path(self) -> str:
        """The folder or hub name of the start model; empty for a generator that has none."""
        return str(self.at("model.generator.path", ""))

    @property
    def trains_adapter(self) -> bool:
        """Whether it trains a LoRA adapter."""
        return bool(self.at("model.generator.lora"))

    @property
    def prompt_files(self) -> dict[str, str]:
        """The files of prompts that it names: ``train``, ``validation``, ``report``."""
        return {name: str(file) for name in ("train", "validation", "report") if (file := self.at(f"data.{name}"))}

    @property
    def prompt_field(self) -> str:
        """The JSON field or CSV column that holds the prompt."""
        return str(self.at("data.field", "prompt"))

    @property
    def max_steps(self) -> int:
        """Optimiser steps; -1 for no limit, or where none is given."""
        return self._whole("trainer.max_steps", -1)

    @property
    def devices(self) -> int:
        """Devices of all machines that it asks for; 1 where it takes all there are."""
        given = self.at("trainer.devices", 1)
        if isinstance(given, str) and "," in given:  # as Lightning reads it: the numbers of devices
            given = list(filter(str.strip, given.split(",")))
        own = len(given) if isinstance(given, list) else self._whole("trainer.devices", 1)
        return max(own, 1) * max(self._whole("trainer.num_nodes", 1), 1)

    @property
    def rows(self) -> int:
        """Samples per step and device: prompts times samples per prompt."""
        return self._whole("data.batch_size", 8) * self._whole("model.sampling.samples", 4)

    @property
    def max_new_tokens(self) -> int:
        """Positions of the longest sample."""
        return self._whole("model.sampling.max_new_tokens", 128)

    def _whole(self, path: str, default: int) -> int:
        value = self.at(path, default)
        try:
            return int(value)
        except (TypeError, ValueError, OverflowError):
            return default  # the checks of the fit report it by its key


def _notes(stages: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    """What a list of callbacks dropped that a recipe had before: a run without ModelCheckpoint cannot be resumed."""
    had = any(_saves(stage) for stage in stages)
    if not had or _saves(stages[-1]) or not isinstance(_callbacks(stages[-1]), list):
        return ()
    return (
        "The list `trainer.callbacks` replaces the callbacks before it, ModelCheckpoint among them: this run cannot be"
        " resumed. Give callbacks by name to keep the others.",
    )


def _callbacks(values: dict[str, Any]) -> Any:
    trainer = values.get("trainer")
    return trainer.get("callbacks") if isinstance(trainer, dict) else None


def _saves(values: dict[str, Any]) -> bool:
    given = _callbacks(values)
    members = given.values() if isinstance(given, dict) else given if isinstance(given, list) else ()
    return any(class_name(each) == "ModelCheckpoint" for each in members)
