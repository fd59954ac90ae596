"""FSDP2: processes that share every weight take the steps of one, save what it saves, and go on as it does."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from forked import in_ranks
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import tiny_folder
from tiny_csm import tiny_csm
from tiny_dia import tiny_dia
from tiny_fits import student_of, trainer
from tiny_musicgen import tiny_musicgen

from cfg_distill import checkpoints
from cfg_distill.callbacks import AtomicCheckpointIO, StudentEMA
from cfg_distill.checkpoints.shards import whole
from cfg_distill.data import PromptData
from cfg_distill.distillation import FSDP2
from cfg_distill.distillation.execution import Execution
from cfg_distill.distillation.sharding import problems_of_sharding
from cfg_distill.embedders import NGramCounts
from cfg_distill.errors import ConfigError
from cfg_distill.generators import CSM, CausalLM, Dia, LoRA, MusicGen
from cfg_distill.losses import CrossEntropy, PolicyGradient, ReverseKL
from cfg_distill.references import StartSamples
from cfg_distill.rewards import DiversityTarget, Mixed
from cfg_distill.sampling import Opening, Sampling

STEPS = 2
TEXT = ["w1 w2", "w3", "w4 w5 w6", "w7", "w8 w9", "w10", "w11", "w0 w1", "w2 w2", "w3 w3", "w5"]
SOUND = [
    "rock",
    "jazz piano",
    "calm",
    "loud synth",
    "80s",
    "pop song",
    "noise",
    "jazz",
    "synth",
    "piano song",
    "rock pop",
]


def settings(case: str, models: Path) -> dict[str, Any]:
    """Of the module that a case trains."""
    text = CausalLM(str(models / "text"))
    layers, sgd = Execution(gather="layer"), partial(torch.optim.SGD, lr=0.1, momentum=0.5)
    cases: dict[str, dict[str, Any]] = {
        "all weights": {"generator": text, "redraw": 1},
        # One batch of 4 prompts and one of 3: four micro-batches on one rank, and three on the other.
        "micro-batches, layer by layer": {"generator": text, "execution": layers, "micro_batch": 3},
        "accumulated batches": {"generator": text},
        "bf16-mixed": {"generator": text, "optimizer": sgd},
        "adapter": {"generator": CausalLM(str(models / "text"), lora=LoRA(rank=2))},
        "off-policy": {"generator": text, "off_policy": True, "losses": {"ce": CrossEntropy(), "kl": ReverseKL()}},
        # Adam divides by the size of a gradient, and so makes rounding as large as a step where the gradient is near zero.
        "MusicGen": {"generator": MusicGen(str(models / "sound")), "optimizer": sgd},
        "MusicGen's adapter": {
            "generator": MusicGen(str(models / "sound"), lora=LoRA(rank=2)),
            "execution": layers,
            "optimizer": sgd,
        },
        "Dia": {"generator": Dia(str(models / "speech")), "execution": layers, "optimizer": sgd},
        "Dia's adapter": {"generator": Dia(str(models / "speech"), lora=LoRA(rank=2)), "optimizer": sgd},
        "CSM": {"generator": CSM(str(models / "csm")), "optimizer": sgd},
        "CSM's adapter": {
            "generator": CSM(str(models / "csm"), lora=LoRA(rank=2)),
            "execution": layers,
            "optimizer": sgd,
        },
    }
    return cases[case]


CASES = [
    "all weights",
    "micro-batches, layer by layer",
    "MusicGen's adapter",
]
SLOW = ["adapter", "off-policy", "MusicGen", "Dia", "Dia's adapter", "CSM", "CSM's adapter"]


RESUMED_ON_TWO = {
    "in shards, from a folder": ("fsdp2", "folder/all weights/2/step=1.ckpt"),
    "in shards, from a file of one process": ("fsdp2", "all weights/1/step=1.ckpt"),
    "whole, from a file of two": ("ddp", "all weights/2/step=1.ckpt"),
}


class Seen(StudentEMA):
    """Averages, and what else there is to compare: samples and gradient norms of each step, and values of validation."""

    def __init__(self) -> None:
        super().__init__(decay=0.5)
        self.batches = 0
        self.tokens: dict[str, list[list[int]]] = {}
        self.values: dict[str, float] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *rest: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, *rest)
        samples = outputs["samples"]
        rows = zip(samples.rollout.tokens_NKT[:, 0], samples.rollout.mask_NKT[:, 0], strict=True)
        for number, (tokens_T, mask_T) in enumerate(rows):
            prompt = samples.prompts[number // samples.group]
            self.tokens[f"{self.batches} {prompt} {number % samples.group}"] = tokens_T[mask_T].tolist()
        self.batches += 1
        norms = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("gradient_norm")}
        self.values |= {f"{name} {trainer.global_step}": float(value) for name, value in norms.items()}

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.values |= {f"{name} {trainer.global_step}": float(value)
                        for name, value in trainer.callback_metrics.items() if name.startswith("val/")}  # fmt: skip
        super().on_validation_end(trainer, pl_module)


def fit(case: str, models: Path, root: Path, world: int, **more: Any) -> dict[str, Any]:
    """Two steps and a validation after each; ``more`` are ``ckpt_path`` and settings of the trainer."""
    lengths = {"sampling": Sampling(samples=3, max_new_tokens=5), "measure_gradients_every": 1, "seed": 3}
    module = student_of(str(models / "text"), **(lengths | settings(case, models)))
    kind = "sound" if "MusicGen" in case or "Dia" in case else "text"
    accumulate = 2 if case == "accumulated batches" else 1
    if case == "bf16-mixed":
        more["precision"] = case
    data = PromptData(str(models / f"{kind}.txt"), str(models / f"{kind}_val.txt"), batch_size=8 // accumulate // world)
    seen, ckpt = Seen(), more.pop("ckpt_path", None)
    saved = ModelCheckpoint(root / case / f"{world}", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message="FSDP2")  # of a result that its hooks would miss
        more |= {"max_steps": STEPS, "max_epochs": -1, "gradient_clip_val": 0.5, "devices": world,
                 "accumulate_grad_batches": accumulate}  # fmt: skip
        run = trainer([seen, saved], root, plugins=[AtomicCheckpointIO()], **more)
        run.fit(module, datamodule=data, ckpt_path=None if ckpt is None else str(ckpt))
    weights = {name: whole(tensor).clone() for name, tensor in checkpoints.student_weights(module).items()}
    averages = {f"average {name}": whole(tensor).clone() for name, tensor in seen.averages(module).items()}
    return {"weights": weights | averages, "tokens": seen.tokens, "values": seen.values}


def cases(rank: int, models: Path, root: Path, names: list[str], world: int = 2) -> dict[str, Any]:
    """One of some processes."""
    found = {case: fit(case, models, root, world, strategy="fsdp2") for case in names}
    torch.save(found, root / f"{rank}.pt")
    return found


def work(rank: int, models: Path, root: Path) -> None:
    """One of two processes, for all that two do: starting them costs more."""
    found = cases(rank, models, root, CASES)
    fit("all weights", models, root / "folder", 2, strategy=FSDP2(save_distributed_checkpoint=True))
    for name, (strategy, path) in RESUMED_ON_TWO.items():
        found[name] = fit("all weights", models, root / name, 2, strategy=strategy, ckpt_path=root / path)
    torch.save(found, root / f"{rank}.pt")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture(scope="module")
def models(root: Path) -> Path:
    tiny_folder(root / "models/text")
    tiny_musicgen(root / "models/sound")
    tiny_dia(root / "models/speech", end_bias=4.0)
    tiny_csm(root / "models/csm")
    for kind, prompts in (("text", TEXT), ("sound", SOUND)):
        (root / f"models/{kind}.txt").write_text("\n".join(prompts[:7]))
        (root / f"models/{kind}_val.txt").write_text("\n".join(prompts[7:]))
    return root / "models"


@pytest.fixture(scope="module")
def found(root: Path, models: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What one process finds, and what each of two finds."""
    alone = {case: fit(case, models, root, 1) for case in CASES}
    in_ranks(work, models, root)
    first, second = (torch.load(root / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return alone, first, second


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], atol: float = 1e-5) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(found: Any, case: str) -> None:
    compare(*(each[case] for each in found))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "names"),
    # Seven prompts are too few for four processes that accumulate two batches: one would stand in two of them.
    [(2, [*SLOW, "accumulated batches", "bf16-mixed"]), (4, [*CASES, *SLOW])],
)
def test_processes_take_the_steps_of_one_in_further_cases(
    models: Path, tmp_path: Path, world: int, names: list[str]
) -> None:
    in_ranks(cases, models, tmp_path, names, world, number=world)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for case in names:
        # A step moves the weights by up to 0.05; bfloat16 rounds each product to 0.4 %.
        atol, rel = (2e-4, 1e-2) if case == "bf16-mixed" else (1e-5, 1e-4)
        compare(fit(case, models, tmp_path, 1), *(rank[case] for rank in ranks), atol=atol, rel=rel)


def compare(alone: Any, *ranks: Any, atol: float = 1e-5, rel: float = 1e-4) -> None:
    assert {name: tokens for rank in ranks for name, tokens in rank["tokens"].items()} == alone["tokens"]
    assert sum(len(rank["tokens"]) for rank in ranks) == len(alone["tokens"]) == STEPS * 7 * 3
    for rank in ranks:
        same(rank["weights"], alone["weights"], atol)
        assert rank["values"].keys() == alone["values"].keys()
        for name, value in alone["values"].items():
            assert rank["values"][name] == pytest.approx(value, rel=rel, abs=atol), name


@pytest.mark.parametrize("name", RESUMED_ON_TWO)
def test_two_processes_go_on_from_any_checkpoint(found: Any, name: str) -> None:
    alone, first, second = found
    for rank in (first, second):
        same(rank[name]["weights"], alone["all weights"]["weights"])


@pytest.mark.parametrize("path", ["all weights/2/step=1.ckpt", "folder/all weights/2/step=1.ckpt"])
def test_one_process_goes_on_from_shards(found: Any, root: Path, models: Path, path: str) -> None:
    alone = found[0]["all weights"]
    same(fit("all weights", models, root / "alone", 1, ckpt_path=root / path)["weights"], alone["weights"])


@pytest.mark.parametrize("place", ["all weights/2", "folder/all weights/2"])
def test_a_file_and_a_folder_hold_what_one_process_saves(found: Any, root: Path, tmp_path: Path, place: str) -> None:
    one, two = (checkpoints.read(root / each / f"step={STEPS}.ckpt") for each in ("all weights/1", place))
    same(two.live, one.live)
    same(two.averages, one.averages)
    checkpoints.export(root / place / f"step={STEPS}.ckpt", tmp_path / "out")
    exported = CausalLM(str(tmp_path / "out")).load().state_dict()
    same({f"student.{name}": tensor for name, tensor in exported.items()}, one.averages)


def test_a_folder_is_read_only_when_it_is_whole(found: Any, root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "last.ckpt"
    shutil.copytree(root / "folder/all weights/2/step=1.ckpt", folder)
    (folder / "shards-1-of-2.pt").unlink()
    assert checkpoints.problem_of_file(folder) == f"`{folder}` lacks files of its processes: shards-1-of-2.pt."
    with pytest.raises(ConfigError, match="lacks files"):
        checkpoints.read(folder)
    (folder / "shards-1-of-2.pt").write_bytes(b"PK")
    assert "shards-1-of-2.pt: it is cut short" in checkpoints.problem_of_file(folder)


def test_half_precision_is_refused(tmp_path: Path) -> None:
    """Through the function: without a GPU Lightning makes bfloat16 of it before we see it."""
    module = student_of(tiny_folder(tmp_path / "model"))
    given = SimpleNamespace(strategy=FSDP2(), precision="16-mixed")
    (problem,) = problems_of_sharding(module, given)  # type: ignore[arg-type]
    assert problem.path == "trainer.precision" and "Use bf16-mixed" in problem.text


def test_draws_from_the_sharded_teacher_are_refused(tmp_path: Path) -> None:
    """Each process draws as often, and as far, as its own samples need: the passes of the others would wait for ever."""
    start = DiversityTarget(NGramCounts(), StartSamples(2))
    own = DiversityTarget(NGramCounts(), StartSamples(2, generator=CausalLM("elsewhere")))
    losses = {"kl": ReverseKL(), "start": PolicyGradient(Mixed({"target": start})), "own": PolicyGradient(own)}
    module = student_of(tiny_folder(tmp_path / "model"), losses=losses, opening=Opening(2))
    given = SimpleNamespace(strategy=FSDP2(), precision="32-true")
    found = problems_of_sharding(module, given)  # type: ignore[arg-type]
    assert [problem.path for problem in found] == ["opening", "losses.start"]
