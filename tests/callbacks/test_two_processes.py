"""What two processes must agree on, or keep apart: a sharded average, and random states."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import in_ranks
from tiny import tiny_folder
from tiny_fits import (
    EverySoMany,
    FirstToken,
    batches,
    every_step,
    noisy_run,
    same,
    seed_everything,
    snapshot,
    student_of,
    trainer,
)

from cfg_distill import CFGDistillation
from cfg_distill.callbacks import ExactResume, StudentEMA
from cfg_distill.checkpoints import student_weights
from cfg_distill.checkpoints.shards import gathered, whole
from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, LoRA
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.rewards import GroupReward
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples


def work(rank: int, folder: str, out: str) -> None:
    """One of two processes, for both tests: starting them costs more than they do."""
    os.environ.pop("PL_GLOBAL_SEED", None)  # Lightning would give both processes the seed of an earlier test
    resume(rank, folder, out)
    torch.save(
        adapter_after([2 * step + rank for step in range(3)], folder, devices=2, strategy="ddp"),
        f"{out}/adapter{rank}.pt",
    )
    average_sharded(rank, out)
    torch.save(stopped_by_one(rank, folder, out), f"{out}/stopped{rank}.pt")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what the two processes wrote."""
    out = tmp_path_factory.mktemp("both")
    in_ranks(work, tiny_folder(out / "model"), str(out))
    return out


# Random states


def resume(rank: int, folder: str, root: str) -> None:
    two = {"devices": 2, "strategy": "ddp", "max_epochs": 1}
    seed_everything(rank)
    unbroken, drawn = noisy_run(folder, Path(root), [ExactResume(), every_step(Path(root))], **two)
    seed_everything(99)
    resumed, again = noisy_run(folder, Path(root), [ExactResume()], ckpt=Path(root) / "saved" / "step=1.ckpt", **two)
    torch.save(
        {"drawn": drawn, "again": again, "same": same(snapshot(unbroken), snapshot(resumed))},
        f"{root}/resumed{rank}.pt",
    )


def test_each_process_gets_its_own_state_back(both: Path) -> None:
    first, second = (torch.load(both / f"resumed{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["drawn"] != second["drawn"]
    for rank in (first, second):
        assert rank["again"] == rank["drawn"][1:]
        assert rank["same"]


# The adapter of a LoRA student


class SameDraws(CFGDistillation):
    """A student whose samples depend on the prompts alone, not on the process."""

    def rollout(self, prompts: Sequence[str], seed: int = 0) -> Rollout:
        return super().rollout(prompts, seed=sum(map(ord, "".join(prompts))))


def adapter_after(numbers: list[int], folder: str, **settings: Any) -> dict[str, torch.Tensor]:
    """The adapter after steps over these batches."""
    seed_everything(0)
    module = student_of(folder, SameDraws, generator=CausalLM(folder, lora=LoRA(rank=2)))
    data = torch.utils.data.DataLoader([EverySoMany(6)[number] for number in numbers], batch_size=None)
    trainer([], use_distributed_sampler=False, **settings).fit(module, data)
    return student_weights(module)


def test_two_processes_train_the_adapter_that_one_would(both: Path, tiny_model: str) -> None:
    first, second = (torch.load(both / f"adapter{rank}.pt", weights_only=True) for rank in (0, 1))
    assert same(first, second)
    alone = adapter_after(list(range(6)), tiny_model, accumulate_grad_batches=2)
    begin = adapter_after([0], tiny_model, limit_train_batches=0)
    assert alone.keys() == first.keys() and all("lora_" in name for name in alone)
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, atol=1e-6, rtol=1e-4)
        assert not torch.equal(tensor, begin[name])


# A loss that is NaN in one process


class NaNOnRank1(FirstToken):
    """A reward that one process cannot compute at its second step."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.calls = 0

    def forward(self, samples: Samples) -> GroupReward:
        group = super().forward(samples)
        self.calls += 1
        if (self.rank, self.calls) == (1, 2):
            group.advantage_BG.fill_(torch.nan)
        return group


def stopped_by_one(rank: int, folder: str, out: str) -> dict[str, Any]:
    """What this process says, and its weights, when the other one's loss is NaN."""
    seed_everything(0)
    losses = {"kl": ReverseKL(), "diversity": PolicyGradient(NaNOnRank1(rank), weight=0.1)}
    module = student_of(folder, losses=losses, max_bad_steps=0)
    try:
        trainer([], Path(out), devices=2, strategy="ddp").fit(module, batches(8))
    except ConfigError as error:
        return {"said": str(error), "weights": snapshot(module)}
    return {"said": "nothing", "weights": snapshot(module)}


def test_a_loss_that_is_nan_in_one_process_stops_both_before_the_step(both: Path) -> None:
    first, second = (torch.load(both / f"stopped{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["said"] == second["said"]
    assert first["said"].startswith("Key `model.losses.diversity`: expected a finite loss, but got nan in step 1.")
    assert same(first["weights"], second["weights"])
    assert all(tensor.isfinite().all() for tensor in first["weights"].values())


# Half of every tensor each


class Sharded(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 6))


def average_sharded(rank: int, out: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    module: Any = Sharded()
    fully_shard(module.student, mesh=init_device_mesh("cpu", (2,)))
    ema = StudentEMA(decay=0.5, warmup=False)
    ema.update(module)
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.add_(1.0)
    ema.update(module)
    assert all(isinstance(average, DTensor) for average in ema._averages.values())
    state = gathered(ema.state_dict(), keep=True)

    # A forward without a backward leaves the parameters gathered; swapping must cope.
    with torch.no_grad():
        module.student(torch.zeros(1, 6))
    ema.swap_in(module)
    swapped = {name: whole(tensor).clone() for name, tensor in student_weights(module).items()}
    with torch.no_grad():
        module.student(torch.zeros(1, 6))
    ema.swap_out(module)
    live = {name: whole(tensor).clone() for name, tensor in student_weights(module).items()}

    again = StudentEMA(decay=0.5, warmup=False)
    again.load_state_dict(state)
    averages = again.averages(module)
    assert all(isinstance(average, DTensor) for average in averages.values())
    resumed = {name: whole(average) for name, average in averages.items()}
    local = {name: average.to_local() for name, average in averages.items()}
    torch.save(
        {"saved": state["weights"], "swapped": swapped, "live": live, "resumed": resumed, "local": local},
        f"{out}/sharded{rank}.pt",
    )


def test_a_sharded_student_is_averaged_in_shards_and_saved_whole(both: Path) -> None:
    expected = {name: tensor + 0.5 for name, tensor in student_weights(Sharded()).items()}
    first, second = (torch.load(both / f"sharded{rank}.pt", weights_only=True) for rank in (0, 1))
    for got in (first, second):
        for name, tensor in expected.items():
            for what in ("saved", "swapped", "resumed"):
                torch.testing.assert_close(got[what][name], tensor)
            torch.testing.assert_close(got["live"][name], tensor + 0.5)
    for name, tensor in expected.items():
        torch.testing.assert_close(torch.cat([first["local"][name], second["local"][name]]), tensor)
