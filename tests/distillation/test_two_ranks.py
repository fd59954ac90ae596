"""A fault on one of two ranks: both skip the same step; both take the same step when one of them is short of memory."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import Bigrams, Counts, Refusing, module_with
from forked import in_ranks
from tiny import tiny_folder
from tiny_fits import Recorder, batches, same, snapshot, trainer

from cfg_distill import CFGDistillation
from cfg_distill.errors import ConfigError

TWO: dict[str, Any] = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}
SHORT: dict[str, dict[str, Any]] = {
    "none": {},
    "first micro-batch": {"where": "backward", "at": 0},
    "last micro-batch": {"where": "backward", "at": 1},
    "measuring": {"where": "forward", "most": 2},
}


def work(rank: int, folder: str, out: str) -> None:
    """One of two processes, for all tests: starting them costs more than they do."""
    found: dict[str, Any] = {}
    for micro_batch in (0, 3):
        found[f"skipped {micro_batch}"] = skipped(rank, folder, Path(out), micro_batch)
    found["stopped"] = stopped(rank, folder, Path(out))
    for name, short in SHORT.items():
        found[name] = short_of_memory(folder, short if rank == 1 else {})
    torch.save(found, f"{out}/{rank}.pt")


def skipped(rank: int, folder: str, root: Path, micro_batch: int) -> dict[str, Any]:
    """The reward of rank 1 breaks in the second of three steps."""
    module = module_with(folder, Bigrams([1] if rank == 1 else []), micro_batch=micro_batch)
    recorder, counts = Recorder(), Counts()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer([recorder, counts], root / f"cut{micro_batch}", **TWO).fit(module, batches(3))
    said_of = [str(each.message) for each in said if "is skipped" in str(each.message)]
    past = module.losses["diversity"].reward.past
    return {"steps": recorder.steps, "counts": counts.seen, "said": said_of, "past": past.state_dict()}


def stopped(rank: int, folder: str, root: Path) -> str:
    module = module_with(folder, Bigrams([1] if rank == 1 else []), max_bad_steps=0)
    try:
        trainer([], root, **TWO).fit(module, batches(3))
    except ConfigError as error:
        return str(error)
    return ""


def short_of_memory(folder: str, short: dict[str, Any]) -> dict[str, Any]:
    """Three steps in micro-batches of one group; of a rank whose memory may run out."""

    def sgd(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.5)

    module: CFGDistillation = module_with(folder, Bigrams(), micro_batch=3, optimizer=sgd, measure_gradients_every=2)
    memory = Refusing(module, **short) if short else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer([], None, **TWO).fit(module, batches(3))
    return {"weights": snapshot(module), "fired": memory.fired if memory else 0, "norms": dict(module.gradient_norms)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    in_ranks(work, tiny_folder(out / "model"), str(out))
    found = [torch.load(out / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for micro_batch in (0, 3):
        (record,) = (out / f"cut{micro_batch}" / "bad_steps").iterdir()
        assert record.name == "step-000001-rank-1.json"
    return found


@pytest.mark.parametrize("micro_batch", [0, 3])
def test_both_skip_the_step_that_one_spoils(ranks: list[dict[str, Any]], micro_batch: int) -> None:
    zero, one = (rank[f"skipped {micro_batch}"] for rank in ranks)
    for rank in (zero, one):
        first, second, third = rank["steps"]
        assert same(first, second) and not same(second, third)
        assert rank["counts"] == [0, 1, 1]
        assert len(rank["said"]) == 1 and "step-000001-rank-1.json" in rank["said"][0]
    assert all(same(*steps) for steps in zip(zero["steps"], one["steps"], strict=True))
    assert same(zero["past"], one["past"]) and int(zero["past"]["updates"]) == 2


def test_both_stop_with_the_same_report(ranks: list[dict[str, Any]]) -> None:
    assert all("Key `model.losses.diversity`: expected a finite loss, but got nan" in rank["stopped"] for rank in ranks)
    assert "step-000001-rank-1.json" in ranks[1]["stopped"]


@pytest.mark.parametrize("short", [name for name in SHORT if name != "none"])
def test_one_halves_its_micro_batch_and_both_take_the_same_step(ranks: list[dict[str, Any]], short: str) -> None:
    zero, one, unbroken = ranks[0][short], ranks[1][short], ranks[0]["none"]
    assert one["fired"] == 1 and zero["fired"] == 0
    assert same(zero["weights"], one["weights"])
    for key in ("weights", "norms"):
        for name, tensor in unbroken[key].items():
            torch.testing.assert_close(one[key][name], tensor, rtol=1e-4, atol=1e-6)
