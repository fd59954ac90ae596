"""What an engine gets of a student: its trained weights as they were when a rollout began."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from torch import Tensor, nn
from transformers.utils import logging

from cfg_distill.folders.adapters import Adapter
from cfg_distill.generators import CausalLM
from cfg_distill.generators.lora import adapter_of, save_adapter, standing_in


class Handed(ABC):
    """The trained weights of a student at one moment."""

    @abstractmethod
    def write(self, student: CausalLM, folder: Path) -> None:
        """Write them for the engine. The student has not moved since."""

    @abstractmethod
    def standing_in(self, student: CausalLM) -> AbstractContextManager[None]:
        """Put them into the student until the context ends; then restore its own."""


class HandedAdapter(Handed):
    """The adapter of a LoRA student, copied: megabytes."""

    def __init__(self, student: CausalLM) -> None:
        self.adapter: Adapter = {
            name: factors._replace(a_RI=factors.a_RI.clone(), b_OR=factors.b_OR.clone())
            for name, factors in adapter_of(student.model).items()
        }

    def write(self, student: CausalLM, folder: Path) -> None:
        save_adapter(student.model, student.path, folder, task_type="CAUSAL_LM")

    def standing_in(self, student: CausalLM) -> AbstractContextManager[None]:
        return standing_in(student.model, self.adapter)


class HandedWeights(Handed):
    """All weights of a student, which the engine reads from one file.

    Args:
        student: loaded.
        moves: whether it is trained on before its samples are scored. Only then are the weights copied.
    """

    def __init__(self, student: CausalLM, moves: bool) -> None:
        named = student.model.named_parameters()
        self.copies = {name: parameter.detach().clone() for name, parameter in named} if moves else {}

    def write(self, student: CausalLM, folder: Path) -> None:
        shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # a bar for every rollout
        try:
            student.model.save_pretrained(folder)
        finally:
            if shown:
                logging.enable_progress_bar()

    def standing_in(self, student: CausalLM) -> AbstractContextManager[None]:
        return replaced(student.model, self.copies)


@contextmanager
def replaced(model: nn.Module, copies: Mapping[str, Tensor]) -> Iterator[None]:
    """Let parameters have other values until the context ends. They stay the same objects, so an optimiser keeps them."""
    kept = {name: parameter.data for name, parameter in model.named_parameters() if name in copies}
    try:
        for name, tensor in copies.items():
            model.get_parameter(name).data = tensor
        yield
    finally:
        for name, tensor in kept.items():
            model.get_parameter(name).data = tensor
