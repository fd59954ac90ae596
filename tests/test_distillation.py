"""CFGDistillation on a tiny real model: what must hold of the training itself."""

import contextlib
import copy

import lightning as L
import pytest
import torch
from forked import in_ranks
from lightning.pytorch.loggers import Logger
from tiny import tiny_folder
from torch import nn
from torch.nn.functional import pad

from cfg_distill import CFGDistillation
from cfg_distill.callbacks import BetaCalibration
from cfg_distill.distillation.execution import Execution
from cfg_distill.distillation.gradients import RatioWatch
from cfg_distill.distillation.module import fingerprint
from cfg_distill.distillation.step import Batch
from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, HiddenStates, Logits, LoRA
from cfg_distill.generators.lora import lora_layers
from cfg_distill.guidance import Guidance
from cfg_distill.losses import (
    EntropyAwareKL,
    ForwardKL,
    JensenShannon,
    LossInputs,
    PolicyGradient,
    ReverseKL,
    reverse_kl,
)
from cfg_distill.rewards import Mixed, PairwiseDiversity
from cfg_distill.rewards.base import GroupReward, Reward
from cfg_distill.sampling import Rollout, Samples, Sampling, rollout

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w7", "w8 w9", "w10"]


class FirstToken(Reward):
    """A reward of each sample's own first token, against the mean of its siblings."""

    def forward(self, samples):
        reward_BG = samples.rollout.tokens_BGKT[:, :, 0, 0].float()
        siblings_BG = (reward_BG.sum(-1, keepdim=True) - reward_BG) / (samples.group - 1)
        return GroupReward(reward_BG, reward_BG - siblings_BG)


@pytest.fixture
def folder(tmp_path):
    return tiny_folder(tmp_path / "model")


def module(folder, kind=CFGDistillation, **settings):
    defaults = {
        "generator": CausalLM(folder),
        "guidance": Guidance(2.0),
        "sampling": Sampling(samples=3, max_new_tokens=16),
        "losses": {"kl": ReverseKL(), "diversity": PolicyGradient(FirstToken(), weight=0.1)},
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.5),
        "measure_gradients_every": 0,
    }
    return kind(**(defaults | settings))


class PerPrompt(CFGDistillation):
    """Each prompt's group depends on the prompt alone: the same samples however prompts are batched."""

    def rollout(self, prompts, seed=0):
        groups = [rollout(self.student, [prompt], self.sampling, seed=PROMPTS.index(prompt)) for prompt in prompts]
        longest = max(group.tokens_BGKT.shape[-1] for group in groups)
        fields = ("tokens_BGKT", "mask_BGKT", "log_probs_BGKT")
        return Rollout(
            *(
                torch.cat([pad(getattr(group, name), (0, longest - group.tokens_BGKT.shape[-1])) for group in groups])
                for name in fields
            )
        )


def per_prompt_module(folder, reduction, **settings):
    losses = {"kl": ReverseKL(score_term=True), "diversity": PolicyGradient(FirstToken(), weight=0.1)}
    return module(folder, kind=PerPrompt, reduction=reduction, losses=losses, **settings)


MEASURED = {"measure_gradients_every": 1}
CUTS = {
    "whole batches": MEASURED,
    "micro-batches": {**MEASURED, "micro_batch": 6},
    "parts of groups": {"micro_batch": 1},
}


def cut_module(folder, cut, lora):
    """A student of all weights, or of an adapter, whose batches are cut or not."""
    generator = CausalLM(folder, lora=LoRA(rank=2) if lora else None).load()
    if lora:
        # What peft draws depends on what was drawn before, which is another thing in a rank than in a suite of tests.
        torch.manual_seed(0)
        for layer in lora_layers(generator.model).values():
            layer.lora_A["default"].weight.data.normal_(std=0.1)
    return per_prompt_module(folder, "mean", generator=generator, **CUTS[cut])


def norms_of(model):
    return torch.tensor([float(norm) for norm in model.gradient_norms.values()])


def train_as_rank(rank, folder, out):
    """One of two ranks, for all of the fits: starting costs more than they do."""
    for cut in CUTS:
        for lora in (False, True):
            model = cut_module(folder, cut, lora)
            fit(model, [PROMPTS[rank::2]] * 2, devices=2, strategy="ddp", use_distributed_sampler=False)
            torch.save([weights(model), norms_of(model)], f"{out}/{cut}{lora}{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder with what two ranks over gloo wrote, groups of different lengths on each."""
    out = tmp_path_factory.mktemp("ranks")
    folder = tiny_folder(out / "model")
    in_ranks(train_as_rank, folder, str(out))
    return out


def fit(model, batches, validation=None, **settings):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1, **settings,
    )  # fmt: skip
    trainer.fit(model, loader(batches), loader(validation or [PROMPTS[:1]]))
    return trainer


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.student.parameters()])


def test_equal_weights_without_guidance_have_no_divergence(folder):
    model = module(folder, guidance=Guidance(1.0))
    model.configure_model()
    inputs = model.score(model.draw(PROMPTS))
    value, count = reverse_kl(inputs.student_NKTV, inputs.teacher_NKTV, inputs.mask_NKT)
    assert value / count < 1e-6


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_micro_batches_change_nothing(folder, reduction):
    """One batch of six prompts, or three of two accumulated: the same rollouts give the same step."""
    whole, split = (per_prompt_module(folder, reduction) for _ in range(2))
    whole.configure_model()
    start = weights(whole)
    lengths = whole.draw(PROMPTS).rollout.mask_BGKT.sum((1, 2, 3))
    assert lengths.min() < lengths.max()
    fit(whole, [PROMPTS])
    fit(split, [PROMPTS[:2], PROMPTS[2:4], PROMPTS[4:]], accumulate_grad_batches=3)
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(weights(whole), start, atol=1e-4)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("cut", CUTS)
def test_two_processes_are_one(folder, ranks, cut, lora):
    """However each rank cuts its batch: weights and measured norms are those of one process with all prompts at once."""
    whole = cut_module(folder, "whole batches", lora)
    whole.configure_model()
    start = weights(whole)
    fit(whole, [PROMPTS[0::2] + PROMPTS[1::2]] * 2)
    (first, norms), (second, same_norms) = (torch.load(ranks / f"{cut}{lora}{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(first, weights(whole), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(first, start, atol=1e-3)
    if "measure_gradients_every" in CUTS[cut]:
        assert torch.equal(norms, same_norms)
        torch.testing.assert_close(norms, norms_of(whole), rtol=1e-4, atol=1e-6)


def test_weights_are_loaded_on_the_cpu_whatever_the_device_of_the_fit(folder):
    """Lightning creates a model on the device of the fit. There a new adapter would be drawn by other random numbers."""
    model, other = (module(folder, generator=CausalLM(folder, lora=LoRA(rank=2))) for _ in range(2))
    model.configure_model()
    with torch.device("meta"):
        other.configure_model()
    assert not any(parameter.is_meta for parameter in other.parameters())
    assert torch.equal(weights(model), weights(other))


@pytest.mark.parametrize("error", [RuntimeError("a library failed"), KeyboardInterrupt()])
def test_a_fit_after_one_that_ended_within_a_step(folder, monkeypatch, error):
    model, clean = module(folder), module(folder)
    fit(clean, [PROMPTS[:2]])

    def failing(*args):
        whole(*args)
        raise error

    whole = Batch.differentiate
    with monkeypatch.context() as patch, contextlib.suppress(RuntimeError, KeyboardInterrupt, SystemExit):
        patch.setattr(Batch, "differentiate", failing)
        fit(model, [PROMPTS[2:]])
    assert not torch.equal(weights(model), weights(clean))
    fit(model, [PROMPTS[:2]])
    assert torch.equal(weights(model), weights(clean))


def test_teacher_and_frozen_parts_stay_out(folder, tmp_path):
    model = module(folder)
    model.configure_model()
    before = fingerprint(model.teacher)
    trainer = fit(model, [PROMPTS[:2]] * 3)
    assert fingerprint(model.teacher) == before != fingerprint(model.student)
    optimised = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in model.student.parameters()}
    checkpoint = tmp_path / "student.ckpt"
    trainer.save_checkpoint(checkpoint)
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert state and not any(name.startswith("teacher.") for name in state)
    again = module(folder)
    again.configure_model()
    again.load_state_dict(state)
    assert torch.equal(weights(again), weights(model))
    with pytest.raises(
        ConfigError, match=r"it lacks student.model.lm_head.weight; this run does not have student.model.head"
    ):
        again.load_state_dict({name.replace("lm_head", "head"): value for name, value in state.items()})


def test_a_moving_teacher_is_caught(folder):
    class Moving(CFGDistillation):
        def on_train_batch_end(self, *_):
            next(self.teacher.parameters()).data += 1

    model = module(folder)
    model.__class__ = Moving
    with pytest.raises(RuntimeError, match="teacher's weights changed"):
        fit(model, [PROMPTS[:2]])


def test_start_gives_the_student_its_weights_and_the_teacher_none(folder, tmp_path):
    start = tiny_folder(tmp_path / "start", seed=1)
    model = module(folder, start=start)
    model.configure_model()
    assert fingerprint(model.teacher) == fingerprint(CausalLM(folder).load())
    assert fingerprint(model.student) == fingerprint(CausalLM(start).load())


def test_distillation_reaches_the_guided_teacher(folder):
    torch.manual_seed(0)
    model = module(
        folder,
        losses={"kl": ReverseKL()},
        sampling=Sampling(samples=8, max_new_tokens=12),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
    )
    kls = []

    class Record(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            kls.append(float(trainer.callback_metrics["train/kl_per_token"]))

    fit(model, [PROMPTS] * 60, callbacks=[Record()])
    assert sum(kls[-5:]) < 0.25 * sum(kls[:5])


def test_mixed_precision_and_validation(folder):
    model = module(folder, measure_gradients_every=1)
    trainer = fit(model, [PROMPTS[:2]] * 2, [PROMPTS[2:4]], precision="bf16-mixed")
    logged = trainer.callback_metrics
    for key in ("train/kl", "train/diversity", "train/diversity_reward", "gradient_ratio/diversity", "val/kl_per_token",
                "val/entropy_student", "val/entropy_teacher"):  # fmt: skip
        assert logged[key].isfinite(), key
    assert logged["train/kl"] >= 0


@pytest.mark.parametrize("lora", [None, LoRA(rank=2)])
def test_every_weight_learns_in_mixed_precision(folder, lora):
    """A rollout casts the weights without gradient in the same autocast: none of its casts may serve the training pass."""
    dtype = "float32" if lora is None else "bfloat16"
    model = module(folder, generator=CausalLM(folder, lora=lora, dtype=dtype), micro_batch=3)
    gradients = {}

    class Gradients(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            trained = {name: p for name, p in pl_module.student.named_parameters() if p.requires_grad}
            gradients.update({name: p.grad is not None and bool(p.grad.any()) for name, p in trained.items()})

    # The first factor of an adapter has a gradient from the second step on: the second factor begins at zero.
    fit(model, [PROMPTS] * 2, precision="bf16-mixed", callbacks=[Gradients()])
    assert gradients and all(gradients.values()), gradients


def test_gradient_norms_are_those_of_the_terms_alone(folder):
    model = module(folder, measure_gradients_every=1)
    before = copy.deepcopy(model.losses)
    fit(model, [PROMPTS], limit_train_batches=1)
    measured = dict(model.gradient_norms)
    for name in before:
        alone = module(folder, losses={name: before[name]}, measure_gradients_every=0, allow_no_teacher=True)
        alone.losses[name].weight.fill_(1.0)
        norms = []

        class Norm(L.Callback):
            def on_before_zero_grad(self, trainer, pl_module, optimizer, norms=norms):
                grads = [p.grad for p in pl_module.student.parameters() if p.grad is not None]
                norms.extend([torch.stack([g.norm() for g in grads]).norm()] if grads else [])

        fit(alone, [PROMPTS, PROMPTS], callbacks=[Norm()], max_steps=1, gradient_clip_val=None)
        # the step at lr 0.5 moves the weights after the gradient was taken: the gradient itself stays
        grads = [p.grad for p in alone.student.parameters() if p.grad is not None]
        torch.testing.assert_close(measured[name], torch.stack([g.norm() for g in grads]).norm())


def test_score_term_is_the_exact_gradient_of_the_sequence_divergence():
    """A policy over two positions, enumerated: the surrogate's expected gradient against autograd of the expectation."""
    torch.manual_seed(0)
    first_V = torch.randn(3, dtype=torch.float64, requires_grad=True)
    second_VV = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    teacher_first_V, teacher_second_VV = torch.randn(3, dtype=torch.float64), torch.randn(3, 3, dtype=torch.float64)
    p_first, p_second = first_V.softmax(-1), second_VV.softmax(-1)
    exact = reverse_kl(first_V[None], teacher_first_V[None])[0]
    for v in range(3):
        exact = exact + p_first[v] * reverse_kl(second_VV[v][None], teacher_second_VV[v][None])[0]
    wanted = torch.autograd.grad(exact, [first_V, second_VV], retain_graph=True)

    def expected(score_term):
        total = [torch.zeros_like(first_V), torch.zeros_like(second_VV)]
        for v in range(3):
            for w in range(3):
                tokens_NKT = torch.tensor([[[v, w]]])
                student = torch.stack([first_V, second_VV[v]])[None, None]
                teacher = torch.stack([teacher_first_V, teacher_second_VV[v]])[None, None]
                mask = torch.ones(1, 1, 2, dtype=torch.bool)
                samples = Samples(["a"], ["b"], Rollout(tokens_NKT[None], mask[None], torch.zeros(1, 1, 1, 2)))
                inputs = LossInputs(Logits(student), Logits(teacher), tokens_NKT, mask, Sampling(), samples)
                gradient = torch.autograd.grad(ReverseKL(score_term=score_term)(inputs), [first_V, second_VV])
                probability = (p_first[v] * p_second[v, w]).detach()
                total = [t + probability * g for t, g in zip(total, gradient, strict=True)]
        return total

    for ours, theirs in zip(expected(True), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(expected(False)[0], wanted[0], rtol=1e-2)


def test_all_problems_at_once_before_weights(tmp_path):
    model = module(
        str(tmp_path / "nowhere"),
        guidance=Guidance(-1.0),
        sampling=Sampling(temperature=0),
        start=str(tmp_path / "none"),
    )
    with pytest.raises(ConfigError) as caught:
        model.configure_model()
    text = str(caught.value)
    for key in ("model.generator.init_args.path", "model.guidance.scale", "model.sampling.temperature", "model.start"):
        assert f"`{key}`" in text
    assert not isinstance(getattr(model.student, "model", None), nn.Module)


def test_a_loss_name_that_a_module_cannot_hold_is_refused(folder):
    with pytest.raises(ConfigError, match=r"`model.losses`.*\['forward', 'a.b'\].*Rename"):
        module(folder, losses={"forward": ReverseKL(), "kl": ReverseKL(), "a.b": ReverseKL()})


@pytest.mark.parametrize("micro_batch", [*(pytest.param(size, marks=pytest.mark.slow) for size in (1, 6, 12)), 3])
def test_micro_batches_inside_a_step_change_nothing(folder, micro_batch):
    """Parts of a group, groups, several groups and a remainder, against all at once with whole logits.

    The same step, and the same measured norms.
    """
    whole, split = (
        per_prompt_module(folder, "mean") for _ in range(2)
    )  # the seed of each group is that of its prompt: the same rollouts
    whole.execution.logits_chunk = 0
    split.micro_batch = micro_batch
    unmeasured = per_prompt_module(folder, "mean")
    for each in (whole, split):
        each.measure_gradients_every = 1
    for each in (whole, split, unmeasured):
        fit(each, [PROMPTS[:5], PROMPTS[1:]], accumulate_grad_batches=2)
        torch.testing.assert_close(weights(whole), weights(each), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(norms_of(split), norms_of(whole), rtol=1e-4, atol=1e-6)


def test_micro_batches_clip_and_step_as_one(folder):
    """Gradient clipping and a second step see the gradient of the whole batch, and nothing of the step before."""
    whole, split = (per_prompt_module(folder, "sum") for _ in range(2))
    split.micro_batch = 3
    for each in (whole, split):
        fit(each, [PROMPTS, PROMPTS[:4], PROMPTS[2:]], gradient_clip_val=0.05)
    torch.testing.assert_close(weights(whole), weights(split), rtol=1e-4, atol=1e-6)


def test_a_micro_batch_must_cut_groups_evenly(folder):
    problems = module(folder, micro_batch=2, execution=Execution(logits_chunk=-1)).problems()
    said = {problem.path: str(problem) for problem in problems}
    assert "a multiple of `model.sampling.samples`, 3, but got 2" in said["micro_batch"]
    assert said.keys() == {"micro_batch", "execution.logits_chunk"}


@pytest.mark.parametrize("where", ["predictions", "backward", "optimizer"])
def test_out_of_memory_names_what_to_lower(folder, where, monkeypatch):
    """A real refusal of the allocator, 2^60 bytes, in the forward pass, the backward pass or the optimiser's first step."""

    class Greedy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, states):
            return states * (torch.empty(2**60, dtype=torch.int8)[0] if where == "predictions" else 1)

        @staticmethod
        def backward(ctx, gradient):
            return gradient * (torch.empty(2**60, dtype=torch.int8)[0] if where == "backward" else 1)

    class GreedySGD(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            if len(self.param_groups[0]["params"]) > 1:  # the check of settings takes steps of one weight
                torch.empty(2**60, dtype=torch.int8)

    model = module(folder, optimizer=GreedySGD)
    own = model.student.predictions

    def predictions(*arguments):
        found = own(*arguments)
        return HiddenStates(Greedy.apply(found.states_NTD), found.head)

    monkeypatch.setattr(model.student, "predictions", predictions)
    with pytest.raises(
        ConfigError,
        match=r"Out of memory in step 0: [16] prompts .* x 3 samples .* up to [23] positions of a prompt and 16 generated"
        r" ones .*First lower `model.micro_batch`",
    ):
        fit(model, [PROMPTS])


def test_numbers_that_cannot_be_are_named_by_their_path(folder):
    """NaN passes every `x < 0`; a negative divergence trains away from the teacher."""
    embedder = NGramCounts(n=0)
    parts = {"distance": PairwiseDiversity(embedder, momentum=float("nan"))}
    losses = {
        "kl": ReverseKL(weight=-3.0, temperature=float("inf")),
        "js": JensenShannon(mixture=float("nan"), weight=float("nan"), warmup_steps=-5, codebook_weights=[-1.0]),
        "sure": EntropyAwareKL(threshold=float("nan")),
        "diversity": PolicyGradient(Mixed(parts, {"distance": float("inf")}), weight=float("inf")),
    }
    model = module(folder, losses=losses, seed=-1, measure_gradients_every=-1)
    paths = [problem.under("model").path for problem in model.problems()]
    assert paths == [
        "model.measure_gradients_every",
        "model.seed",
        "model.losses.kl.init_args.weight",
        "model.losses.kl.init_args.temperature",
        "model.losses.js.init_args.weight",
        "model.losses.js.init_args.warmup_steps",
        "model.losses.js.init_args.codebook_weights",
        "model.losses.js.init_args.mixture",
        "model.losses.sure.init_args.threshold",
        "model.losses.diversity.init_args.weight",
        "model.losses.diversity.init_args.reward.init_args.weights.distance",
        "model.losses.diversity.init_args.reward.init_args.rewards.distance.init_args.momentum",
        "model.losses.diversity.init_args.reward.init_args.rewards.distance.init_args.embedder.init_args.n",
    ]
    with pytest.raises(
        ConfigError, match=r"Key `model.losses.kl.init_args.weight`: expected a number of at least 0, but got -3"
    ):
        model.configure_model()


def test_a_negative_weight_of_a_reward_is_a_wish(folder):
    assert not module(folder, losses={"kl": ReverseKL(), "same": PolicyGradient(FirstToken(), weight=-1.0)}).problems()


def test_callbacks_find_the_loss_rewards_and_advantages(folder):
    seen = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((outputs, float(trainer.callback_metrics["train/loss"])))

    fit(module(folder), [PROMPTS[:2]], callbacks=[Look()])
    ((outputs, loss),) = seen
    assert float(outputs["loss"]) == pytest.approx(loss) and loss != 0
    expected = FirstToken()(outputs["samples"])
    assert outputs["rewards"].keys() == outputs["advantages"].keys() == {"diversity"}
    assert torch.equal(outputs["rewards"]["diversity"], expected.reward_BG)
    assert torch.equal(outputs["advantages"]["diversity"], expected.advantage_BG)


class Rows(Logger):
    """What a logger is given, in order."""

    name = version = "rows"

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step):
        self.rows.append((step, dict(metrics)))


def test_measured_values_are_logged_where_they_were_measured(folder):
    """Lightning's own logging repeats a value at every step of the epoch: a plateau that is none."""
    rows = Rows()
    trainer = L.Trainer(
        accelerator="cpu", logger=rows, enable_checkpointing=False, enable_progress_bar=False, log_every_n_steps=1,
        enable_model_summary=False, max_epochs=1,
    )  # fmt: skip
    losses = {
        "diversity": PolicyGradient(FirstToken(), weight=0.1, warmup_steps=3),
        "kl": ReverseKL(),
        "fkl": ForwardKL(),
    }
    model = module(folder, losses=losses, measure_gradients_every=3)
    trainer.fit(model, loader([PROMPTS[:2]] * 5), loader([PROMPTS[:1]]))
    for key in ("gradient_norm/kl", "gradient_ratio/diversity", "gradient_ratio/fkl", "train/entropy_student"):
        assert [step for step, row in rows.rows if key in row] == [0, 3], key
        assert key in trainer.callback_metrics
    assert [step for step, row in rows.rows if "train/kl" in row] == [0, 1, 2, 3, 4]
    # The reference is the first divergence, wherever it stands; and the weight is that of the step, in a warm-up too.
    assert not any("gradient_ratio/kl" in row for _, row in rows.rows)
    first = next(row for _, row in rows.rows if "gradient_norm/kl" in row)
    last = trainer.callback_metrics
    assert first["gradient_ratio/diversity"] == pytest.approx(
        first["gradient_norm/diversity"] / first["gradient_norm/kl"]
    )
    assert last["gradient_norm/diversity"] == pytest.approx(0.1 * float(model.gradient_norms["diversity"]))


def test_a_reward_that_outweighs_the_teacher_is_named_once_with_the_weight_to_set():
    watch, weights = RatioWatch(), {"kl": torch.tensor(1.0), "diversity": torch.tensor(8.0)}

    def after(ratio):
        return watch.remarks({"gradient_ratio/diversity": torch.tensor(ratio)}, weights, "kl")

    assert [after(ratio) for ratio in (9.0, 9.0, 9.0, 9.0, 2.0)] == [[]] * 5  # large where a fit begins
    assert [after(ratio) for ratio in (4.0, 4.0, float("inf"), 4.0, 4.0, 4.0, 4.0)] == [[]] * 7
    (said,) = after(4.0)
    assert "`diversity` was more than 3 times as long as that of `kl` in the last 5 measurements, now 4 times" in said
    assert "A weight of 2 makes it as long: set `model.losses.diversity.init_args.weight`" in said
    assert [after(9.0) for _ in range(9)] == [[]] * 9


def test_the_warning_comes_in_a_fit_and_not_while_a_callback_calibrates(folder):
    losses = {"kl": ReverseKL(), "diversity": PolicyGradient(FirstToken(), weight=1e4)}
    still = {"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=0.0)}  # the ratio stays as large
    model = module(folder, losses=losses, measure_gradients_every=1, **still)
    with pytest.warns(UserWarning, match="it outweighs the teacher. A weight of"):
        fit(model, [PROMPTS[:2]] * 5)
    calibrated = module(
        folder, losses={"kl": ReverseKL(), "diversity": PolicyGradient(FirstToken(), weight=1e4)}, **still
    )
    fit(calibrated, [PROMPTS[:2]] * 6, callbacks=[BetaCalibration(ratio=9.0)])  # a warning would fail the test


def test_without_a_divergence_the_first_loss_is_the_reference(folder):
    losses = {"one": PolicyGradient(FirstToken()), "other": PolicyGradient(FirstToken(), weight=2.0)}
    trainer = fit(module(folder, losses=losses, measure_gradients_every=1, allow_no_teacher=True), [PROMPTS[:2]])
    assert trainer.callback_metrics["gradient_ratio/other"] == pytest.approx(2.0)


def test_speed_switches_have_one_place_and_their_old_keys_go_on_working(folder):
    new = module(
        folder,
        execution=Execution(False, 0, drop_finished=False, pack_weights=False, mix_states=False, prompt_once=False),
    )
    with pytest.warns(FutureWarning) as notes:
        old = module(
            folder,
            generator=CausalLM(folder, prompt_once=False),
            guidance=Guidance(2.0, mix_states=False),
            sampling=Sampling(samples=3, max_new_tokens=16, drop_finished=False, pack_weights=False),
            onednn=False,
            logits_chunk=0,
        )
    said = {str(note.message) for note in notes}
    assert said == {
        "Key `model.onednn` is now `model.execution.onednn`.",
        "Key `model.logits_chunk` is now `model.execution.logits_chunk`.",
        "Key `model.sampling.drop_finished` is now `model.execution.drop_finished`.",
        "Key `model.sampling.pack_weights` is now `model.execution.pack_weights`.",
        "Key `model.guidance.mix_states` is now `model.execution.mix_states`.",
        "Key `model.generator.init_args.prompt_once` is now `model.execution.prompt_once`.",
    }
    for each in (new, old):
        assert each.execution == new.execution
        assert not (each.guidance.mix_states or each.sampling.drop_finished or each.sampling.pack_weights)
        assert not each.student.prompt_once and each.sampling.samples == 3
    fit(new, [PROMPTS[:2]])
    fit(old, [PROMPTS[:2]])
    fit(fast := module(folder), [PROMPTS[:2]])
    assert torch.equal(weights(new), weights(old))
    torch.testing.assert_close(weights(new), weights(fast), rtol=1e-4, atol=1e-5)
