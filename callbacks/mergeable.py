"""What CheckpointMerging merges: all weights of a student, or the adapter of a LoRA student."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import Tensor

from cfg_distill.checkpoints import student_weights, write_student
from cfg_distill.errors import ConfigError
from cfg_distill.folders import whole_path
from cfg_distill.folders.adapters import Adapter, Factors
from cfg_distill.generators.lora import adapter_of, read_adapter, standing_in
from cfg_distill.merging import merge_adapters, merge_states

_PARTNER = "Key `CheckpointMerging.partner`"


class Mergeable(ABC):
    """A student as something to merge. Values are on the CPU and are copies."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.student = module.student

    @abstractmethod
    def own(self, averages: Mapping[str, Tensor]) -> Any:
        """The student, or its averages where there are some."""

    @abstractmethod
    def of_folder(self, path: str) -> Any:
        """A partner in a folder."""

    @abstractmethod
    def of_checkpoint(self, path: str, generator: Mapping[str, Any], state: Mapping[str, Tensor]) -> Any:
        """A partner in a checkpoint: the generator that it names, and its weights."""

    @abstractmethod
    def merge(self, method: str, models: Sequence[Any], weights: Sequence[float], with_start: bool) -> Any:
        """The merge of models."""

    @abstractmethod
    def standing_in(self, merged: Any) -> AbstractContextManager[None]:
        """A merge in the student's place for a while; its own weights come back, to the bit."""


def mergeable(module: Any) -> Mergeable:
    """What there is to merge of this module's student."""
    return _Whole(module) if module.student.lora is None else _Adapter(module)


class _Whole(Mergeable):
    def own(self, averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {name: tensor.cpu().clone() for name, tensor in student_weights(self.module).items()}
        return own | {name: average.to("cpu", own[name].dtype) for name, average in averages.items()}

    def of_folder(self, path: str) -> dict[str, Tensor]:
        # As the generator itself reads them: it lends its place for a moment.
        live = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        try:
            self.student.load_weights(path)
            return {name: tensor.cpu().clone() for name, tensor in student_weights(self.module).items()}
        finally:
            self.student.load_state_dict(live)

    def of_checkpoint(self, path: str, generator: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if generator.get("init_args", {}).get("lora"):
            raise ConfigError(
                f"{_PARTNER}: `{path}` holds an adapter, but the student is a whole model. Export it --merged."
            )
        own = student_weights(self.module)
        # What does not fit is told by the merge, all of it; an average is float32, the student may be less.
        return {name: tensor.to(own[name].dtype) if name in own else tensor for name, tensor in state.items()
                if name in own or (name.startswith("student.") and tensor.is_floating_point())}  # fmt: skip

    def merge(self, method: str, models: Sequence[Any], weights: Sequence[float], with_start: bool) -> Any:
        if not with_start:
            return merge_states(method, models, weights)
        teacher = self.module.teacher.state_dict()
        start = {name: teacher[name.removeprefix("student.")].detach().cpu() for name in models[-1]}
        return merge_states(method, models, weights, start)

    @contextmanager
    def standing_in(self, merged: dict[str, Tensor]) -> Iterator[None]:
        live = {name: tensor.clone() for name, tensor in student_weights(self.module).items()}
        try:
            write_student(self.module, merged)
            yield
        finally:
            write_student(self.module, live)


class _Adapter(Mergeable):
    def own(self, averages: Mapping[str, Tensor]) -> Adapter:
        live = adapter_of(self.student.model)
        if averages:
            return _from_state(averages, {name: factors.scale for name, factors in live.items()})
        return {name: Factors(a.cpu().clone(), b.cpu().clone(), scale) for name, (a, b, scale) in live.items()}

    def of_folder(self, path: str) -> Adapter:
        if problems := self.student.problems_of_base(path, "CheckpointMerging.partner"):
            raise ConfigError(problems)
        return read_adapter(path, self.student.adapter_prefix)

    def of_checkpoint(self, path: str, generator: Mapping[str, Any], state: Mapping[str, Tensor]) -> Adapter:
        settings = generator.get("init_args", {})
        lora, base = settings.get("lora"), settings.get("path", "")
        if not lora or whole_path(base) != whole_path(self.student.path):
            what = f"an adapter of `{base}`" if lora else "a whole model"
            raise ConfigError(
                f"{_PARTNER}: expected an adapter of `{self.student.path}`, but `{path}` holds {what}."
                " Both must be of one base."
            )
        scale = lora["alpha"] / lora["rank"]
        return _from_state(state, dict.fromkeys(_layers(state), scale))

    def merge(self, method: str, models: Sequence[Any], weights: Sequence[float], with_start: bool) -> Adapter:
        return merge_adapters(method, models, weights)  # the start is the base, which adapters leave out

    def standing_in(self, merged: Adapter) -> AbstractContextManager[None]:
        return standing_in(self.student.model, merged)


def _layers(state: Mapping[str, Tensor]) -> list[str]:
    """The layers of an adapter in the state dict of a module."""
    found = (re.fullmatch(r"student\.model\.(.+)\.lora_A\.default\.weight", name) for name in state)
    return [match[1] for match in found if match]


def _from_state(state: Mapping[str, Tensor], scales: Mapping[str, float]) -> Adapter:
    def part(layer: str, which: str) -> Tensor:
        return state[f"student.model.{layer}.lora_{which}.default.weight"].cpu().clone()

    return {layer: Factors(part(layer, "A"), part(layer, "B"), scales[layer]) for layer in _layers(state)}
