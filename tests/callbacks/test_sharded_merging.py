"""CheckpointMerging under fsdp2: two processes with half of every weight write the merges and scores of one."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import in_ranks
from safetensors.torch import load_file
from tiny import tiny_folder
from tiny_fits import PROMPTS, DistinctFirst, MeanLength, same, snapshot, student_of, trainer

from cfg_distill.callbacks import AtomicCheckpointIO, CheckpointMerging, StudentEMA
from cfg_distill.checkpoints.shards import is_folder, whole
from cfg_distill.data import PromptData
from cfg_distill.distillation import FSDP2
from cfg_distill.distillation.execution import Execution
from cfg_distill.generators import CausalLM, LoRA

CASES: dict[str, tuple[bool, dict[str, Any]]] = {
    "averages with a folder": (False, {"partner": "other", "method": "slerp", "use": "ema"}),
    "with a checkpoint": (False, {"partner": "partner/False", "method": "lerp"}),
    "with the start model": (False, {"method": "liti"}),
    "adapters": (True, {"partner": "partner/True", "method": "lerp"}),
    "averaged adapters with the base": (True, {"method": "liti", "use": "ema"}),
}
"""Whether the student is an adapter, and the settings of the callback."""
FAST = ["averages with a folder", "adapters"]


def fit(root: Path, world: int, lora: bool, merging: list[Any], seed: int = 0, **settings: Any) -> Any:
    module = student_of(
        "",
        generator=CausalLM(str(root / "model"), lora=LoRA(rank=2) if lora else None),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.3),
        execution=Execution(gather="layer" if lora else "rollout"),
        seed=seed,
    )
    data = PromptData(str(root / "train.txt"), str(root / "val.txt"), batch_size=4 // world)
    settings = {"max_steps": 2, "max_epochs": -1, "devices": world, "plugins": [AtomicCheckpointIO()]} | settings
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run = trainer([StudentEMA(decay=0.5), *merging], root, **settings)
        run.fit(module, datamodule=data)
        if not merging:
            run.save_checkpoint(root / "partner" / str(lora))
    return module


def merged(root: Path, world: int, names: list[str]) -> None:
    """Some cases; the student's weights behind each, which must be those before it."""
    for name in names:
        lora, settings = CASES[name]
        partner = str(root / settings["partner"]) if "partner" in settings else ""
        metrics = {"distinct": DistinctFirst(), "length": MeanLength()}
        out = str(root / str(world) / name)
        merging = CheckpointMerging(weights=[0.0, 0.25], metrics=metrics, out=out, **(settings | {"partner": partner}))
        strategy = {"strategy": "fsdp2"} if world > 1 else {}
        after = snapshot(fit(root, world, lora, [merging], **strategy))
        if os.environ.get("RANK", "0") == "0":
            torch.save({name: whole(tensor) for name, tensor in after.items()}, Path(out) / "after.pt")


def work(rank: int, root: Path, names: list[str]) -> None:
    for lora in (False, True):
        if any(CASES[name][1].get("partner") == f"partner/{lora}" for name in names):
            fit(root, 2, lora, [], seed=7, strategy=FSDP2(save_distributed_checkpoint=True))
            assert is_folder(root / "partner" / str(lora))
    merged(root, 2, names)


def test_two_processes_write_and_score_the_merges_of_one(tmp_path: Path) -> None:
    compare(tmp_path, FAST)


@pytest.mark.slow
def test_two_processes_write_and_score_further_merges_of_one(tmp_path: Path) -> None:
    compare(tmp_path, [name for name in CASES if name not in FAST])


def compare(root: Path, names: list[str]) -> None:
    for number, name in enumerate(("model", "other")):
        tiny_folder(root / name, seed=number)
    (root / "train.txt").write_text("\n".join(PROMPTS[:4]))
    (root / "val.txt").write_text("\n".join(PROMPTS[4:]))
    in_ranks(work, root, names)
    merged(root, 1, names)
    for name in names:
        compare_case(root / "1" / name, root / "2" / name)


def compare_case(one: Path, two: Path) -> None:
    expected, found = (json.loads((place / "merges.json").read_text())["rows"] for place in (one, two))
    assert [row["metrics"] for row in found] == [pytest.approx(row["metrics"]) for row in expected]
    for weight in ("0", "0.25"):
        (file,) = (path.name for path in (one / weight).glob("*.safetensors"))
        close(load_file(two / weight / file), load_file(one / weight / file))
    assert not same(load_file(two / "0" / file), load_file(two / "0.25" / file))
    close(torch.load(two / "after.pt"), torch.load(one / "after.pt"))


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
