"""Sums over cells in chunks against their plain twin: whole logits and autograd."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cfg_distill.errors import ConfigError
from cfg_distill.generators import Head, HiddenStates, Logits
from cfg_distill.generators.delay import cells_at
from cfg_distill.losses import (
    CellLoss,
    EntropyAwareKL,
    JensenShannon,
    Loss,
    LossInputs,
    PolicyGradient,
    ReverseKL,
    mix,
    reverse_kl,
)
from cfg_distill.losses.chunked import as_on, sum_over_cells
from cfg_distill.losses.divergences import entropy_cells
from cfg_distill.rewards import GroupReward, Reward
from cfg_distill.sampling import Rollout, Sampling
from cfg_distill.sampling.samples import Samples

N, K, T, V, D = 6, 2, 7, 11, 5


class Given(Reward):
    """Advantages that are what they are: the arithmetic behind them is another room's."""

    def forward(self, samples):
        advantage_BG = torch.linspace(-1, 1, N).unflatten(0, (2, 3))
        return GroupReward(advantage_BG, advantage_BG)


def setting(sampling=Sampling(samples=3, max_new_tokens=T), dtype=torch.float32, bias=True, masked=torch.nan):
    """States, heads, tokens and a mask with gaps, the same at each call; masked states are NaN."""
    draw = torch.Generator().manual_seed(0)
    mask_NKT = torch.rand(N, K, T, generator=draw) < 0.7
    mask_NKT[:, :, 0] = True
    tokens_NKT = torch.randint(V, (N, K, T), generator=draw)

    def leaf(*shape):
        return torch.randn(*shape, generator=draw).to(dtype)

    states = [leaf(N, T, D), leaf(N, T, D)]
    for states_NTD in states:
        states_NTD[~mask_NKT.any(1)] = masked
    heads = [Head(leaf(K, V, D), leaf(K, V) if bias else None) for _ in range(2)]
    leaves = [states[0], heads[0].weight_KVD, *([heads[0].bias_KV] if bias else [])]
    for tensor in leaves:
        tensor.requires_grad_()
    student, teacher = (HiddenStates(*pair) for pair in zip(states, heads, strict=True))
    groups = [tensor.unflatten(0, (2, 3)) for tensor in (tokens_NKT, mask_NKT, torch.zeros(N, K, T))]
    samples = Samples(["a", "b"], [""] * N, Rollout(*groups))
    return LossInputs(student, teacher, tokens_NKT, mask_NKT, sampling, samples), leaves


FILTERED = Sampling(samples=3, max_new_tokens=T, temperature=0.8, top_k=6)


@pytest.mark.parametrize("chunk", [1, 4 * V, 1000 * V])
@pytest.mark.parametrize("sampling", [Sampling(samples=3, max_new_tokens=T), FILTERED])
@pytest.mark.parametrize(
    "losses",
    [
        {"kl": ReverseKL()},
        {"kl": ReverseKL(score_term=True, temperature=1.5, codebook_weights=[1.0, 0.25])},
        {"kl": JensenShannon(0.3), "diversity": PolicyGradient(Given(), scale="token")},
        {"kl": EntropyAwareKL(2.0), "diversity": PolicyGradient(Given())},
    ],
    ids=lambda losses: "+".join(type(loss).__name__ for loss in losses.values()),
)
def test_chunks_equal_whole_logits(losses, sampling, chunk):
    weights = {"kl": torch.tensor(0.7), "diversity": 3.0}
    found = []
    for size in (0, chunk):
        inputs, leaves = setting(sampling)
        total, sums = mix(losses, inputs, weights, chunk=size)
        found.append((total, sums, torch.autograd.grad(2 * total, leaves)))
    (plain, plain_sums, plain_gradients), (fused, fused_sums, fused_gradients) = found
    torch.testing.assert_close(fused, plain)
    torch.testing.assert_close(fused_sums, plain_sums)
    for ours, theirs in zip(fused_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
        assert theirs.isfinite().all()
        assert theirs.any()


@pytest.mark.parametrize("form", ["head", "logits"])
def test_forbidden_tokens_in_chunks(form):
    """Heads whose bias forbids tokens, and logits that do: chunked as plain, and as a vocabulary without them."""
    losses = {
        "kl": ReverseKL(),
        "js": JensenShannon(0.3, temperature=1.5),
        "sure": EntropyAwareKL(1.0),
        "diversity": PolicyGradient(Given()),
    }
    weights = {"kl": 0.7, "js": 1.0, "sure": 0.5, "diversity": 0.3}
    watched = {"entropy": lambda cells: entropy_cells(cells.student_log_probs_MV)}
    allowed = list(range(V - 2))
    found = {}
    for case, chunk in (("plain", 0), ("chunked", 4 * V), ("without", 0)):
        inputs, leaves = setting(masked=0.0)
        inputs.tokens_NKT = inputs.tokens_NKT % (V - 2)
        states_NTD, head = inputs.student.states_NTD, inputs.student.head
        heads = []
        for each in (head, inputs.teacher.head):
            if case == "without":
                heads.append(Head(each.weight_KVD[:, allowed], each.bias_KV[:, allowed]))
            else:
                forbidden_KV = torch.zeros(K, V).index_fill(1, torch.tensor([V - 2, V - 1]), -torch.inf)
                heads.append(Head(each.weight_KVD, each.bias_KV + forbidden_KV))
        inputs.student, inputs.teacher = (
            HiddenStates(states, head)
            for states, head in zip((states_NTD, inputs.teacher.states_NTD), heads, strict=True)
        )
        if form == "logits":
            inputs.student, inputs.teacher = (Logits(each.whole()) for each in (inputs.student, inputs.teacher))
        total, sums = mix(losses, inputs, weights, watched=watched, chunk=chunk)
        found[case] = total, sums, torch.autograd.grad(total, leaves)
    for case in ("chunked", "without"):
        torch.testing.assert_close(found[case][0], found["plain"][0])
        torch.testing.assert_close(found[case][1], found["plain"][1])
        for ours, theirs in zip(found[case][2], found["plain"][2], strict=True):
            torch.testing.assert_close(ours, theirs)
            assert ours.isfinite().all() and ours.any()


def test_the_plain_twin_is_the_formula():
    inputs, leaves = setting(masked=0.0)
    kl, _ = reverse_kl(inputs.student_NKTV, inputs.teacher_NKTV, inputs.mask_NKT)
    log_probs_NKT = torch.distributions.Categorical(
        logits=inputs.student_NKTV.masked_fill(~inputs.mask_NKT[..., None], 0.0)
    ).log_prob(inputs.tokens_NKT)
    advantage_N = torch.linspace(-1, 1, N)
    surrogate = -(advantage_N[:, None, None] * log_probs_NKT * inputs.mask_NKT).sum()
    expected = torch.autograd.grad(0.5 * kl + 2 * surrogate, leaves)
    inputs, leaves = setting(masked=0.0)
    losses = {"kl": ReverseKL(), "diversity": PolicyGradient(Given())}
    total, sums = mix(losses, inputs, {"kl": 0.5, "diversity": 2.0}, chunk=4 * V)
    torch.testing.assert_close(sums, {"kl": kl.detach(), "diversity": surrogate.detach()})
    for ours, theirs in zip(torch.autograd.grad(total, leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_frozen_head_gets_no_gradient_and_no_second_pass():
    inputs, leaves = setting(bias=False)
    inputs.student = HiddenStates(inputs.student.states_NTD, Head(leaves[1].detach()))
    total, _ = mix({"kl": ReverseKL()}, inputs, {"kl": 1.0}, chunk=4 * V)
    total.backward()
    assert leaves[0].grad.any()
    assert leaves[1].grad is None
    with pytest.raises(RuntimeError):
        total.backward()


def test_half_precision_states_keep_the_divergence_positive():
    inputs, leaves = setting(dtype=torch.bfloat16)
    inputs.teacher = HiddenStates(inputs.student.states_NTD.detach(), inputs.student.head)
    total, _ = mix({"kl": ReverseKL()}, inputs, {"kl": 1.0}, chunk=4 * V)
    assert total.dtype == torch.float32
    assert 0 <= total < 1e-4
    assert torch.autograd.grad(total, leaves)[0].dtype == torch.bfloat16


def test_watched_terms_are_summed_and_have_no_part_in_the_gradient():
    def value(cells):
        return cells.student_log_probs_MV.exp().square().sum(-1)

    gradients, sums = [], {}
    for watched in ({}, {"collision": value}):
        inputs, leaves = setting()
        total, sums = mix({"kl": ReverseKL()}, inputs, {"kl": 1.0}, watched=watched, chunk=4 * V)
        gradients.append(torch.autograd.grad(total, leaves))
    probs_MV = inputs.student_NKTV[inputs.mask_NKT].softmax(-1)
    torch.testing.assert_close(sums["collision"], probs_MV.detach().square().sum())
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_a_term_without_gradient_gives_none():
    class Constant(Loss):
        def cells(self, inputs):
            return lambda cells: torch.ones(len(cells.tokens_M))

    inputs, leaves = setting()
    total, _ = mix({"": Constant()}, inputs, {"": 1.0}, chunk=4 * V)
    assert total == inputs.mask_NKT.sum()
    assert not any(gradient.any() for gradient in torch.autograd.grad(total, leaves))


def test_a_loss_sees_the_advantage_of_its_own_rows():
    class Seen(Loss):
        def advantage(self, samples):
            return torch.arange(N)

        def cells(self, inputs):
            self.seen = inputs.advantage_N.tolist()
            return lambda cells: cells.student_log_probs_MV.sum(-1)

    loss = Seen()
    inputs, _ = setting()
    inputs.rows = slice(2, 5)
    mix({"": loss}, inputs, {"": 1.0})
    assert loss.seen == [2, 3, 4]


def test_cells_of_delayed_codebooks():
    """Against the picture of the layout: delays 0, 1, 3, four frames, an end token in frame 2 of the second sample."""
    expected = [
        ["1111000", "0111100", "0001111"],
        ["1110000", "0110000", "0001100"],
    ]
    end_N = torch.tensor([4, 2])
    delays_K = torch.tensor([0, 1, 3])
    mask_NKT = torch.stack([cells_at(t, delays_K, 4, end_N) for t in range(7)], dim=-1)
    assert [["".join(str(int(cell)) for cell in row) for row in rows] for rows in mask_NKT] == expected


def test_names_of_version_0_1_go_on_working():
    """`CellLoss`, `credit` and `credit_N`, in a subclass of ours too."""
    with pytest.warns(FutureWarning, match="`Old.credit` is now called `advantage`"):

        class Old(CellLoss):
            def credit(self, samples):
                return torch.arange(N)

            def cells(self, inputs):
                with pytest.warns(FutureWarning, match="advantage_N"):
                    self.seen = inputs.credit_N.tolist()
                return lambda cells: cells.student_log_probs_MV.sum(-1)

    with pytest.warns(FutureWarning, match="advantage"):

        class Doubled(PolicyGradient):
            def credit(self, samples):
                return 2 * super().credit(samples)

    loss = Old()
    inputs, _ = setting()
    mix({"": loss}, inputs, {"": 1.0})
    assert loss.seen == list(range(N))
    assert torch.equal(
        Doubled(Given()).advantage(inputs.samples), 2 * PolicyGradient(Given()).advantage(inputs.samples)
    )


def test_a_term_that_is_no_sum_over_cells():
    """A loss of whole logits beside one over cells: one value, one gradient."""

    class Whole(Loss):
        def forward(self, inputs):
            return inputs.student_NKTV[inputs.mask_NKT].square().sum()

    inputs, leaves = setting(masked=0.0)
    total, sums = mix({"kl": ReverseKL(), "whole": Whole()}, inputs, {"kl": 0.5, "whole": 2.0}, chunk=4 * V)
    kl, _ = mix({"kl": ReverseKL()}, inputs, {"kl": 0.5}, chunk=4 * V)
    whole = inputs.student_NKTV[inputs.mask_NKT].square().sum()
    torch.testing.assert_close(total, kl + 2 * whole)
    torch.testing.assert_close(sums["whole"], whole.detach())
    expected = [
        a + b for a, b in zip(torch.autograd.grad(kl, leaves), torch.autograd.grad(2 * whole, leaves), strict=True)
    ]
    for ours, theirs in zip(torch.autograd.grad(total, leaves), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(TypeError, match="abstract"):
        type("Neither", (Loss,), {})()


@pytest.mark.parametrize("chunk", [0, 4 * V])
@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (lambda cells: cells.student_log_probs_MV.mean(), "a tensor of shape ()"),
        (lambda cells: cells.student_log_probs_MV, rf"a tensor of shape \(\d+, {V}\)"),
        (lambda cells: None, "NoneType"),
    ],
)
def test_what_is_no_value_per_cell_is_refused(cells, said, chunk):
    """A mean counted as often as there are chunks."""

    class Mine(Loss):
        def cells(self, inputs):
            return cells

    inputs, _ = setting()
    said = said.replace("()", r"\(\)")
    with pytest.raises(ConfigError, match=rf"Key `model.losses.mine`: expected one value per cell, .* but got {said}"):
        mix({"mine": Mine()}, inputs, {"mine": 1.0}, chunk=chunk)


def test_a_forward_that_gives_no_sum_is_refused():
    class Mine(Loss):
        def forward(self, inputs):
            return inputs.student_NKTV.sum(-1)

    inputs, _ = setting()
    with pytest.raises(ConfigError, match=r"Key `model.losses.mine`: expected a scalar"):
        mix({"mine": Mine()}, inputs, {"mine": 1.0})


def test_without_gradient_a_trained_head_costs_no_product_more():
    class Seen(TorchDispatchMode):
        names = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names = (*self.names, func.__name__)
            return func(*args, **(kwargs or {}))

    inputs, _ = setting()
    with torch.no_grad(), Seen() as seen:
        mix({"kl": ReverseKL()}, inputs, {"kl": 1.0}, chunk=4 * V)
    assert inputs.student.head.weight_KVD.requires_grad and "addmm_.default" not in seen.names
    with Seen() as seen:
        mix({"kl": ReverseKL()}, inputs, {"kl": 1.0}, chunk=4 * V)
    assert "addmm_.default" in seen.names


def test_a_forward_that_no_fit_would_call_is_refused():
    with pytest.raises(TypeError, match=r"`Doubled\.forward` would never be called"):

        class Doubled(ReverseKL):
            def forward(self, inputs):
                return 2 * super().forward(inputs)


def test_a_token_scale_counts_the_tokens_that_the_student_drew():
    """Behind an opening of 4 tokens, samples of 1 and 3 tokens pull equally hard in all."""
    mask_NKT = torch.arange(T) < torch.tensor([[[5]], [[7]]])
    tokens_NKT = torch.zeros(2, 1, T, dtype=torch.long)
    rollout = Rollout(tokens_NKT[None], mask_NKT[None], torch.zeros(1, 2, 1, T), opening=4)
    logits = torch.zeros(2, 1, T, V, requires_grad=True)
    sampling = Sampling(samples=2, max_new_tokens=T)
    inputs = LossInputs(
        Logits(logits), Logits(logits.detach()), tokens_NKT, mask_NKT, sampling, Samples(["a"], [""] * 2, rollout)
    )
    inputs.advantage_N = torch.ones(2)
    term = PolicyGradient(Given(), scale="token").cells(inputs)
    total, _ = sum_over_cells(inputs.student, inputs.teacher, tokens_NKT, mask_NKT, {"": term}, {"": 1.0}, chunk=4 * V)
    total.backward()
    first, second = logits.grad.abs().sum((1, 2, 3))
    torch.testing.assert_close(first, second)


def test_small_gradients_survive_float16():
    """The scale of 16-mixed comes in backward; the products of the chunks are made before."""
    found = []
    for chunk in (4 * V, 0):
        inputs, leaves = setting(bias=False)
        with torch.autocast("cpu", torch.float16):
            term = lambda cells: 1e-7 * cells.student_log_probs_MV[:, :3].sum(-1)  # noqa: E731
            total, _ = sum_over_cells(
                inputs.student, inputs.teacher, inputs.tokens_NKT, inputs.mask_NKT, {"": term}, {"": 1.0}, chunk
            )
        (total * 2.0**16).backward()
        found.append([leaf.grad / 2.0**16 for leaf in leaves])
    for chunked, plain in zip(*found, strict=True):
        real = plain.isfinite()
        torch.testing.assert_close(chunked[real], plain[real], rtol=0.05, atol=0.02 * float(plain[real].abs().max()))
        assert chunked[real].abs().max() > 0


def test_a_plan_for_an_accelerator_cuts_as_an_accelerator_does():
    calls = {}
    for device in ("cpu", "gpu"):
        inputs, _ = setting()
        seen = []
        term = lambda cells: seen.append(len(cells.tokens_M)) or cells.student_log_probs_MV.sum(-1)  # noqa: B023, E731
        with as_on(device):
            sum_over_cells(
                inputs.student, inputs.teacher, inputs.tokens_NKT, inputs.mask_NKT, {"": term}, {"": 1.0}, 8 * V
            )
        calls[device] = seen
    assert max(calls["cpu"]) == 1 and max(calls["gpu"]) == 8 and sum(calls["cpu"]) == sum(calls["gpu"])
