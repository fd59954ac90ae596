"""A whole training step with a guided teacher, by this package and by TRL: the same model, prompts, micro-batch, optimiser.

Each runs under its own trainer, whose hooks wait for the benchmark before every step.
"""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from floor import Recorded
from measure import DEVICE, DTYPE, LENGTH, MODEL, PRECISION, PROMPTS, SAMPLES, SCALE, now, peak, use_threads
from torch import Tensor
from worker import Channel

MICRO_BATCH = 8
RATE = 1e-6
NEVER = 10**6
COMPILED = bool(os.environ.get("CFG_DISTILL_BENCH_COMPILED"))

warnings.filterwarnings("ignore")


class Clock:
    """Between a trainer's hooks and the benchmark."""

    def __init__(self, channel: Channel) -> None:
        use_threads()
        self.channel = channel
        self.answer: dict[str, Any] = {}
        self.recorded = Recorded()

    def begin(self) -> str:
        """Wait for a word that asks for a step, and start the clock."""
        while (word := self.channel.ask(self.answer)) == "floor":
            self.answer = {"seconds": self.recorded.seconds(), "flops": self.recorded.flops}
        if word == "record":
            self.recorded.__enter__()
        self.word, self.began, self.worked = word, now(), time.process_time()
        return word

    def end(self) -> None:
        """Stop it."""
        self.answer = {"seconds": now() - self.began, "worked": time.process_time() - self.worked, "peak": peak()}
        if self.word == "record":
            self.recorded.__exit__(None, None, None)


def ours(channel: Channel) -> None:
    """Words: ``guided``, ``plain`` (a teacher without guidance), ``record`` (a guided step), ``floor`` (of that step)."""
    import lightning as L

    from cfg_distill import CFGDistillation
    from cfg_distill.generators import CausalLM
    from cfg_distill.guidance import Guidance
    from cfg_distill.losses import ReverseKL
    from cfg_distill.sampling import Sampling

    clock = Clock(channel)

    class Hooks(L.Callback):
        def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            if COMPILED:
                for generator in (module.student, module.teacher):
                    generator.model.base_model.compile(dynamic=True)

        def on_train_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
            module.guidance = Guidance(1.0 if clock.begin() == "plain" else SCALE)

        def on_train_batch_end(self, *rest: Any) -> None:
            clock.end()

    module = CFGDistillation(
        CausalLM(MODEL, dtype=PRECISION),
        {"kl": ReverseKL()},
        Guidance(SCALE),
        Sampling(samples=SAMPLES, max_new_tokens=LENGTH),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=RATE, fused=True),
        micro_batch=MICRO_BATCH,
        measure_gradients_every=0,
    )
    trainer = L.Trainer(
        accelerator="gpu" if DEVICE == "cuda" else "cpu",
        devices=1,
        max_steps=NEVER,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Hooks()],
    )
    trainer.fit(module, torch.utils.data.DataLoader([PROMPTS] * NEVER, batch_size=None))


def adapter(channel: Channel) -> None:
    """Words: ``dial``, ``plain`` (no dial). A LoRA student of the shipped tunes, in the batch of recipes/tunes/lora_dial.yaml.

    Every step is the same work: the adapter stays zero, and the random numbers are those of the first step, so that all steps
    draw and score the same samples.
    """
    import lightning as L

    from cfg_distill import CFGDistillation
    from cfg_distill.distillation.dial import Dial
    from cfg_distill.generators import CausalLM, LoRA
    from cfg_distill.guidance import Guidance
    from cfg_distill.losses import ReverseKL
    from cfg_distill.sampling import Rollout, Sampling

    clock = Clock(channel)
    prompts = Path("recipes/tunes/prompts/train.txt").read_text(encoding="utf-8").splitlines()[:8]

    class Same(CFGDistillation):
        def rollout(self, prompts: Any, seed: Any = 0) -> Rollout:
            return super().rollout(prompts, 0)

    class Hooks(L.Callback):
        def on_train_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
            module.dial = Dial() if clock.begin() == "dial" else None

        def on_train_batch_end(self, *rest: Any) -> None:
            clock.end()

    module = Same(
        CausalLM("tunes:base", lora=LoRA(rank=16, alpha=32)),
        {"kl": ReverseKL()},
        Guidance(SCALE),
        Sampling(samples=SAMPLES, max_new_tokens=80),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.0),
        measure_gradients_every=0,
    )
    trainer = L.Trainer(
        accelerator="gpu" if DEVICE == "cuda" else "cpu", devices=1, max_steps=NEVER, logger=False, callbacks=[Hooks()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader([prompts] * NEVER, batch_size=None))


def trl(channel: Channel) -> None:
    """Words: ``guided``. TRL's trainer, and the guided teacher that it lacks."""
    from datasets import Dataset
    from datasets.table import InMemoryTable
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DistillationConfig, DistillationTrainer

    from cfg_distill.folders import resolve

    clock = Clock(channel)

    class Hooks(TrainerCallback):
        def on_step_begin(self, *rest: Any, **named: Any) -> None:
            clock.begin()

        def on_step_end(self, *rest: Any, **named: Any) -> None:
            clock.end()

    class Guided(DistillationTrainer):
        """Reads the completion after no prompt too, and mixes the states, as this package does: the shortest way there is."""

        def _get_last_hidden_state(
            self, model: Any, ids_NS: Tensor, mask_NS: Tensor, num_kept: int, **rest: Any
        ) -> Tensor:
            states_NTD = super()._get_last_hidden_state(model, ids_NS, mask_NS, num_kept, **rest)
            if model is not self.accelerator.unwrap_model(self.teacher_model):
                return states_NTD
            empty_NS = self.empty_S.to(ids_NS.device).expand(len(ids_NS), -1)
            ids_NS = torch.cat([empty_NS, ids_NS[:, -num_kept:]], dim=1)
            mask_NS = torch.cat([torch.ones_like(empty_NS), mask_NS[:, -num_kept:]], dim=1)
            negative_NTD = super()._get_last_hidden_state(model, ids_NS, mask_NS, num_kept, **rest)
            return torch.lerp(negative_NTD, states_NTD, SCALE)

    folder = resolve(MODEL)
    student, teacher = (AutoModelForCausalLM.from_pretrained(folder, dtype=DTYPE) for _ in range(2))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = DistillationConfig(
        "runs/benchmarks/trl",
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=len(PROMPTS) * SAMPLES // MICRO_BATCH,
        max_completion_length=LENGTH,
        learning_rate=RATE,
        max_steps=NEVER,
        max_grad_norm=0.0,
        gradient_checkpointing=False,
        shuffle_dataset=False,
        use_cpu=DEVICE == "cpu",
        bf16=DEVICE == "cuda",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    prompts = [{"prompt": [{"role": "user", "content": prompt}]} for prompt in PROMPTS for _ in range(SAMPLES)]
    trainer = Guided(
        model=student,
        teacher_model=teacher,
        args=settings,
        # Named, since datasets fails to hash a table of pyarrow 26.
        train_dataset=Dataset(InMemoryTable.from_pylist(prompts), fingerprint="prompts"),
        processing_class=tokenizer,
        callbacks=[Hooks()],
    )
    empty = [{"role": "user", "content": ""}]
    ids = tokenizer.apply_chat_template(empty, add_generation_prompt=True, tokenize=True, return_dict=False)
    trainer.empty_S = torch.tensor(ids)
    trainer.train()
