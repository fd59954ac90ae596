"""Samples that begin by a start model: against guidance on a student that has learnt it perfectly, and by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny import WORDS, tiny_folder
from tiny_csm import tiny_csm

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation.anneal import Anneal, GuidanceCourse
from cfg_distill.generators import CSM, Annealed, CausalLM, Guidance, Guided, Logits, Schedule
from cfg_distill.generators.annealed import problems_of_mixing
from cfg_distill.guidance import guided_logits
from cfg_distill.metrics.likelihood import log_likelihoods
from cfg_distill.recipe.command_line import start
from cfg_distill.sampling import Sampling, rollout

PROMPTS = ["w1 w2", "w3", "w4 w5 w6"]
SAMPLING = Sampling(samples=8, max_new_tokens=12)
GAMMA = 2.5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    """A model that ends some samples early."""
    return CausalLM(tiny_folder(tmp_path_factory.mktemp("base"), seed=3)).load()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return CausalLM(tiny_folder(tmp_path_factory.mktemp("other"), seed=4)).load()


class Known:
    """A predictor of fixed logits: one prompt, one codebook."""

    delays, end_tokens, end_codebooks, pad_token, passes = (0,), (), 1, 0, 1

    def __init__(self, logits: list[float]) -> None:
        self.logits = torch.tensor(logits)

    @property
    def parts(self) -> tuple[Known, ...]:
        return (self,)

    def predictions(self, prompts: list[str], tokens_NKT: torch.Tensor, mask_NKT: torch.Tensor) -> Logits:
        return Logits(self.logits.expand(*tokens_NKT.shape, -1))


def test_the_oracle_of_an_annealed_sample():
    tokens_NKT = torch.zeros(1, 1, 4, dtype=torch.long)
    schedule = Schedule("power", positions=4, power=2)
    torch.testing.assert_close(schedule.at(torch.arange(4)), torch.tensor([0, 0.0625, 0.25, 0.5625]))

    def probabilities(start: list[float], tuned: list[float]) -> torch.Tensor:
        annealed = Annealed(Known(start), Known(tuned), schedule)  # type: ignore[arg-type]
        return annealed.predictions(["a"], tokens_NKT, tokens_NKT == 0).whole().softmax(-1)[0, 0]

    expected = torch.tensor(
        [[0.665241, 0.244728, 0.090031], [0.626134, 0.277845, 0.096021], [0.499518, 0.389025, 0.111457],
         [0.293634, 0.583961, 0.122405]]
    )  # fmt: skip
    torch.testing.assert_close(probabilities([1.0, 0.0, -1.0], [0.0, 2.0, 0.0]), expected, rtol=0, atol=1e-5)
    # Negative (.5, .5, -1), gamma 3: the student has learnt (2, -1, -1), and gamma_n is (1, 1.125, 1.5, 2.125).
    found = probabilities([1.0, 0.0, -1.0], [2.0, -1.0, -1.0])
    scale_T1 = torch.tensor([1.0, 1.125, 1.5, 2.125])[:, None]
    guided = guided_logits(torch.tensor([1.0, 0.0, -1.0]), torch.tensor([0.5, 0.5, -1.0]), scale_T1).softmax(-1)
    torch.testing.assert_close(found[3], torch.tensor([0.835740, 0.099815, 0.064445]), rtol=0, atol=1e-5)
    torch.testing.assert_close(found, guided, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["linear", "cosine", "power", "step"])
def test_on_a_perfect_student_it_is_a_schedule_of_guidance(base: CausalLM, kind: str) -> None:
    """gamma_n = 1 + w_n (gamma - 1): the same token probabilities, decoded and scored, and so the same samples."""
    annealed = Annealed(base, Guided(base, Guidance(GAMMA)), Schedule(kind, positions=9, power=1.5, step_at=0.4))
    guidance = Guidance(1.0, schedule=kind, final_scale=GAMMA, positions=9, power=1.5, step_at=0.4)
    found, expected = rollout(annealed, PROMPTS, SAMPLING, seed=1), rollout(base, PROMPTS, SAMPLING, guidance, seed=1)
    assert torch.equal(found.tokens_BGKT, expected.tokens_BGKT) and not found.mask_BGKT.all()
    torch.testing.assert_close(found.log_probs_BGKT.exp(), expected.log_probs_BGKT.exp(), rtol=0, atol=1e-5)
    tokens_NKT, mask_NKT = found.tokens_NKT, found.mask_NKT
    with torch.no_grad():
        probs = [
            each.predictions(PROMPTS, tokens_NKT, mask_NKT).whole().softmax(-1)[mask_NKT]
            for each in (annealed, Guided(base, guidance), Guided(base, Guidance(GAMMA)))
        ]
    torch.testing.assert_close(probs[0], probs[1], rtol=0, atol=1e-5)
    assert (probs[0] - probs[2]).abs().max() > 0.01  # the teacher itself is another


def test_it_begins_by_the_start_model_and_ends_by_the_other(base: CausalLM, other: CausalLM) -> None:
    annealed = Annealed(base, other, Schedule("step", positions=8, step_at=0.5))
    drawn = rollout(annealed, PROMPTS, SAMPLING, Guidance(GAMMA), seed=2)
    assert (Guided(annealed, Guidance(GAMMA)).passes, annealed.parts) == (4, (other, base))
    tokens_NKT, mask_NKT = drawn.tokens_NKT, drawn.mask_NKT
    with torch.no_grad():
        # Each model under its own guidance.
        first, last = (
            log_likelihoods(Guided(each, Guidance(GAMMA)).predictions(PROMPTS, tokens_NKT, mask_NKT), tokens_NKT, mask_NKT)
            for each in (base, other)
        )  # fmt: skip
    found_NKT = drawn.log_probs_BGKT.flatten(0, 1)
    torch.testing.assert_close(found_NKT[..., :4], first[..., :4], rtol=0, atol=1e-4)
    torch.testing.assert_close(found_NKT[..., 4:], last[..., 4:], rtol=0, atol=1e-4)
    assert (first - last).abs().max() > 0.1


def test_the_codebooks_of_a_depth_decoder_are_mixed_at_the_position_of_their_frame(tmp_path: Path) -> None:
    start, tuned = (CSM(tiny_csm(tmp_path / str(seed), seed=seed)).load() for seed in range(2))
    annealed = Annealed(start, tuned, Schedule("power", positions=6, power=1.5))
    drawn = rollout(annealed, ["Hi there.", "Well?"], Sampling(samples=3, max_new_tokens=8), seed=1)
    with torch.no_grad():
        scored = annealed.predictions(["Hi there.", "Well?"], drawn.tokens_NKT, drawn.mask_NKT)
        found_NKT = log_likelihoods(scored, drawn.tokens_NKT, drawn.mask_NKT)
    assert drawn.tokens_NKT.shape[1] > 2, "codebooks that are drawn one behind the other"
    torch.testing.assert_close(found_NKT, drawn.log_probs_NKT, rtol=0, atol=1e-4)


def test_a_moving_scale_ends_at_that_of_the_system() -> None:
    course = GuidanceCourse("step", step_at=0.25, first=1.5)
    expected = Guidance(1.5, "bad", schedule="step", final_scale=3.0, positions=20, step_at=0.25)
    assert course.on(Guidance(3.0, "bad"), longest=20) == expected
    assert GuidanceCourse(positions=7).on(Guidance(2.0), longest=20).scale_at(torch.tensor([0, 7, 9])).tolist() == [
        1,
        2,
        2,
    ]


def other_vocabulary(source: str, folder: Path) -> str:
    """The same network, whose words mean something else."""
    shutil.copytree(source, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    words = content["model"]["vocab"]
    words["w0"], words["w1"] = words["w1"], words["w0"]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return str(folder)


def test_models_that_do_not_fit_are_refused_before_they_are_loaded(
    base: CausalLM, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    strange = other_vocabulary(base.path, folder / "strange")
    (found,) = problems_of_mixing(CausalLM(strange), base)
    assert str(found) == (
        f"expected a model with the vocabulary of `{base.path}`, but `{strange}` has others. Name the model that it was"
        " trained from."
    )
    assert problems_of_mixing(CausalLM(base.path), base) == []
    layered = CausalLM(base.path)
    layered.delays = (0, 1)
    assert "the codebooks of" in str(problems_of_mixing(layered, base)[0])
    wrong = Anneal(base=strange, power=0.0, step_at=1.5, positions=-1).problems_on(base)
    assert [problem.key for problem in wrong] == ["base", "positions", "power", "step_at"]
    Path("prompts.txt").write_text("w1\n")
    for words in (["generate", "--prompt", "w1"], ["evaluate", "--prompts", "prompts.txt"]):
        assert main([*words, "--model", base.path, "--anneal", strange, "--anneal-power", "-1"]) == 2
        said = capsys.readouterr().err
        assert "Option `--anneal`: expected a model with the vocabulary" in said
        assert "Option `--anneal-power`: expected a number above 0, but got -1.0." in said
        assert main([*words, "--model", base.path, "--anneal-power", "2"]) == 2
        assert "Option `--anneal-power`: has no effect without a start model" in capsys.readouterr().err
    assert main(["generate", "--prompt", "w1", "--model", base.path, "--anneal", "none/such"]) == 2
    assert "Option `--anneal`: " in capsys.readouterr().err


def test_training_on_its_samples_is_refused() -> None:
    words = ["--config", "recipes/tunes/quality.yaml", "--model.anneal.base=tunes:base"]
    with pytest.raises(
        ConfigError, match=r"`model.anneal`: no such key, since samples that begin by a start model are"
    ):
        start("fit", words, check_only=True)


def test_generate_and_evaluate_take_a_start_model(
    base: CausalLM, other: CausalLM, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["generate", "--model", other.path, "--prompt", "w1 w2", "--samples", "2", "--max-new-tokens", "6"]
    assert main([*words, "--anneal", base.path, "--anneal-power", "3"]) == 0
    drawn = rollout(
        Annealed(base, other, Schedule("power", positions=6, power=3)), ["w1 w2"], Sampling(samples=2, max_new_tokens=6)
    )
    shown = capsys.readouterr().out
    assert all(text in shown for text in other.decode(drawn.tokens_NKT, drawn.mask_NKT)) and any(
        w in shown for w in WORDS
    )
    Path("prompts.txt").write_text("w1 w2\nw3\n")
    words = ["evaluate", "--model", other.path, "--prompts", "prompts.txt", "--max-new-tokens", "6", "--out", "out"]
    assert main([*words, "--samples", "2", "--anneal", base.path]) == 0
    (system,) = json.loads(Path("out/front.json").read_text())["systems"]
    assert (system["relative_cost"], system["anneal"]["base"], system["anneal"]["power"]) == (2.0, base.path, 2.0)
