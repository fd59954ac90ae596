"""CFGDistillation: the LightningModule that wires student, guided teacher and rewards. It does no maths of its own.

Shapes: N rows (B prompts x G samples), K codebooks, T generated positions.
"""

import hashlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from cfg_distill import checkpoints
from cfg_distill.checkpoints import student_weights
from cfg_distill.distillation.finite import (
    PATIENCE,
    gradient_norm,
    not_finite,
    problems_of_gradient,
    problems_of_optimizer,
)
from cfg_distill.distillation.gradients import norms
from cfg_distill.distillation.memory import advice_on_memory
from cfg_distill.distillation.resuming import settings_of, settings_of_scheduler, take_settings, weights_after
from cfg_distill.distillation.settings import problems_of_settings, problems_of_trainer, summary
from cfg_distill.embedders.base import Embedder
from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.generators import Generator, Guided, PromptLike
from cfg_distill.generators.linear import onednn
from cfg_distill.generators.lora import lora_layers
from cfg_distill.guidance import Guidance
from cfg_distill.losses import LOGITS_CHUNK, Divergence, Loss, LossInputs, mix
from cfg_distill.metrics.model import DISTANCE, ENTROPIES
from cfg_distill.rewards import Reward
from cfg_distill.rewards.running import RunningMean
from cfg_distill.sampling import Rollout, Sampling, problems_of_lengths, rollout
from cfg_distill.sampling.samples import Samples, decoded


class CFGDistillation(L.LightningModule):
    r"""Distil the classifier-free guidance of a generator into its own weights, and keep its samples diverse.

    Each step draws G samples per prompt from the student WITHOUT guidance, scores them with the student and with the frozen
    start model WITH guidance, and descends

    .. math:: \sum_k w_k \frac{L_k}{\text{count}}, \qquad
        L = \mathrm{KL}(\text{student} \| \text{guided teacher}) - \beta\, D

    Source: Cideron et al., ICLR 2025 (arXiv 2410.06084), section 3. The count is one for all terms, so that beta means the
    same under either reduction, and it is summed over micro-batches and ranks before it divides: a split changes nothing.

    Args:
        generator: the start model: the teacher, and what the student begins as.
        losses: the mix, a name for each term.
        guidance: how the teacher is guided.
        sampling: how the student samples while training and in validation.
        start: a folder of the same architecture whose weights the student begins with (a quality student, say); empty
            for the generator's own. The teacher stays the generator.
        reduction: what the terms are divided by: ``sum`` the number of samples (a sum over positions, the paper's), ``mean``
            the number of generated positions.
        optimizer: from the student's parameters to an optimiser.
        scheduler: from the optimiser to a scheduler; it steps with the optimiser.
        dropout: keep the base's dropout while training. Off by default: the probability that trains must be that of the
            distribution that sampled. (The adapter's dropout is ``lora.dropout`` alone.)
        micro_batch: samples that are scored and differentiated at once, a divisor or a multiple of G; 0 for the whole batch.
            It lowers the memory of a step and changes nothing else: rollouts stay as large as the batch.
        logits_chunk: logits that exist at once (cells times vocabulary): head, losses and their gradients in one pass; 0
            makes all logits at once, and differentiates them by autograd.
        measure_gradients_every: steps between measurements; 0 for never. A measurement logs ``gradient_norm/NAME``, the norm of
            each loss's gradient over the batch of all devices, weight included; ``gradient_ratio/NAME``, that norm divided by
            the norm of the first divergence of the mix; and entropies. It scores and differentiates the batch once more per
            loss.
        onednn: on a CPU, in float32, let oneDNN multiply by the weights, which is up to twice as fast as torch's own products;
            rounding aside it changes nothing.
        seed: of the rollouts; each also depends on step and rank, so that a resumed run draws what an unbroken one would.
        allow_no_teacher: train without any divergence from the guided teacher; such a recipe is refused otherwise.
    """

    def __init__(
        self,
        generator: Generator,
        losses: dict[str, Loss],
        guidance: Guidance = Guidance(scale=3.0),
        sampling: Sampling = Sampling(),
        start: str = "",
        reduction: Literal["sum", "mean"] = "mean",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        dropout: bool = False,
        micro_batch: int = 0,
        logits_chunk: int = LOGITS_CHUNK,
        measure_gradients_every: int = 10,
        onednn: bool = True,
        seed: int = 0,
        allow_no_teacher: bool = False,
    ) -> None:
        super().__init__()
        if unusable := [name for name in losses if "." in name or hasattr(nn.ModuleDict, name)]:
            text = f"expected names that are no attribute of a module, without a full stop, but got {unusable}. Rename them."
            raise ConfigError(Problem("/model.losses", text))
        self.generator_spec = checkpoints.spec_of(generator)
        self.student = generator
        self.teacher: Generator | None = None
        self.guidance = guidance
        self.sampling = sampling
        self.losses = nn.ModuleDict(losses)
        self.start = start
        self.reduction = reduction
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.dropout = dropout
        self.micro_batch = micro_batch
        self.logits_chunk = logits_chunk
        self.measure_gradients_every = measure_gradients_every
        self.onednn = onednn
        self.seed = seed
        self.allow_no_teacher = allow_no_teacher
        self.measure_gradients = False
        self.gradient_norms: dict[str, Tensor] = {}
        self.batch: Sequence[PromptLike] = ()
        self._count = torch.zeros(())
        # The unweighted sums of the losses since the last step of the optimiser, and steps in a row that a scaler skipped.
        self._sums: dict[str, Tensor] = {}
        self._skipped = 0
        self._teacher_fingerprint = ""
        # Settings of this recipe, and those recorded in the checkpoint (compared in resuming.py).
        self._configured: dict[str, Any] = {"losses": {name: loss.weight.item() for name, loss in losses.items()}}
        self._configured_then: dict[str, Any] = {}

    # Settings and weights

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, found without loading weights."""
        return problems_of_settings(self)

    def summary(self) -> str:
        """What is about to be trained, in one line."""
        return summary(self)

    def problems_with(self, trainer: L.Trainer) -> list[Problem]:
        """What is wrong with the settings of a trainer of this module."""
        return problems_of_trainer(trainer)

    def problems_of_data(self, data: Any) -> list[Problem]:
        """Why there can be no samples of the prompts of a data module that was set up."""
        found = [
            problem if isinstance(problem, Problem) else Problem("", problem)
            for given in prompts_of(data)
            for problem in self.student.problems_of_prompts(given)
        ]
        return list(dict.fromkeys(found))

    def setup(self, stage: str) -> None:
        problems = self.problems_with(self.trainer)
        if problems := problems or self.problems_of_data(self._data):
            raise ConfigError(problems)

    @property
    def _data(self) -> Any:
        """The data module of a fit; the trainer has none in the commands that need no data."""
        return getattr(self.trainer, "datamodule", None)

    def configure_model(self) -> None:
        """Load the weights once: Lightning calls this at the start of fit, validate and test alike.

        Raises:
            ConfigError: the settings are wrong, or weights do not fit.
        """
        if self.teacher is not None:
            return
        if problems := self.problems():
            raise ConfigError([problem.under("model") for problem in problems])
        self.student.load()
        self.teacher = self.student.frozen_copy()
        if self.start:
            self.student.load_weights(self.start)
        for loss in self._mix.values():
            loss.load()
        self.train(self.training)

    def train(self, mode: bool = True) -> "CFGDistillation":
        """Frozen models never leave eval mode. The student does only when its dropout is wanted; the adapter's own dropout,
        ``lora.dropout``, needs no more than its probability.
        """
        super().train(mode)
        for module in self._frozen_parts().values():
            module.eval()
        if not self.dropout:
            self.student.eval()
        lora = self.student.lora
        if mode and lora is not None and lora.dropout and self.teacher is not None:
            for layer in lora_layers(self.student.model).values():
                layer.lora_dropout.train()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer([p for p in self.student.parameters() if p.requires_grad])
        self._configured["optimizer"] = settings_of(optimizer)
        scheduler = self.scheduler(optimizer)
        self._configured["scheduler"] = settings_of_scheduler(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # One step

    def rollout(self, prompts: Sequence[PromptLike], seed: int = 0) -> Rollout:
        """Groups of samples that the student learns from: its own, without guidance. Override to roll out differently."""
        return rollout(self.student, prompts, self.sampling, seed=seed)

    def draw(self, prompts: Sequence[PromptLike], seed: int = 0) -> Samples:
        """Decoded samples of the student as it is now."""
        return decoded(self.student, prompts, self.rollout(prompts, seed))

    def score(
        self, samples: Samples, prompts: Sequence[PromptLike] | None = None, rows: slice = slice(None)
    ) -> LossInputs:
        """Predictions of student and guided teacher on the student's samples, or on some rows of them.

        Args:
            samples: the whole batch.
            prompts: the prompts of these rows, each of which has the same number of them; None for all.
            rows: which rows.
        """
        assert self.teacher is not None
        prompts = samples.asked if prompts is None else prompts
        tokens_NKT, mask_NKT = samples.rollout.tokens_NKT[rows], samples.rollout.mask_NKT[rows]
        with torch.no_grad():
            teacher = Guided(self.teacher, self.guidance).predictions(prompts, tokens_NKT, mask_NKT)
        student = self.student.predictions(prompts, tokens_NKT, mask_NKT)
        return LossInputs(student, teacher, tokens_NKT, mask_NKT, self.sampling, samples, rows)

    def training_step(self, batch: list[PromptLike], batch_idx: int) -> dict[str, Any]:
        """One step; callbacks find its outcome in their ``outputs``.

        Returns:
            ``loss``; ``samples``, the decoded groups; ``rewards`` and ``advantages``, ``[B, G]`` by the name of each loss that
            has them.
        """
        self.batch = batch
        with advice_on_memory(self), onednn(self.onednn):
            return self._training_step(batch, batch_idx)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        with advice_on_memory(self):
            super().backward(loss, *args, **kwargs)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        with advice_on_memory(self):  # the optimiser's state is made at its first step
            super().optimizer_step(*args, **kwargs)

    def _training_step(self, batch: list[PromptLike], batch_idx: int) -> dict[str, Any]:
        if self._count == 0:
            # Here and not by Lightning, which would do it after the micro-batches below.
            cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False)).zero_grad()
        drawn = self.rollout(batch, self._rollout_seed(self.global_step, batch_idx))
        samples = decoded(self.student, batch, drawn)
        advantages = {name: loss.advantage(samples) for name, loss in self._mix.items()}
        weights = {name: loss.weight_at(self.global_step) for name, loss in self._mix.items()}
        every = self.measure_gradients_every
        measuring = self.measure_gradients or (every and self.global_step % every == 0 and self._count == 0)
        sums: dict[str, Tensor] = {}
        earlier = torch.zeros((), device=drawn.tokens_BGKT.device)
        parts = self._micro_batches(batch)
        if measuring:
            self._measure_gradients(samples, parts, advantages, weights)
        for number, (prompts, rows) in enumerate(parts):
            inputs = self.score(samples, prompts, rows)
            total, part = mix(
                self._mix, inputs, weights, advantages, ENTROPIES if measuring else None, self.logits_chunk
            )
            sums = {name: sums.get(name, 0.0) + value for name, value in part.items()}
            if number + 1 < len(parts):
                # Each micro-batch's graph is gone before the next; the last one's backward pass is Lightning's, which also
                # divides by the batches that it accumulates.
                accumulated = self.trainer.accumulate_grad_batches
                self.trainer.strategy.backward(total / self._count_scale / accumulated, None)
                earlier += total.detach()
        self._sums = {name: self._sums.get(name, 0.0) + sums[name] for name in self._mix}
        count = self._count_of(drawn.mask_NKT)
        self._log_step(drawn, weights, sums, count)
        self._count = self._count.to(count.device) + count
        # Divided by a constant here, by the true count of all micro-batches and ranks before the optimiser steps.
        return {
            "loss": (total + earlier) / self._count_scale,
            "samples": samples,
            "rewards": {name: loss.reward_BG for name, loss in self._mix.items() if loss.reward_BG is not None},
            "advantages": {name: each.view(len(batch), -1) for name, each in advantages.items() if each is not None},
        }

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: Lightning calls this between training_step and the backward pass, and micro-batches have gone by."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Stop at a gradient that is not finite, and turn Lightning's mean of means over micro-batches and ranks into the
        all-reduced sum over the all-reduced count.

        Raises:
            ConfigError: on all ranks alike, before the optimiser moves.
        """
        is_finite = gradient_norm(self.student.parameters()).isfinite().to(self._count.device, self._count.dtype)
        every_R2 = cast(Tensor, self.all_gather(torch.stack([self._count, is_finite]))).view(-1, 2)
        counts_R = every_R2[:, 0]
        mean_count, all_finite = torch.stack([counts_R.float().mean(), every_R2[:, 1].amin().float()]).tolist()
        if not all_finite:
            self._stop_unless_skipped()
        else:
            self._skipped = 0
        if found := problems_of_optimizer(optimizer):
            raise ConfigError([problem.under("model") for problem in found])
        factor = self._count_scale * self.trainer.accumulate_grad_batches / mean_count
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        self._count, self._sums = torch.zeros_like(self._count), {}

    def _stop_unless_skipped(self) -> None:
        """Stop before a step with a gradient that is not finite; of a gradient scaler only when it is not to blame.

        Scaled for float16, a sound gradient may overflow. The scaler then skips the step and lowers its factor, which is how it
        finds one. A loss that is not finite has another cause, and so have many skipped steps in a row.
        """
        local_L = torch.stack([value.float() for value in self._sums.values()])
        sums = dict(zip(self._sums, cast(Tensor, self.all_gather(local_L)).view(-1, len(local_L)).sum(0), strict=True))
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
            self._skipped += 1
            if self._skipped < PATIENCE and all(value.isfinite() for value in sums.values()):
                return
        raise ConfigError([problem.under("model") for problem in problems_of_gradient(sums, self.global_step)])

    def validation_step(self, batch: list[PromptLike], batch_idx: int) -> dict[str, Any]:
        self.batch = batch
        with advice_on_memory(self), onednn(self.onednn):
            return self._validation_step(batch, batch_idx)

    def _validation_step(self, batch: list[PromptLike], batch_idx: int) -> dict[str, Any]:
        drawn = self.rollout(batch, self._rollout_seed(-1, batch_idx))
        samples = decoded(self.student, batch, drawn)
        sums: dict[str, Tensor] = {}
        for prompts, rows in self._micro_batches(batch):
            part = mix({}, self.score(samples, prompts, rows), {}, {}, DISTANCE | ENTROPIES, self.logits_chunk)[1]
            sums = {name: sums.get(name, 0.0) + value for name, value in part.items()}
        cells = int(drawn.mask_NKT.sum())
        # Means weighted by the cells behind them: Lightning then reduces sums and counts over batches and ranks.
        shown = {f"val/{name}": value / cells for name, value in sums.items()}
        self.log_dict(shown, batch_size=cells, sync_dist=True)
        self.log("val/length", drawn.length_N.float().mean(), batch_size=len(batch), sync_dist=True)
        return {"samples": samples}

    # Its parts

    @property
    def _mix(self) -> dict[str, Loss]:
        return cast(dict[str, Loss], dict(self.losses.items()))

    @property
    def gradient_reference(self) -> str:
        """The loss whose gradient ``gradient_ratio/*`` divides by: the first divergence of the mix, else the first loss."""
        divergences = [name for name, loss in self._mix.items() if isinstance(loss, Divergence)]
        return divergences[0] if divergences else next(iter(self._mix))

    def _rollout_seed(self, step: int, batch_idx: int) -> int:
        # Distinct streams for training (step >= 0) and validation (-1: the same draws at every validation).
        entropy_words = (self.seed, step + 1, batch_idx, self.global_rank)
        return int(np.random.SeedSequence(entropy_words).generate_state(1, np.uint64)[0] >> 1)

    def _micro_batches(self, prompts: Sequence[PromptLike]) -> list[tuple[Sequence[PromptLike], slice]]:
        """Prompts and rows to be scored together, in the order of the rows."""
        group = self.sampling.samples
        if not self.micro_batch:
            return [(prompts, slice(None))]
        if self.micro_batch < group:
            starts = range(0, len(prompts) * group, self.micro_batch)
            return [([prompts[start // group]], slice(start, start + self.micro_batch)) for start in starts]
        together = self.micro_batch // group
        return [
            (prompts[first : first + together], slice(first * group, (first + together) * group))
            for first in range(0, len(prompts), together)
        ]

    def _count_of(self, mask_NKT: Tensor) -> Tensor:
        if self.reduction == "sum":
            return torch.tensor(len(mask_NKT), device=mask_NKT.device)
        return mask_NKT[:, 0].sum()

    @property
    def _count_scale(self) -> int:
        """A constant of the order of one prompt's count: it keeps the gradients of half precision in range."""
        return self.sampling.samples * (self.sampling.max_new_tokens if self.reduction == "mean" else 1)

    def _measure_gradients(
        self,
        samples: Samples,
        parts: Sequence[tuple[Sequence[PromptLike], slice]],
        advantages: Mapping[str, Tensor | None],
        weights: Mapping[str, Tensor],
    ) -> None:
        def of(name: str, loss: Loss) -> Iterator[Tensor]:
            for prompts, rows in parts:
                inputs = self.score(samples, prompts, rows)
                yield mix({name: loss}, inputs, {name: 1.0}, advantages, chunk=self.logits_chunk)[0] / self._count_scale

        everywhere = partial(self.trainer.strategy.reduce, reduce_op="sum")
        scale = self._count_scale / cast(Tensor, everywhere(self._count_of(samples.rollout.mask_NKT).float()))
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        terms = {name: of(name, loss) for name, loss in self._mix.items()}
        self.gradient_norms |= {name: norm * scale for name, norm in norms(parameters, terms, everywhere).items()}
        weighted = {name: weights[name] * norm for name, norm in self.gradient_norms.items()}
        reference = self.gradient_reference
        self._log_measured(
            {f"gradient_norm/{name}": norm for name, norm in weighted.items()}
            | {
                f"gradient_ratio/{name}": norm / weighted[reference]
                for name, norm in weighted.items()
                if name != reference
            }
        )

    def _log_measured(self, values: Mapping[str, Tensor]) -> None:
        """Log values that only some steps have: Lightning's own logging would repeat them at every step of the epoch."""
        self.log_dict(dict(values), logger=False)  # for callbacks
        for logger in self.trainer.loggers:
            logger.log_metrics({name: float(value) for name, value in values.items()}, step=self.global_step)

    def _log_step(
        self, drawn: Rollout, weights: Mapping[str, Tensor], sums: Mapping[str, Tensor], count: Tensor
    ) -> None:
        cells = drawn.mask_NKT.sum()
        shown = {"train/length": drawn.length_N.float().mean()}
        self._log_measured({f"train/{name}": value / cells for name, value in sums.items() if name in ENTROPIES})
        for name, loss in self._mix.items():
            shown[f"train/{name}"] = sums[name] / count
            shown[f"weight/{name}"] = weights[name]
            if loss.is_over_cells:
                loss.logs["per_token"] = sums[name] / cells
            shown |= {f"train/{name}_{key}": value for key, value in loss.logs.items()}
        self.log_dict(shown)
        total = torch.stack([weights[name] * sums[name] for name in weights]).sum()
        self.log("train/loss", total / count, prog_bar=True)

    # Checkpoints hold trained student weights and loss buffers; teacher and embedders are reloaded from their source.

    def _frozen_parts(self) -> dict[str, nn.Module]:
        """The teacher, and the judges that losses hold without a box: embedders, and modules whose weights are all frozen."""
        parts: dict[str, nn.Module] = {} if self.teacher is None else {"teacher": self.teacher}
        for name, part in self.losses.named_modules(prefix="losses"):
            parameters = list(part.parameters())
            # A reward may have no weights but those of its judge, and still has a running mean that is learnt.
            learns = any(isinstance(each, Loss | Reward | RunningMean) for each in part.modules())
            is_frozen = bool(parameters) and not learns and not any(p.requires_grad for p in parameters)
            if is_frozen or isinstance(part, Embedder):
                parts[name] = part
        return parts

    def _frozen_of(self, names: Iterable[str]) -> list[str]:
        """The names in a state dict that a checkpoint does not hold."""
        return checkpoints.frozen_names(names, self.student, tuple(f"{name}." for name in self._frozen_parts()))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained.

        Raises:
            ConfigError: the student holds NaN or infinity: the checkpoint before is the better one. Where the fit ends by an
                exception already, that exception.
        """
        start = {} if self.teacher is None else self.teacher.state_dict()
        if names := not_finite(student_weights(self), {f"student.{name}": tensor for name, tensor in start.items()}):
            if (reason := sys.exception()) is not None:
                raise reason  # the cause: what follows from it must not hide it
            raise ConfigError(
                f"After {self.global_step} steps the student holds NaN or infinity ({len(names)} tensors, such as"
                f" `{names[0]}`): no checkpoint was written, and the last one is as it was. Lower"
                " `model.optimizer.init_args.lr`, and resume from that checkpoint."
            )
        state = checkpoint["state_dict"]
        for name in self._frozen_of(list(state)):
            del state[name]
        checkpoint.update(checkpoints.keys_of_ours(self.generator_spec, self._configured))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(checkpoints.upgraded(checkpoint))
        self._configured_then = checkpoint["configured"]
        for name, weight in weights_after(self._configured_then.get("losses", {}), self._configured["losses"]).items():
            checkpoint["state_dict"][checkpoints.loss_weight(name)] = torch.tensor(weight)

    def on_train_start(self) -> None:
        if self._configured_then.get("optimizer"):
            optimizer = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))
            take_settings(optimizer, self.lr_schedulers(), self._configured_then, self._configured)
            self._configured_then = {}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint of the student. What is frozen may be missing, and nothing else.

        Raises:
            RuntimeError: other keys are missing or unexpected.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = sorted(set(result.missing_keys) - set(self._frozen_of(result.missing_keys)))
        if missing or result.unexpected_keys:
            raise RuntimeError(f"Checkpoint does not fit: missing {missing}, unexpected {result.unexpected_keys}.")
        return result

    # The teacher never moves, and here is the proof

    def on_fit_start(self) -> None:
        assert self.teacher is not None
        # All prompts, and not the first batch that holds a long one: a fit must not stop in the middle for it.
        found = [
            problem
            for given in prompts_of(self._data)
            for problem in problems_of_lengths(self.student, given, self.sampling, self.guidance)
        ]
        if found:
            raise ConfigError([each.under("model.sampling") if each.path else each for each in found])
        self._teacher_fingerprint = fingerprint(self.teacher)

    def on_fit_end(self) -> None:
        assert self.teacher is not None
        if fingerprint(self.teacher) != self._teacher_fingerprint:
            raise RuntimeError("The teacher's weights changed during the fit: guidance would compound. This is a bug.")


def prompts_of(data: Any) -> list[Sequence[PromptLike]]:
    """The prompts of each part of a data module that knows them; none of any other data."""
    prompts: Mapping[str, Sequence[PromptLike]] = getattr(data, "prompts", {})
    return list(prompts.values())


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers of a module."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
