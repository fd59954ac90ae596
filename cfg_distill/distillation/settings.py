"""What is wrong with the settings of a distillation and of its trainer, found before weights are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.callbacks import LearningRateFinder, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from cfg_distill.distillation.ahead import problems_of_sampler, problems_of_sampler_with
from cfg_distill.distillation.dial import problems_of_dial
from cfg_distill.distillation.off_policy import problems_of_policy
from cfg_distill.distillation.rehearsal import problems_of_steps
from cfg_distill.distillation.sharding import FSDP2, problems_of_sharding
from cfg_distill.errors import Context, Problem, problems_of, problems_of_not_negative
from cfg_distill.generators.guided import problems_of_drop
from cfg_distill.losses import Divergence, Loss

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")


def summary(module: CFGDistillation) -> str:
    """What is about to be trained, in one line: each loss with its class and weight, the teacher, the group."""
    losses = module.mix
    moved, samples = module.guidance.moved, module.sampling.samples
    guidance = f"{moved.first:g}" if moved.first == moved.last else f"{moved.first:g} to {moved.last:g} ({moved.kind})"
    if module.dial is not None:
        low, high = (module.guidance.at(setting).scale for setting in (module.dial.low, module.dial.high))
        guidance = f"{low:g} to {high:g}, by a dial"
    if module.guidance.teacher_system is not None:
        guidance += ", under a system message of its own"
    drawn_by = "" if module.sampler.is_own_loop else f", drawn by {module.sampler}"
    return f"Losses: {_listed(losses)}. Guidance of the teacher: {guidance}. Samples per prompt: {samples}{drawn_by}."


def configured(module: CFGDistillation) -> dict[str, Any]:
    """What a checkpoint says of the recipe: weights of losses, to be compared on resuming, and what a model card tells."""
    losses = module.mix
    return {
        "losses": {name: loss.weight.item() for name, loss in losses.items()},
        "card": {
            "guidance": module.guidance.strongest,
            "dialled": module.dial is not None,
            **({} if module.dial is None else {"dial_low": module.dial.low, "dial_high": module.dial.high}),
            "teacher_system": module.guidance.teacher_system or "",
            "losses": {name: type(loss).__name__ for name, loss in losses.items()},
            "start": module.start,
        },
    }


def problems_of_settings(module: CFGDistillation) -> list[Problem]:
    """What is wrong with the settings of a module; keys are relative to ``model``."""
    student = module.student
    found = problems_of(student, under="generator.init_args")
    is_readable = not found
    length, rate = module.sampling.max_new_tokens, student.frame_rate if is_readable else None
    context = Context(
        samples=module.sampling.samples,
        longest=student.longest_sample if is_readable else None,
        training=True,
        labels=None if module.conditioner is None else module.conditioner.values,
        siblings_differ=module.conditioner is not None and module.conditioner.siblings_differ,
        length=length,
        seconds=length / rate if rate else None,
        opening=0 if module.opening is None else module.opening.tokens,
    )
    found += problems_of(module.conditioner, context, under="conditioner.init_args")
    found += problems_of(module.opening, context, under="opening")
    found += problems_of(module.guidance, context, under="guidance")
    given = {"negative_system": "Set `@/model.guidance.negative`", "teacher_system": "Give prompts a `teacher_prompt`"}
    for key, instead in given.items() if is_readable else ():
        if vars(module.guidance)[key] is not None and not student.takes_system:
            text = (
                "expected a model under a chat template that takes system messages, but"
                f" `{student.path}` is none. {instead} instead."
            )
            found.append(Problem(f"guidance.{key}", text))
    found += [each.under("guidance.drop") for each in problems_of_drop(student, module.guidance) if is_readable]
    found += problems_of(module.sampling, context, under="sampling")
    if module.start:
        found += [_problem(each) for each in student.problems_of_start(module.start)]
    found += problems_of_dial(module)
    found += problems_of_sampler(module, context, is_readable)
    found += _problems_of_precision(module)
    found += _problems_of_step(module)
    found += problems_of_steps(module.optimizer, module.scheduler)
    found += _problems_of_losses(module, context, is_readable)
    return found


def _problem(found: str | Problem) -> Problem:
    return found if isinstance(found, Problem) else Problem("", found)


def _problems_of_precision(module: CFGDistillation) -> list[Problem]:
    dtype = module.student.dtype
    if module.student.lora is not None or dtype == "float32":
        return []
    return [
        Problem(
            "generator.init_args.dtype",
            "expected float32 where all weights are trained, since their steps are lost in the rounding of half precision, but"
            f" got {dtype}. Set `@/trainer.precision` to bf16-mixed, or train a `@/model.generator.init_args.lora`.",
        )
    ]


def _problems_of_step(module: CFGDistillation) -> list[Problem]:
    """Numbers of a training step."""
    found = []
    if not module.micro_batch >= 0:
        found.append(Problem("micro_batch", f"expected 0 (all at once) or more, but got {module.micro_batch}."))
    found += problems_of(module.execution, under="execution")
    if not module.measure_gradients_every >= 0:
        text = f"expected 0 (never) or more steps, but got {module.measure_gradients_every}."
        found.append(Problem("measure_gradients_every", text))
    found += problems_of_not_negative(seed=module.seed, max_bad_steps=module.max_bad_steps, redraw=module.redraw)
    group = module.sampling.samples
    if module.micro_batch > 0 and group > 0 and group % module.micro_batch and module.micro_batch % group:
        text = f"expected a divisor or a multiple of `@/model.sampling.samples`, {group}, but got {module.micro_batch}."
        found.append(Problem("micro_batch", text))
    return found


def _problems_of_losses(module: CFGDistillation, context: Context, is_readable: bool) -> list[Problem]:
    losses = module.mix
    found = []
    if not losses:
        found.append(Problem("losses", "expected at least one loss, but got none. Add `kl`."))
    elif not (module.allow_no_teacher or module.off_policy or any(_ties_to_teacher(loss) for loss in losses.values())):
        text = (
            "nothing ties the student to the guided teacher. Expected a divergence with a weight above 0, but got"
            f" {_listed(losses)}. Add one, such as `kl`, or set `@/model.allow_no_teacher` to true."
        )
        found.append(Problem("losses", text))
    found += problems_of_policy(module)
    for name, loss in losses.items():
        weights = loss.codebook_weights if is_readable and isinstance(loss, Divergence) else ()
        if weights and len(weights) != module.student.num_codebooks:
            text = f"expected {module.student.num_codebooks} numbers, one per codebook, but got {len(weights)}."
            found.append(Problem(f"losses.{name}.init_args.codebook_weights", text))
        found += problems_of(loss, context, under=f"losses.{name}.init_args")
    return found


def _listed(losses: Mapping[str, Loss]) -> str:
    return ", ".join(
        f"{name} ({type(loss).__name__}, weight {loss.weight.item():.4g})" for name, loss in losses.items()
    )


def _ties_to_teacher(loss: Loss) -> bool:
    return isinstance(loss, Divergence) and not loss.weight.item() <= 0  # NaN is a problem of the loss, and told there


def problems_with_trainer(module: CFGDistillation, trainer: Trainer) -> list[Problem]:
    """What is wrong with the settings of a trainer of a module; keys are relative to ``model``."""
    return (
        problems_of_trainer(trainer) + problems_of_sharding(module, trainer) + problems_of_sampler_with(module, trainer)
    )


def problems_of_trainer(trainer: Trainer) -> list[Problem]:
    """What in a trainer's settings would stop or spoil a distillation.

    - Precisions that cast the module: steps of fine-tuning are lost in the rounding of half precision, and so are beta and
      the factors of an adapter.
    - Strategies other than a whole student in each process, and shards by our own strategy.
    - Apple's MPS, which has no float64: drawing from a large vocabulary takes it.
    - Deterministic algorithms alone on CUDA, where torch has no such cumulative sum: drawing takes one.
    - Callbacks of Lightning that copy the module, or set its learning rate: :func:`_problem_of_callback`.
    """
    found = []
    if trainer.precision not in PRECISIONS:
        found.append(
            Problem(
                "/trainer.precision",
                f"expected one of {', '.join(PRECISIONS)}, since trained weights must be float32, but got {trainer.precision}."
                " Use bf16-mixed, or `@/model.generator.init_args.dtype` bfloat16 with a `@/model.generator.init_args.lora`.",
            )
        )
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy | FSDP2):
        text = (
            f"expected auto, a kind of ddp, or fsdp2, but got {type(trainer.strategy).__name__}. Use ddp, or fsdp2 where memory"
            " is short."
        )
        found.append(Problem("/trainer.strategy", text))
    if isinstance(trainer.accelerator, MPSAccelerator):
        text = "expected cpu or cuda, since sampling takes float64, but got mps. Set it to cpu."
        found.append(Problem("/trainer.accelerator", text))
    strict = torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
    if strict and trainer.strategy.root_device.type == "cuda":
        text = "expected warn, since sampling takes a cumulative sum, for which torch has no deterministic algorithm on CUDA,"
        found.append(Problem("/trainer.deterministic", f"{text} but got true. Set it to warn."))
    callbacks: list[Callback] = vars(trainer)["callbacks"]  # Lightning sets it from elsewhere
    return found + [each for each in map(_problem_of_callback, callbacks) if each is not None]


def _problem_of_callback(callback: Callback) -> Problem | None:
    """Why a callback of Lightning cannot serve a distillation; None where nothing is known against it."""
    instead = "Use `cfg_distill.callbacks.StudentEMA`, which averages the student."
    if isinstance(callback, StochasticWeightAveraging):
        text = "expected no callback that copies the module before its weights are loaded: it would average nothing,"
    elif isinstance(callback, WeightAveraging):  # of which EMAWeightAveraging is one
        text = "expected no callback that averages the whole module, since the teacher is a part of it,"
    elif isinstance(callback, LearningRateFinder):
        text = "expected no callback that sets an `lr` of the module, since the optimizer has it,"
        instead = "Remove it, and set `@/model.optimizer.init_args.lr`."
    else:
        return None
    return Problem("/trainer.callbacks", f"{text} but got {type(callback).__name__}. {instead}")
