"""CollapseGuard: the numbers it looks at, when it warns, and that it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tiny_fits import batches, student_of, trainer

from cfg_distill.callbacks import CollapseGuard
from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.rewards import PairwiseDiversity
from cfg_distill.sampling import Opening, Sampling


class Sharpen(L.Callback):
    """Multiplies the head of the student before a step: from then on it draws the likeliest tokens only."""

    def __init__(self, step: int, back: int = 10**9) -> None:
        self.step = step
        self.back = back

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        factor = {self.step: 100.0, self.back: 0.01}.get(trainer.global_step, 1.0)
        pl_module.student.model.lm_head.weight.data.mul_(factor)


class Outcomes(L.Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        self.seen.append(outputs)


def student(folder: str) -> Any:
    """It hardly moves by itself."""
    losses = {"kl": ReverseKL(), "diversity": PolicyGradient(PairwiseDiversity(NGramCounts()))}
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1e-9)  # noqa: E731
    sampling = Sampling(samples=4, max_new_tokens=8)
    return student_of(folder, losses=losses, optimizer=optimizer, sampling=sampling)


def test_it_looks_at_entropy_distance_and_degenerate_samples(tiny_model: str, tmp_path: Path) -> None:
    guard, outcomes = CollapseGuard(window=3), Outcomes()
    trainer([guard, outcomes], tmp_path).fit(student(tiny_model), batches(4))
    first = outcomes.seen[:3]
    drawn = [each["samples"].rollout for each in first]
    logs = torch.cat([each.log_probs_BGKT[each.mask_BGKT] for each in drawn])
    assert guard._first == pytest.approx(
        {
            "entropy": -float(logs.mean()),
            "distance": float(torch.cat([each["rewards"]["diversity"] for each in first]).mean()),
            "degenerate": float(torch.cat([each["degenerate"] for each in first]).float().mean()),
        }
    )
    assert guard._batches == 1 and guard._first["entropy"] > 0.5 and guard._first["distance"] > 0.1
    again = CollapseGuard(window=3)
    again.load_state_dict(guard.state_dict())
    assert again.state_dict() == guard.state_dict()


def test_the_tokens_of_an_opening_do_not_count(tiny_model: str, tmp_path: Path) -> None:
    guard, outcomes, module = CollapseGuard(window=2), Outcomes(), student(tiny_model)
    module.opening = Opening(tokens=5)
    trainer([guard, outcomes], tmp_path).fit(module, batches(2))
    logs = [
        own.log_probs_BGKT[..., 5:][own.mask_BGKT[..., 5:]] for own in (s["samples"].rollout for s in outcomes.seen)
    ]
    assert guard._first["entropy"] == pytest.approx(-float(torch.cat(logs).mean()))


def test_a_loss_without_a_reward_has_no_distance(tiny_model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"expected a loss with a reward, one of \['diversity'\], but `kl` has none"):
        trainer([CollapseGuard(loss="kl")], tmp_path).fit(student(tiny_model), batches(1))


def test_it_warns_once_with_the_numbers_and_again_after_a_recovery(tiny_model: str, tmp_path: Path) -> None:
    guard = CollapseGuard(window=2)
    with pytest.warns(UserWarning, match="Collapse") as said:
        trainer([guard, Sharpen(2, back=6)], tmp_path).fit(student(tiny_model), batches(8))
    texts = [str(each.message) for each in said if "Collapse" in str(each.message)]
    assert len(texts) == 1 and guard._collapsed == []
    assert texts[0].startswith("Collapse at step 4, over 2 batches: the entropy of the samples is ")
    assert "nats per token, below" in texts[0] and "; its first value was" in texts[0]
    assert "; the mean reward of the samples is 0." in texts[0]
    with pytest.warns(UserWarning, match="Collapse at step 9"):
        guard._judge(9, {"entropy": 0.0})
    guard._judge(10, {"entropy": 0.0})  # a warning would be an error here
    guard._judge(11, {"entropy": 9.0})
    with pytest.warns(UserWarning, match="Collapse at step 12"):
        guard._judge(12, {"entropy": 0.0})


def test_it_stops_if_asked(tiny_model: str, tmp_path: Path) -> None:
    guard = CollapseGuard(window=2, action="stop")
    module = student(tiny_model)
    fit = trainer([guard, Sharpen(2)], tmp_path)
    with pytest.raises(ConfigError, match="Collapse at step 4, over 2 batches: the entropy"):
        fit.fit(module, batches(8))
    assert fit.global_step == 4


@pytest.mark.parametrize(
    ("settings", "means", "said"),
    [
        ({}, {"degenerate": 0.6}, "the share of degenerate samples is 0.6, above 0.5"),
        ({"relative": False, "entropy_below": 0.3}, {"entropy": 0.2}, "is 0.2 nats per token, below 0.3"),
        ({}, {"distance": -1.0}, ""),  # a reward below 0 that has only begun
        ({"relative": False, "distance_below": 0.0}, {"distance": -1.0}, ""),
        ({"degenerate_above": 1.0, "entropy_below": 0.0}, {"degenerate": 1.0, "entropy": 0.0}, ""),
    ],
)
def test_bounds(settings: dict[str, Any], means: dict[str, float], said: str) -> None:
    guard = CollapseGuard(action="stop", **settings)
    if said:
        with pytest.raises(ConfigError, match=said):
            guard._judge(1, means)
    else:
        guard._judge(1, means)


def test_a_reward_below_0_has_its_bound_below_its_first_value() -> None:
    guard = CollapseGuard(action="stop")
    guard._judge(20, {"distance": -1.0})
    guard._judge(40, {"distance": -1.4})
    with pytest.raises(ConfigError, match=r"is -1\.6, below -1\.5; its first value was -1"):
        guard._judge(60, {"distance": -1.6})


def test_problems_are_named(tiny_model: str, tmp_path: Path) -> None:
    guard = CollapseGuard(-1.0, 2.0, float("nan"), window=0, action="shout", loss="divercity")  # type: ignore[arg-type]
    keys = [problem.key for problem in guard.problems()]
    assert keys == ["window", "entropy_below", "distance_below", "degenerate_above", "action"]
    with pytest.raises(ConfigError, match="Did you mean `diversity`"):
        trainer([guard], tmp_path).fit(student(tiny_model), batches(1))
