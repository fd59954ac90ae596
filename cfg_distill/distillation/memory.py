"""Out of memory: a message that says which setting to lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from cfg_distill.errors import ConfigError

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation

# Refusals of allocators and libraries that raise no torch.OutOfMemoryError: the CPU's (on Windows too), MPS's, cuBLAS's.
_SIGNS = ("allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")


@contextmanager
def advice_on_memory(module: CFGDistillation) -> Iterator[None]:
    """Turn an allocator's refusal within a step into advice on what to lower.

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


def _prompt_positions(module: CFGDistillation) -> int | str:
    try:
        return module.student.prompt_positions(module.batch)
    except RuntimeError:  # not even that fits
        return "unknown"
