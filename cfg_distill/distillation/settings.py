"""What is wrong with the settings of a distillation and of its trainer, found before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import nn

from cfg_distill.generators import Generator
from cfg_distill.guidance import Guidance
from cfg_distill.losses import Divergence, Loss
from cfg_distill.sampling import Sampling

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


class Module(Protocol):
    """Of :class:`~cfg_distill.CFGDistillation`, what can be set wrong."""

    student: Generator
    guidance: Guidance
    sampling: Sampling
    losses: nn.ModuleDict
    start: str
    dropout: bool
    micro_batch: int
    logits_chunk: int
    allow_no_teacher: bool


def summary(module: Module) -> str:
    """What is about to be trained, in one line: each loss with its class and weight, the teacher, the group."""
    losses = cast(Mapping[str, Loss], dict(module.losses.items()))
    guidance, samples = f"{module.guidance.scale:g}", module.sampling.samples
    return f"Losses: {_listed(losses)}. Guidance of the teacher: {guidance}. Samples per prompt: {samples}."


def problems_of_settings(module: Module) -> list[str]:
    """What is wrong with the settings of a module, a sentence each."""
    losses = cast(Mapping[str, Loss], dict(module.losses.items()))
    found = module.student.problems()
    is_readable = not found
    limit = module.student.longest_sample if is_readable else None
    found += module.guidance.problems()
    if not found and module.guidance.negative_system is not None and not module.student.takes_system:
        found.append(
            "Key `model.guidance.negative_system`: expected a model under a chat template that takes system messages, but"
            f" `{module.student.path}` is none. Give `model.guidance.negative` instead."
        )
    found += module.sampling.problems(limit, training=True)
    if module.start:
        found += module.student.problems_of_start(module.start)
    if module.student.lora is not None and module.student.lora.dropout and not module.dropout:
        found.append(
            "Key `model.generator.lora.dropout`: it takes `model.dropout: true`, which is false. Set it, or leave it out."
        )
    dtype = getattr(module.student, "dtype", "float32")
    if module.student.lora is None and dtype != "float32":
        found.append(
            "Key `model.generator.dtype`: expected float32 where all weights are trained, since their steps are lost in the"
            f" rounding of half precision, but got {dtype}. Set `trainer.precision: bf16-mixed`, or train a"
            " `model.generator.lora`."
        )
    if not module.losses:
        found.append("Key `model.losses`: expected at least one loss, but got none. Add `kl`.")
    elif not module.allow_no_teacher and not any(_ties_to_teacher(loss) for loss in losses.values()):
        found.append(
            "Key `model.losses`: nothing ties the student to the guided teacher. Expected a divergence with a weight above 0,"
            f" but got {_listed(losses)}. Add one, such as `kl`, or set `model.allow_no_teacher: true`."
        )
    for key, value in (("micro_batch", module.micro_batch), ("logits_chunk", module.logits_chunk)):
        if value < 0:
            found.append(f"Key `model.{key}`: expected 0 (all at once) or more, but got {value}.")
    group = module.sampling.samples
    if module.micro_batch > 0 and group % module.micro_batch and module.micro_batch % group:
        found.append(
            f"Key `model.micro_batch`: expected a divisor or a multiple of `model.sampling.samples`, {group}, but got"
            f" {module.micro_batch}."
        )
    for name, loss in losses.items():
        weights = loss.codebook_weights if is_readable and isinstance(loss, Divergence) else ()
        if weights and len(weights) != module.student.num_codebooks:
            found.append(
                f"Key `model.losses.{name}.init_args.codebook_weights`: expected {module.student.num_codebooks} numbers, one"
                f" a codebook, but got {len(weights)}."
            )
        found += [f"In `model.losses.{name}`: {problem}" for problem in loss.problems(module.sampling.samples)]
    return found


def _listed(losses: Mapping[str, Loss]) -> str:
    return ", ".join(
        f"{name} ({type(loss).__name__}, weight {loss.weight.item():.4g})" for name, loss in losses.items()
    )


def _ties_to_teacher(loss: Loss) -> bool:
    return isinstance(loss, Divergence) and loss.weight.item() > 0


def problems_of_trainer(trainer: Trainer) -> list[str]:
    """What of a trainer's settings would stop or spoil a distillation, a sentence each.

    - Precisions that cast the module: steps of fine-tuning are lost in the rounding of half precision, and so are beta and
      the factors of an adapter.
    - Strategies that shard the student, which is not supported; those that are run a whole student in each process.
    - Apple's MPS, which has no float64: drawing from a large vocabulary takes it.
    """
    found = []
    if trainer.precision not in PRECISIONS:
        found.append(
            f"Key `trainer.precision`: expected one of {', '.join(PRECISIONS)}, since what is trained must be float32, but got"
            f" {trainer.precision}. Take bf16-mixed, or `model.generator.dtype: bfloat16` with a `model.generator.lora`."
        )
    if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
        found.append(
            "Key `trainer.strategy`: expected auto or a kind of ddp, since a student in shards is not supported, but got"
            f" {type(trainer.strategy).__name__}. Take ddp; where memory is short, a `model.generator.lora`."
        )
    if isinstance(trainer.accelerator, MPSAccelerator):
        found.append(
            "Key `trainer.accelerator`: expected cpu or cuda, since sampling takes float64, but got mps. Set it to cpu."
        )
    return found
