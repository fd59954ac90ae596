"""CFGDistillation: the LightningModule that wires student, guided teacher and rewards. It does no maths of its own.

Shapes: N rows (B prompts x G samples), K codebooks, T generated positions.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from cfg_distill.embedders.base import Embedder
from cfg_distill.errors import ConfigError
from cfg_distill.folders import problems_of_folder
from cfg_distill.frozen import fingerprint
from cfg_distill.generators import Generator, Guided
from cfg_distill.guidance import Guidance
from cfg_distill.losses import Loss, LossInputs, entropy, reverse_kl
from cfg_distill.samples import Samples, decoded
from cfg_distill.sampling import Rollout, Sampling, rollout


class CFGDistillation(L.LightningModule):
    r"""Distil the classifier-free guidance of a generator into its own weights, and keep its samples diverse.

    Each step draws G samples a prompt from the student WITHOUT guidance, scores them with the student and with the frozen
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
        dropout: keep the student's dropout while training. Off by default: the probability that trains must be that of the
            distribution that sampled.
        measure_gradients_every: steps between measurements of the gradient norm of each term; 0 for never. One costs a
            backward pass a term.
        seed: of the rollouts; each also depends on step and rank, so that a resumed run draws what an unbroken one would.
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
        measure_gradients_every: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if unusable := [name for name in losses if "." in name or hasattr(nn.ModuleDict, name)]:
            raise ConfigError(
                "Key `model.losses`: expected names that are no attribute of a module, without a full stop,"
                f" but got {unusable}. Rename them."
            )
        self.generator_spec = generator.spec()
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
        self.measure_gradients_every = measure_gradients_every
        self.seed = seed
        self.measure_gradients = False
        self.gradient_norms: dict[str, Tensor] = {}
        self._count = torch.zeros(())
        self._teacher_fingerprint = ""

    # Settings and weights

    def problems(self) -> list[str]:
        """What is wrong with the settings, a sentence each, found without loading weights."""
        found = self.student.problems()
        limit = None if found else self.student.max_positions
        found += self.guidance.problems()
        found += self.sampling.problems(limit, training=True)
        if self.start:
            found += problems_of_folder("model.start", self.start)
        if not self.losses:
            found.append("Key `model.losses`: expected at least one loss, but got none. Add `kl`.")
        for name, loss in self._mix.items():
            found += [f"In `model.losses.{name}`: {problem}" for problem in loss.problems(self.sampling.samples)]
        return found

    def configure_model(self) -> None:
        """Load the weights once: Lightning calls this at the start of fit, validate and test alike.

        Raises:
            ConfigError: the settings are wrong, or weights do not fit.
        """
        if self.teacher is not None:
            return
        if problems := self.problems():
            raise ConfigError(problems)
        self.student.load()
        self.teacher = self.student.frozen_copy()
        if self.start:
            self.student.load_weights(self.start)
        for loss in self._mix.values():
            loss.load()
        self.train(self.training)

    def train(self, mode: bool = True) -> "CFGDistillation":
        """Frozen models never leave eval mode, and the student does only when its dropout is wanted."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, Embedder) or module is self.teacher:
                module.eval()
        if not self.dropout:
            self.student.eval()
        return self

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.optimizer([p for p in self.student.parameters() if p.requires_grad])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.scheduler(optimizer), "interval": "step"}}

    # One step

    def rollout(self, prompts: Sequence[str], seed: int = 0) -> Rollout:
        """Groups of samples that the student learns from: its own, without guidance. Override to roll out differently."""
        return rollout(self.student, prompts, self.sampling, seed=seed)

    def draw(self, prompts: Sequence[str], seed: int = 0) -> Samples:
        """Decoded samples of the student as it is now."""
        return decoded(self.student, prompts, self.rollout(prompts, seed))

    def score(self, prompts: Sequence[str], drawn: Rollout) -> LossInputs:
        """Logits of student and guided teacher on the student's samples."""
        assert self.teacher is not None
        tokens_NKT, mask_NKT = drawn.tokens_NKT, drawn.mask_NKT
        with torch.no_grad():
            teacher_NKTV = Guided(self.teacher, self.guidance).logits(prompts, tokens_NKT, mask_NKT)
        student_NKTV = self.student.logits(prompts, tokens_NKT, mask_NKT)
        samples = decoded(self.student, prompts, drawn)
        return LossInputs(student_NKTV, teacher_NKTV, tokens_NKT, mask_NKT, samples, self.sampling)

    def training_step(self, batch: list[str], batch_idx: int) -> dict[str, Any]:
        drawn = self.rollout(batch, self._rollout_seed(self.global_step, batch_idx))
        inputs = self.score(batch, drawn)
        count = self._count_of(drawn)
        terms = {name: loss(inputs) for name, loss in self._mix.items()}
        every = self.measure_gradients_every
        if self.measure_gradients or (every and self.global_step % every == 0 and self._count == 0):
            self._measure_gradients(terms, count)
        total = torch.stack([self._mix[name].weight_at(self.global_step) * term for name, term in terms.items()]).sum()
        self._log_step(inputs, terms, total, count)
        self._count = self._count.to(count.device) + count
        # Divided by a constant here, by the true count of all micro-batches and ranks before the optimiser steps.
        return {"loss": total / self._count_scale, "samples": inputs.samples}

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn Lightning's mean of means over micro-batches and ranks into all-reduced sum over all-reduced count."""
        counts = cast(Tensor, self.all_gather(self._count))
        factor = self._count_scale * self.trainer.accumulate_grad_batches / counts.float().mean().item()
        for parameter in self.student.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        self._count = torch.zeros_like(self._count)

    def validation_step(self, batch: list[str], batch_idx: int) -> dict[str, Any]:
        drawn = self.rollout(batch, self._rollout_seed(-1, batch_idx))
        inputs = self.score(batch, drawn)
        kl, count = reverse_kl(inputs.student_NKTV, inputs.teacher_NKTV, inputs.mask_NKT)
        cells = int(count)
        shown = {
            "val/kl_per_token": kl,
            "val/entropy_student": entropy(inputs.student_NKTV, inputs.mask_NKT)[0],
            "val/entropy_teacher": entropy(inputs.teacher_NKTV, inputs.mask_NKT)[0],
        }
        # Means weighted by the cells behind them: Lightning then reduces sums and counts over batches and ranks.
        self.log_dict({name: value / count for name, value in shown.items()}, batch_size=cells, sync_dist=True)
        self.log("val/length", drawn.mask_NKT.any(1).sum(-1).float().mean(), batch_size=len(batch), sync_dist=True)
        return {"samples": inputs.samples}

    # Its parts

    @property
    def _mix(self) -> dict[str, Loss]:
        return cast(dict[str, Loss], dict(self.losses.items()))

    def _rollout_seed(self, step: int, batch_idx: int) -> int:
        # Distinct streams for training (step >= 0) and validation (-1: the same draws at every validation).
        entropy_words = (self.seed, step + 1, batch_idx, self.global_rank)
        return int(np.random.SeedSequence(entropy_words).generate_state(1, np.uint64)[0] >> 1)

    def _count_of(self, drawn: Rollout) -> Tensor:
        if self.reduction == "sum":
            return torch.tensor(len(drawn.mask_NKT), device=drawn.mask_NKT.device)
        return drawn.mask_NKT.any(1).sum()

    @property
    def _count_scale(self) -> int:
        """A constant of the order of one prompt's count: it keeps the gradients of half precision in range."""
        return self.sampling.samples * (self.sampling.max_new_tokens if self.reduction == "mean" else 1)

    def _measure_gradients(self, terms: Mapping[str, Tensor], count: Tensor) -> None:
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        for name, term in terms.items():
            gradients = torch.autograd.grad(term / count, parameters, retain_graph=True, allow_unused=True)
            norms = [gradient.norm() for gradient in gradients if gradient is not None]
            self.gradient_norms[name] = torch.stack(norms).norm()
        weighted = {name: self._mix[name].weight * norm for name, norm in self.gradient_norms.items()}
        self.log_dict({f"gradient_norm/{name}": norm for name, norm in weighted.items()})
        reference, *others = weighted
        for name in others:
            self.log(f"gradient_ratio/{name}", weighted[name] / weighted[reference])

    def _log_step(self, inputs: LossInputs, terms: Mapping[str, Tensor], total: Tensor, count: Tensor) -> None:
        cells = inputs.mask_NKT.sum()
        with torch.no_grad():
            shown = {
                "train/entropy_student": entropy(inputs.student_NKTV, inputs.mask_NKT)[0] / cells,
                "train/entropy_teacher": entropy(inputs.teacher_NKTV, inputs.mask_NKT)[0] / cells,
                "train/length": inputs.mask_NKT.any(1).sum(-1).float().mean(),
            }
        for name, term in terms.items():
            shown[f"train/{name}"] = term.detach() / count
            shown[f"weight/{name}"] = self._mix[name].weight_at(self.global_step)
            shown |= {f"train/{name}_{key}": value for key, value in self._mix[name].logs.items()}
        self.log_dict(shown)
        self.log("train/loss", total.detach() / count, prog_bar=True)

    # Checkpoints hold the student and what the losses learnt; frozen models come from where they came from

    def _frozen_prefixes(self) -> tuple[str, ...]:
        frozen = [n for n, m in self.named_modules() if isinstance(m, Embedder) or m is self.teacher]
        return tuple(f"{name}." for name in frozen)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        frozen = self._frozen_prefixes()
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name: value for name, value in state.items() if not name.startswith(frozen)}
        checkpoint["generator"] = self.generator_spec

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint of the student. Frozen prefixes may be missing, and nothing else.

        Raises:
            RuntimeError: other keys are missing or unexpected.
        """
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = [name for name in result.missing_keys if not name.startswith(self._frozen_prefixes())]
        if missing or result.unexpected_keys:
            raise RuntimeError(f"Checkpoint does not fit: missing {missing}, unexpected {result.unexpected_keys}.")
        return result

    # The teacher never moves, and here is the proof

    def on_fit_start(self) -> None:
        assert self.teacher is not None
        self._teacher_fingerprint = fingerprint(self.teacher)

    def on_fit_end(self) -> None:
        assert self.teacher is not None
        if fingerprint(self.teacher) != self._teacher_fingerprint:
            raise RuntimeError("The teacher's weights changed during the fit: guidance would compound. This is a bug.")
