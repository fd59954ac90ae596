"""Out of memory: a step is repeated with smaller micro-batches; where that cannot help, a message says what to lower."""

from __future__ import annotations

import gc
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import torch

from cfg_distill.distillation.sharding import is_sharded
from cfg_distill.errors import ConfigError, PartError

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation

# Refusals of allocators and libraries that raise no torch.OutOfMemoryError: the CPU's (on Windows too), MPS's, cuBLAS's.
_SIGNS = ("allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception is an allocator's refusal."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def halved(size: int, group: int) -> int:
    """The largest micro-batch of at most half the size: a multiple or a divisor of the group; 0 where there is none.

    Args:
        size: samples at once.
        group: G, samples per prompt.

    Example:
        >>> [halved(size, group=6) for size in (30, 12, 6, 3, 1)]
        [12, 6, 3, 1, 0]
    """
    half = size // 2
    if half >= group:
        return half // group * group
    return max((number for number in range(1, half + 1) if group % number == 0), default=0)


def with_less_memory(module: CFGDistillation, rows: int, attempt: Callable[[int], T]) -> T:
    """The result of an attempt, which is repeated with half the micro-batch whenever memory runs out.

    The smaller micro-batch stays for the rest of the run, so one attempt fails and not one per step. No other rank takes part:
    an attempt must not wait for one. In shards every attempt does, so there is only one.

    Args:
        module: its micro-batch is where the attempts begin.
        rows: samples that there are.
        attempt: from a micro-batch, 0 for all at once, to a result. It must begin anew each time.

    Raises:
        RuntimeError: the allocator's refusal, with one sample at once or with ``execution.halve_micro_batch`` off.
    """
    group, size, refused = module.sampling.samples, module.micro_batch, ""
    while True:
        try:
            found = attempt(size)
            break
        except RuntimeError as error:
            smaller = halved(min(size or rows, rows), group)
            may_repeat = module.execution.halve_micro_batch and not is_sharded(module.student)
            if not (smaller and may_repeat and is_out_of_memory(error)):
                raise
            refused = refused or f"with {min(size or rows, rows)} samples at once ({_first_line(error)})"
            # The frames of the failed attempt hold its tensors, and the exception holds the frames.
            traceback.clear_frames(error.__traceback__)
        size = smaller
        free_memory()
    if refused:
        module.micro_batch = size
        warnings.warn(
            f"Out of memory in step {module.global_step} on rank {module.global_rank} {refused}. The step was repeated with the"
            f" same samples, {size} at once, which changes nothing but rounding; so are the next steps. Set"
            f" `model.micro_batch` to {size} to spare the failed attempt.",
            stacklevel=2,
        )
    return found


def free_memory() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


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
    except (RuntimeError, PartError) as error:
        refusal = error.__cause__ if isinstance(error, PartError) else error
        if refusal is None or not is_out_of_memory(refusal):
            raise
        prompts, sampling = module.batch, module.sampling
        raise ConfigError(
            f"Out of memory in step {module.global_step}: {len(prompts)} prompts (`data.batch_size`) x {sampling.samples}"
            f" samples (`model.sampling.samples`) of sequences of up to {_prompt_positions(module)} positions of a prompt and"
            f" {sampling.max_new_tokens} generated ones (`model.sampling.max_new_tokens`), of which"
            f" {module.micro_batch or len(prompts) * sampling.samples} samples are trained at once (`model.micro_batch`)."
            " First lower `model.micro_batch`, which changes nothing else; then train a `model.generator.lora` instead of all"
            " weights, whose base may have `model.generator.dtype: bfloat16`; or lower the batch, or the sequence."
            f" The allocator said: {_first_line(refusal)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0]


def _prompt_positions(module: CFGDistillation) -> int | str:
    try:
        return module.student.prompt_positions(module.batch)
    except RuntimeError:  # not even that fits
        return "unknown"
