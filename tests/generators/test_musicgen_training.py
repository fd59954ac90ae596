"""Training MusicGen: it learns, its teacher stays, two processes are one, and a checkpoint becomes a model of transformers."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
import torch
from forked import in_ranks
from tiny_musicgen import tiny_musicgen
from transformers import MusicgenForConditionalGeneration

from cfg_distill import CFGDistillation
from cfg_distill.audio import Waveform
from cfg_distill.callbacks import StudentEMA
from cfg_distill.checkpoints import export
from cfg_distill.distillation.module import fingerprint
from cfg_distill.generators import LoRA, MusicGen
from cfg_distill.guidance import Guidance
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.rewards.base import GroupReward, Reward
from cfg_distill.sampling import Rollout, Sampling, rollout

PROMPTS = ["rock", "calm jazz piano", "80s synth pop", "loud song", ""]


class Loudness(Reward):
    """A reward of each sample's own sound, against the mean of its siblings."""

    def forward(self, samples):
        assert all(isinstance(clip, Waveform) for clip in samples.outputs)
        power = torch.tensor([float(clip.samples.square().mean()) for clip in samples.outputs])
        reward_BG = power.reshape(len(samples.prompts), -1).log()
        siblings_BG = (reward_BG.sum(-1, keepdim=True) - reward_BG) / (samples.group - 1)
        return GroupReward(reward_BG, reward_BG - siblings_BG)


class PerPrompt(CFGDistillation):
    """Each prompt's group depends on the prompt alone: the same samples however prompts are batched."""

    def rollout(self, prompts, seed=0):
        groups = [rollout(self.student, [prompt], self.sampling, seed=PROMPTS.index(prompt)) for prompt in prompts]
        fields = ("tokens_BGKT", "mask_BGKT", "log_probs_BGKT")
        return Rollout(*(torch.cat([getattr(group, name) for group in groups]) for name in fields))


def module(path, kind=CFGDistillation, **settings):
    defaults = {
        "generator": MusicGen(path),
        "guidance": Guidance(3.0),
        "sampling": Sampling(samples=3, max_new_tokens=5),
        "losses": {"kl": ReverseKL(score_term=True), "diversity": PolicyGradient(Loudness(), weight=0.1)},
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        "measure_gradients_every": 0,
    }
    return kind(**(defaults | settings))


def fit(model, batches, **settings):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1, **settings,
    )  # fmt: skip
    trainer.fit(model, torch.utils.data.DataLoader(batches, batch_size=None))
    return trainer


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.student.parameters()])


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny_musicgen(tmp_path_factory.mktemp("training") / "model")


# It learns


@pytest.mark.slow
def test_a_short_training_overfits_a_tiny_set(tmp_path):
    """The divergence falls by ten, and the unguided student draws what the guided teacher draws."""
    num_steps, rate = 200, 0.01
    model = module(
        tiny_musicgen(tmp_path / "model", scale=3.0, sharpness=6.0),
        losses={"kl": ReverseKL()},
        sampling=Sampling(samples=8, max_new_tokens=6),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=rate),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=num_steps + 1),
    )
    kls = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer, *rest):
            kls.append(float(trainer.callback_metrics["train/kl_per_token"]))

    fit(model, [PROMPTS[:3]] * num_steps, callbacks=[Record()])
    assert sum(kls[-5:]) < 0.1 * sum(kls[:5])

    greedy = Sampling(samples=1, max_new_tokens=6, temperature=0)
    student, start, teacher = (
        rollout(generator, PROMPTS[:3], greedy, guidance)
        for generator, guidance in ((model.student, None), (model.teacher, None), (model.teacher, Guidance(3.0)))
    )
    agreement, before = (
        (other.tokens_BGKT == teacher.tokens_BGKT)[teacher.mask_BGKT].float().mean() for other in (student, start)
    )
    assert before < 0.6
    assert agreement > 0.9


# What stays, and what is kept


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_the_teacher_and_the_frozen_parts_stay_and_are_in_no_checkpoint(path, lora, tmp_path):
    model = module(path, generator=MusicGen(path, lora=lora))
    model.configure_model()
    shared = model.student.shared
    before = fingerprint(model.teacher), fingerprint(shared.whole), weights(model)
    ema = StudentEMA(decay=0.5)
    trainer = fit(model, [PROMPTS[:2]] * 2, callbacks=[ema])
    assert (fingerprint(model.teacher), fingerprint(shared.whole)) == before[:2]
    assert not torch.equal(weights(model), before[2])
    assert model.teacher.shared is shared
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    content = torch.load(tmp_path / "student.ckpt", weights_only=True)
    trained = {f"student.{name}" for name, p in model.student.named_parameters() if p.requires_grad}
    beside = {"losses.kl.weight", "losses.diversity.weight", "count.length.value", "count.length.updates"}
    assert content["state_dict"].keys() - beside == trained
    assert content["callbacks"]["StudentEMA"]["weights"].keys() == trained


def test_an_exported_checkpoint_is_the_student_in_transformers(path, tmp_path):
    model = module(path)
    trainer = fit(model, [PROMPTS[:2]] * 2)
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    assert "raw" in export(tmp_path / "student.ckpt", tmp_path / "out")
    theirs = MusicgenForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert theirs.generation_config.guidance_scale == 1.0
    for name, tensor in model.student.model.state_dict().items():
        assert torch.equal(theirs.decoder.state_dict()[name], tensor)
    assert fingerprint(theirs.text_encoder) == fingerprint(model.student.shared.whole.text_encoder)


@pytest.mark.parametrize("kind", ["stereo", "melody"])
def test_other_models_train_in_micro_batches_and_half_precision(kind, tmp_path):
    folder = tiny_musicgen(tmp_path / "model", kind)
    model = module(
        folder,
        generator=MusicGen(folder, melody="optional", text_positions=4),
        micro_batch=3,
        measure_gradients_every=1,
    )
    trainer = fit(model, [PROMPTS[:2]] * 2, precision="bf16-mixed")
    for key in ("train/kl", "train/diversity", "gradient_ratio/diversity", "train/entropy_student"):
        assert trainer.callback_metrics[key].isfinite(), key
    assert trainer.callback_metrics["train/length"] == 5


# Two processes


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)], ids=["full", "lora"])
def test_a_batch_without_prompts_gives_every_parameter_a_gradient(path, lora):
    """Other processes wait for each of them."""
    student = MusicGen(path, lora=lora).load()
    tokens_NKT = torch.randint(4, (2, student.num_codebooks, 5))
    mask_NKT = torch.ones_like(tokens_NKT, dtype=torch.bool)
    logits_NKTV = student.logits(["", ""], tokens_NKT, mask_NKT)
    logits_NKTV.square().sum().backward()
    assert [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():
        torch.testing.assert_close(student.logits(["", ""], tokens_NKT, mask_NKT), logits_NKTV)


def train_as_rank(rank: int, path: str, out: str) -> None:
    # The last micro-batch of one of them holds no prompt.
    model = module(path, PerPrompt, micro_batch=3, measure_gradients_every=1)
    fit(model, [PROMPTS[rank::2]] * 2, devices=2, strategy="ddp", use_distributed_sampler=False)
    torch.save(weights(model), Path(out) / f"rank{rank}.pt")


def test_two_processes_are_one(path, tmp_path):
    whole = module(path, PerPrompt)
    whole.configure_model()
    start = weights(whole)
    fit(whole, [PROMPTS] * 2)
    in_ranks(train_as_rank, path, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, weights(whole), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(first, start, atol=1e-4)
