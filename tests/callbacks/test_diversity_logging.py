"""DiversityLogging: what it logs, when it warns, and what it keeps."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import tiny_folder
from tiny_fits import DistinctFirst, MeanLength, batches, student_of, trainer
from torchdata.stateful_dataloader import StatefulDataLoader

from cfg_distill.callbacks import DiversityLogging, SampleLogging
from cfg_distill.callbacks.diversity_logging import identical_groups, path_figure
from cfg_distill.errors import ConfigError
from cfg_distill.generators import Prompt
from cfg_distill.guidance import Guidance
from cfg_distill.metrics import SampleMetric
from cfg_distill.sampling import Rollout, Seeds
from cfg_distill.sampling.samples import Samples, draw

# A resumed fit here does without the ModelCheckpoint of the first.
pytestmark = pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`:UserWarning")


class Scripted(SampleMetric):
    """A diversity that says what it is told to, one value a validation."""

    axis = "diversity"

    def __init__(self, script: list[float]) -> None:
        super().__init__()
        self.script = list(script)

    def score(self, samples: Samples) -> torch.Tensor:
        return torch.full((len(samples.prompts),), self.script.pop(0))


class Seen(Callback):
    """The samples of every validation."""

    def __init__(self) -> None:
        self.validations: list[list[Samples]] = []

    def on_validation_start(self, *arguments: Any) -> None:
        self.validations.append([])

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        self.validations[-1].append(outputs["samples"])


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return tiny_folder(tmp_path / "model")


def warnings_of(folder: str, script: list[float], **settings: Any) -> list[tuple[int, str]]:
    """The number of the validation and the text of each warning."""
    callback = DiversityLogging({"spread": Scripted(script)}, **settings)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        steps = len(script)
        trainer([callback], val_check_interval=1).fit(student_of(folder), batches(steps), batches(1))
    collapses = [str(warning.message) for warning in caught if "Collapse" in str(warning.message)]
    return [(int(text.split("step ")[1].split(":")[0]), text) for text in collapses]


def test_metrics_load_on_the_device_of_the_fit(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr(DistinctFirst, "load", lambda self: devices.append(self.device))
    fitted = trainer([])
    monkeypatch.setattr(type(fitted.strategy), "root_device", torch.device("meta"))
    DiversityLogging({"distinct": DistinctFirst()}).setup(fitted, student_of(folder), "fit")
    assert devices == [torch.device("meta")]


def test_it_logs_the_means_over_all_validation_prompts(folder: str, tmp_path: Path) -> None:
    callback, seen = DiversityLogging({"distinct": DistinctFirst(), "length": MeanLength()}), Seen()
    fitted = trainer([callback, seen], val_check_interval=2)
    fitted.fit(student_of(folder), batches(4), batches(3))
    assert len(callback.history) == 2
    for row, validation in zip(callback.history, seen.validations, strict=True):
        tokens = torch.cat([samples.rollout.tokens_BGKT[:, :, 0, 0] for samples in validation])
        distinct = sum(len(set(group)) / len(group) for group in tokens.tolist()) / len(tokens)
        lengths = [int(mask.sum()) for samples in validation for mask in samples.rollout.mask_BGKT.flatten(0, 2)]
        assert row["distinct"] == pytest.approx(distinct)
        assert row["length"] == pytest.approx(sum(lengths) / len(lengths))
        assert row["identical_groups"] == 0
    assert [row["step"] for row in callback.history] == [2, 4]
    assert float(fitted.callback_metrics["val/distinct"]) == pytest.approx(callback.history[-1]["distinct"])
    assert float(fitted.callback_metrics["val/identical_groups"]) == 0


def test_it_warns_once_an_event(folder: str) -> None:
    found = warnings_of(folder, [1.0, 0.4, 0.3, 0.8, 0.45, 0.9])
    assert [step for step, _ in found] == [2, 5]
    assert "spread is 0.4, below 0.5. Raise the weight of the diversity loss" in found[0][1]


def test_the_threshold_may_be_a_value_or_none(folder: str) -> None:
    assert [step for step, _ in warnings_of(folder, [0.2, 0.1, 0.3], collapse_below=0.15, relative=False)] == [2]
    assert warnings_of(folder, [1.0, 0.0], collapse_below=0.0) == []


def test_identical_groups_are_found_whatever_the_metric_says(folder: str) -> None:
    from cfg_distill.sampling import Sampling

    # top_k 1: every sample of a prompt is the likeliest one.
    module = student_of(folder, sampling=Sampling(samples=3, max_new_tokens=8, top_k=1))
    callback = DiversityLogging({"spread": Scripted([1.0, 1.0])})
    with pytest.warns(UserWarning, match=r"Collapse at step 1: all samples of 2 of 2 prompts are identical") as caught:
        trainer([callback], val_check_interval=1).fit(module, batches(2), batches(1))
    assert sum("identical" in str(warning.message) for warning in caught) == 1
    assert callback.history[-1]["identical_groups"] == 1


def test_identical_groups_of_tokens() -> None:
    tokens_BGKT = torch.tensor([[[[3, 2]], [[3, 2]]], [[[3, 4]], [[3, 2]]]])
    samples = Samples(
        ["w1", "w2"], ["a"] * 4, Rollout(tokens_BGKT, torch.ones_like(tokens_BGKT).bool(), torch.zeros(2, 2, 1, 2))
    )
    assert identical_groups(samples).tolist() == [True, False]
    alone = Rollout(tokens_BGKT[:, :1], torch.ones(2, 1, 1, 2).bool(), torch.zeros(2, 1, 1, 2))
    assert identical_groups(Samples(["w1", "w2"], ["a"] * 2, alone)).tolist() == [False, False]


def test_sanity_checks_leave_no_trace(folder: str) -> None:
    callback = DiversityLogging({"distinct": DistinctFirst()})
    trainer([callback], num_sanity_val_steps=1).fit(student_of(folder), batches(2), batches(1))
    assert [row["step"] for row in callback.history] == [2]


def test_the_history_and_the_first_value_survive_a_resume(folder: str, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=2, save_top_k=-1)
    first = DiversityLogging({"spread": Scripted([1.0, 0.9, 0.8])})
    trainer([first, saving], val_check_interval=1).fit(student_of(folder), batches(3), batches(1))
    second = DiversityLogging({"spread": Scripted([0.45, 0.4])})
    with pytest.warns(UserWarning, match="Collapse at step 3: spread is 0.45, below 0.5"):
        trainer([second], val_check_interval=1).fit(
            student_of(folder), batches(3), batches(1), ckpt_path=tmp_path / "saved" / "step=2.ckpt"
        )
    assert [row["spread"] for row in second.history][:1] == [1.0]
    assert [row["step"] for row in second.history] == sorted({row["step"] for row in second.history})


def test_tensorboard_gets_scalars_texts_sounds_and_the_front(folder: str, tmp_path: Path) -> None:
    def sound(text: str, prompt: str) -> tuple[torch.Tensor, int]:
        return torch.zeros(80), 8000

    callbacks = [DiversityLogging({"distinct": DistinctFirst(), "length": MeanLength()}), SampleLogging(audio=sound)]
    logger = TensorBoardLogger(tmp_path, name="", version="logs")
    trainer(callbacks, logger=logger, val_check_interval=1).fit(
        student_of(folder, measure_gradients_every=1), batches(2), batches(1)
    )
    logger.experiment.close()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    tags = events.Tags()
    assert {"val/distinct", "val/length"} <= set(tags["scalars"])
    assert "front" in tags["images"]
    assert "samples/0-w1-w2/0" in tags["audio"]
    assert "samples/0-w1-w2/text_summary" in tags["tensors"]
    # What to watch first, once more under one group.
    watched = {"kl_per_token", "reward", "gradient_ratio", "quality", "diversity"}
    assert {tag for tag in tags["scalars"] if tag.startswith("overview/")} == {f"overview/{name}" for name in watched}

    def last(tag: str) -> float:
        return events.Scalars(tag)[-1].value

    for name, tag in (
        ("diversity", "val/distinct"),
        ("kl_per_token", "train/kl_per_token"),
        ("reward", "train/diversity_reward"),
    ):
        assert last(f"overview/{name}") == last(tag)


def test_base_and_guided_base_are_drawn_once_and_stand_in_the_picture(folder: str, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "saved", save_last=True, save_top_k=0, every_n_train_steps=2)
    first = DiversityLogging({"distinct": DistinctFirst(), "length": MeanLength()}, baselines=True)
    module, drawn = student_of(folder, guidance=Guidance(8.0)), []
    # The last batch is smaller, and the teacher reads more than the student.
    groups = [["w1 w2", Prompt("w3", teacher_prompt="w5 w6 w4")], [Prompt("w7", teacher_prompt="w9 {prompt}")]]
    loader = StatefulDataLoader(groups, batch_size=None)
    trainer([first, saving], num_sanity_val_steps=1, val_check_interval=1).fit(module, batches(2), loader)
    read = [["w1 w2", "w5 w6 w4"], ["w9 w7"]]
    for guidance, asked in ((None, groups), (module.guidance, read)):
        samples = [
            draw(module.teacher, prompts, module.sampling, guidance, Seeds((module.seed, 0, 0), places))
            for prompts, places in zip(asked, ([0, 1], [2]), strict=True)
        ]
        drawn.append(float(torch.cat([MeanLength().score(each) for each in samples]).mean()))
    assert [first.measured[name]["length"] for name in ("base", "guided base")] == pytest.approx(drawn)
    assert drawn[0] != drawn[1]
    figure = path_figure(first.history, "length", "distinct", first.measured)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["step 1", "step 2", "base", "guided base"]
    assert (
        path_figure([{"step": 0.0, "diversity": 1.0, "length": 2.0}], "length", "diversity").axes[0].get_xlabel()
        == "diversity"
    )
    second = DiversityLogging({"distinct": DistinctFirst(), "length": MeanLength()}, baselines=True)
    trainer([second]).fit(student_of(folder), batches(3), batches(2), ckpt_path=tmp_path / "saved" / "last.ckpt")
    assert second.measured == first.measured  # of the checkpoint: not drawn again


def test_a_resumed_fit_may_have_another_metric(folder: str, tmp_path: Path) -> None:
    state = {"history": [{"step": 1.0, "old": 0.5}], "collapsed": [], "baselines": {"base": {"old": 0.5}}}
    callback = DiversityLogging({"distinct": DistinctFirst(), "length": MeanLength()}, baselines=True)
    callback.load_state_dict(state)
    trainer([callback], logger=TensorBoardLogger(tmp_path / "tensorboard")).fit(
        student_of(folder), batches(1), batches(1)
    )
    assert [sorted(row) for row in callback.history[1:]] == [["distinct", "identical_groups", "length", "step"]]
    assert callback.measured == state["baselines"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": {}}, "`DiversityLogging.metrics`: expected at least one metric"),
        (
            {"collapse_below": 1.5},
            r"`DiversityLogging.collapse_below`: expected a share in \[0, 1\] of the first value, but got 1.5",
        ),
        ({"collapse_below": -1.0, "relative": False}, "expected a number of at least 0, but got -1.0"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        trainer([DiversityLogging(**({"metrics": {"length": MeanLength()}} | settings))]).fit(
            student_of("nowhere"), batches(1)
        )
