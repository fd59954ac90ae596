"""CFGDistillation: the LightningModule that wires student, guided teacher and rewards. It does no maths of its own.

Shapes: N rows (B prompts x G samples), K codebooks, T generated positions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from cfg_distill import checkpoints
from cfg_distill.distillation import resuming
from cfg_distill.distillation.ahead import Ahead
from cfg_distill.distillation.asked import advantages_of
from cfg_distill.distillation.count import Count
from cfg_distill.distillation.dial import Dial, dialled
from cfg_distill.distillation.execution import Execution
from cfg_distill.distillation.fingerprint import fingerprint
from cfg_distill.distillation.finite import refuse_spoilt
from cfg_distill.distillation.gradients import RatioWatch, log_measured
from cfg_distill.distillation.memory import advice_on_memory, with_less_memory
from cfg_distill.distillation.off_policy import of_start, of_teacher
from cfg_distill.distillation.prompts import problems_of_data, problems_once_loaded, prompts_in, refuse
from cfg_distill.distillation.rehearsal import OptimizerCallable, SchedulerCallable, optimizer_of
from cfg_distill.distillation.settings import configured, problems_of_settings, problems_with_trainer, summary
from cfg_distill.distillation.sharding import at_rest, in_equal_length, sampling_from, shard
from cfg_distill.distillation.step import Batch, Step, ended, values_of_step, watched_sums
from cfg_distill.distillation.step_samples import drawn_for_step
from cfg_distill.errors import ConfigError, Context, Problem
from cfg_distill.generators import Generator, Guidance, PromptLike
from cfg_distill.generators.linear import onednn
from cfg_distill.generators.lora import lora_layers
from cfg_distill.losses import Loss, LossInputs
from cfg_distill.losses.watched import DISTANCE, ENTROPIES
from cfg_distill.rewards.judges import judges_of
from cfg_distill.sampling import Conditioner, Opening, OwnLoop, Places, Rollout, Sampler, Sampling, Seeds, StartModel
from cfg_distill.sampling.samples import Samples, decoded
from cfg_distill.sampling.seeds import torch_seed


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
            their number times the mean length in the steps before: the positions to expect
            (:class:`~cfg_distill.distillation.count.Count`).
        optimizer: from the student's parameters to an optimiser.
        scheduler: from the optimiser to a scheduler; it steps with the optimiser.
        dropout: keep the base's dropout while training. Off by default: the probability that trains must be that of the
            distribution that sampled. (The adapter's dropout is ``lora.dropout`` alone.)
        micro_batch: samples that are scored and differentiated at once, a divisor or a multiple of G; 0 for the whole batch.
            It lowers the memory of a step and changes nothing else: rollouts stay as large as the batch.
        logits_chunk: the key of version 0.1 for ``execution.logits_chunk``.
        measure_gradients_every: steps between measurements; 0 for never. A measurement logs ``gradient_norm/NAME``, the norm of
            each loss's gradient over the batch of all devices, weight included; ``gradient_ratio/NAME``, that norm divided by
            the norm of the first divergence of the mix; and entropies. It costs one more backward pass per loss.
        onednn: the key of version 0.1 for ``execution.onednn``.
        seed: of a new adapter, and of the rollouts, beside step, prompt and number of each sample; null takes
            ``seed_everything``, or 0 in a script.
        allow_no_teacher: train without any divergence from the guided teacher; such a recipe is refused otherwise.
        execution: how the arithmetic is carried out: speed and memory, and nothing else but rounding.
        off_policy: learn from samples of the guided teacher, not from the student's own: a baseline (``losses.CrossEntropy``).
        max_bad_steps: steps in a row that are skipped because a loss, a reward or the gradient is NaN or infinite; one more
            stops the run. Prompts and samples of a skipped step are written into the folder ``bad_steps`` of the run.
        redraw: attempts to draw a degenerate sample again before the student learns from it; 0 learns from it as it is. It
            changes what is optimised (docs/method.md, section 3): the student then learns little of what leads to such samples.
        conditioner: labels of the samples, which the student reads beside the prompt and the teacher does not; null for none.
        dial: make the scale of a LoRA student's adapter the scale of guidance, up to ``guidance.scale``: one adapter for every
            gamma. Each step draws a setting (:class:`~cfg_distill.distillation.dial.Dial`); null trains one gamma.
        opening: begin each training sample as one of the start model (:class:`~cfg_distill.sampling.Opening`); null for none.
        sampler: who draws the student's samples: an engine (:class:`~cfg_distill.sampling.VLLM`); null for our own loop.
    """

    def __init__(
        self,
        generator: Generator,
        losses: dict[str, Loss],
        guidance: Guidance = Guidance(),
        sampling: Sampling = Sampling(),
        start: str = "",
        reduction: Literal["sum", "mean"] = "mean",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: SchedulerCallable = lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0),
        dropout: bool = False,
        micro_batch: int = 0,
        logits_chunk: int | None = None,
        measure_gradients_every: int = 10,
        onednn: bool | None = None,
        seed: int | None = None,
        allow_no_teacher: bool = False,
        execution: Execution = Execution(),
        off_policy: bool = False,
        max_bad_steps: int = 3,
        redraw: int = 0,
        conditioner: Conditioner | None = None,
        dial: Dial | None = None,
        opening: Opening | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        super().__init__()
        if unusable := [name for name in losses if "." in name or name in dir(nn.ModuleDict)]:
            text = f"expected names that are no attribute of a module, without a full stop, but got {unusable}. Rename them."
            raise ConfigError(Problem("/model.losses", text))
        self.generator_spec = checkpoints.spec_of(generator)
        self.student = generator
        self.teacher: Generator | None = None
        self.execution = execution.with_old_keys(generator, guidance, sampling, onednn, logits_chunk)
        self.guidance, self.sampling = self.execution.applied(generator, guidance, sampling)
        self.losses = nn.ModuleDict(losses)
        self.start, self.reduction = start, reduction
        self.optimizer, self.scheduler = optimizer, scheduler
        self.dropout, self.micro_batch = dropout, micro_batch
        self.measure_gradients_every = measure_gradients_every
        self.seed = 0 if seed is None else seed
        self.allow_no_teacher, self.off_policy = allow_no_teacher, off_policy
        self.measure_gradients = False
        self.gradient_norms: dict[str, Tensor] = {}
        self.batch: Sequence[PromptLike] = ()
        self.max_bad_steps, self.redraw = max_bad_steps, redraw
        self.conditioner, self.dial, self.opening = conditioner, dial, opening
        self.sampler = sampler or OwnLoop()
        self._step, self._ratios = Step(max_bad_steps), RatioWatch()
        self._places, self._validation_places, self._ahead = Places(), Places(), Ahead()
        self.count = Count(reduction)
        self._teacher_fingerprint = ""
        # Settings of this recipe, and those recorded in the checkpoint (compared in resuming.py).
        self._configured = configured(self)
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
        return problems_with_trainer(self, trainer)

    def problems_of_data(self, data: Any, stage: str = "fit") -> list[Problem]:
        """Why there can be no samples of the prompts of a data module that was set up, or, in a fit, nothing to learn."""
        return problems_of_data(self, data, stage)

    def setup(self, stage: str) -> None:
        problems = self.problems_with(self.trainer)
        problems += [] if self.teacher is not None else [problem.under("model") for problem in self.problems()]
        if problems:
            raise ConfigError(problems)
        refuse(self.problems_of_data(self.trainer.datamodule, stage))  # type: ignore[attr-defined]

    def configure_model(self) -> None:
        """Load the weights once: Lightning calls this at the start of fit, validate and test alike.

        Raises:
            ConfigError: the settings are wrong, or weights do not fit.
        """
        if self.teacher is not None:
            return
        if problems := self.problems():
            raise ConfigError([problem.under("model") for problem in problems])
        # Lightning calls this under `torch.device("cuda")`, where transformers asks for accelerate. On the CPU a new adapter
        # depends on the seed alone, whatever the device and whatever was drawn before.
        with torch.device("cpu"):
            with torch_seed(self.seed):
                self.student.load()
            self.teacher = self.student.frozen_copy()
            if self.start:
                self.student.load_weights(self.start)
            start = StartModel(self.teacher, self.sampling)
            for loss in self.mix.values():
                loss.load()
                loss.attach(start)
        shard(self)
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
        optimizer = optimizer_of(self.optimizer, [p for p in self.student.parameters() if p.requires_grad])
        self._configured["optimizer"] = resuming.settings_of(optimizer)
        scheduler = self.scheduler(optimizer)
        self._configured["scheduler"] = resuming.settings_of_scheduler(scheduler)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # One step

    def rollout(self, prompts: Sequence[PromptLike], seed: int | Seeds = 0) -> Rollout:
        """Groups of samples of the student, without guidance. Override to roll out differently."""
        return self.sampler.rollout(self.student, prompts, self.sampling, seed, self.conditioner)

    def draw(self, prompts: Sequence[PromptLike], seed: int | Seeds = 0) -> Samples:
        """Decoded samples of the student as it is now."""
        return decoded(self.student, prompts, self.rollout(prompts, seed))

    def gathered(self) -> AbstractContextManager[None]:
        """The student's weights, whole on every process where they are sharded, for as long as it draws."""
        return sampling_from(self, self.student)

    def draw_of_start(self, prompts: Sequence[PromptLike], seed: int | Seeds = 0, guided: bool = False) -> Samples:
        """Decoded samples of the start model, as it is or as the guided teacher."""
        with sampling_from(self, self.teacher):
            return of_start(self, prompts, seed, guided)

    def score(
        self, samples: Samples, prompts: Sequence[PromptLike] | None = None, rows: slice = slice(None)
    ) -> LossInputs:
        """Predictions of student and guided teacher on the student's samples, or on some rows of them.

        Args:
            samples: the whole batch.
            prompts: the prompts of these rows, each of which has the same number of them; None for all.
            rows: which rows.
        """
        prompts = samples.asked if prompts is None else prompts
        tokens_NKT, mask_NKT = samples.rollout.tokens_NKT[rows], samples.rollout.mask_NKT[rows]
        teacher = of_teacher(self, prompts, tokens_NKT, mask_NKT)
        if self.conditioner is not None and samples.rollout.labels_BG is not None:
            prompts = self.conditioner.asked(samples.asked, samples.rollout.labels_BG)[rows]
        student = self.student.predictions(prompts, tokens_NKT, mask_NKT)
        return LossInputs(student, teacher, tokens_NKT, mask_NKT, self.sampling, samples, rows)

    def training_step(self, batch: list[PromptLike], batch_idx: int) -> dict[str, Any]:
        """One step; callbacks find its outcome in their ``outputs``.

        Returns:
            ``loss``, as ``train/loss``; ``samples``, the decoded groups; ``rewards`` and ``advantages``, ``[B, G]`` by the
            name of each loss that has them; ``degenerate``, which samples are, ``[B, G]``.
        """
        with self._computing(batch), dialled(self):
            samples, degenerate_BG = drawn_for_step(self, batch)
            advantages = advantages_of(self.mix, samples, self.global_step)
            rewards = {name: loss.reward_BG for name, loss in self.mix.items() if loss.reward_BG is not None}
            weights = {name: loss.weight_at(self.global_step) for name, loss in self.mix.items()}
            every = self.measure_gradients_every
            measuring = self.measure_gradients or (every and self.global_step % every == 0 and self._step.begins)
            if measuring:
                self._ratios.measure(self, samples, advantages, weights)
            part = Batch(samples, advantages, rewards, weights, ENTROPIES if measuring else {})
            self._step.add(self, part)
            return {
                "loss": ended(self, self._log_step(part)),
                "samples": samples,
                "rewards": rewards,
                "advantages": {name: each.view(len(batch), -1) for name, each in part.weights_of_samples().items()},
                "degenerate": degenerate_BG,
            }

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        with advice_on_memory(self):  # the optimiser's state is made at its first step
            super().optimizer_step(*args, **kwargs)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Nothing: Lightning calls this after training_step, and the gradients are there already."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradient by the count of the step, or skip the step: see :meth:`Step.close`."""
        self._step.close(self, optimizer)
        self.log("train/bad_steps", float(self._step.bad.total))

    def validation_step(self, batch: list[PromptLike], batch_idx: int) -> dict[str, Any]:
        with self._computing(batch):
            seeds = self._rollout_seed(-1, self._validation_places.of(self, len(batch), batch_idx == 0))
            with self.gathered():
                samples = in_equal_length(self, self.draw(batch, seeds))
            watched = partial(watched_sums, self, samples, DISTANCE | ENTROPIES)
            sums = with_less_memory(self, len(samples.outputs), watched)
        # Means weighted by their cells. Lightning averages weights over ranks, and drops the fraction: here there is none.
        world, cells = self.trainer.world_size, int(samples.rollout.mask_NKT.sum())
        self.log_dict({f"val/{name}": sums[name] / cells for name in sums}, batch_size=world * cells, sync_dist=True)
        self.log("val/length", samples.rollout.length_N.float().mean(), batch_size=world * len(batch), sync_dist=True)
        return {"samples": samples, "seeds": seeds}

    # Its parts

    @contextmanager
    def _computing(self, batch: list[PromptLike]) -> Iterator[None]:
        """How a batch is computed, be it trained on or validated."""
        self.batch = prompts_in(batch)
        with advice_on_memory(self), onednn(self.execution.onednn), at_rest(self):
            yield

    @property
    def mix(self) -> dict[str, Loss]:
        """The losses by name."""
        return cast(dict[str, Loss], dict(self.losses.items()))

    def _rollout_seed(self, step: int, places: Sequence[int], attempt: int = 0) -> Seeds:
        # Distinct streams for training (step >= 0) and validation (-1: the same draws at every validation).
        return Seeds((self.seed, step + 1, attempt), places, group_words=(self.seed, step + 1, 0))

    def _log_step(self, batch: Batch) -> Tensor:
        count = self.count.of_rows(batch.samples.rollout.mask_NKT)
        if measured := {name: value for name, value in batch.means().items() if name in ENTROPIES}:
            log_measured(self, {f"train/{name}": value for name, value in measured.items()})
        self.log_dict(values_of_step(self.mix, batch, count))
        self.log("train/loss", loss := batch.loss / count, prog_bar=True)
        return loss

    # Checkpoints hold trained student weights and loss buffers; teacher and embedders are reloaded from their source.

    def _frozen_parts(self) -> dict[str, nn.Module]:
        """The teacher, and the judges that losses hold without a box."""
        parts: dict[str, nn.Module] = {} if self.teacher is None else {"teacher": self.teacher}
        for name, loss in self.mix.items():
            parts |= judges_of(loss, f"losses.{name}")
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
        refuse_spoilt(self)
        for name in self._frozen_of(list(checkpoint["state_dict"])):
            del checkpoint["state_dict"][name]
        configured = self._configured | {"processes": self.trainer.world_size}
        checkpoint.update(checkpoints.keys_of_ours(self.generator_spec, configured, self._step.bad.total))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint.update(checkpoints.upgraded(checkpoint))
        self._configured_then = checkpoint["configured"]
        resuming.warn_of_other_processes(checkpoint, self.trainer)
        self._step.bad.total = checkpoint["bad_steps"]
        for name, weight in resuming.weights_after(
            self._configured_then.get("losses", {}), self._configured["losses"]
        ).items():
            checkpoint["state_dict"][checkpoints.loss_weight(name)] = torch.tensor(weight)
        # Version 0.1 saved no mean length: such a run goes on as one without a past.
        checkpoint["state_dict"] = self.count.state_dict(prefix="count.") | checkpoint["state_dict"]

    def on_train_start(self) -> None:
        if self._configured_then.get("optimizer"):
            optimizer = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))
            resuming.take_settings(optimizer, self.lr_schedulers(), self._configured_then, self._configured)
            self._configured_then = {}

    take_changed_settings = on_train_start  # which callbacks may need earlier

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a checkpoint of the student; refuse one of another run. What is frozen may be missing, and nothing else."""
        own = self.state_dict()
        resuming.refuse_other_tensors(own.keys() - set(self._frozen_of(own)), own, state_dict)
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    # The teacher never moves, and here is the proof

    def on_fit_start(self) -> None:
        assert self.teacher is not None
        refuse(problems_once_loaded(self, self.trainer.datamodule))  # type: ignore[attr-defined]
        self._teacher_fingerprint = fingerprint(self.teacher)
        self._step.batches.clear()  # of a fit that was stopped within a step

    def on_fit_end(self) -> None:
        assert self.teacher is not None
        if fingerprint(self.teacher) != self._teacher_fingerprint:
            raise RuntimeError("The teacher's weights changed during the fit: guidance would compound. This is a bug.")
