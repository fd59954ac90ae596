"""What a step is divided by: the expected gradient by enumeration of every group, resuming, older checkpoints."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations_with_replacement, product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tiny_fits import batches, every_step, same, snapshot, student_of, trainer
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cfg_distill import CFGDistillation
from cfg_distill.distillation.count import Count
from cfg_distill.embedders import NGramCounts
from cfg_distill.guidance import Guidance
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.rewards import PairwiseDiversity
from cfg_distill.rewards.pairwise import mean_among_others, mean_with_others
from cfg_distill.sampling import Rollout, Sampling

G = 3


def sequences(tokens: int, longest: int) -> list[tuple[int, ...]]:
    """Every sample: token 0 ends it, or the length does."""
    return [
        row
        for length in range(1, longest + 1)
        for row in product(range(tokens), repeat=length)
        if 0 not in row[:-1] and (row[-1] == 0 or length == longest)
    ]


# The arithmetic alone: 5 tokens, lengths 1 to 3, all 614,125 groups


class Policy:
    """A table of logits for each prefix: the probability of each sample, and gradients of all that training sums.

    Attributes:
        p_S: the probability of each sample.
        length_S: its length.
        score_SP: the gradient of its log-probability.
        kl_SP: the gradient of its KL from a teacher, none through the sampling.
        pairs_SS: a reward for each pair of samples: their cosine distance as counts of tokens.

    Args:
        seed: of the logits.
        empty_counts: whether the sample that ends at once earns diversity as any other.
    """

    def __init__(self, seed: int, empty_counts: bool = True) -> None:
        random = torch.Generator().manual_seed(seed)
        samples = sequences(5, 3)
        prefixes = list({row[:n]: None for row in samples for n in range(len(row))})
        student, teacher = torch.randn(2, len(prefixes), 5, generator=random, dtype=torch.float64)
        student.requires_grad_()
        log_p, log_q = student.log_softmax(-1), teacher.log_softmax(-1)
        kl = (log_p.exp() * (log_p - log_q)).sum(-1)

        def gradient(of: Tensor) -> Tensor:
            return torch.autograd.grad(of, student, retain_graph=True)[0].flatten()

        places = [[prefixes.index(row[:n]) for n in range(len(row))] for row in samples]
        log_probs = [log_p[where, list(row)].sum() for where, row in zip(places, samples, strict=True)]
        self.p_S = torch.stack(log_probs).exp().detach()
        self.length_S = torch.tensor([float(len(row)) for row in samples], dtype=torch.float64)
        self.score_SP = torch.stack([gradient(each) for each in log_probs])
        self.kl_SP = torch.stack([gradient(kl[where].sum()) for where in places])
        counts = torch.tensor([[row.count(token) for token in range(5)] for row in samples], dtype=torch.float64)
        unit = torch.nn.functional.normalize(counts, dim=-1)
        self.pairs_SS = 1 - unit @ unit.T
        if not empty_counts:
            self.pairs_SS[0] = self.pairs_SS[:, 0] = 0

    def gradients(self) -> dict[str, Tensor]:
        """The right ones, of the mean over samples."""
        weight_S = 2 * self.p_S * (self.pairs_SS @ self.p_S)
        return {"kl": self.p_S @ self.kl_SP, "reward": weight_S @ self.score_SP}

    def of_steps(self, own_count: bool) -> dict[str, Tensor]:
        """The expected gradients of steps of one prompt, divided by their own positions or by the expected ones.

        A group's gradient is a sum over its samples, which are alike: G times the part of the first.
        """
        i, j, k = torch.cartesian_prod(*[torch.arange(len(self.p_S))] * G).unbind(-1)
        group = torch.stack([i, j, k], dim=-1)
        pairs = self.pairs_SS[group.unsqueeze(-1), group.unsqueeze(-2)]
        advantage = 2 * (mean_with_others(pairs) - mean_among_others(pairs))[:, 0]
        mean_length = self.p_S @ self.length_S
        count = self.length_S[group].sum(-1) if own_count else G * mean_length
        weight = G * self.p_S[i] * self.p_S[j] * self.p_S[k] / count * mean_length

        def by_first(values: Tensor) -> Tensor:
            return torch.zeros_like(self.p_S).index_add_(0, i, values)

        return {"kl": by_first(weight) @ self.kl_SP, "reward": by_first(weight * advantage) @ self.score_SP}


def slope(found: Tensor, right: Tensor) -> float:
    return float(found @ right / (right @ right))


@pytest.mark.parametrize(
    ("seed", "empty_counts", "of_own_positions"), [(0, True, 1.05), (1, True, 1.25), (5, True, 1.35), (5, False, 0.86)]
)
def test_the_positions_of_the_step_itself_are_a_biased_divisor(
    seed: int, empty_counts: bool, of_own_positions: float
) -> None:
    """At one prompt per step. How far the reward's gradient is off beside the KL's, and to which side, lies with the reward."""
    policy = Policy(seed, empty_counts)
    assert len(policy.p_S) == 85 and float(policy.p_S.sum()) == pytest.approx(1)
    right, own, past = policy.gradients(), policy.of_steps(own_count=True), policy.of_steps(own_count=False)
    for name in right:
        torch.testing.assert_close(past[name], right[name])
    beta = slope(own["reward"], right["reward"]) / slope(own["kl"], right["kl"])
    assert beta == pytest.approx(of_own_positions, abs=0.01)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_mean_length_costs_no_variance(seed: int) -> None:
    """The mean square error of one step's gradient, over 20,000 drawn groups: not above that of the biased divisor."""
    policy = Policy(seed)
    group_MG = torch.multinomial(policy.p_S, 20_000 * G, True, generator=torch.Generator().manual_seed(seed)).view(
        -1, G
    )
    pairs = policy.pairs_SS[group_MG.unsqueeze(-1), group_MG.unsqueeze(-2)]
    advantage = 2 * (mean_with_others(pairs) - mean_among_others(pairs))
    steps = {
        "kl": policy.kl_SP[group_MG].sum(1),
        "reward": (advantage.unsqueeze(-1) * policy.score_SP[group_MG]).sum(1),
    }
    mean_length = policy.p_S @ policy.length_S
    own = policy.length_S[group_MG].sum(-1, keepdim=True)
    for name, right in policy.gradients().items():
        of_own, of_past = (
            float((steps[name] / count * mean_length - right).square().sum(-1).mean())
            for count in (own, G * mean_length)
        )
        assert of_past < of_own


# The module itself: 4 tokens, up to 2 positions, every pair of samples as a training step of one prompt


def four_tokens(folder: Path) -> str:
    """A Llama that knows the end and three words, and ends at once as often as not."""
    torch.manual_seed(4)
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "w0": 1, "w1": 2, "w2": 3}, unk_token="w1"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="</s>", bos_token="</s>", eos_token="</s>", padding_side="left"
    ).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=4, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1, bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(30)
    model.save_pretrained(folder)
    return str(folder)


SAMPLES = sequences(4, 2)
GROUPS = list(combinations_with_replacement(range(len(SAMPLES)), 2))
TOKENS_ST = torch.tensor([[*row, 0][:2] for row in SAMPLES])
MASK_ST = torch.tensor([[True, len(row) == 2] for row in SAMPLES])
BETA = 3.0


class Enumerated(CFGDistillation):
    """Step number n draws group number n."""

    def rollout(self, prompts: Any, seed: int = 0) -> Rollout:
        group = list(GROUPS[self.global_step])
        tokens_BGKT, mask_BGKT = TOKENS_ST[group][None, :, None], MASK_ST[group][None, :, None]
        return Rollout(tokens_BGKT, mask_BGKT, torch.zeros(tokens_BGKT.shape))


class Still(torch.optim.SGD):
    """Moves nothing, and keeps the gradients."""

    seen: list[Tensor]

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        parameters = self.param_groups[0]["params"]
        if len(parameters) == 1:
            return  # the check of settings takes steps of one weight
        self.seen.append(torch.cat([p.grad.double().flatten() for p in parameters]))


class Past(Callback):
    """Gives each step the same past: a mean length, or none; and a mean reward."""

    def __init__(self, length: float | None) -> None:
        self.length = length

    def on_train_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
        module.count.length.updates.fill_(self.length is not None)
        module.count.length.value.fill_(self.length or 0)
        module.losses["diversity"].reward.past.updates.fill_(1)
        module.losses["diversity"].reward.past.value.fill_(0.4)


def losses(beta: float) -> dict[str, Any]:
    reward = PairwiseDiversity(NGramCounts(n=1), baseline="running_mean")
    return {"kl": ReverseKL(), "diversity": PolicyGradient(reward, weight=beta)}


def enumerated(folder: str, reduction: str, past: float | None) -> tuple[Any, list[Tensor]]:
    module = student_of(
        folder,
        kind=Enumerated,
        reduction=reduction,
        guidance=Guidance(2.0, "w0 w1"),
        sampling=Sampling(samples=2, max_new_tokens=2),
        losses=losses(BETA),
        optimizer=lambda parameters: Still(parameters, lr=0.0),
    )
    Still.seen = []
    trainer([Past(past)]).fit(module, torch.utils.data.DataLoader([["w1"]] * len(GROUPS), batch_size=None))
    return module, Still.seen


def probabilities(module: Any) -> Tensor:
    """Of each sample, with gradient, by transformers alone."""
    logits_STV = module.student.model(torch.cat([torch.full((len(SAMPLES), 1), 2), TOKENS_ST[:, :1]], dim=1)).logits
    log_probs_ST = logits_STV.double().log_softmax(-1).gather(-1, TOKENS_ST[..., None])[..., 0]
    return (log_probs_ST * MASK_ST).sum(-1).exp()


def exact(module: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the KL and of the diversity per sample, by autograd on the expectations; and the mean length."""
    p_S = probabilities(module)
    prompt_ST = torch.cat([torch.full((len(SAMPLES), 1), 2), TOKENS_ST[:, :1]], dim=1)
    guided = torch.cat([torch.tensor([[1, 2]]).expand(len(SAMPLES), 2), TOKENS_ST[:, :1]], dim=1)
    with torch.no_grad():
        there, away = module.teacher.model(prompt_ST).logits, module.teacher.model(guided).logits[:, 1:]
        log_q = (away + 2 * (there - away)).double().log_softmax(-1)
    log_p = module.student.model(prompt_ST).logits.double().log_softmax(-1)
    kl_S = ((log_p.exp() * (log_p - log_q)).sum(-1) * MASK_ST).sum(-1)
    words = [Counter(token for token in row if token) for row in SAMPLES]

    def cosine(one: Counter, other: Counter) -> float:
        return sum(one[w] * other[w] for w in one) / math.hypot(*one.values()) / math.hypot(*other.values())

    distance_SS = torch.tensor(
        [[1 - cosine(one, other) if one and other else 0.0 for other in words] for one in words], dtype=torch.float64
    )

    def gradient(of: Tensor) -> Tensor:
        found = torch.autograd.grad(of, list(module.student.parameters()), retain_graph=True)
        return torch.cat([each.double().flatten() for each in found])

    length = (p_S * MASK_ST.sum(-1)).sum().detach()
    return gradient(p_S.detach() @ kl_S), gradient(p_S @ distance_SS @ p_S), length


def expected(module: Any, gradients: list[Tensor]) -> Tensor:
    p_S = probabilities(module).detach()
    total = torch.zeros_like(gradients[0])
    for group, gradient in zip(GROUPS, gradients, strict=True):
        total += len(set(group)) * p_S[list(group)].prod() * gradient
    return total


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    return four_tokens(tmp_path_factory.mktemp("words"))


@pytest.mark.slow
def test_steps_of_one_prompt_have_the_right_expected_gradient(words: str) -> None:
    """`mean` is `sum` divided by the mean length of the past, whatever that is; divided by its own positions it is not."""
    module, of_past = enumerated(words, "mean", 1.3)
    kl, diversity, length = exact(module)
    right = kl - BETA * diversity
    assert 1.2 < length < 1.8 and kl.norm() > 0.05 and diversity.norm() > 0.05
    torch.testing.assert_close(expected(module, of_past) * 1.3, right, rtol=1e-3, atol=1e-5)
    of_own = expected(*enumerated(words, "mean", None)) * length
    assert abs(slope(of_own, right) - 1) > 0.02 and not torch.allclose(of_own, right, rtol=0.02, atol=1e-3)


# A run


class Divisors(Callback):
    """What each step was divided by, its samples, and its own positions."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        own = module.count.close

        def close(count: Tensor, samples: Tensor) -> Tensor:
            divisor = own(count, samples)
            self.seen.append((float(divisor), float(samples), float(count)))
            return divisor

        module.count.close = close


def lengths(module: Any) -> tuple[float, int]:
    return float(module.count.length.value), int(module.count.length.updates)


def test_each_step_is_divided_by_what_was_known_before_it(tiny_model: str) -> None:
    """Five batches, two of them accumulated to a step; the last step has one."""
    module, divisors = student_of(tiny_model, reduction="mean"), Divisors()
    trainer([divisors], accumulate_grad_batches=2).fit(module, batches(5))
    (first, *_), (second, samples, _), (third, few, _) = divisors.seen
    means = [count / number for _, number, count in divisors.seen]
    assert first == divisors.seen[0][2] and (samples, few) == (12, 6)
    assert second == pytest.approx(12 * means[0]) and third == pytest.approx(6 * (means[0] + means[1]) / 2)
    assert len(set(means)) == 3 and lengths(module) == (pytest.approx(sum(means) / 3), 3)


def test_sum_counts_samples_and_knows_no_length(tiny_model: str) -> None:
    module, divisors = student_of(tiny_model, reduction="sum"), Divisors()
    trainer([divisors]).fit(module, batches(3))
    assert [divisor for divisor, *_ in divisors.seen] == [6.0] * 3
    assert lengths(module) == (0.0, 0)


@pytest.fixture(scope="module")
def unbroken(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    root = tmp_path_factory.mktemp("run")
    module = student_of(tiny_model, reduction="mean")
    trainer([every_step(root)], root).fit(module, batches(4))
    return module, root / "saved" / "step=2.ckpt"


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_resumed_run_goes_on_with_the_length(tiny_model: str, unbroken: tuple[Any, Path]) -> None:
    module, saved = unbroken
    resumed = student_of(tiny_model, reduction="mean")
    trainer([]).fit(resumed, batches(4), ckpt_path=str(saved))
    assert same(snapshot(resumed), snapshot(module)) and lengths(resumed) == lengths(module)
    state = torch.load(saved, weights_only=True)["state_dict"]
    assert state["count.length.updates"] == 2


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")
def test_a_checkpoint_without_a_length_goes_on_as_a_run_without_a_past(
    tiny_model: str, unbroken: tuple[Any, Path], tmp_path: Path
) -> None:
    content = torch.load(unbroken[1], weights_only=True)
    for name in ("count.length.value", "count.length.updates"):
        del content["state_dict"][name]
    torch.save(content, tmp_path / "old.ckpt")
    resumed, divisors = student_of(tiny_model, reduction="mean"), Divisors()
    trainer([divisors]).fit(resumed, batches(4), ckpt_path=str(tmp_path / "old.ckpt"))
    assert divisors.seen[0][0] == divisors.seen[0][2] and lengths(resumed)[1] == 2


def test_the_length_is_kept_in_float32() -> None:
    count = Count("mean").bfloat16()
    count.close(torch.tensor(301.0), torch.tensor(3.0))
    assert float(count.of_step(torch.tensor(7.0), torch.tensor(3.0))) == 301.0
