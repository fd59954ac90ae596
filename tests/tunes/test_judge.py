"""The attribute judge: its measures against worked values, its training on made-up tunes, the shipped weights."""

import math
import random
from pathlib import Path

import lightning
import pytest
import torch
from tiny_tunes import TinyData, TinyJudgeData

from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.judge import Judge, JudgeTraining, balanced_accuracy, balanced_nll, best_temperature
from cfg_distill.tunes.segments import ATTRIBUTES, UNLABELLED, labels_of, like_a_sample
from cfg_distill.tunes.tokenizer import VALUES


def test_balanced_accuracy_worked() -> None:
    """Value 0: 3 of 4 right; value 1: 0 of 1; one segment is unlabelled."""
    logits = torch.tensor([[2.0, 0], [2, 0], [2, 0], [0, 2], [2, 0], [2, 0]])
    labels = torch.tensor([0, 0, 0, 0, 1, UNLABELLED])
    plain, balanced = balanced_accuracy(logits, labels)
    assert plain.item() == pytest.approx(3 / 5)
    assert balanced.item() == pytest.approx((3 / 4 + 0) / 2)


def test_balanced_nll_weighs_values_alike() -> None:
    logits = torch.tensor([[math.log(3.0), 0], [math.log(3.0), 0], [math.log(3.0), 0]])  # 3/4 for value 0
    expected = (-math.log(3 / 4) - math.log(1 / 4)) / 2
    assert balanced_nll(logits, torch.tensor([0, 0, 1])).item() == pytest.approx(expected, rel=1e-6)


def test_temperature_undoes_overconfidence() -> None:
    """Labels drawn from softmax(z); the judge says 3 z: the best divisor is 3."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20000, 3, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    assert best_temperature(3 * logits, labels) == pytest.approx(3.0, rel=0.05)


def test_segments_begin_at_the_tune_or_at_a_bar() -> None:
    tokens, draw = (["c:1"] * 7 + ["|"]) * 30, random.Random(0)
    starts = []
    for _ in range(200):
        segment = like_a_sample(tokens, draw, shortest=48, longest=128)
        assert 48 <= len(segment) <= 128
        starts.append(segment[0])
    assert 60 < starts.count("|") < 140


def test_loader_keeps_validation_segments_and_redraws_training_segments() -> None:
    data = TinyData(batch_size=8, shortest=8, longest=16)
    data.setup()
    first, second = (next(iter(data.val_dataloader()))["tokens"] for _ in range(2))
    assert torch.equal(first, second)
    loader = data.train_dataloader()
    one, other = (next(iter(loader))["tokens"] for _ in range(2))
    assert one.shape != other.shape or not torch.equal(one, other)
    batch = next(iter(data.val_dataloader()))
    assert batch["mode"].tolist() == [0, 1, 0, 1, 0, 1, 0, UNLABELLED]


def test_fit_learns_calibrates_and_writes_the_folder(tmp_path: Path) -> None:
    lightning.seed_everything(0, verbose=False)
    module = JudgeTraining(
        lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
        out=str(tmp_path / "judge"), width=16, blocks=1, dropout=0.0, warmup_steps=2, decay_steps=60,
    )  # fmt: skip
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=30, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, log_every_n_steps=1,
    )  # fmt: skip
    data = TinyJudgeData(batch_size=8, shortest=8, longest=16)
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    assert result["test/mode"] == result["test/real"] == 1.0
    judge = Judge(str(tmp_path / "judge")).load()
    # Sure of separable tunes: calibration sharpens as far as it may.
    assert set(judge.network.config.temperatures) == {*ATTRIBUTES, "real"}
    assert judge.network.config.temperatures["mode"] < 1
    reel = judge.probabilities([" ".join(data.tunes["test"][0].tokens)])["rhythm"][0]
    assert reel.argmax() == VALUES["rhythm"].index("reel")


@pytest.fixture(scope="module")
def judged() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Probabilities and labels of the beginnings of all test tunes, by attribute."""
    tunes = tunes_of("test")
    probabilities = Judge().probabilities([" ".join(tune.tokens[:96]) for tune in tunes])
    labels = labels_of(tunes)
    return {attribute: (probabilities[attribute], labels[attribute]) for attribute in ATTRIBUTES}


@pytest.mark.parametrize(
    ("attribute", "plain_bound", "balanced_bound"), [("origin", 0.5, 0.4), ("rhythm", 0.7, 0.65), ("mode", 0.65, 0.6)]
)
def test_shipped_judge(
    judged: dict[str, tuple[torch.Tensor, torch.Tensor]], attribute: str, plain_bound: float, balanced_bound: float
) -> None:
    """Balanced accuracy far above always naming one value, which is 1 / number of values: 0.25, 0.14 and 0.25."""
    plain, balanced = balanced_accuracy(*judged[attribute])
    assert plain > plain_bound
    assert balanced > balanced_bound


def test_shipped_judge_is_calibrated(judged: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> None:
    """With values weighed alike, the mean confidence is about the balanced accuracy."""
    for attribute, (probability, labels) in judged.items():
        _, accuracy = balanced_accuracy(probability, labels)
        known = labels != UNLABELLED
        confidence, labels = probability[known].max(-1).values, labels[known]
        mean = torch.stack([confidence[labels == value].mean() for value in labels.unique()]).mean()
        assert abs(float(mean - accuracy)) < 0.15, attribute
