"""A reward that holds a frozen judge: neither saved nor trained, in a box or without."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_fits import batches, same, snapshot, student_of, trainer
from torch import Tensor, nn

from cfg_distill.embedders import NGramCounts
from cfg_distill.generators import CausalLM
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.metrics import LogProbability
from cfg_distill.metrics.likelihood import Reader
from cfg_distill.rewards import Frozen, PairwiseDiversity, PromptAdherence, SampleReward
from cfg_distill.rewards.running import RunningMean
from cfg_distill.sampling.samples import Samples


def judge() -> nn.Module:
    """A judge with a buffer, and with dropout, which would be noise in a reward."""
    network = nn.Sequential(nn.Linear(1, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    network.register_buffer("seen", torch.zeros(1))
    return network


class Boxed(SampleReward):
    """A judge of first tokens, in the box."""

    def __init__(self) -> None:
        super().__init__()
        self.past = RunningMean(0.9)  # is learnt: it must go on, and be saved
        self.judge = Frozen(judge())
        self.modes: list[bool] = []

    def judge_on(self, samples: Samples) -> nn.Module:
        return self.judge.on(samples.rollout.tokens_BGKT.device)

    def score(self, samples: Samples) -> Tensor:
        self.modes.append(self.judge_on(samples).training)
        if self.training:
            self.past.update(torch.ones(()), torch.ones(()))
        return self.judge_on(samples)(samples.rollout.tokens_BGKT[:, :, 0, :1].float())[..., 0]


class Registered(Boxed):
    """The same judge as a plain attribute, its weights frozen by the user."""

    def __init__(self) -> None:
        super().__init__()
        self.judge = judge().requires_grad_(False)  # type: ignore[assignment]

    def judge_on(self, samples: Samples) -> nn.Module:
        return self.judge  # type: ignore[return-value]


@pytest.mark.parametrize("kind", [Boxed, Registered])
def test_a_judge_is_neither_saved_nor_put_into_train_mode(kind: type[Boxed], tiny_model: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    reward = kind()
    module = student_of(tiny_model, losses={"kl": ReverseKL(), "judged": PolicyGradient(reward, weight=0.1)})
    fitted = trainer([], tmp_path)
    fitted.fit(module, batches(3))
    assert reward.training and reward.modes == [False] * 3
    fitted.save_checkpoint(tmp_path / "student.ckpt")
    state = torch.load(tmp_path / "student.ckpt", weights_only=True)["state_dict"]
    assert [name for name in state if not name.startswith(("student.", "count."))] == [
        "losses.kl.weight",
        "losses.judged.weight",
        "losses.judged.reward.past.value",
        "losses.judged.reward.past.updates",
    ]
    assert state["losses.judged.reward.past.updates"] == 3
    torch.manual_seed(0)
    again = student_of(tiny_model, losses={"kl": ReverseKL(), "judged": PolicyGradient(kind(), weight=0.1)})
    trainer([], tmp_path, max_epochs=2).fit(again, batches(3), ckpt_path=str(tmp_path / "student.ckpt"))
    assert not same(snapshot(again), snapshot(module))


@pytest.mark.parametrize("reward", [PairwiseDiversity, PromptAdherence])
def test_embedders_of_rewards_are_in_the_box(reward: Any) -> None:
    embedder = NGramCounts()
    held = reward(embedder)
    assert held.embedder is embedder
    assert not any(module is embedder for module in held.modules())
    assert copy.deepcopy(held).embedder is embedder


def test_the_box_shares_pickles_moves_and_freezes() -> None:
    model = judge().train()
    box = Frozen(model)
    assert copy.copy(box).model is copy.deepcopy([box])[0].model is model
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    model.train()  # weights that are loaded after the box was made
    assert box.on(torch.device("meta")) is model and not model.training
    assert {p.device.type for p in model.parameters()} == {"meta"}
    back = pickle.loads(pickle.dumps(Frozen(judge())))
    assert not back.model.training
    assert Frozen("anything").on(torch.device("cpu")) == "anything"


def test_a_base_goes_when_its_last_metric_goes(tiny_model: str) -> None:
    metric = LogProbability(CausalLM(tiny_model)).load()
    assert len(Reader._shared) >= 1
    key = next(key for key, reader in Reader._shared.items() if reader is metric._reader)
    del metric
    gc.collect()
    assert key not in Reader._shared
