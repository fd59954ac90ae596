"""What all cases build on: a tiny model and another one, prompts, a recipe of one step, a study, metrics, a checkpoint."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tiny import tiny_folder

from fuzz.case import Case


@dataclass(frozen=True)
class World:
    """Files that cases read and never write."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> World:
        tiny_folder(folder / "model")
        tiny_folder(folder / "other", seed=1)
        (folder / "train.txt").write_text("w1 w2\nw3\nw4 w5\nw6\n")
        (folder / "validation.txt").write_text("w7\nw8\n")
        (folder / "report.txt").write_text("w9\nw10 w1\n")
        return cls(folder)

    def at(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def recipe(self) -> dict[str, Any]:
        """A fit of one step that has every kind of part."""
        return {
            "seed_everything": 0,
            "model": {
                "generator": {
                    "class_path": "cfg_distill.generators.CausalLM",
                    "init_args": {"path": self.at("model"), "dtype": "float32"},
                },
                "guidance": {"scale": 3.0},
                "sampling": {
                    "samples": 3, "max_new_tokens": 4, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0,
                },
                "losses": {
                    "kl": {
                        "class_path": "cfg_distill.losses.ReverseKL",
                        "init_args": {"weight": 1.0, "warmup_steps": 0, "temperature": 1.0},
                    },
                    "diversity": {
                        "class_path": "cfg_distill.losses.PolicyGradient",
                        "init_args": {
                            "weight": 0.1,
                            "warmup_steps": 0,
                            "reward": {
                                "class_path": "cfg_distill.rewards.PairwiseDiversity",
                                "init_args": {
                                    "momentum": 0.95,
                                    "embedder": {
                                        "class_path": "cfg_distill.embedders.NGramCounts",
                                        "init_args": {"n": 2, "buckets": 64},
                                    },
                                },
                            },
                        },
                    },
                },
                "optimizer": {
                    "class_path": "torch.optim.AdamW",
                    "init_args": {"lr": 0.001, "betas": [0.9, 0.95], "weight_decay": 0.0, "eps": 1e-8},
                },
                "scheduler": {
                    "class_path": "torch.optim.lr_scheduler.LinearLR",
                    "init_args": {"start_factor": 0.5, "end_factor": 1.0, "total_iters": 2},
                },
                "micro_batch": 0,
                "measure_gradients_every": 1,
                "seed": 0,
                "execution": {"logits_chunk": 65536},
            },
            "data": {
                "train": self.at("train.txt"), "validation": self.at("validation.txt"), "batch_size": 2,
                "validation_batch_size": 2, "seed": 0,
            },
            "trainer": {
                "max_steps": 1, "max_epochs": -1, "accelerator": "cpu", "devices": 1, "num_nodes": 1, "logger": False,
                "log_every_n_steps": 1, "val_check_interval": 1, "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0, "gradient_clip_val": 1.0, "accumulate_grad_batches": 1,
                "limit_val_batches": 1, "enable_progress_bar": False, "enable_model_summary": False,
                "callbacks": {
                    "checkpoint": {
                        "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                        "init_args": {"save_last": True, "every_n_train_steps": 1, "save_top_k": 0},
                    },
                    "ema": {
                        "class_path": "cfg_distill.callbacks.StudentEMA",
                        "init_args": {"decay": 0.9, "update_every": 1, "start_step": 0},
                    },
                    "diversity": {
                        "class_path": "cfg_distill.callbacks.DiversityLogging",
                        "init_args": {
                            "metrics": {"distinct": {"class_path": "cfg_distill.metrics.DistinctN", "init_args": {"n": 2}}},
                            "collapse_below": 0.5,
                        },
                    },
                    "beta": {
                        "class_path": "cfg_distill.callbacks.BetaCalibration",
                        "init_args": {
                            "loss": "diversity", "reference": "kl", "ratio": 0.5, "start_step": 0, "num_steps": 1,
                            "momentum": 0.5,
                        },
                    },
                    "samples": {
                        "class_path": "cfg_distill.callbacks.SampleLogging",
                        "init_args": {"num_prompts": 1, "num_samples": 1},
                    },
                    "speed": {"class_path": "cfg_distill.callbacks.Throughput", "init_args": {"window": 1}},
                },
            },
        }  # fmt: skip

    @property
    def study(self) -> dict[str, Any]:
        """Two fits, a merge, baselines, a sweep, claims."""
        model = self.at("model")
        return {
            "out": "out",
            "fits": {
                "quality": {"config": "fit.yaml", "overrides": {"model.losses.diversity": None}},
                "diversity": {"config": "fit.yaml", "start": "quality", "overrides": {"trainer.max_steps": 1}},
            },
            "merges": {"half": {"models": ["quality", "diversity"], "weights": [0.5, 0.5], "method": "lerp"}},
            "baselines": {
                "base": {"model": model},
                "guided": {"model": model, "guidance": 3.0, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
            },
            "sweeps": {"sweep": {"model": model, "temperature": [0.5, 2.0], "guidance": [1.0, 2.0]}},
            "systems": {"cold": {"model": "diversity", "temperature": 0.7}},
            "training_seeds": [1, 2],
            "parallel": 1,
            "evaluation": {
                "prompts": self.at("report.txt"), "development": self.at("validation.txt"), "stage": "report",
                "samples": 2, "seeds": [0, 1], "max_new_tokens": 4, "batch_size": 2, "temperature": 1.0, "top_k": 0,
                "top_p": 1.0, "min_p": 0.0, "written": 1, "written_samples": 1, "timing": [1],
                "metrics": self.metrics,
                "headline": {"quality": "quality", "diversity": "distinct"},
            },
            "claims": {
                "start": "base", "guidance": "guided", "quality": "quality", "diversity": "diversity", "merge": "half",
                "margin": 0.02, "guards": {"length": "< 100"},
            },
        }  # fmt: skip

    @property
    def metrics(self) -> dict[str, Any]:
        """One of each axis."""
        generator = {"class_path": "cfg_distill.generators.CausalLM", "init_args": {"path": self.at("model")}}
        return {
            "quality": {
                "class_path": "cfg_distill.metrics.Substance",
                "init_args": {"generator": generator, "batch_size": 2, "clip": 1.0},
            },
            "distinct": {"class_path": "cfg_distill.metrics.DistinctN", "init_args": {"n": 2}},
            "length": {"class_path": "cfg_distill.metrics.Length"},
        }

    def fit(self, area: str, name: str, recipe: Any, *more: str, **settings: Any) -> Case:
        """A case of ``fit``; the recipe as keys and values, or as text."""
        text = recipe if isinstance(recipe, str | bytes) else dumped(recipe)
        return Case(area, name, ("fit", "--config", "fit.yaml", *more), {"fit.yaml": text}, **settings)


def dumped(content: Any) -> str:
    """YAML. libyaml writes it twenty times as fast as Python does."""
    return yaml.dump(content, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)


def changed(content: dict[str, Any], path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """A copy with another value at a path."""
    whole = copy.deepcopy(content)
    node: Any = whole
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = copy.deepcopy(value)
    return whole


def without(content: dict[str, Any], path: tuple[str | int, ...]) -> dict[str, Any]:
    """A copy without a key."""
    whole = copy.deepcopy(content)
    node: Any = whole
    for key in path[:-1]:
        node = node[key]
    del node[path[-1]]
    return whole


def leaves(content: Any, path: tuple[str | int, ...] = ()) -> list[tuple[tuple[str | int, ...], Any]]:
    """Every value that is no dict, with its path; a list of numbers is one value."""
    if isinstance(content, dict):
        return [leaf for key, each in content.items() for leaf in leaves(each, (*path, key))]
    return [(path, content)]


def keys(content: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all keys."""
    if not isinstance(content, dict):
        return []
    return [each for key, inside in content.items() for each in [(*path, key), *keys(inside, (*path, key))]]


def is_numeric(value: Any) -> bool:
    listed = value if isinstance(value, list) else [value]
    return bool(listed) and all(isinstance(each, int | float) and not isinstance(each, bool) for each in listed)


def edit_json(file: Path, **changes: Any) -> None:
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not ...}))
