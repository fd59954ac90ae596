"""Out of memory is a setting too large: a message that says which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from cfg_distill.errors import ConfigError
from cfg_distill.sampling import Sampling


@contextmanager
def advice_on_memory(step: int, num_prompts: int, sampling: Sampling, micro_batch: int) -> Iterator[None]:
    """Turn an allocator's refusal within a training step into what to lower.

    Raises:
        ConfigError: memory ran out.
    """
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one, and the CPU's allocator raises the plain class
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise ConfigError(
            f"Out of memory in step {step}: {num_prompts} prompts (`data.batch_size`) x {sampling.samples} samples"
            f" (`model.sampling.samples`) of up to {sampling.max_new_tokens} tokens (`model.sampling.max_new_tokens`), of"
            f" which {micro_batch or num_prompts * sampling.samples} samples are trained at once (`model.micro_batch`)."
            " First lower `model.micro_batch`, which changes nothing else; then train a `model.generator.lora` instead of all"
            " weights, lower `model.generator.dtype`, or the batch."
            f" The allocator said: {str(error).splitlines()[0]}"
        ) from error
