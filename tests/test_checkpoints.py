"""What a checkpoint holds. One of version 0.1 must be exported and resumed for ever; a stranger's must run no code."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_fits import batches, student_of, trainer
from torch import Tensor

from cfg_distill import CFGDistillation, __version__, checkpoints
from cfg_distill.callbacks import AtomicCheckpointIO
from cfg_distill.checkpoints import shards
from cfg_distill.cli import main
from cfg_distill.distillation.count import Count
from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, LoRA
from cfg_distill.recipe.runs import last_checkpoint
from cfg_distill.sampling import Seeds

FIRST = Path(__file__).parent / "fixtures" / "checkpoint_0_1"


@pytest.fixture
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder in which version 0.1 wrote a checkpoint, as the current folder."""
    shutil.copytree(FIRST, tmp_path / "first")
    monkeypatch.chdir(tmp_path / "first")
    monkeypatch.syspath_prepend(str(tmp_path / "first"))
    return tmp_path / "first"


def edit(change: Callable[[dict[str, Any]], object]) -> None:
    """Change the content of last.ckpt."""
    content = torch.load("last.ckpt", weights_only=True)
    change(content)
    torch.save(content, "last.ckpt")


def refusal(capsys: pytest.CaptureFixture, *words: str) -> str:
    """What an export of last.ckpt that ends with exit code 2 says."""
    assert main(["export", "--checkpoint", "last.ckpt", "--out", "student", *words]) == 2
    assert not Path("student").exists()
    return capsys.readouterr().err


# Version 0.1


@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_checkpoint_of_version_0_1_is_exported(first: Path, weights: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", "--checkpoint", "last.ckpt", "--out", "student", "--weights", weights]) == 0
    assert "at step 2." in capsys.readouterr().out
    content = torch.load("last.ckpt", weights_only=True)
    expected = content["state_dict"] if weights == "raw" else content["callbacks"]["StudentEMA"]["weights"]
    exported = load_file("student/model.safetensors")
    start = load_file("start/model.safetensors")
    assert exported.keys() == start.keys()
    for name, value in exported.items():
        assert torch.equal(value, expected[f"student.model.{name}"])
        assert not torch.equal(value, start[name])


class OneGenerator(Seeds):
    """The random numbers of version 0.1: one generator for all rows of a batch."""

    def uniform_NKT(self, group: int, num_codebooks: int, num_positions: int) -> Tensor:
        seed = int(np.random.SeedSequence(self.words).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator().manual_seed(seed)
        shape = (len(self.places) * group, num_codebooks)
        columns = [torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(num_positions)]
        return torch.stack(columns, dim=-1)


def seeds_of_0_1(module: CFGDistillation, step: int, places: Sequence[int], attempt: int = 0) -> Seeds:
    return OneGenerator((module.seed, step + 1, module.trainer.fit_loop.batch_idx, 0), places)


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # the folder of this test is not that of the run
def test_a_run_of_version_0_1_is_resumed(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the command line sets it; this test shall not leave it behind
    # Two faults of 0.1 are mended: it divided a step by its own positions (tests/distillation/test_count.py), and it paid for
    # empty samples (tests/rewards/test_pairwise.py). Its samples depended on rank and batch (tests/distillation/
    # test_any_devices.py). With all three put back, the run goes on as it did.
    monkeypatch.setattr(CFGDistillation, "_rollout_seed", seeds_of_0_1)
    monkeypatch.setattr(Count, "of_step", lambda self, count, samples: count)
    monkeypatch.setattr(NGramCounts, "degenerate", lambda self, outputs: torch.zeros(len(outputs), dtype=torch.bool))
    words = ["fit", "--config", "recipe.yaml", "--ckpt_path", "last.ckpt", "--trainer.max_steps", "6"]
    assert main(words) == 0
    resumed = torch.load("saved/last.ckpt", weights_only=True)
    assert resumed["global_step"] == 6
    expected = load_file("after_six_steps.safetensors")
    start = torch.load("last.ckpt", weights_only=True)["state_dict"]
    new = {"count.length.value", "count.length.updates"}
    assert resumed["state_dict"].keys() == expected.keys() | new
    for name, value in resumed["state_dict"].items():
        if name in new:
            continue
        # Another processor may round otherwise; the weights themselves have moved by 0.02 and more.
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-3)
        assert name == "losses.kl.weight" or not torch.allclose(value, start[name], rtol=0, atol=1e-2)


# Formats


def test_a_checkpoint_says_its_format_and_version(tiny_model: str, tmp_path: Path) -> None:
    fitted = trainer([], root=tmp_path)
    fitted.fit(student_of(tiny_model), batches(1))
    fitted.save_checkpoint(tmp_path / "now.ckpt")
    content = torch.load(tmp_path / "now.ckpt", weights_only=True)
    assert content["cfg_distill"] == {"format": checkpoints.FORMAT, "version": __version__}
    assert "cfg_distill" not in torch.load(FIRST / "last.ckpt", weights_only=True)


def test_a_newer_format_is_refused(first: Path, tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    edit(lambda content: content.update(cfg_distill={"format": checkpoints.FORMAT + 1, "version": "9.0"}))
    message = refusal(capsys)
    assert message.startswith(
        "cfg-distill export: Option `--checkpoint`: the checkpoint was written by cfg-distill 9.0"
    )
    assert "`git pull` in its clone, then `pip install .`" in message
    with pytest.raises(ConfigError, match="written by cfg-distill 9"):
        trainer([], max_epochs=9).fit(student_of(tiny_model), batches(1), ckpt_path=str(first / "last.ckpt"))


def test_upgrading_fills_what_older_versions_lack() -> None:
    assert checkpoints.upgraded({"state_dict": {}}) == {
        "state_dict": {},
        "configured": {},
        "bad_steps": 0,
        "cfg_distill": {"format": checkpoints.FORMAT, "version": "0.1.0"},
    }


# The start model: a checkpoint is data


def test_a_generator_is_made_of_its_spec(tiny_model: str) -> None:
    given = CausalLM(tiny_model, dtype="bfloat16", lora=LoRA(rank=3, targets=["q_proj"]))
    made = checkpoints.generator_of(checkpoints.spec_of(given))
    assert type(made) is CausalLM and made.lora == given.lora
    assert checkpoints.spec_of(made) == checkpoints.spec_of(given)
    # A path given from python is text in a checkpoint, which is loaded without classes.
    assert checkpoints.spec_of(CausalLM(Path("base")))["init_args"]["path"] == "base"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("class_path", "arguments"),
    [
        ("os.system", {"command": "touch ran"}),
        ("subprocess.Popen", {"args": ["touch", "ran"]}),
        ("marks", {}),
        ("marks.Anything", {}),
        ("builtins.dict", {"path": "start"}),
        ("cfg_distill.cli.main", {"argv": []}),
        ("cfg_distill.cli.__main__.main", {}),
        ("cfg_distill.generators.base.Encoded", {"tensors": {}}),
        ("cfg_distill.files.write_text", {"file": "ran", "text": ""}),
        ("cfg_distill.errors.ConfigError", {"problems": []}),
        ("cfg_distill.generators.Generator", {}),
        ("cfg_distill.files.staged.shutil.rmtree", {"path": "start"}),
        ("cfg_distill.generators.nowhere.CausalLM", {"path": "start"}),
        ("cfg_distillation.CausalLM", {"path": "start"}),
        ("", {}),
        (".", {}),
    ],
)
def test_export_calls_nothing_but_generators(
    first: Path, class_path: str, arguments: dict[str, Any], capsys: pytest.CaptureFixture
) -> None:
    (first / "marks.py").write_text("open('ran', 'w').close()")
    edit(lambda content: content.update(generator={"class_path": class_path, "init_args": arguments}))
    message = refusal(capsys)
    assert message.startswith("cfg-distill export: Option `--checkpoint`: ") and message.count("\n") == 1
    assert Path("start").is_dir() and not Path("ran").exists()


def test_a_generator_of_the_users_own_is_exported_when_trusted(first: Path, capsys: pytest.CaptureFixture) -> None:
    (first / "my_generators").mkdir()
    (first / "my_generators" / "__init__.py").touch()
    code = "from cfg_distill.generators import CausalLM\nclass Own(CausalLM):\n    pass\nopen('ran', 'w').close()\n"
    (first / "my_generators" / "own.py").write_text(code)
    edit(lambda content: content["generator"].update(class_path="my_generators.own.Own"))
    assert "allow it with `--trust` my_generators.own" in refusal(capsys)
    assert "allow it with" in refusal(capsys, "--trust", "min", "")
    assert not Path("ran").exists()
    export = ["export", "--checkpoint", "last.ckpt"]
    assert main([*export, "--out", "student", "--trust", "my_generators"]) == 0
    assert main([*export, "--out", "again", "--trust", "other", "my_generators.own"]) == 0
    assert Path("ran").exists() and Path("student/config.json").exists()


def test_other_arguments_than_the_generator_takes(first: Path, capsys: pytest.CaptureFixture) -> None:
    edit(lambda content: content["generator"]["init_args"].update(colour="red"))
    assert "takes other arguments than it holds" in refusal(capsys)
    edit(lambda content: content["generator"].update(init_args={"path": "start", "lora": {"rang": 3}}))
    assert "takes other arguments than it holds" in refusal(capsys)


# Broken files


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    weights = torch.load(file, weights_only=True)["state_dict"]["student.model.lm_head.weight"].numpy().tobytes()
    content[content.index(weights) + 7] ^= 0x40
    file.write_bytes(bytes(content))


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


BROKEN: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "one bit": flip,
    "empty": lambda file: file.write_bytes(b""),
    "text": lambda file: file.write_text("no checkpoint"),
    "folder": folder,
    "absent": lambda file: file.unlink(),
    "bomb": lambda file: torch.save({"generator": {}, "state_dict": Bomb()}, file),
    "a tensor": lambda file: torch.save(torch.zeros(3), file),
    "another's": lambda file: torch.save({"state_dict": {"weight": torch.zeros(3)}}, file),
    "no tensors": lambda file: edit(lambda content: content["state_dict"].update({"student.model.lm_head.weight": 1})),
    "no student": lambda file: edit(lambda content: content.update(state_dict={})),
    "numbers": lambda file: torch.save({"generator": 1, "state_dict": 2, "callbacks": 3, "cfg_distill": 4}, file),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_one_message(first: Path, kind: str, capsys: pytest.CaptureFixture) -> None:
    BROKEN[kind](first / "last.ckpt")
    message = refusal(capsys)
    assert message.startswith("cfg-distill export: Option `--checkpoint`: ") and message.count("\n") == 1
    assert "weights_only" not in message and not Path("ran").exists()


@pytest.mark.parametrize("kind", ["truncated", "one bit", "empty", "text", "folder", "absent", "bomb"])
def test_a_fit_does_not_go_on_from_a_broken_checkpoint(first: Path, kind: str, tiny_model: str) -> None:
    BROKEN[kind](first / "last.ckpt")
    fitted = trainer([], plugins=[AtomicCheckpointIO()], max_epochs=9)
    with pytest.raises(ConfigError) as caught:
        fitted.fit(student_of(tiny_model), batches(1), ckpt_path=str(first / "last.ckpt"))
    assert str(caught.value).startswith("Key `ckpt_path`: ") and "weights_only" not in str(caught.value)
    assert not Path("ran").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_weights_that_are_no_numbers_are_not_exported(
    first: Path, value: float, weights: str, capsys: pytest.CaptureFixture
) -> None:
    def spoil(content: dict[str, Any]) -> None:
        state = content["state_dict"] if weights == "raw" else content["callbacks"]["StudentEMA"]["weights"]
        state["student.model.model.norm.weight"][3] = value

    edit(spoil)
    message = refusal(capsys, "--weights", weights)
    assert "model.model.norm.weight" in message and "Take an earlier checkpoint" in message


# What export replaces


def test_export_removes_neither_its_inputs_nor_what_is_not_its_own(first: Path, capsys: pytest.CaptureFixture) -> None:
    def refused(checkpoint: str, out: str) -> str:
        before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
        assert main(["export", "--checkpoint", checkpoint, "--out", out, "--overwrite"]) == 2
        assert before == {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
        return capsys.readouterr().err

    export = ["export", "--checkpoint", "last.ckpt", "--out", "students"]
    assert main(export) == 0
    capsys.readouterr()
    shutil.copy("last.ckpt", "students/x.ckpt")
    message = refused("students/x.ckpt", "students")
    assert "Option `--out`: `students` holds the input `students/x.ckpt`." in message
    assert "does not write x.ckpt there" in refused("last.ckpt", "students")
    Path("link").symlink_to("students")
    assert "`link` holds the input" in refused("students/x.ckpt", "link")
    assert "`students` holds the input" in refused("link/x.ckpt", "students")
    # The start model is an input, too.
    assert "`start` is the input" in refused("last.ckpt", "start")
    assert "`start/student` lies in the input" in refused("last.ckpt", "start/student")
    Path("students/x.ckpt").unlink()
    assert main([*export, "--overwrite"]) == 0
    assert main(["export", "--checkpoint", "last.ckpt", "--out", "link", "--overwrite"]) == 0
    assert Path("link").is_symlink() and Path("students/config.json").exists()


def test_trained_names_and_frozen_names() -> None:
    student = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    every = {f"student.{name}" for name in student.state_dict()}
    names = [*every, "teacher.weight", "losses.kl.weight"]
    assert checkpoints.frozen_names(names, student, ["teacher."]) == ["teacher.weight"]
    student[0].requires_grad_(False)
    frozen = set(checkpoints.frozen_names(names, student, ["teacher."]))
    assert {"student.1.weight", "student.1.bias", "losses.kl.weight"} == set(names) - frozen


def test_the_module_asks_for_the_names(tiny_model: str) -> None:
    module = student_of(tiny_model)
    assert isinstance(module, CFGDistillation)
    module.configure_model()
    assert set(checkpoints.student_weights(module)) == {f"student.{name}" for name in module.student.state_dict()}
    assert checkpoints.loss_weight("kl") in module.state_dict()


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_a_sharded_checkpoint_survives_a_kill_at_any_change_of_names(tmp_path, monkeypatch, way):
    """After each one `--ckpt_path last` finds a whole one, the old or the new."""
    if way == "renames":
        monkeypatch.setattr(shards, "exchanged", lambda one, other: False)
    folder = tmp_path / "checkpoints" / "last.ckpt"
    write = partial(shards.write_folder, folder=folder, rank=0, world=1, barrier=lambda: None)
    write({"step": 0})
    rename, seen = Path.rename, []

    def renamed(one, other):
        rename(one, other)
        found = last_checkpoint(tmp_path)
        seen.append(shards.read_folder(found)["step"] if not shards.problem_of_folder(found) else None)

    monkeypatch.setattr(Path, "rename", renamed)
    for step in (1, 2):
        write({"step": step})
    assert seen == ([1, 2] if way == "exchange" else [0, 1, 1, 2])
    assert last_checkpoint(tmp_path) == folder


class Forgetful(CausalLM):
    def __init__(self, path: str, loud: bool = True) -> None:
        super().__init__(path)


class Open(CausalLM):
    def __init__(self, path: str, **settings: Any) -> None:
        super().__init__(path, **settings)


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (
            Forgetful,
            r"`Forgetful.__init__` takes `loud`: keep it as `self.loud`, since a checkpoint holds every argument\.",
        ),
        (Open, r"`Open.__init__` takes `\*\*settings`: name each of its arguments, and keep them under their names"),
    ],
)
def test_an_argument_that_a_generator_of_ones_own_does_not_keep(tiny_model: str, kind: type, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        checkpoints.spec_of(kind(tiny_model))
