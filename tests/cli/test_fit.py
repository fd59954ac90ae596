"""``cfg-distill fit``: runs from files, overrides, their folders, their resumption; and all refusals."""

from __future__ import annotations

import inspect
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import MPSAccelerator
from lightning.pytorch.loggers import CSVLogger
from lightning_utilities.core.imports import RequirementCache

from cfg_distill.cli import main
from cfg_distill.distillation.settings import problems_of_trainer
from cfg_distill.folders import names
from cfg_distill.generators import device
from cfg_distill.recipe.command_line import start
from cfg_distill.recipe.progress import StepLines
from cfg_distill.recipe.ranks import problems_of_devices

LOSS = """
from cfg_distill.losses import ReverseKL

class Mine(ReverseKL):
    def __init__(self, factor: float = 1.0, **kwargs) -> None:
        super().__init__(**kwargs)
        print("mine", factor)
        self.factor = factor

    def cells(self, inputs):
        whole = super().cells(inputs)
        return lambda cells: self.factor * whole(cells)
"""


@pytest.fixture
def recipe(folder: Path, tiny_model: str) -> Path:
    """A fit of three steps on a tiny model, in the folder that the test stands in."""
    (folder / "train.txt").write_text("w1 w2\nw3\nw4 w5\nw6\n")
    (folder / "validation.txt").write_text("w7\n")
    content = {
        "model": {
            "generator": {"class_path": "cfg_distill.generators.CausalLM", "init_args": {"path": tiny_model}},
            "guidance": {"scale": 3.0},
            "sampling": {"samples": 3, "max_new_tokens": 4},
            "losses": {"kl": {"class_path": "cfg_distill.losses.ReverseKL", "init_args": {"weight": 1.0}}},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
        },
        "data": {"train": "train.txt", "validation": "validation.txt", "batch_size": 2},
        "trainer": {
            "max_steps": 3,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}
            ],
        },
    }
    (folder / "tiny.yaml").write_text("# A tiny fit.\n" + yaml.safe_dump(content))
    return folder / "tiny.yaml"


def edited(recipe: Path, name: str, change: Any) -> str:
    """A copy of the recipe with one change."""
    content = yaml.safe_load(recipe.read_text())
    change(content)
    (recipe.parent / name).write_text(yaml.safe_dump(content))
    return name


def checkpoint(version: int) -> dict[str, Any]:
    return torch.load(f"runs/tiny/version_{version}/checkpoints/last.ckpt", weights_only=True)


def test_a_finished_run_says_what_to_do_with_it(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["fit", "--config", "tiny.yaml", "--trainer.max_steps=1"]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    assert line.startswith("Finished. Curves: tensorboard --logdir runs/tiny; ")
    words = shlex.split(line)
    assert main(words[words.index("cfg-distill") + 1 :]) == 0
    assert Path("students/tiny/model.safetensors").is_file()


def test_a_run_has_a_folder_of_its_own(recipe: Path) -> None:
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    assert checkpoint(0)["global_step"] == 3
    saved = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())
    assert saved["model"]["guidance"]["scale"] == 3.0 and saved["seed_everything"] == 0
    # A second run stands beside the first one and touches nothing of it.
    before = Path("runs/tiny/version_0/checkpoints/last.ckpt").read_bytes()
    assert main(["fit", "--config", "tiny.yaml", "--trainer.max_steps=1"]) == 0
    assert checkpoint(1)["global_step"] == 1
    assert Path("runs/tiny/version_0/checkpoints/last.ckpt").read_bytes() == before


def test_last_goes_on_in_the_same_folder(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    note = "Note: No run in `here` has a last checkpoint to go on from. This run begins anew."
    words = ["fit", "--config", "tiny.yaml", "--ckpt_path", "last"]
    assert main([*words, "--trainer.max_steps=2", "--trainer.default_root_dir=here"]) == 0
    assert capsys.readouterr().err.count(note) == 1
    assert main([*words, "--trainer.max_steps=4", "--trainer.default_root_dir=here"]) == 0
    assert note not in capsys.readouterr().err
    assert [path.name for path in Path("here").iterdir()] == ["version_0"]
    assert torch.load("here/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    # The configuration that the run has saved knows the folder, too.
    again = ["fit", "--config", "here/version_0/config.yaml", "--ckpt_path", "last", "--trainer.max_steps=5"]
    assert main(again) == 0
    assert torch.load("here/version_0/checkpoints/last.ckpt", weights_only=True)["global_step"] == 5


def test_the_command_line_wins_over_the_checkpoint(recipe: Path) -> None:
    assert main(["fit", "--config", "tiny.yaml"]) == 0
    resumed = ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--trainer.max_steps=4"]
    numbers = ["--model.guidance.scale=2.5", "--model.optimizer.lr=0.5", "--model.losses.kl.init_args.weight=9"]
    assert main(["fit", "--config", "tiny.yaml", *resumed, *numbers]) == 0
    assert checkpoint(1)["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    assert checkpoint(1)["state_dict"]["losses.kl.weight"] == 9
    assert yaml.safe_load(Path("runs/tiny/version_1/config.yaml").read_text())["model"]["guidance"]["scale"] == 2.5


def test_several_files_and_one_number_of_a_loss(recipe: Path) -> None:
    Path("mine.yaml").write_text("model: {guidance: {scale: 2.0}}\ntrainer: {max_steps: 1}\n")
    words = ["fit", "--config", "tiny.yaml", "--config", "mine.yaml", "--model.losses.kl.init_args.weight=9"]
    assert main(words) == 0
    model = yaml.safe_load(Path("runs/tiny/version_0/config.yaml").read_text())["model"]
    assert model["guidance"]["scale"] == 2.0
    assert model["losses"]["kl"]["init_args"]["weight"] == 9
    assert checkpoint(0)["state_dict"]["losses.kl.weight"] == 9


def test_a_class_of_the_users_own_file(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    Path("mine_loss.py").write_text(LOSS)
    own = edited(recipe, "own.yaml", lambda c: c["model"]["losses"].update(kl={"class_path": "mine_loss.Mine"}))
    assert main(["fit", "--config", own, "--model.losses.kl.factor=2", "--trainer.max_steps=1"]) == 0
    assert "mine 2.0" in capsys.readouterr().out


def test_a_shipped_recipe_is_found_from_any_folder(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = recipe.parent / "package"
    (shipped / "tunes").mkdir(parents=True)
    recipe.rename(shipped / "tunes" / "tiny.yaml")
    monkeypatch.setattr(names, "RECIPES", shipped)
    assert main(["fit", "--config=recipes/tunes/tiny.yaml", "--trainer.max_steps=1"]) == 0
    assert checkpoint(0)["global_step"] == 1


def test_progress_is_counted_in_steps(
    recipe: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["fit", "--config", "tiny.yaml", "--trainer.enable_progress_bar=true"]) == 0
    shown = capsys.readouterr().out
    assert "3/3" in shown and "loss=" in shown and "step 3/3" not in shown


def test_off_a_terminal_there_is_a_line_per_logging_interval(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["fit", "--config", "tiny.yaml", "--trainer.max_steps=5", "--trainer.log_every_n_steps=2"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == (
        "Losses: kl (ReverseKL, weight 1). Guidance of the teacher: 3. Samples per prompt: 3."
    )
    lines = [line for line in said.out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
    number = r"[\d.e+-]+"
    for line in lines:
        assert re.fullmatch(rf"step ./5 loss {number} kl/token {number} {number} s/step \d+:\d\d left", line), line
    assert lines[-1].endswith("0:00 left")
    # Nothing of a FLOPs table, of bars of weights, or of intervals longer than an epoch.
    assert "FLOPs" not in said.out and "Loading weights" not in said.err and "logging interval" not in said.err


def test_a_line_has_a_ratio_when_it_was_measured_since_the_line_before(capsys: pytest.CaptureFixture) -> None:
    lines = StepLines(every=1)
    fitting = SimpleNamespace(global_step=0, max_steps=4, is_global_zero=True, callback_metrics={})
    lines.on_train_start(fitting, None)  # type: ignore[arg-type]
    for ratio in (0.5, 0.5, 0.625, 0.625):
        fitting.global_step += 1
        # Lightning keeps the value of the last step that had one.
        fitting.callback_metrics = {"train/loss": torch.tensor(2.0), "gradient_ratio/diversity": torch.tensor(ratio)}
        lines.on_train_batch_end(fitting, None, None, None, 0)  # type: ignore[arg-type]
    shown = capsys.readouterr().out.splitlines()
    assert [re.findall(r"ratio \S+", line) for line in shown] == [["ratio 0.5"], [], ["ratio 0.625"], []]
    assert all("loss 2 " in line for line in shown), "a loss that stays equal is shown"


def test_problems_that_callbacks_find_are_told_by_their_path(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    def wrong(content: dict[str, Any]) -> None:
        (checkpoint,) = content["trainer"]["callbacks"]
        beta = {"class_path": "cfg_distill.callbacks.BetaCalibration", "init_args": {"loss": "diversty"}}
        content["trainer"]["callbacks"] = {"checkpoint": checkpoint, "beta": beta}

    assert main(["fit", "--config", edited(recipe, "wrong.yaml", wrong)]) == 2
    said = capsys.readouterr().err
    assert said.count("Key `trainer.callbacks.beta.init_args.loss`: expected a name of `model.losses`") == 1
    Path("broken.ckpt").write_text("no checkpoint")

    def broken(content: dict[str, Any]) -> None:
        merging = {"class_path": "cfg_distill.callbacks.CheckpointMerging", "init_args": {"partner": "broken.ckpt"}}
        content["trainer"]["callbacks"].append(merging)

    assert main(["fit", "--config", edited(recipe, "broken.yaml", broken)]) == 2
    said = capsys.readouterr().err
    assert "Key `trainer.callbacks[1].init_args.partner`: `broken.ckpt` cannot be read as a checkpoint" in said


def test_a_weight_that_is_no_number_is_one_problem(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["fit", "--config", "tiny.yaml", "--model.losses.kl.init_args.weight=.nan"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "cfg-distill fit" in line or ". Key" in line]
    assert line.endswith(
        "Key `model.losses.kl.init_args.weight`: expected a finite number, but got nan. Write such a number, or leave the"
        " key out."
    )


def test_callbacks_of_names(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    def name(content: dict[str, Any]) -> None:
        (checkpoint,) = content["trainer"]["callbacks"]
        ema = {"class_path": "cfg_distill.callbacks.StudentEMA", "init_args": {"decay": 0.9}}
        content["trainer"]["callbacks"] = {"checkpoint": checkpoint, "ema": ema}

    named = edited(recipe, "named.yaml", name)
    Path("mine.yaml").write_text("trainer: {callbacks: {ema: {init_args: {update_every: 2}}}}\n")
    words = ["fit", "--config", named, "--config=mine.yaml", "--trainer.callbacks.ema.decay=0.5"]
    assert main([*words, "--trainer.max_steps=1"]) == 0
    callbacks = yaml.safe_load(Path("runs/named/version_0/config.yaml").read_text())["trainer"]["callbacks"]
    assert list(callbacks) == ["checkpoint", "ema"]
    assert callbacks["ema"]["init_args"] | {"decay": 0.5, "update_every": 2} == callbacks["ema"]["init_args"]
    last = torch.load("runs/named/version_0/checkpoints/last.ckpt", weights_only=True)
    assert last["callbacks"]["StudentEMA"]["updates"] == 1
    # The saved configuration is a recipe: it runs, and its names can be overridden again.
    again = ["fit", "--config=runs/named/version_0/config.yaml", "--trainer.callbacks.ema=null"]
    assert main([*again, "--trainer.default_root_dir=again"]) == 0
    last = torch.load("again/version_0/checkpoints/last.ckpt", weights_only=True)
    assert "StudentEMA" not in last["callbacks"]
    assert "Note:" not in capsys.readouterr().err


def test_a_list_that_drops_the_checkpoints_is_no_secret(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    Path("short.yaml").write_text("trainer: {callbacks: [{class_path: cfg_distill.callbacks.StudentEMA}]}\n")
    assert main(["fit", "--config", "tiny.yaml", "--config", "short.yaml", "--trainer.max_steps=1"]) == 0
    said = capsys.readouterr().err
    assert (
        said.count("Note: The list `trainer.callbacks` replaces the callbacks before it, ModelCheckpoint among them")
        == 1
    )


STOPPING = """
import os, signal
from pathlib import Path
from lightning.pytorch import Callback

class StopAt(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2 and Path("stop").exists():
            os.kill(os.getpid(), signal.SIGINT)
"""


def test_an_interrupted_fit_says_how_to_go_on(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    def save(content: dict[str, Any]) -> None:
        (checkpoint,) = content["trainer"]["callbacks"]
        checkpoint["init_args"] |= {"every_n_train_steps": 1, "save_top_k": 0}

    edited(recipe, "tiny.yaml", save)
    Path("stopping.py").write_text(STOPPING)
    Path("stop").touch()
    words = ["--config", "tiny.yaml", "--trainer.callbacks+=stopping.StopAt", "--data.batch_size=2"]
    assert main(["fit", *words, "--ckpt_path=last"]) == 130
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Stopped")]
    assert line == f"Stopped at step 2 of 3. Go on: cfg-distill fit {shlex.join(words)} --ckpt_path last"
    Path("stop").unlink()

    # Another run is begun beside it: one line says what lies there.
    note = "Note: runs/tiny/version_0 is unfinished: its last checkpoint is of step 2 of 3."
    assert main(["fit", "--config", "tiny.yaml", "--trainer.max_steps=1"]) == 0
    assert capsys.readouterr().err.count(note) == 1
    shutil.rmtree("runs/tiny/version_1")
    assert main(shlex.split(line)[line.split().index("fit") :]) == 0
    assert checkpoint(0)["global_step"] == 3
    assert main(["fit", "--config", "tiny.yaml", "--trainer.max_steps=1"]) == 0
    assert "unfinished" not in capsys.readouterr().err


def test_validate(recipe: Path) -> None:
    assert main(["validate", "--config", "tiny.yaml"]) == 0


# Refusals


def refused(capsys: pytest.CaptureFixture, *words: str) -> list[str]:
    """The problems that a refused command names: exit code 2, one message, no traceback, nothing written."""
    assert main(["fit", *words]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and not Path("runs").exists()
    message = said[said.index("cfg-distill fit:") :].strip().splitlines()
    return [line.strip() for line in message[1:]] if "problems" in message[0] else message


def test_all_problems_at_once(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    def change(content: dict[str, Any]) -> None:
        content["model"]["sampling"]["smaples"] = content["model"]["sampling"].pop("samples")
        content["model"]["guidance"]["scale"] = -1
        content["data"] |= {"batch_size": "two", "validation": "nowhere.txt"}
        content["trainer"]["callbacks"].append({"class_path": "cfg_distill.callbacks.StudentEmma"})

    said = refused(capsys, "--config", edited(recipe, "bad.yaml", change), "--trainer.max_stepz=3")
    expected = [
        "Key `model.sampling.smaples`: no such key. Did you mean `samples`?",
        "Key `data.batch_size`: expected a whole number, but got 'two'.",
        "`trainer.callbacks[1].class_path`: expected the import path of a Callback, but module `cfg_distill.callbacks`"
        " has no `StudentEmma`. Did you mean `StudentEMA`?",
        "Key `trainer.max_stepz`: no such key. Did you mean `max_steps`?",
        "Key `model.guidance.scale`: expected a number from 0 to 1000",
        "Key `data.validation`: Expected a file of prompts, but `nowhere.txt` does not exist.",
    ]
    assert len(said) == len(expected), said
    for sentence in expected:
        assert any(sentence in line for line in said), sentence


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.guidance.scale=-1"], "`model.guidance.scale`: expected a number from 0 to 1000"),
        (["--model.sampling.temperature=0"], "`model.sampling.temperature`: expected a number above 0"),
        (
            ["--model.sampling.max_new_tokens=64"],
            "expected at most 63, since the model has no positions for a longer sample",
        ),
        (["--model.generator.init_args.path=./nothing"], "`./nothing` does not exist"),
        (["--model.losses.kl.wieght=2"], "`model.losses.kl.init_args.wieght`: no such key. Did you mean `weight`?"),
        (["--data.train=nowhere.txt"], "`nowhere.txt` does not exist"),
        (["--data.report=train.txt"], "4 are in both"),
        (["--trainer.accelerator=tpux"], "In `trainer`:"),
        (["--trainer.strategy=magic"], "Key `trainer.strategy`: expected one of auto, ddp, ddp_find"),
        (["--trainer.strategy=deepspeed"], "fsdp2, but got deepspeed. Set it to ddp, or to fsdp2"),
        (["--trainer.strategy=ddp_spawn", "--trainer.devices=2"], "Key `trainer.strategy`: expected one of auto"),
        (["--trainer.precision=bf16-true"], "must be float32, but got bf16-true. Use bf16-mixed, or"),
        (["--trainer.precision=16-true"], "`trainer.precision`: expected one of 32-true, 16-mixed, bf16-mixed"),
        (["--trainer.strategy.class_path=lightning.pytorch.strategies.ModelParallelStrategy"], "got ModelParallel"),
        (
            ["--trainer.strategy=fsdp2", "--model.execution.gather=layer", "--model.redraw=1"],
            "`model.redraw`: expected 0 where `model.execution.gather` is layer",
        ),
        (
            ["--model.generator.dtype=bfloat16"],
            "`model.generator.init_args.dtype`: expected float32 where all weights are trained",
        ),
        (["--trainer.max_steps"], "max_steps"),
        (["--trainer.logger=csv"], "For csv, write `--trainer.logger=CSVLogger --trainer.logger.save_dir=runs`."),
        (["--trainer.logger", "WandB"], "For wandb, write `--trainer.logger=WandbLogger`."),
        (
            ["--trainer.logger=tensorbord"],
            "For tensorboard, leave it out: a run writes for TensorBoard into its own folder.",
        ),
        (["--model.execution.logits_chunk=-1"], "Key `model.execution.logits_chunk`: expected 0 (all at once) or more"),
        (["--model.execution.onedn=false"], "Did you mean `onednn`?"),
        (["--samples=4"], "Key `samples`: no such key. Did you mean `model.sampling.samples`?"),
        (["--max_steps=4"], "Key `max_steps`: no such key. Did you mean `trainer.max_steps`?"),
        (["--ckpt_path=nowhere.ckpt"], "Key `ckpt_path`: expected a checkpoint or `last`"),
        (["--config=."], "expected a YAML file, but `.` is a folder"),
        (["--config=nowhere.yaml"], "`nowhere.yaml` does not exist. See cfg-distill recipes."),
    ],
)
def test_refusals(recipe: Path, capsys: pytest.CaptureFixture, words: list[str], said: str) -> None:
    problems = refused(capsys, "--config", "tiny.yaml", *words)
    assert len(problems) == 1 and said in problems[0], problems


def test_a_study_is_no_recipe_of_a_fit_and_a_fit_no_study(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    Path("study.yaml").write_text("fits: {quality: {config: tiny.yaml}}\nbaselines: {}\nevaluation: {samples: 2}\n")
    (said,) = refused(capsys, "--config", "study.yaml")
    assert said.endswith("`study.yaml` is a study, and no recipe of one fit. Run `cfg-distill study study.yaml`.")
    for words, what in (
        (["tiny.yaml"], "`tiny.yaml` is a recipe of one fit, and no study. Run `cfg-distill fit --config tiny.yaml`."),
        (["--config", "study.yaml"], "A study is named without an option: `cfg-distill study STUDY.yaml`."),
    ):
        assert main(["study", *words]) == 2
        said = capsys.readouterr().err
        assert what in said and said.count("\n") == 1


def test_the_logger_that_a_message_names_is_taken(recipe: Path) -> None:
    words = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=runs"]
    command = start("fit", ["--config", "tiny.yaml", *words], check_only=True)
    assert isinstance(command.trainer.logger, CSVLogger) and command.trainer.logger.save_dir == "runs"


def test_a_logger_whose_library_is_missing_is_told(
    recipe: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", RequirementCache("not-there>=1"))
    (said,) = refused(capsys, "--config", "tiny.yaml", "--trainer.logger=WandbLogger")
    assert "In `trainer`: Requirement 'not-there>=1' not met" in said and "pip install" in said


def test_strategies_and_gpus_that_are_not_there_are_told_with_the_other_problems(
    recipe: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    words = ["--trainer.strategy=fsdp", "--trainer.accelerator=gpu", "--model.guidance.scale=-1"]
    said = refused(capsys, "--config", "tiny.yaml", *words)
    assert len(said) == 3, said
    assert any("Key `trainer.strategy`" in each for each in said)
    assert any("Key `trainer.accelerator`: expected cpu or auto" in each and "Set it to cpu" in each for each in said)
    assert any("Key `model.guidance.scale`" in each for each in said)


@pytest.mark.parametrize("root", ["taken", "taken/runs"])
def test_wrong_types_are_told_with_what_a_trainer_need_not_be_built_for(
    recipe: Path, capsys: pytest.CaptureFixture, root: str
) -> None:
    Path("taken").touch()
    words = [
        "--trainer.strategy=fsdp",
        "--trainer.devices=1000",
        f"--trainer.default_root_dir={root}",
        "--model.micro_batch=x",
    ]
    said = refused(capsys, "--config", "tiny.yaml", *words)
    keys = ("trainer.strategy", "trainer.devices", "trainer.default_root_dir", "model.micro_batch")
    assert len(said) == len(keys), said
    assert all(any(f"Key `{key}`: " in each for each in said) for key in keys), said


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        (2, ""),
        ("-1", ""),
        ([1], ""),
        ("auto", ""),
        (3, "at most 2, the GPUs"),
        ("3", "Set it to 2"),
        ([0, 2], "from 0 to 1"),
    ],
)
def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch, devices: int | str | list[int], told: str) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for accelerator in ("gpu", "auto"):
        found = problems_of_devices(accelerator, devices)
        assert len(found) == bool(told)
        assert all(told in str(each) and "Key `trainer.devices`" in str(each) for each in found)
    assert problems_of_devices("cpu", devices) == []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert problems_of_devices("auto", devices) == []


def test_a_student_without_a_teacher(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    untied = ["--config", "tiny.yaml", "--model.losses.kl.weight=0"]
    (problem,) = refused(capsys, *untied)
    assert "Key `model.losses`: nothing ties the student to the guided teacher" in problem
    assert "got kl (ReverseKL, weight 0)" in problem and "set `model.allow_no_teacher` to true" in problem
    assert main(["fit", *untied, "--model.allow_no_teacher=true", "--trainer.max_steps=1"]) == 0


PART = """
from cfg_distill.errors import Problem
from lightning.pytorch import Callback

class Part(Callback):
    def __init__(self, window: int = 0) -> None:
        self.window = window

    def problems(self, context):
        return [] if self.window else [Problem("window", "expected more, but got 0. See `@.other` and `@/data.train`.")]
"""


def test_callbacks_are_named_as_the_user_wrote_them(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    Path("part.py").write_text(PART)
    (problem,) = refused(capsys, "--config", "tiny.yaml", "--trainer.callbacks+=part.Part")
    assert problem.endswith(
        "Key `trainer.callbacks[1].init_args.window`: expected more, but got 0."
        " See `trainer.callbacks[1].init_args.other` and `data.train`."
    )
    named = {
        "part": {"class_path": "part.Part"},
        "checkpoint": {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint"},
    }
    own = edited(recipe, "own.yaml", lambda content: content["trainer"].update(callbacks=named))
    (problem,) = refused(capsys, "--config", own)
    assert "Key `trainer.callbacks.part.init_args.window`: expected more" in problem
    (problem,) = refused(capsys, "--config", own, "--trainer.callbacks.part.windwo=1")
    assert "Key `trainer.callbacks.part.init_args.windwo`: no such key. Did you mean `window`?" in problem
    (problem,) = refused(capsys, "--config", own, "--trainer.callbacks.prat.window=1")
    expected = "Key `trainer.callbacks.prat.class_path`: expected a Callback by its import path, but it is missing."
    assert problem.endswith(f"{expected} Did you mean `part`?")


@pytest.mark.parametrize("key", ["ema.decay", "ema.init_args.decay"])
def test_a_wrong_number_of_a_shipped_callback(folder: Path, capsys: pytest.CaptureFixture, key: str) -> None:
    (problem,) = refused(capsys, "--config=recipes/tunes/quality.yaml", f"--trainer.callbacks.{key}=2")
    assert "Key `trainer.callbacks.ema.init_args.decay`: expected a number in [0, 1), but got 2.0." in problem


def test_a_second_student_ema(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    ema = ["--trainer.callbacks+=cfg_distill.callbacks.StudentEMA", "--trainer.callbacks.decay=0.9"]
    (problem,) = refused(capsys, "--config", "tiny.yaml", *ema, *ema)
    assert "Key `trainer.callbacks[2]`: expected one StudentEMA, but `trainer.callbacks[1]` is one too" in problem


def test_empty_prompts_and_empty_keys(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    Path("train.txt").write_text("\n")
    bad = edited(recipe, "bad.yaml", lambda content: content["data"].update(batch_size=None))
    said = refused(capsys, "--config", bad)
    assert len(said) == 2
    assert "`data.batch_size`: expected a whole number, but it is empty" in said[0]
    assert "Key `data.train`: Expected at least one prompt, but `train.txt` holds none" in said[1]


def test_groups_too_small_for_the_reward(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    embedder = {"class_path": "cfg_distill.embedders.NGramCounts"}
    reward = {"class_path": "cfg_distill.rewards.PairwiseDiversity", "init_args": {"embedder": embedder}}
    term = {"class_path": "cfg_distill.losses.PolicyGradient", "init_args": {"reward": reward}}
    bad = edited(recipe, "bad.yaml", lambda content: content["model"]["losses"].update(diversity=term))
    (problem,) = refused(capsys, "--config", bad, "--model.sampling.samples=1")
    assert (
        "Key `model.sampling.samples` for `model.losses.diversity.init_args.reward`: expected at least 3 samples"
        in problem
    )
    (problem,) = refused(capsys, "--config", bad, "--model.sampling.samples=2")
    assert "Key `model.losses.diversity.init_args.reward.init_args.baseline`: expected" in problem
    assert "`running_mean` for 2 samples per prompt" in problem


def test_a_model_folder_without_weights(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    Path("hollow").mkdir()
    Path("hollow/config.json").write_text("{}")
    (problem,) = refused(capsys, "--config", "tiny.yaml", "--model.generator.init_args.path=hollow")
    assert "`model.generator.init_args.path`: expected a model folder with weights" in problem


def test_files_that_are_no_recipes(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    Path("bad.yaml").write_text("model: [1\n")
    assert "File `bad.yaml`: expected YAML" in refused(capsys, "--config", "bad.yaml")[0]
    Path("bad.yaml").write_text("- model\n")
    assert "expected keys and values, but got list" in refused(capsys, "--config", "bad.yaml")[0]


def test_a_metric_that_is_never_logged(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["--trainer.callbacks.monitor=val/nothing", "--trainer.logger=false", "--trainer.default_root_dir=out"]
    (problem,) = refused(capsys, "--config", "tiny.yaml", *words)
    assert "val/nothing" in problem


@pytest.mark.parametrize(
    ("name", "init_args", "instead"),
    [
        ("StochasticWeightAveraging", {"swa_lrs": 0.1}, "cfg_distill.callbacks.StudentEMA"),
        ("EMAWeightAveraging", {}, "cfg_distill.callbacks.StudentEMA"),
        ("WeightAveraging", {}, "cfg_distill.callbacks.StudentEMA"),
        ("LearningRateFinder", {}, "model.optimizer.init_args.lr"),
    ],
)
def test_callbacks_that_cannot_serve_a_distillation(
    recipe: Path, capsys: pytest.CaptureFixture, name: str, init_args: dict[str, Any], instead: str
) -> None:
    """Before, the first averaged nothing, the next two copied the teacher and failed at the end, the last had a traceback."""
    callback = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": init_args}
    own = edited(recipe, "own.yaml", lambda c: c["trainer"]["callbacks"].append(callback))
    (problem,) = refused(capsys, "--config", own)
    assert "`trainer.callbacks`: expected " in problem and f"but got {name}" in problem and f"`{instead}`" in problem


OWN_PARTS = """
import lightning as L
import torch

class Rows(L.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.prompts, self.files = ["w0", "w1"], ["train.txt"]

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.prompts * 3, batch_size=2)

class Watch(L.Callback):
    def __init__(self) -> None:
        self.metrics = ["val/length"]
"""


def test_parts_of_ones_own_may_have_attributes_of_the_same_names(recipe: Path) -> None:
    """Before, a list where the parts of this package have a mapping ended in an AttributeError."""
    Path("own_parts.py").write_text(OWN_PARTS)
    assert main(["fit", "--config", "tiny.yaml", "--trainer.callbacks+=own_parts.Watch"]) == 0
    own = edited(recipe, "own.yaml", lambda c: c.update(data={"class_path": "own_parts.Rows"}))
    assert main(["fit", "--config", own]) == 0


def test_a_metric_that_nothing_logs_to_stop_by(recipe: Path, capsys: pytest.CaptureFixture) -> None:
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/lenght"}}
    own = edited(recipe, "own.yaml", lambda c: c["trainer"]["callbacks"].append(stopping))
    words = ["--trainer.logger=false", "--trainer.default_root_dir=out"]
    (problem,) = refused(capsys, "--config", own, *words)
    assert "Callback EarlyStopping: expected as `monitor` one of `" in problem and "`val/kl_per_token`" in problem
    assert "but got `val/lenght`, which nothing logs. Did you mean `val/length`?" in problem


def test_any_other_error_of_the_run_keeps_its_traceback(recipe: Path) -> None:
    raising = "class Own(Callback):\n    def on_train_start(self, *_):\n        raise RuntimeError('own')\n"
    Path("own_callback.py").write_text(f"from lightning.pytorch import Callback\n{raising}")
    with pytest.raises(RuntimeError, match=r"^own$"):
        main(["fit", "--config", "tiny.yaml", "--trainer.callbacks+=own_callback.Own"])


def test_a_bug_in_the_users_file_keeps_its_traceback(recipe: Path) -> None:
    Path("broken.py").write_text("import nothing_of_this_name\n")
    own = edited(recipe, "own.yaml", lambda c: c["model"]["losses"].update(kl={"class_path": "broken.Mine"}))
    with pytest.raises(ModuleNotFoundError, match="nothing_of_this_name"):
        main(["fit", "--config", own])


@pytest.mark.parametrize(("value", "kind", "refused"), [(True, "cuda", 1), ("warn", "cuda", 0), (True, "cpu", 0)])
def test_deterministic_algorithms_cannot_sample_on_cuda(value: bool | str, kind: str, refused: int) -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        asked = Trainer(accelerator="cpu", logger=False, deterministic=value)
        asked.strategy._root_device = torch.device(kind)
        found = problems_of_trainer(asked)
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
    assert [problem.path for problem in found] == ["trainer.deterministic"] * refused


def test_apples_accelerator_cannot_sample(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Trainer(accelerator="cpu", logger=False)
    asked.strategy.accelerator = MPSAccelerator()  # a trainer refuses it by itself where there is none
    (problem,) = problems_of_trainer(asked)
    assert "`trainer.accelerator`: expected cpu or cuda" in str(problem) and "Set it to cpu" in str(problem)
    monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: True))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda *_: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("mps"))
    assert device() == torch.device("cpu")
    assert main(["fit", "--config", "tiny.yaml", "--trainer.accelerator=auto", "--trainer.max_steps=1"]) == 0


@pytest.mark.slow
def test_two_processes(recipe: Path) -> None:
    command = [sys.executable, "-m", "cfg_distill.cli", "fit", "--config", "tiny.yaml", "--trainer.devices=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["version_0"]
    assert checkpoint(0)["global_step"] == 3
    refused = subprocess.run([*command, "--data.train=nowhere.txt"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and refused.stderr.count("nowhere.txt") == 1


def test_one_seed_serves_the_whole_run_unless_told_otherwise(recipe: Path) -> None:
    words = ["--config", "tiny.yaml", "--seed_everything=5"]
    command = start("fit", words, check_only=True)
    assert (command.model.seed, command.datamodule.seed) == (5, 5)
    command = start("fit", [*words, "--model.seed=7"], check_only=True)
    assert (command.model.seed, command.datamodule.seed) == (7, 5)


def test_numbers_deep_inside_are_refused_before_anything_is_built(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In dicts of names, too, into which the parser puts objects of its own."""

    def change(content: dict[str, Any]) -> None:
        content["model"]["losses"]["kl"]["init_args"] |= {"weight": None, "temperature": float("nan")}
        content["trainer"]["callbacks"][0]["init_args"]["save_top_k"] = -2
        content["trainer"] |= {"gradient_clip_val": -1, "val_check_interval": 0}
        content["model"]["optimizer"]["init_args"]["lr"] = float("inf")

    assert main(["fit", "--config", edited(recipe, "wrong.yaml", change)]) == 2
    said = capsys.readouterr().err
    for key in (
        "model.losses.kl.init_args.weight`: expected a number, but it is empty",
        "model.losses.kl.init_args.temperature`: expected a finite number, but got nan",
        "model.optimizer.init_args.lr`: expected a number above 0, but got inf",
        "trainer.callbacks[0].init_args.save_top_k`: expected 0 or more, or -1 for all, but got -2",
        "trainer.gradient_clip_val`: expected a number of at least 0 (0 clips nothing), but got -1",
        "trainer.val_check_interval`: expected a number of batches, or a share of an epoch, above 0, but got 0",
    ):
        assert f"Key `{key}" in said
    assert "6 problems" in said


def test_an_optimizer_of_matrices_alone_is_refused_where_vectors_train(
    recipe: Path, capsys: pytest.CaptureFixture
) -> None:
    """Only with the weights is it known; an adapter has matrices alone."""
    words = ["fit", "--config", str(recipe), "--model.optimizer=Muon"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert (
        "Key `model.optimizer`: expected an optimiser of every weight that trains" in said and "2D parameters" in said
    )
    assert "Traceback" not in said
    assert main([*words, "--model.generator.init_args.lora.rank=2", "--trainer.max_steps=1"]) == 0


@pytest.mark.parametrize("name", ["RMSprop", "Adagrad", "NAdam"])
@pytest.mark.parametrize("way", ["alone", "with an argument", "in a file", "of a model by its class"])
def test_another_optimizer_starts_with_its_own_defaults(
    recipe: Path, name: str, way: str, capsys: pytest.CaptureFixture
) -> None:
    """And not with those of AdamW, which is the default."""
    expected = {
        key: each.default
        for key, each in inspect.signature(getattr(torch.optim, name)).parameters.items()
        if key != "params"
    }
    words = [f"--model.optimizer=torch.optim.{name}"]
    if way == "with an argument":
        words.append("--model.optimizer.init_args.maximize=true")
        expected["maximize"] = True
    elif way == "in a file":
        Path("more.yaml").write_text(f"model: {{optimizer: {{class_path: torch.optim.{name}}}}}\n")
        words = ["--config", "more.yaml"]
    elif way == "of a model by its class":
        values = yaml.safe_load(recipe.read_text())
        values["model"] = {"class_path": "cfg_distill.CFGDistillation", "init_args": values["model"]}
        values["model"]["init_args"]["optimizer"] = f"torch.optim.{name}"
        recipe.write_text(yaml.safe_dump(values))
        words = []
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--config", str(recipe), *words, "--print_config"])
    model = yaml.safe_load(capsys.readouterr().out)["model"]
    found = model.get("init_args", model)["optimizer"]["init_args"]
    assert {key: tuple(each) if isinstance(each, list) else each for key, each in found.items()} == expected
