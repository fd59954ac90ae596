"""Fits under another logger than TensorBoard's: where the run's configuration lies, and what a logger refuses."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from lightning_utilities.core.imports import RequirementCache
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context

from cfg_distill.cli import main

LOGGER = """
from lightning.pytorch.loggers.logger import Logger

class Mine(Logger):
    name, version = "project", ""

    def __init__(self, save_dir: str | None = None, version: str = "run7") -> None:
        super().__init__()
        self.folder = save_dir
        self.version = version

    @property
    def save_dir(self):
        return self.folder

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass
"""


@pytest.fixture
def recipe(folder: Path, tiny_model: str) -> str:
    """The text of a recipe that lies under the name that runs give their configuration, in the current folder."""
    (folder / "train.txt").write_text("w1 w2\nw3\n")
    (folder / "mine.py").write_text(LOGGER)
    text = f"""
model:
  generator: {{class_path: cfg_distill.generators.CausalLM, init_args: {{path: {tiny_model}}}}}
  sampling: {{samples: 2, max_new_tokens: 4}}
  losses: {{kl: {{class_path: cfg_distill.losses.ReverseKL}}}}
  optimizer: {{class_path: torch.optim.SGD, init_args: {{lr: 0.01}}}}
data: {{train: train.txt, batch_size: 2}}
trainer:
  max_steps: 1
  accelerator: cpu
  log_every_n_steps: 1
  callbacks: {{saved: {{class_path: lightning.pytorch.callbacks.ModelCheckpoint, init_args: {{save_last: true}}}}}}
"""
    (folder / "config.yaml").write_text(text)
    return text


@pytest.mark.parametrize(
    ("words", "saved"),
    [
        (["--trainer.logger=mine.Mine", "--trainer.logger.save_dir=."], "project/run7/config.yaml"),  # as W&B has it
        (
            ["--trainer.logger=mine.Mine", "--trainer.default_root_dir=out"],
            "out/project/run7/config.yaml",
        ),  # MLflow's server
        (["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=."], "lightning_logs/version_0/config.yaml"),
        (["--trainer.logger=false", "--trainer.default_root_dir=."], "config_1.yaml"),
        pytest.param(
            ["--trainer.logger=false", "--trainer.default_root_dir=out"], "out/config.yaml", marks=pytest.mark.slow
        ),
    ],
)
def test_the_configuration_of_a_run_lies_in_its_folder(recipe: str, words: list[str], saved: str) -> None:
    assert main(["fit", "--config", "config.yaml", "--model.guidance.scale=2.5", *words]) == 0
    assert yaml.safe_load(Path(saved).read_text())["model"]["guidance"]["scale"] == 2.5
    assert Path("config.yaml").read_text() == recipe


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "CSVLogger"])
def test_the_settings_of_a_run_are_told_to_its_logger(recipe: str, logger: str) -> None:
    """By which W&B and MLflow tell runs apart; the folder has no other values for it."""
    words = [] if logger.startswith("Tensor") else [f"--trainer.logger={logger}", "--trainer.logger.save_dir=m"]
    assert main(["fit", "--config", "config.yaml", "--model.guidance.scale=2.5", *words]) == 0
    (file,) = (path for path in Path().rglob("hparams.yaml"))
    known = yaml.safe_load(file.read_text())
    assert known["model.guidance.scale"] == 2.5 and known["data.batch_size"] == 2
    assert known["model.generator.class_path"] == "cfg_distill.generators.CausalLM"


def test_tensorboard_compares_runs_by_their_settings(recipe: str) -> None:
    """Its page HParams, as it computes it: no curve has a point that nobody measured."""
    for scale in ("2.5", "3.0"):
        assert main(["fit", "--config", "config.yaml", f"--model.guidance.scale={scale}"]) == 0
    (folder,) = {file.parent.parent for file in Path("runs").rglob("events.out.tfevents*")}
    runs = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    context = Context(TBContext(data_provider=MultiplexerDataProvider(runs, str(folder))))
    request = RequestContext()
    page = context.experiment_from_metadata(request, "", True, context.hparams_metadata(request, ""), None)
    assert [each.name for each in page.hparam_infos if each.differs] == ["model.guidance.scale"]
    assert "train/loss" in {each.name.tag for each in page.metric_infos}


def test_a_logger_that_refuses_the_settings_ends_no_fit(recipe: str, recwarn: pytest.WarningsRecorder) -> None:
    """As MLflow does when a resumed run has changed one."""
    head, body = "def log_hyperparams(self, params, *args, **kwargs):\n        ", "raise KeyError(sorted(params)[0])"
    Path("mine.py").write_text(LOGGER.replace(f"{head}pass", head + body))
    with pytest.warns(UserWarning, match="Mine took no settings: 'data"):
        assert (
            main(["fit", "--config", "config.yaml", "--trainer.logger=mine.Mine", "--trainer.logger.save_dir=m"]) == 0
        )


@pytest.mark.parametrize(
    "words",
    [[], pytest.param(["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=m"], marks=pytest.mark.slow)],
)
def test_weights_alone_are_no_checkpoint_to_go_on_from(
    recipe: str, capsys: pytest.CaptureFixture, words: list[str]
) -> None:
    weights = "--trainer.callbacks.saved.save_weights_only=true"
    assert main(["fit", "--config", "config.yaml", weights, *words]) == 0
    (last,) = Path().rglob("last.ckpt")
    capsys.readouterr()
    for named in (str(last), "last"):
        assert main(["fit", "--config", "config.yaml", f"--ckpt_path={named}", *words]) == 2
        assert "holds weights alone (`save_weights_only`)" in capsys.readouterr().err


@pytest.mark.parametrize("logger", ["mine", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("csv", "none"))])
def test_a_run_under_another_logger_goes_on(recipe: str, capsys: pytest.CaptureFixture, logger: str) -> None:
    """Each run of such a logger has a folder of another name, so Lightning finds no last checkpoint and begins anew."""

    def words(number: int) -> list[str]:
        kinds = {
            "mine": ["mine.Mine", "--trainer.logger.save_dir=m", f"--trainer.logger.version=run{number}"],
            "csv": ["CSVLogger", "--trainer.logger.save_dir=m"],
            "none": ["false"],
        }
        head, *more = kinds[logger]
        return ["fit", "--config", "config.yaml", f"--trainer.logger={head}", *more]

    begin = "--ckpt_path=last"  # the first time there is none
    assert main([*words(1), "--trainer.max_steps=2", begin]) == 0
    assert "has a last checkpoint to go on from. This run begins anew." in capsys.readouterr().err
    if logger != "none":  # whose runs share one folder
        assert main(["fit", "--config", "config.yaml", "--trainer.fast_dev_run=true"]) == 0  # is no run to go on from
    capsys.readouterr()
    assert main([*words(2), "--trainer.max_steps=3", "--ckpt_path=last"]) == 0
    shown = capsys.readouterr()
    assert re.findall(r"^step \d/\d", shown.out, re.MULTILINE) == ["step 3/3"]
    assert "begins anew" not in shown.err
    assert main([*words(3), "--trainer.max_steps=1"]) == 0  # a new run, unless asked
    assert re.findall(r"^step \d/\d", capsys.readouterr().out, re.MULTILINE) == ["step 1/1"]


KILLS = """
from pathlib import Path
from lightning.pytorch import Callback
from cfg_distill.errors import Stopped

class AtStart(Callback):
    def on_train_batch_start(self, *_):
        raise Stopped(15)

class AtEnd(Callback):
    def on_train_end(self, *_):
        if not Path("killed").exists():
            Path("killed").touch()
            raise Stopped(15)
        Path("ended").touch()
"""
CSV = ["fit", "--config", "config.yaml", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=m"]


def test_a_run_that_was_killed_before_its_first_checkpoint_goes_on_from_the_one_before(
    recipe: str, capsys: pytest.CaptureFixture
) -> None:
    """Each run of such a logger has a new folder: the newest is empty, and the checkpoint lies in that of the first run."""
    Path("kills.py").write_text(KILLS)
    words = [*CSV, "--trainer.callbacks.saved.every_n_train_steps=2"]
    assert main([*words, "--trainer.max_steps=2"]) == 0
    words += ["--trainer.max_steps=3", "--ckpt_path=last"]
    for _ in range(2):
        assert main([*words, "--trainer.callbacks.kill=kills.AtStart"]) == 143
    capsys.readouterr()
    assert main(words) == 0
    assert re.findall(r"^step \d/\d", capsys.readouterr().out, re.MULTILINE) == ["step 3/3"]


def test_an_end_that_was_killed_is_made_up(recipe: str) -> None:
    Path("kills.py").write_text(KILLS)
    words = [*CSV, "--trainer.callbacks.kill=kills.AtEnd"]
    assert main(words) == 143
    assert main([*CSV, "--trainer.fast_dev_run=true"]) == 0  # leaves no note
    assert main([*words, "--ckpt_path=last"]) == 0 and Path("ended").exists()
    Path("ended").unlink()
    assert main([*words, "--ckpt_path=last"]) == 0 and not Path("ended").exists()  # once


@pytest.mark.parametrize("content", ["{", "[]", '{"job": ""}'])
def test_a_broken_note_of_the_latest_run_is_told(recipe: str, capsys: pytest.CaptureFixture, content: str) -> None:
    Path("runs/config").mkdir(parents=True)
    Path("runs/config/.latest_run.json").write_text(content)
    words = ["fit", "--config", "config.yaml", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=m"]
    assert main([*words, "--ckpt_path=last"]) == 2
    assert "Key `ckpt_path`: `runs/config/.latest_run.json` does not say" in capsys.readouterr().err


def test_a_job_that_slurm_starts_again_goes_on(
    recipe: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    words = ["fit", "--config", "config.yaml", "--trainer.logger=CSVLogger", "--trainer.logger.save_dir=m"]
    assert main([*words, "--trainer.max_steps=2"]) == 0
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    capsys.readouterr()
    assert main([*words, "--trainer.max_steps=3"]) == 0
    assert re.findall(r"^step \d/\d", capsys.readouterr().out, re.MULTILINE) == ["step 3/3"]


def test_what_a_loggers_library_refuses_is_told(
    recipe: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow 3.17 refuses a folder, and asks for a database."""

    def refuse(uri: str) -> None:
        raise RuntimeError(f"no store in {uri}: use a database")

    for name in ("mlflow", "mlflow.tracking"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules["mlflow.tracking"].MlflowClient = refuse  # type: ignore[attr-defined]
    monkeypatch.setattr("lightning.pytorch.loggers.mlflow._MLFLOW_AVAILABLE", RequirementCache("torch"))
    assert main(["fit", "--config", "config.yaml", "--trainer.logger=MLFlowLogger", "--trainer.logger.save_dir=m"]) == 2
    assert "In `trainer`: no store in file:m: use a database" in capsys.readouterr().err
