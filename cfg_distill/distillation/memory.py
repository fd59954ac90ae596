"""Out of memory is a setting too large: a message that says which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from cfg_distill.errors import ConfigError
from cfg_distill.generators import Generator
from cfg_distill.sampling import Sampling

# How allocators and libraries refuse that do not raise torch.OutOfMemoryError: the CPU's (on Windows too), MPS's, cuBLAS's.
_SIGNS = ("allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")


class Module(Protocol):
    """Of :class:`~cfg_distill.CFGDistillation`, what the advice is about.

    Attributes:
        batch: the prompts of the step that is being taken.
    """

    batch: Sequence[str]
    student: Generator
    sampling: Sampling
    micro_batch: int

    @property
    def global_step(self) -> int: ...


@contextmanager
def advice_on_memory(module: Module) -> Iterator[None]:
    """Turn an allocator's refusal within a step into what to lower.

    Args:
        module: the one that takes the step.

    Raises:
        ConfigError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not isinstance(error, torch.OutOfMemoryError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        prompts, sampling = module.batch, module.sampling
        raise ConfigError(
            f"Out of memory in step {module.global_step}: {len(prompts)} prompts (`data.batch_size`) x {sampling.samples}"
            f" samples (`model.sampling.samples`) of sequences of up to {_prompt_positions(module)} positions of a prompt and"
            f" {sampling.max_new_tokens} generated ones (`model.sampling.max_new_tokens`), of which"
            f" {module.micro_batch or len(prompts) * sampling.samples} samples are trained at once (`model.micro_batch`)."
            " First lower `model.micro_batch`, which changes nothing else; then train a `model.generator.lora` instead of all"
            " weights, whose base may have `model.generator.dtype: bfloat16`; or lower the batch, or the sequence."
            f" The allocator said: {str(error).splitlines()[0]}"
        ) from error


def _prompt_positions(module: Module) -> int | str:
    try:
        return module.student.prompt_positions(module.batch)
    except RuntimeError:  # not even that fits
        return "unknown"
