"""A fit on a tiny model that depends on all that a checkpoint holds, for tests that stop it anywhere; and what is compared."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROMPTS = ["w1 w2", "w3", "w4 w5", "w6", "w7 w8", "w9 w1"]
STEPS = 8
LAST = Path("runs/tiny/version_0/checkpoints/last.ckpt")
FINAL = LAST.with_name("final.ckpt")


class Final(Callback):
    """Saves what there is when the training has ended: the last checkpoint is of before the last validation."""

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        trainer.save_checkpoint(Path(trainer.log_dir) / "checkpoints" / FINAL.name, weights_only=False)


def write_recipe(folder: Path, model: str, **trainer: Any) -> Path:
    """A recipe of eight steps in epochs of three: a running mean, a calibrated beta, averages, random numbers, a curve."""
    (folder / "train.txt").write_text("\n".join(PROMPTS))
    (folder / "validation.txt").write_text("w10\nw11 w2\nw3 w4\n")
    ours = "cfg_distill.callbacks."
    content = {
        "model": {
            "generator": {"class_path": "cfg_distill.generators.CausalLM", "init_args": {"path": model}},
            "guidance": {"scale": 3.0},
            "sampling": {"samples": 3, "max_new_tokens": 4},
            "losses": {
                "kl": {"class_path": "cfg_distill.losses.ReverseKL"},
                "diversity": {
                    "class_path": "cfg_distill.losses.PolicyGradient",
                    "init_args": {
                        "weight": 0.5,
                        "reward": {
                            "class_path": "cfg_distill.rewards.PairwiseDiversity",
                            "init_args": {
                                "baseline": "running_mean",
                                "embedder": {"class_path": "cfg_distill.embedders.NGramCounts"},
                            },
                        },
                    },
                },
            },
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.01}},
            "scheduler": {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"total_iters": STEPS}},
            "measure_gradients_every": 2,
        },
        "data": {"train": "train.txt", "validation": "validation.txt", "batch_size": 2, "validation_batch_size": 1},
        "trainer": {
            "max_steps": STEPS,
            "max_epochs": -1,
            "accelerator": "cpu",
            "devices": 1,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
            "val_check_interval": 4,
            "check_val_every_n_epoch": None,
            "plugins": [{"class_path": f"{ours}AtomicCheckpointIO"}],
            "callbacks": {
                "checkpoint": {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {
                        "save_last": True,
                        "every_n_train_steps": 4,
                        "save_top_k": 0,
                        "save_on_exception": True,
                    },
                },
                "resume": {"class_path": f"{ours}ExactResume"},
                "ema": {"class_path": f"{ours}StudentEMA", "init_args": {"decay": 0.9}},
                "beta": {"class_path": f"{ours}BetaCalibration", "init_args": {"num_steps": 5, "ratio": 0.3}},
                "final": {"class_path": "stopped_fits.Final"},
                "logging": {
                    "class_path": f"{ours}DiversityLogging",
                    "init_args": {
                        "collapse_below": 0.0,
                        "metrics": {"distinct": {"class_path": "cfg_distill.metrics.DistinctN"}},
                    },
                },
            },
        }
        | trainer,
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
    return folder / "tiny.yaml"


def state(file: Path = LAST) -> dict[str, Any]:
    """All of a checkpoint that decides how a run goes on, and its curve; places of files and counters of Lightning left out."""
    content = torch.load(file, weights_only=True)
    callbacks = {name: value for name, value in content["callbacks"].items() if "ModelCheckpoint" not in name}
    kept = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    # Of the loader the place of our sampler; torchdata's own counters begin anew with each process.
    loader = [each["_sampler_iter_state"] for each in content["loops"]["fit_loop"]["state_dict"]["combined_loader"]]
    return {name: content[name] for name in kept} | {"callbacks": callbacks, "loader": loader}


def difference(one: Any, other: Any, path: str = "") -> str:
    """Where two nested states differ first; empty when they are equal to the bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return "" if torch.equal(one, other) else path
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return f"{path}: keys {one.keys() ^ other.keys()}"
        return next((found for key in one if (found := difference(one[key], other[key], f"{path}.{key}"))), "")
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            return f"{path}: lengths {len(one)}, {len(other)}"
        pairs = enumerate(zip(one, other, strict=True))
        return next((found for n, pair in pairs if (found := difference(*pair, f"{path}[{n}]"))), "")
    return "" if one == other else f"{path}: {one}, {other}"


def curves(folder: Path = LAST.parents[1]) -> dict[str, dict[int, set[float]]]:
    """The values that a run logged, by name and step: one value per step if the curve has no contradiction."""
    found: dict[str, dict[int, set[float]]] = {}
    for file in folder.glob("events.*"):
        events = EventAccumulator(str(file), purge_orphaned_data=False)
        events.Reload()
        for name in events.Tags()["scalars"]:
            for point in events.Scalars(name):
                found.setdefault(name, {}).setdefault(point.step, set()).add(point.value)
    return found
