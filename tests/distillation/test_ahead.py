"""A rollout that runs while a step trains: whose samples they are, and what the losses make of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tiny import tiny_adapted
from tiny_fits import PROMPTS, FirstToken, student_of, trainer
from vllm_stand_in import StandIn, serving

from cfg_distill.data import PromptData
from cfg_distill.distillation.dial import Dial
from cfg_distill.distillation.off_policy import problems_of_policy
from cfg_distill.generators import CausalLM, Guidance, Guided, Logits, LoRA
from cfg_distill.generators.lora import adapter_of, adapter_scaled
from cfg_distill.losses import LossInputs, PolicyGradient, ReverseKL, mix, reverse_kl
from cfg_distill.sampling import VLLM, Opening, Rollout, Sampling
from cfg_distill.sampling.samples import Samples


@pytest.fixture
def url(tiny_model: str) -> Iterator[str]:
    with serving(StandIn(tiny_model)) as found:
        yield found


class Watch(Callback):
    """The samples of each step, and the adapter and the weights that the student had when the step began."""

    def __init__(self) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.adapters: list[dict[str, tuple[torch.Tensor, torch.Tensor]]] = []
        self.samples: list[Samples] = []
        self.staleness: list[float] = []
        self.divergence: list[float] = []

    def on_train_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.weights.append(copy.deepcopy(module.student.model.state_dict()))
        adapter = adapter_of(module.student.model)
        self.adapters.append({name: (each.a_RI.clone(), each.b_OR.clone()) for name, each in adapter.items()})

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, *rest: Any) -> None:
        self.samples.append(outputs["samples"])
        self.staleness.append(outputs["samples"].rollout.steps_behind)
        self.divergence.append(float(trainer.callback_metrics["train/kl"]))


def fit(
    tiny_model: str,
    folder: Path,
    url: str,
    staleness: int,
    steps: int = 4,
    dial: Any = None,
    lora: LoRA | None = LoRA(rank=2),
) -> tuple[Watch, Any]:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    watch = Watch()
    sampler = VLLM(url=url, max_staleness=staleness, patience_seconds=30)
    losses = {"kl": ReverseKL(), "diversity": PolicyGradient(FirstToken(), weight=0.5)}
    module = student_of(
        tiny_model,
        generator=CausalLM(tiny_model, lora=lora),
        losses=losses,
        sampler=sampler,
        seed=3,
        dial=dial,
    )
    trainer([watch], max_steps=steps, limit_val_batches=0).fit(
        module, datamodule=PromptData(str(folder / "prompts.txt"), batch_size=2)
    )
    return watch, module


@pytest.mark.parametrize(("staleness", "dial"), [(0, None), (1, None), (1, Dial())])
def test_each_rollout_is_of_the_student_that_the_staleness_says(
    tiny_model: str, tmp_path: Path, url: str, staleness: int, dial: Dial | None
) -> None:
    """A step behind in its weights, never in the setting of a dial: that one is of the step that learns from the samples."""
    watch, _ = fit(tiny_model, tmp_path, url, staleness, dial=dial)
    assert watch.staleness == [0, staleness, staleness, staleness]
    student, moved = tiny_adapted(tiny_model), 0
    for step, samples in enumerate(watch.samples):
        drawn = samples.rollout
        recorded = []
        for begun in (step - samples.rollout.steps_behind, step):
            _put(student, watch.adapters[begun])
            with adapter_scaled(student.model, 1.0 if dial is None else dial.at(3, step)):
                predicted = student.predictions(samples.asked, drawn.tokens_NKT, drawn.mask_NKT).whole()
            own_NKT = predicted.log_softmax(-1).gather(-1, drawn.tokens_NKT[..., None])[..., 0] * drawn.mask_NKT
            recorded.append(torch.allclose(own_NKT, drawn.log_probs_NKT, atol=1e-3))
        assert recorded[0], f"step {step}: samples of another student"
        moved += not recorded[1]
    assert moved == (3 if staleness else 0)


@pytest.mark.parametrize("staleness", [0, 1])
def test_each_rollout_of_whole_weights_is_of_the_student_that_the_staleness_says(
    tiny_model: str, tmp_path: Path, staleness: int
) -> None:
    with serving(StandIn(tiny_model, development=True)) as address:
        watch, _ = fit(tiny_model, tmp_path, address, staleness, lora=None)
    assert watch.staleness == [0, staleness, staleness, staleness]
    student = CausalLM(tiny_model).load()
    for step, samples in enumerate(watch.samples):
        drawn, recorded = samples.rollout, []
        for begun in (step - drawn.steps_behind, (step + 1) % 4):
            student.model.load_state_dict(watch.weights[begun])
            with torch.no_grad():
                predicted = student.predictions(samples.asked, drawn.tokens_NKT, drawn.mask_NKT).whole()
            own_NKT = predicted.log_softmax(-1).gather(-1, drawn.tokens_NKT[..., None])[..., 0] * drawn.mask_NKT
            recorded.append(torch.allclose(own_NKT, drawn.log_probs_NKT, atol=1e-4))
        assert recorded == [True, False], f"step {step}"


def test_the_divergence_is_under_the_student_that_trains(tiny_model: str, tmp_path: Path, url: str) -> None:
    """And not under the one that drew the samples, a step before: the two differ on the same samples."""
    watch, _ = fit(tiny_model, tmp_path, url, 1)
    student, teacher = tiny_adapted(tiny_model), Guided(CausalLM(tiny_model).load(), Guidance(2.0))
    for step in (1, 2, 3):
        asked, drawn = watch.samples[step].asked, watch.samples[step].rollout
        found = []
        for begun in (step, step - 1):
            _put(student, watch.adapters[begun])
            both = (each.predictions(asked, drawn.tokens_NKT, drawn.mask_NKT).whole() for each in (student, teacher))
            total, count = reverse_kl(*both, drawn.mask_NKT)
            found.append(float(total.detach() / count))
        assert watch.divergence[step] == pytest.approx(found[0], rel=1e-4)
        assert watch.divergence[step] != pytest.approx(found[1], rel=1e-2)


def _put(student: CausalLM, adapter: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    for name, own in adapter_of(student.model).items():
        own.a_RI.copy_(adapter[name][0])
        own.b_OR.copy_(adapter[name][1])


def test_a_fit_by_an_engine_and_our_loop_see_the_same_weights_where_samples_are_the_same(
    tiny_model: str, tmp_path: Path, url: str
) -> None:
    """The engine's samples, replayed through our own path, give the same first step: nothing else of the engine enters."""
    watch, module = fit(tiny_model, tmp_path, url, 0, steps=1)
    replayed = watch.samples[0].rollout

    class Replay(VLLM):
        def rollout(self, *arguments: Any, **settings: Any) -> Rollout:
            return replace(replayed, log_probs_BGKT=torch.zeros_like(replayed.log_probs_BGKT))

    again = student_of(
        tiny_model,
        generator=CausalLM(tiny_model, lora=LoRA(rank=2)),
        losses={"kl": ReverseKL(), "diversity": PolicyGradient(FirstToken(), weight=0.5)},
        sampler=Replay(url=url),
        seed=3,
    )
    trainer([], max_steps=1, limit_val_batches=0).fit(
        again, datamodule=PromptData(str(tmp_path / "prompts.txt"), batch_size=2)
    )
    for name, own in adapter_of(module.student.model).items():
        torch.testing.assert_close(own.b_OR, adapter_of(again.student.model)[name].b_OR)


def test_the_policy_gradient_of_old_samples_is_in_expectation_that_of_new_ones() -> None:
    """A policy of one token over three, enumerated: the ratio makes the gradient exact, and the limit bounds it."""
    logits_V = torch.tensor([0.3, -0.4, 0.1], requires_grad=True)
    then_V = torch.tensor([0.0, 0.5, -0.2]).softmax(-1)
    reward_V = torch.tensor([1.0, -2.0, 0.5])
    (wanted,) = torch.autograd.grad(-(logits_V.softmax(-1) * reward_V).sum(), logits_V)

    def gradient(behind: int, limit: float) -> torch.Tensor:
        loss, total = PolicyGradient(FirstToken(), ratio_limit=limit), torch.zeros(3)
        for token in range(3):
            tokens = torch.tensor([[[[token]]]])
            drawn = Rollout(
                tokens, torch.ones_like(tokens, dtype=torch.bool), then_V[tokens].log(), steps_behind=behind
            )
            samples = Samples([""], [""], drawn)
            predicted = Logits(logits_V[None, None, None])
            inputs = LossInputs(predicted, predicted, drawn.tokens_NKT, drawn.mask_NKT, Sampling(), samples)
            value = mix({"": loss}, inputs, {"": 1.0}, {"": reward_V[token][None]})[0]
            total += then_V[token] * torch.autograd.grad(value, logits_V)[0]
        return total

    torch.testing.assert_close(gradient(1, 10.0), wanted)
    assert not torch.allclose(gradient(0, 10.0), wanted, atol=1e-3)
    ratio_V = (logits_V.softmax(-1) / then_V).detach().clamp(max=1.1)
    picked = (then_V * ratio_V * reward_V * -logits_V.log_softmax(-1)).sum()
    torch.testing.assert_close(gradient(1, 1.1), torch.autograd.grad(picked, logits_V)[0])


def test_what_a_sampler_cannot_do_is_said_before_a_fit(tiny_model: str, tmp_path: Path, url: str) -> None:
    lora = CausalLM(tiny_model, lora=LoRA(rank=2))
    stale = VLLM(url=url, max_staleness=1)

    def found(**settings: Any) -> str:
        module = student_of(tiny_model, **{"generator": lora, "sampler": stale} | settings)
        return " ".join(map(str, module.problems()))

    assert found() == ""
    module = student_of(tiny_model, generator=lora, sampler=stale)
    assert module.summary().endswith(f"drawn by vLLM at {url}, up to 1 step ahead.")
    assert "`sampler`: expected none under `model.off_policy`" in found(off_policy=True)
    assert "`losses.kl.init_args.score_term`: expected false" in found(losses={"kl": ReverseKL(score_term=True)})
    assert "`losses.d.init_args.ratio_limit`" in found(
        losses={"kl": ReverseKL(), "d": PolicyGradient(FirstToken(), ratio_limit=0.5)}
    )
    assert "`sampler.init_args.max_staleness`: expected 0 or 1" in found(sampler=VLLM(url=url, max_staleness=2))
    several = trainer([], max_steps=1, accumulate_grad_batches=2)
    assert "accumulate_grad_batches`" in str(module.problems_with(several)[0])
    assert "`model.sampler.init_args.max_staleness`" in str(module.problems_of_data(object())[0])


def test_data_know_the_next_batch_without_dealing_it(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    data = PromptData(str(tmp_path / "prompts.txt"), batch_size=3, seed=1)
    data.setup("fit")
    seen, foreseen = [], []
    for batch in data.train_dataloader():
        seen.append(batch)
        foreseen.append(data.upcoming())
    assert foreseen == [*seen[1:], []]


def test_an_opening_beside_an_engine_is_refused(tiny_model: str) -> None:
    module = student_of(
        tiny_model,
        generator=CausalLM(tiny_model, lora=LoRA(rank=2)),
        losses={"kl": ReverseKL()},
        sampler=VLLM(url="http://localhost:1"),
        opening=Opening(4),
    )
    assert [problem.key for problem in problems_of_policy(module)] == ["opening"]
