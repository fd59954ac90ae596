"""What CheckpointMerging merges: all weights of a student, or the adapter of a LoRA student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from cfg_distill.checkpoints import (
    STUDENT,
    Checkpoint,
    Which,
    adapter_in,
    generator_of,
    student_weights,
    write_student,
)
from cfg_distill.checkpoints.shards import whole
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.folders import whole_path
from cfg_distill.folders.adapters import Adapter, Factors
from cfg_distill.merging import merge_adapters, merge_states


class Mergeable(ABC):
    """A student as something to merge. Values are whole, on the CPU, and are copies. Problems name the key ``partner``.

    Every process of a sharded student (FSDP2) must make each call at the same time, but for :meth:`save`.
    """

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
    def of_checkpoint(self, checkpoint: Checkpoint, weights: Which) -> Any:
        """A partner in a checkpoint: its live weights or their averages."""

    @abstractmethod
    def merge(self, method: str, models: Sequence[Any], weights: Sequence[float], with_start: bool) -> Any:
        """The merge of models."""

    @abstractmethod
    def swapped_in(self, merged: Any) -> AbstractContextManager[None]:
        """A merge in the student's place for a while; the student's own weights are restored, to the bit."""

    @abstractmethod
    def save(self, merged: Any, folder: Path) -> None:
        """Write a merge, which stands in the student's place, as a folder. One process does."""


def mergeable(module: Any) -> Mergeable:
    """The student of a module as something to merge."""
    return _Whole(module) if module.student.lora is None else _Adapter(module)


class _Whole(Mergeable):
    def own(self, averages: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = {name: whole(tensor).cpu().clone() for name, tensor in student_weights(self.module).items()}
        return own | {name: whole(average).to("cpu", own[name].dtype) for name, average in averages.items()}

    def of_folder(self, path: str) -> dict[str, Tensor]:
        other = self._start()  # whose own loader maps names
        other.load_weights(path)
        return student_weights(SimpleNamespace(student=other))

    def _start(self) -> Any:
        """The start model once more, whole, on the CPU."""
        spec = self.module.generator_spec
        return generator_of(spec, [spec["class_path"].rpartition(".")[0]]).load()

    def of_checkpoint(self, checkpoint: Checkpoint, weights: Which) -> dict[str, Tensor]:
        if checkpoint.lora_scale is not None:
            text = f"`{checkpoint.file}` holds an adapter, but the student is a whole model. Export it --merged."
            raise ConfigError(Problem("partner", text))
        own = student_weights(self.module)
        # merge() reports mismatches; float32 averages are cast to the student's dtype.
        return {name: tensor.to(own[name].dtype) if name in own else tensor
                for name, tensor in checkpoint.student(weights).items()
                if name in own or tensor.is_floating_point()}  # fmt: skip

    def merge(self, method: str, models: Sequence[Any], weights: Sequence[float], with_start: bool) -> Any:
        if not with_start:
            return merge_states(method, models, weights)
        teacher = self.module.teacher.state_dict()
        start = {name: whole(teacher[name.removeprefix(STUDENT)].detach()).cpu() for name in models[-1]}
        return merge_states(method, models, weights, start)

    @contextmanager
    def swapped_in(self, merged: dict[str, Tensor]) -> Iterator[None]:
        live = {name: tensor.clone() for name, tensor in student_weights(self.module).items()}
        try:
            write_student(self.module, merged)
            yield
        finally:
            write_student(self.module, live)

    def save(self, merged: dict[str, Tensor], folder: Path) -> None:
        other = self._start()
        write_student(SimpleNamespace(student=other), merged)
        other.save(folder)


class _Adapter(Mergeable):
    def own(self, averages: Mapping[str, Tensor]) -> Adapter:
        live = self.student.own_adapter()
        if averages:
            gathered = {name: whole(average) for name, average in averages.items()}
            return adapter_in(gathered, lambda layer: live[layer].scale)
        return {name: Factors(whole(a).cpu().clone(), whole(b).cpu().clone(), scale)
                for name, (a, b, scale) in live.items()}  # fmt: skip

    def of_folder(self, path: str) -> Adapter:
        try:
            return self.student.adapter_in(path)
        except ConfigError as error:
            raise ConfigError(error.under("partner")) from error

    def of_checkpoint(self, checkpoint: Checkpoint, weights: Which) -> Adapter:
        scale = checkpoint.lora_scale
        if scale is None or whole_path(checkpoint.base) != whole_path(self.student.path):
            held = "a whole model" if scale is None else f"an adapter of `{checkpoint.base}`"
            text = f"expected an adapter of `{self.student.path}`, but `{checkpoint.file}` holds {held}."
            raise ConfigError(Problem("partner", f"{text} Both must be of one base."))
        return adapter_in(checkpoint.student(weights), lambda layer: scale)

    def merge(self, method: str, models: Sequence[Any], weights: Sequence[float], with_start: bool) -> Adapter:
        return merge_adapters(method, models, weights)  # the start is the base, which adapters leave out

    def swapped_in(self, merged: Adapter) -> AbstractContextManager[None]:
        return self.student.with_adapter(merged)

    def save(self, merged: Adapter, folder: Path) -> None:
        self.student.save(folder)
