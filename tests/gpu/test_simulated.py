"""What a GPU would refuse: tensors of two devices in one operation, tested on a simulated device beside the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch takes no backends written in Python",
)
ROOT = Path(__file__).resolve().parents[2]
REFUSES = """
import torch
there = torch.ones(3, device="simulated")
assert there.device.type == "simulated" and (there + there).sum().item() == 6.0
assert (there * torch.tensor(2.0))[torch.tensor([0, 2])].tolist() == [2.0, 2.0] and simulated.waits["tolist"] == 1
for wrong in (lambda: there + torch.ones(3), lambda: torch.nn.functional.linear(there, torch.ones(2, 3)),
              lambda: torch.ones(3).index_select(0, torch.zeros(1, dtype=torch.long, device="simulated")), there.numpy):
    try:
        wrong()
    except (RuntimeError, TypeError):
        continue
    raise SystemExit("a tensor of the CPU was taken")
table = torch.nn.Embedding(3, 2)
tied = torch.nn.Sequential(table, torch.nn.Linear(2, 3, bias=False))
tied[1].weight = table.weight
assert len(list(tied.to("simulated").parameters())) == 1
"""
COMPUTES = """
import correctness
kinds = correctness.Kinds(few=True)
kinds.makers = {name: kinds.makers[name] for name in ("causal", "MusicGen")}
assert correctness.chunked_loss("simulated", kinds) and correctness.guided_logits("simulated", kinds)
curves = []
for device in ("cpu", "simulated"):
    simulated.waits.clear()
    curves.append(correctness._fit(*kinds.make("causal"), device, "32-true", 2)[1])
assert simulated.waits.total() > 0, "the fit was not on the device"
assert correctness.difference(*map(torch.tensor, curves)) < 1e-5, curves
"""
WAITS = """
import correctness
from cfg_distill.sampling import Sampling, rollout
kinds = correctness.Kinds(few=True)
generator, prompts = kinds.make("causal")
generator.load().eval().model.to("simulated")
simulated.waits.clear()
made = rollout(generator, prompts, Sampling(samples=4, max_new_tokens=16)).tokens_NKT
assert made.shape[-1] == 16
assert simulated.waits["aten.nonzero.default"] == 16, simulated.waits
assert 16 <= simulated.waits["aten._local_scalar_dense.default"] <= 20, simulated.waits  # some once, for the prompts
"""
RECIPE = "trainer: {strategy: {class_path: simulated.Strategy}, accelerator: auto}\n"


def run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own, since torch keeps the device for good."""
    folders = [str(ROOT / part) for part in ("", "tests", "tests/benchmarks", "tests/gpu")]
    begin = "import torch, simulated; simulated.simulate()\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", begin + code, *words],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_it_refuses_what_a_gpu_refuses() -> None:
    ended = run(REFUSES)
    assert ended.returncode == 0, ended.stderr


def test_losses_guided_logits_and_a_fit_are_those_of_the_cpu() -> None:
    ended = run(COMPUTES)
    assert ended.returncode == 0, ended.stderr


def test_a_rollout_waits_twice_for_each_position() -> None:
    """Once to see which samples have ended, and once in transformers' masks (docs/performance.md)."""
    ended = run(WAITS)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.slow
def test_every_kind_of_model_samples_trains_and_resumes(folder: Path) -> None:
    words = ["--device", "simulated", "--out", "found.json"]
    ended = run("import sys, gpu; sys.exit(gpu.main(sys.argv[1:]))", *words)
    assert ended.returncode == 0, ended.stdout
    status = {phase["name"]: phase["status"] for phase in json.loads(Path("found.json").read_text())["phases"]}
    assert {name for name, each in status.items() if each != "ok"} <= {
        "packed rollouts",
        "strategies",
        "trained weights",
    }
    assert set(status.values()) <= {"ok", "skipped"}


@pytest.mark.slow
def test_a_recipe_with_all_its_callbacks_takes_the_steps_of_the_cpu(folder: Path) -> None:
    """Rewards, embedders, averages, validation and its metrics, checkpoints: everything that a fit touches."""
    Path("simulated.yaml").write_text(RECIPE)
    words = [
        "fit", "--config", str(ROOT / "recipes/tunes/diversity.yaml"), "--data.init_args.batch_size=2",
        "--model.sampling.max_new_tokens=16", "--data.init_args.validation_batch_size=2", "--trainer.limit_val_batches=1",
        "--trainer.val_check_interval=1", "--trainer.log_every_n_steps=1", "--ckpt_path=last",
    ]  # fmt: skip
    words += [
        f"--data.init_args.{name}={ROOT}/recipes/tunes/prompts/{name}.txt" for name in ("train", "validation", "report")
    ]
    told: dict[str, list[str]] = {}
    for place, more in {"cpu": ["--trainer.accelerator=cpu"], "simulated": ["--config", "simulated.yaml"]}.items():
        told[place] = []
        for steps in (1, 2):  # the second one goes on from the first one's checkpoint
            root = f"--trainer.default_root_dir=runs/{place}"
            ended = run(
                "import sys; from cfg_distill.cli import main\nended = main(sys.argv[1:]); print('waits', simulated.waits)\n"
                "sys.exit(ended)",
                *words, *more, root, f"--trainer.max_steps={steps}",
            )  # fmt: skip
            assert ended.returncode == 0, ended.stderr
            assert ("waits Counter()" in ended.stdout) == (place == "cpu")
            told[place] += [line.split(" s/step")[0] for line in ended.stdout.splitlines() if line.startswith("step ")]
    without_seconds = {place: [line.rsplit(" ", 1)[0] for line in lines] for place, lines in told.items()}
    assert len(without_seconds["cpu"]) == 2
    assert without_seconds["simulated"] == without_seconds["cpu"]
