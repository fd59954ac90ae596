"""PromptData: splits kept apart, and a run stopped in mid-epoch that goes on exactly."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cfg_distill.data import PromptData
from cfg_distill.errors import ConfigError


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    for name, count in (("train", 10), ("validation", 5), ("report", 3)):
        (tmp_path / f"{name}.txt").write_text("".join(f"{name} {number}\n" for number in range(count)))
    return {name: str(tmp_path / f"{name}.txt") for name in ("train", "validation", "report")}


def test_no_problems_when_there_are_none(files: dict[str, str]) -> None:
    assert PromptData(**files).problems() == []
    assert PromptData(train=files["train"]).problems() == []


def test_all_problems_at_once(files: dict[str, str]) -> None:
    Path(files["report"]).write_text("a reel\nTRAIN  1\nvalidation 2\n")
    Path(files["validation"]).write_text("")
    data = PromptData(**files, batch_size=0, validation_batch_size=-1)
    said = [str(problem.under("data")) for problem in data.problems()]
    assert [problem.split(":")[0] for problem in said] == [
        "Key `data.batch_size`",
        "Key `data.validation_batch_size`",
        "Key `data.validation`",
        "Key `data.report`",
    ]
    assert "at least 1, but got 0" in said[0]
    assert "holds none" in said[2]
    assert "that `data.train` does not have, but 1 are in both: 'TRAIN  1'" in said[3]
    with pytest.raises(ConfigError):
        data.setup("fit")


def test_train_must_be_given() -> None:
    assert "Key `train`: Expected a file" in str(PromptData(train="").problems()[0])


def test_overlap_with_validation_too(files: dict[str, str]) -> None:
    said = list(map(str, PromptData(files["train"], files["validation"], report=files["validation"]).problems()))
    assert len(said) == 1 and "`validation` does not have, but 5 are in both" in said[0] and "..." in said[0]


def test_one_caption_of_two_melodies_is_two_prompts(tmp_path: Path) -> None:
    for name, melody in (("train", "a.wav"), ("validation", "b.wav"), ("report", "a.wav")):
        row = {"prompt": "80s  Pop", "conditions": {"melody": melody}}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    train, validation, report = (str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "report"))
    assert PromptData(train, validation).problems() == []
    (problem,) = PromptData(train, report=report).problems()
    assert "1 are in both" in str(problem)


class Recorder(L.LightningModule):
    """Learns nothing much and remembers the batches it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.train_seen: list[list[str]] = []
        self.validation_seen: list[list[str]] = []

    def training_step(self, batch: list[str], batch_idx: int) -> torch.Tensor:
        self.train_seen.append(batch)
        return self.layer(torch.ones(1)).sum()

    def validation_step(self, batch: list[str], batch_idx: int) -> None:
        self.validation_seen.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(data: PromptData, keep: Path | None = None, ckpt_path: Path | None = None, **settings: Any) -> Recorder:
    """A fit that may keep a checkpoint of every step: step-1.ckpt, step-2.ckpt, ..."""
    every_step = {"every_n_train_steps": 1, "save_top_k": -1, "auto_insert_metric_name": False}
    callbacks = [ModelCheckpoint(keep, "step-{step}", **every_step)] if keep else []
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(
        callbacks=callbacks, enable_checkpointing=bool(keep), num_sanity_val_steps=0, **quiet, **settings
    )
    module = Recorder()
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module


def test_a_batch_is_a_list_of_texts_and_epochs_differ(files: dict[str, str]) -> None:
    module = fitted(PromptData(**files, batch_size=4), max_epochs=2)
    assert [len(batch) for batch in module.train_seen] == [3, 3, 4, 3, 3, 4]
    first, second = list(chain(*module.train_seen[:3])), list(chain(*module.train_seen[3:]))
    assert sorted(first) == sorted(second) == [f"train {n}" for n in range(10)]
    assert first != second
    assert list(chain(*module.validation_seen[:2])) == [f"validation {n}" for n in range(5)]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
@pytest.mark.parametrize("stop", [1, 2, 3, 5, 6])
def test_resumed_in_mid_epoch_it_goes_on_exactly(tmp_path: Path, files: dict[str, str], stop: int) -> None:
    def data() -> PromptData:
        return PromptData(**files, batch_size=4, seed=1)

    unbroken = fitted(data(), keep=tmp_path / "kept", max_steps=7)
    resumed = fitted(data(), ckpt_path=tmp_path / "kept" / f"step-{stop}.ckpt", max_steps=7)
    assert resumed.train_seen == unbroken.train_seen[stop:]


def test_without_validation_prompts_nothing_is_validated(files: dict[str, str]) -> None:
    with pytest.warns(UserWarning, match="across ranks is zero"):
        module = fitted(PromptData(train=files["train"]), max_steps=1)
    assert module.validation_seen == []
