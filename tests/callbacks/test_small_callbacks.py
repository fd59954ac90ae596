"""Throughput, BetaCalibration, RewardHistograms, SampleLogging and AtomicCheckpointIO."""

from __future__ import annotations

import fcntl
import itertools
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from forked import in_ranks
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers.logger import Logger
from tiny import tiny_folder
from tiny_fits import PROMPTS, FirstToken, batches, every_step, student_of, trainer

from cfg_distill import CFGDistillation
from cfg_distill.audio import Waveform
from cfg_distill.callbacks import (
    AtomicCheckpointIO,
    BetaCalibration,
    RewardHistograms,
    SampleLogging,
    Throughput,
    media,
)
from cfg_distill.errors import ConfigError
from cfg_distill.losses import JensenShannon, PolicyGradient, ReverseKL

# A resumed fit here does without the ModelCheckpoint of the first.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class Book(Logger):
    """Writes down what a TensorBoard would get."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[tuple[str, str, int]] = []
        self.sounds: list[tuple[str, torch.Tensor, int, int]] = []
        self.rows: list[dict[str, float]] = []
        self.histograms: list[tuple[str, torch.Tensor, int]] = []
        writer = SimpleNamespace(add_text=self._text, add_audio=self._audio, add_histogram=self._histogram)
        self.experiment = writer

    name = "book"
    version = 0

    def _text(self, tag: str, text: str, global_step: int) -> None:
        self.texts.append((tag, text, global_step))

    def _audio(self, tag: str, wave: torch.Tensor, global_step: int, sample_rate: int) -> None:
        self.sounds.append((tag, wave, global_step, sample_rate))

    def _histogram(self, tag: str, values: torch.Tensor, global_step: int) -> None:
        self.histograms.append((tag, values, global_step))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(dict(metrics))

    def log_hyperparams(self, *arguments: Any, **settings: Any) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return tiny_folder(tmp_path / "model")


class Tokens(Callback):
    """Generated positions of each batch."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        rollout = outputs["samples"].rollout
        ends = rollout.tokens_BGKT[:, :, 0] == 2
        length = rollout.tokens_BGKT.shape[-1]
        first_end = torch.where(ends.any(-1), ends.int().argmax(-1) + 1, length)
        self.counts.append(int(first_end.sum()))


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_throughput_counts_generated_tokens_over_a_window(
    folder: str, monkeypatch: pytest.MonkeyPatch, micro_batch: int
) -> None:
    # The readings of a batch: forward 1 s and backward 2 s, or half of each twice; nothing for Lightning's own backward pass,
    # which finds the gradients there already; optimiser 3 s; then 10 s of nobody.
    passes = [0.5, 1.0, 0.5, 1.0] if micro_batch else [1.0, 2.0]
    readings = [10.0, *passes, 0.0, 0.0, 3.0]
    clock = itertools.accumulate(itertools.cycle(readings))
    monkeypatch.setattr("cfg_distill.evaluation.measure.time", SimpleNamespace(perf_counter=lambda: next(clock)))
    book, tokens = Book(), Tokens()
    trainer([Throughput(window=2), tokens], logger=book).fit(student_of(folder, micro_batch=micro_batch), batches(4))
    rows = [row for row in book.rows if "throughput/tokens_per_second" in row]
    rates = [row["throughput/tokens_per_second"] for row in rows]
    counts = tokens.counts
    expected = [counts[0] / 6] + [(one + two) / 12 for one, two in itertools.pairwise(counts)]
    assert rates == pytest.approx(expected)
    assert [rows[-1][f"throughput/seconds_{name}"] for name in ("forward", "backward", "optimizer", "batch")] == [
        1,
        2,
        3,
        6,
    ]
    assert 0.1 < rows[-1]["throughput/memory_gib"] < 64


def gradient_norm(module: CFGDistillation, name: str, prompts: list[str], seed: int) -> float:
    inputs = module.score(module.draw(prompts, seed))
    parameters = [p for p in module.student.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(module.losses[name](inputs), parameters, allow_unused=True)
    return float(np.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients if g is not None)))


def test_the_calibrated_weight_gives_the_wanted_ratio(folder: str) -> None:
    module = student_of(folder)
    calibration = BetaCalibration(ratio=0.7, num_steps=1, momentum=0.0)
    trainer([calibration], max_steps=1).fit(module, batches(1))
    fresh = student_of(folder)
    fresh.configure_model()
    seed = module._rollout_seed(0, range(2))
    kl, diversity = (gradient_norm(fresh, name, PROMPTS[:2], seed) for name in ("kl", "diversity"))
    assert module.losses["diversity"].weight.item() * diversity == pytest.approx(0.7 * kl, rel=1e-3)
    assert module.losses["kl"].weight.item() == 1.0


def test_calibration_measures_for_as_many_steps_as_asked_and_smooths(folder: str) -> None:
    module, book = student_of(folder), Book()
    measured = [module.gradient_norms]  # each measurement makes new ones
    norms: list[dict[str, float]] = []

    class Norms(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            if pl_module.gradient_norms is not measured[-1]:
                measured.append(pl_module.gradient_norms)
                norms.append({name: float(norm) for name, norm in pl_module.gradient_norms.items()})

    callbacks = [Norms(), BetaCalibration(ratio=0.5, start_step=1, num_steps=3, momentum=0.6)]
    trainer(callbacks, logger=book).fit(module, batches(7))
    assert len(norms) == 3
    smoothed = {name: norms[0][name] for name in ("kl", "diversity")}
    for number, row in enumerate(norms[1:], start=2):
        share = max(0.4, 1 / number)
        smoothed = {name: (1 - share) * smoothed[name] + share * row[name] for name in smoothed}
    expected = 0.5 * smoothed["kl"] / smoothed["diversity"]
    assert module.losses["diversity"].weight.item() == pytest.approx(expected, rel=1e-4)
    weights = [row["calibration/weight"] for row in book.rows if "calibration/weight" in row]
    assert weights[0] == pytest.approx(0.1)
    assert weights[-1] == weights[-2] == pytest.approx(expected, rel=1e-4)


def test_calibration_that_a_resumed_run_begins_with_measures_as_long(folder: str, tmp_path: Path) -> None:
    trainer([every_step(tmp_path)], tmp_path, max_steps=4).fit(student_of(folder), batches(6))
    module, calibration = student_of(folder), BetaCalibration(ratio=0.5, num_steps=2)
    steps = trainer([calibration], tmp_path)
    steps.fit(module, batches(6), ckpt_path=tmp_path / "saved" / "step=4.ckpt")
    assert calibration.state_dict()["measured"] == 2 and module.losses["diversity"].weight.item() != pytest.approx(0.1)
    # Its own state goes on: at step 6 nothing is left to measure.
    later = BetaCalibration(ratio=0.5, num_steps=2)
    later.load_state_dict(calibration.state_dict())
    assert later.state_dict()["begin"] == 4


def test_calibration_that_goes_on_with_other_settings(folder: str, tmp_path: Path) -> None:
    ckpt = tmp_path / "saved" / "step=3.ckpt"

    def weight(steps: int, **settings: Any) -> float:
        diversity = PolicyGradient(FirstToken(), weight=0.1)
        module = student_of(folder, losses={"kl": ReverseKL(), "js": JensenShannon(), "diversity": diversity})
        saving = [] if ckpt.exists() else [every_step(tmp_path)]
        fit = trainer([BetaCalibration(num_steps=2, **settings), *saving], tmp_path, max_steps=steps)
        fit.fit(module, batches(6), ckpt_path=ckpt if ckpt.exists() else None)
        return float(module.losses["diversity"].weight)  # type: ignore[arg-type]

    # Its window is over, so that the weight stays; another ratio counts all the same.
    first = weight(3, ratio=0.5)
    assert weight(4, ratio=0.5) == pytest.approx(first) and weight(4, ratio=1.0) == pytest.approx(2 * first)
    # Another reference is measured anew, as by a callback that the first run did not have.
    anew = weight(4, ratio=0.5, reference="js")
    state = torch.load(ckpt, weights_only=True)
    del state["callbacks"]["BetaCalibration"]
    torch.save(state, ckpt)
    assert weight(4, ratio=0.5, reference="js") == pytest.approx(anew, rel=1e-4) != pytest.approx(first)


def test_calibration_names_the_losses_there_are(folder: str) -> None:
    with pytest.raises(
        ConfigError, match=r"`BetaCalibration.loss`: expected a name of `model.losses` \['kl', 'diversity'\], but"
    ):
        trainer([BetaCalibration(loss="diversty")]).fit(student_of(folder), batches(1))


def sine(text: str, prompt: str) -> tuple[np.ndarray, int]:
    return np.sin(np.arange(100, dtype=np.float32)), 8000


def test_samples_are_logged_as_text_and_sound(folder: str) -> None:
    book, module = Book(), student_of(folder)
    callback = SampleLogging(num_prompts=3, num_samples=2, audio=sine)
    seen: list[Any] = []

    class Seen(Callback):
        def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
            seen.append(outputs["samples"])

    sanity = {"num_sanity_val_steps": 1, "val_check_interval": 2}
    trainer([callback, Seen()], logger=book, **sanity).fit(module, batches(4), batches(3))
    words = ("w1-w2", "w3", "w4-w5-w6")  # a tag names its prompt
    wanted = [f"samples/{number}-{each}" for number, each in enumerate(words)]
    assert [(tag, step) for tag, _, step in book.texts] == [(tag, step) for step in (2, 4) for tag in wanted]
    samples = seen[1]
    assert book.texts[1][1].startswith("**w3**")
    assert all(text in book.texts[1][1] for text in samples.groups()[1][:2])
    assert (
        samples.groups()[1][2] not in book.texts[1][1].split("\n\n")
        or samples.groups()[1][2] in samples.groups()[1][:2]
    )
    tags = [tag for tag, _, step, _ in book.sounds if step == 2]
    assert tags == [f"{tag}/{sample}" for tag in wanted for sample in range(2)]
    assert book.sounds[0][1].shape == (1, 100)
    assert book.sounds[0][3] == 8000


def test_what_cannot_be_played_is_said_and_training_goes_on(folder: str) -> None:
    def unplayable(text: str, prompt: str) -> tuple[np.ndarray, int]:
        raise ValueError("no bar line")

    book = Book()
    with pytest.warns(UserWarning, match="could not be turned into sound: ValueError: no bar line"):
        trainer([SampleLogging(audio=unplayable)], logger=book).fit(student_of(folder), batches(1), batches(1))
    assert book.texts
    assert not book.sounds


def test_a_text_stands_as_the_folder_of_the_model_renders_it(folder: str) -> None:
    book, callback = Book(), SampleLogging()
    tunes = SimpleNamespace(student=SimpleNamespace(path="tunes:base"))
    callback.setup(None, tunes, "fit")  # type: ignore[arg-type]
    callback._log(media._sink(book), "samples/0", "a jig", ["z |]", "no tune"], 3)
    (_, text, _), *_ = book.texts
    assert (
        "    X:1\n    T:a jig\n" in text and "    no tune" not in text
    )  # every line is indented: TensorBoard shows it as it is
    callback._renderer = SimpleNamespace(text=lambda output, prompt: 1 / 0)  # type: ignore[assignment]
    assert callback._text("as it is", "a jig") == "as it is"
    other = SampleLogging()
    other.setup(None, SimpleNamespace(), "fit")  # type: ignore[arg-type]
    assert other._text("as it is", "a jig") == "as it is"  # a module of somebody else, without a student


def test_histograms_of_rewards_and_advantages(folder: str) -> None:
    book = Book()
    histograms = RewardHistograms(every_n_steps=2)
    trainer([histograms], logger=book, accumulate_grad_batches=2).fit(student_of(folder), batches(8))
    assert [(tag, step) for tag, _, step in book.histograms] == [
        (f"{kind}/diversity", step) for step in (2, 4) for kind in ("rewards", "advantages")
    ]
    rewards, advantages = (values for _, values, _ in book.histograms[:2])
    assert rewards.shape == advantages.shape == (2, 3)
    siblings_BG = (rewards.sum(-1, keepdim=True) - rewards) / 2
    torch.testing.assert_close(advantages, rewards - siblings_BG)
    with pytest.raises(ConfigError, match=r"`RewardHistograms.every_n_steps`: expected at least 1, but got 0"):
        trainer([RewardHistograms(0)]).fit(student_of(folder), batches(1))


def test_waveforms_need_no_renderer() -> None:
    book, callback = Book(), SampleLogging()
    stereo = Waveform(torch.stack([torch.ones(50), torch.zeros(50)]), 16000)
    loud = Waveform(torch.tensor([[0.5, -2.0]]), 8000)
    broken = Waveform(torch.full((1, 4), torch.nan), 8000)
    with pytest.warns(UserWarning, match="could not be turned into sound: ConfigError: Sound: expected finite samples"):
        callback._log(media._sink(book), "samples/0", "w1", [stereo, loud, broken], 3)
    assert [(tag, step, rate) for tag, _, step, rate in book.sounds] == [
        ("samples/0/0", 3, 16000),
        ("samples/0/1", 3, 8000),
    ]
    assert torch.equal(book.sounds[0][1], torch.full((1, 50), 0.5))
    torch.testing.assert_close(book.sounds[1][1], torch.tensor([[0.2475, -0.99]]))


# Checkpoints


def test_a_fit_saves_and_resumes_through_the_plugin(folder: str, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=2, save_top_k=1, monitor=None)
    trainer([saving], plugins=[AtomicCheckpointIO()]).fit(student_of(folder), batches(3))
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["step=2.ckpt"]
    again = trainer([], plugins=[AtomicCheckpointIO()])
    again.fit(student_of(folder), batches(3), ckpt_path=tmp_path / "saved" / "step=2.ckpt")
    assert again.global_step == 3


def test_a_save_that_fails_leaves_the_checkpoint_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plugin = tmp_path / "run" / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint(
        {"step": 1, "state_dict": {}, "pytorch-lightning_version": "2", "tensor": torch.arange(1000)}, path
    )

    def disk_full(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", disk_full)
    with pytest.raises(
        ConfigError, match=r"last.ckpt` cannot be written: No space left on device. The checkpoint before"
    ):
        plugin.save_checkpoint({"step": 2}, path)
    monkeypatch.undo()

    def refuse(source: Any, target: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(ConfigError, match=r"Permission denied. The checkpoint before it is whole: `.*last.ckpt`"):
        plugin.save_checkpoint({"step": 3}, path)
    assert plugin.load_checkpoint(path, weights_only=True)["step"] == 1
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("fault", ["truncated", "flipped", "gone"])
def test_a_fit_goes_on_from_the_checkpoint_before_a_damaged_one(folder: str, tmp_path: Path, fault: str) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=1, save_last=True, save_top_k=0)
    trainer([saving], plugins=[AtomicCheckpointIO()], max_steps=3).fit(student_of(folder), batches(9))
    last = tmp_path / "saved" / "last.ckpt"
    assert sorted(file.name for file in last.parent.iterdir()) == ["last.ckpt", "last.ckpt.before"]
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert torch.load(f"{last}.before", weights_only=True)["global_step"] == 2
    spoil(last, fault)
    again = trainer([], plugins=[AtomicCheckpointIO()], max_steps=4)
    with pytest.warns(UserWarning, match=r"last\.ckpt` (cannot be|does not).*goes on from `.*last\.ckpt\.before`"):
        again.fit(student_of(folder), batches(9), ckpt_path=last)
    assert again.global_step == 4
    spoil(Path(f"{last}.before"), fault)
    with pytest.raises(ConfigError, match=r"last\.ckpt` (cannot be read as a checkpoint|does not exist)"):
        trainer([], plugins=[AtomicCheckpointIO()], max_steps=4).fit(student_of(folder), batches(9), ckpt_path=last)


def spoil(file: Path, fault: str) -> None:
    """Inject a fault into a checkpoint; it is certain to be there."""
    content = file.read_bytes()
    if fault == "gone":
        file.unlink()
    elif fault == "truncated":
        file.write_bytes(content[:-50])
    else:
        # One bit in the middle of the largest tensor, which the archive stores as it is.
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        assert file.stat().st_size == len(content)


def test_the_checkpoint_before_is_kept_where_files_have_no_second_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    for step in (1, 2, 3):
        plugin.save_checkpoint({"step": step}, path)
    assert torch.load(path)["step"] == 3 and torch.load(f"{path}.before")["step"] == 2
    plugin.remove_checkpoint(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_what_reads_back_damaged_never_gets_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    save = torch.save

    def faulty_disk(checkpoint: Any, file: Any) -> None:
        save(checkpoint, file)
        if damage == "truncated":
            file.truncate(file.tell() - 200)
        else:
            file.seek(file.tell() // 2)
            file.write(b"\xff" * 8)

    monkeypatch.setattr(torch, "save", faulty_disk)
    with pytest.raises(OSError, match="was written, but reads back damaged"):
        AtomicCheckpointIO().save_checkpoint({"tensor": torch.zeros(10000)}, tmp_path / "x.ckpt")
    assert not list(tmp_path.iterdir())


def test_the_file_and_its_folder_reach_the_disk_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def sync(descriptor: int) -> None:
        order.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def rename(source: Any, target: Any) -> None:
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", rename)
    AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "x.ckpt")
    assert order == [f"sync .x.ckpt.{os.getpid()}.partial", "rename", f"sync {tmp_path.name}"]


def save_often(rank: int, file: Path) -> None:
    held = {"state_dict": {}, "pytorch-lightning_version": "2"}
    for _ in range(10):
        AtomicCheckpointIO().save_checkpoint(held | {"tensor": torch.full((20000,), os.getpid())}, file)


def test_two_runs_that_save_under_one_name_leave_one_whole_checkpoint(tmp_path: Path) -> None:
    in_ranks(save_often, tmp_path / "x.ckpt")
    assert len(AtomicCheckpointIO().load_checkpoint(tmp_path / "x.ckpt", weights_only=True)["tensor"].unique()) == 1
    before = torch.load(tmp_path / "x.ckpt.before", weights_only=True)
    assert len(before["tensor"].unique()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.ckpt", "x.ckpt.before"]


def test_what_a_killed_run_left_is_removed_by_the_next_save(tmp_path: Path) -> None:
    for name in (".x.ckpt.partial", ".x.ckpt.123.partial", ".other.ckpt.123.partial"):
        (tmp_path / name).touch()
    with (tmp_path / ".x.ckpt.5.partial").open("wb") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX)
        AtomicCheckpointIO().save_checkpoint({"step": 1}, tmp_path / "x.ckpt")
        assert sorted(os.listdir(tmp_path)) == [".other.ckpt.123.partial", ".x.ckpt.5.partial", "x.ckpt"]
