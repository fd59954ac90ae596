"""What a user's reward or embedder does wrong is said by key, prompt, sample and shape; the exception is the cause."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cfg_distill.distillation.asked import advantages_of, degenerate_of
from cfg_distill.embedders import Embedder
from cfg_distill.errors import ConfigError, PartError
from cfg_distill.losses import PolicyGradient
from cfg_distill.rewards import (
    GroupReward,
    Mixed,
    PairwiseDiversity,
    PairwiseReward,
    PromptAdherence,
    Reward,
    SampleReward,
)

OUTCOMES_BG = torch.tensor([[0, 1, 2], [3, 0, 1]])
KEY = "model.losses.diversity.init_args.reward"


class Own(Reward):
    """Returns what it is told to."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self, samples: Any) -> Any:
        return self.value


class OwnScore(SampleReward):
    def __init__(self, score: Callable[[Any], Any]) -> None:
        super().__init__()
        self.of = score

    def score(self, samples: Any) -> Any:
        return torch.tensor([self.of(output) for output in samples.outputs]).view(len(samples.prompts), -1)


class OwnPairs(PairwiseReward):
    def __init__(self, pairs: Callable[[Any], Any]) -> None:
        super().__init__()
        self.of = pairs

    def pairs(self, samples: Any) -> Any:
        return self.of(samples)


class OwnEmbedder(Embedder):
    def __init__(self, embed: Callable[[Any], Any]) -> None:
        super().__init__()
        self.of = embed

    def problems(self, context: Any = None) -> list:
        return []

    def load(self) -> OwnEmbedder:
        return self

    def embed(self, outputs: Sequence[Any]) -> Tensor:
        return self.of(outputs)

    def degenerate(self, outputs: Sequence[Any]) -> Tensor:
        return torch.zeros(len(outputs), dtype=torch.bool)


def ask(reward: Reward, samples: Any) -> Any:
    return advantages_of({"diversity": PolicyGradient(reward)}, samples, step=5)


GOOD_BG = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (
            torch.zeros(6),
            r"`reward_BG` of Own to be \[B, G\] = \[2, 3\], float32, without gradient, but got \[6\], float32",
        ),
        (torch.zeros(2), r"but got \[2\], float32. Keep the samples of a prompt together"),
        (torch.zeros(2, 3, dtype=torch.float64), r"but got \[2, 3\], float64. Add `.float\(\)`"),
        (torch.zeros(2, 3, dtype=torch.bfloat16), r"but got \[2, 3\], bfloat16"),
        (torch.zeros(2, 3, dtype=torch.long), r"but got \[2, 3\], int64"),
        (
            torch.zeros(2, 3, requires_grad=True),
            r"but got \[2, 3\], float32, with gradient. Compute it under `torch.no_grad",
        ),
        ([[0.0] * 3] * 2, r"but got a list. Return a tensor"),
    ],
)
def test_a_wrong_tensor_is_refused_by_key_and_shape(samples_of: Any, value: Any, said: str) -> None:
    samples = samples_of(OUTCOMES_BG)
    with pytest.raises(
        ConfigError, match=f"^Key `{KEY}`: expected {said}" if "`reward_BG`" in said else said
    ) as caught:
        ask(Own(GroupReward(value, GOOD_BG)), samples)
    assert [problem.path for problem in caught.value.problems] == [KEY]
    with pytest.raises(ConfigError, match="`advantage_BG` of Own"):
        ask(Own(GroupReward(GOOD_BG, value)), samples)
    mixed = Mixed({"one": Own(GroupReward(value, GOOD_BG))})
    with pytest.raises(ConfigError, match=f"^Key `{KEY}.init_args.rewards.one`: expected `reward_BG` of Own"):
        ask(mixed, samples)


@pytest.mark.parametrize(
    ("opinion", "found"), [([True] * 6, "list"), (torch.zeros(6).bool(), r"\[6\]"), (GOOD_BG, r"\[2, 3\], float32")]
)
def test_an_opinion_of_another_shape_is_refused_by_key(samples_of: Any, opinion: Any, found: str) -> None:
    reward = Own(GroupReward(GOOD_BG, GOOD_BG))
    reward.degenerate = lambda samples: opinion  # type: ignore[method-assign]
    with pytest.raises(
        ConfigError, match=rf"^Key `{KEY}.*expected `degenerate` of Own to be \[B, G\] = \[2, 3\].*{found}"
    ):
        degenerate_of({"diversity": PolicyGradient(reward)}, samples_of(OUTCOMES_BG), step=5)


def test_something_else_than_a_group_reward_is_refused(samples_of: Any) -> None:
    with pytest.raises(
        ConfigError, match=rf"^Key `{KEY}`: expected Own to return a GroupReward, but got \[2, 3\], float32"
    ):
        ask(Own(GOOD_BG), samples_of(OUTCOMES_BG))


@pytest.mark.parametrize("mode", ["alone", "multiplicative"])
def test_the_methods_of_samples_and_pairs_are_checked_too(samples_of: Any, mode: str) -> None:
    samples = samples_of(OUTCOMES_BG)
    key = KEY if mode == "alone" else f"{KEY}.init_args.rewards.one"

    def held(reward: Reward) -> Reward:
        return reward if mode == "alone" else Mixed({"one": reward}, mode="multiplicative")

    flat = OwnPairs(lambda samples: torch.zeros(18))
    with pytest.raises(
        ConfigError, match=rf"^Key `{key}`: expected `pairs` of OwnPairs to be \[B, G, G\] = \[2, 3, 3\]"
    ):
        ask(held(flat), samples)
    with pytest.raises(ConfigError, match=rf"^Key `{key}`: expected `score` of OwnScore .* got \[2, 3\], int64. Add"):
        ask(held(OwnScore(lambda output: output)), samples)


@pytest.mark.parametrize(
    ("embed", "said"),
    [
        (lambda outputs: torch.zeros(6), r"\[N, D\] = \[6, D\], float32, without gradient, but got \[6\], float32"),
        (lambda outputs: torch.zeros(2, 4), r"but got \[2, 4\], float32"),
        (lambda outputs: torch.zeros(6, 4).double(), r"but got \[6, 4\], float64"),
        (lambda outputs: [[0.0]] * 6, "but got a list"),
    ],
)
def test_an_embedder_is_checked_too(samples_of: Any, embed: Any, said: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^Key `{KEY}.init_args.embedder`: expected `embed` of OwnEmbedder to be .*{said}"
    ):
        ask(PairwiseDiversity(OwnEmbedder(embed)), samples_of(OUTCOMES_BG))


def fails_on(number: int) -> Callable[[Any], Any]:
    def of(given: Any) -> Any:
        outputs = given if isinstance(given, int | list) else given.outputs
        if number in (outputs if isinstance(outputs, list) else [outputs]):
            raise ZeroDivisionError("no words")
        return torch.zeros(len(outputs), 4) if isinstance(given, list) else 0.0

    return of


ON_SAMPLE = r" raised ZeroDivisionError: no words in step 5, on sample 1 of prompt `prompt 1`: 3. The student is as"


@pytest.mark.parametrize(
    ("reward", "said"),
    [
        (OwnScore(fails_on(3)), f"^Key `{KEY}`: OwnScore{ON_SAMPLE}"),
        (
            OwnPairs(fails_on(3)),
            rf"^Key `{KEY}`: OwnPairs raised ZeroDivisionError: no words in step 5, on the samples of prompt `prompt 1`",
        ),
        (
            Mixed({"far": PairwiseDiversity(OwnEmbedder(fails_on(3)))}),
            rf"^Key `{KEY}.init_args.rewards.far.init_args.embedder`: OwnEmbedder{ON_SAMPLE}",
        ),
        (PromptAdherence(OwnEmbedder(fails_on(3))), rf"^Key `{KEY}.init_args.embedder`: OwnEmbedder{ON_SAMPLE}"),
    ],
)
def test_an_exception_names_key_prompt_and_sample(samples_of: Any, reward: Reward, said: str) -> None:
    with pytest.raises(PartError, match=said) as caught:
        ask(reward, samples_of(OUTCOMES_BG))
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    frames = []
    traceback = cause.__traceback__
    while traceback is not None:
        frames.append(traceback.tb_frame.f_code.co_name)
        traceback = traceback.tb_next
    assert frames[-1] == "of"  # the user's own line


def test_where_the_sample_is_unknown_the_prompts_are_named(samples_of: Any) -> None:
    class Broken(Reward):
        def forward(self, samples: Any) -> Any:
            raise KeyError("title")

    with pytest.raises(
        PartError, match=r"Broken raised KeyError: 'title' in step 5, on 3 samples each of 2 prompts: `prompt 0`,"
    ):
        ask(Broken(), samples_of(OUTCOMES_BG))
