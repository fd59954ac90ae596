"""DiversityLogging: quality and diversity at every validation, a warning on collapse, and the path over the front."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor

from cfg_distill.callbacks.collapse_guard import lowest_of
from cfg_distill.callbacks.media import sinks
from cfg_distill.errors import ConfigError, Context, Problem, problems_of
from cfg_distill.metrics import SampleMetric
from cfg_distill.sampling.samples import Samples


class DiversityLogging(Callback):
    """Score the groups that a validation draws, and watch them for collapse.

    At every validation each metric sees the decoded groups of all validation prompts, and is logged as ``val/<name>``;
    ``val/identical_groups`` is the share of prompts whose samples are all the same tokens. The logger gets the picture
    of quality over diversity along the training so far. The values of all validations are kept in checkpoints.

    It warns once when a collapse begins, and again only after it has ended: when a metric of the diversity axis falls
    below ``collapse_below`` of its first value, and when a group has become identical. It stops nothing; to stop, let
    Lightning's EarlyStopping watch ``val/<name>``.

    Example::

        - class_path: cfg_distill.callbacks.DiversityLogging
          init_args:
            metrics:
              distinct: {class_path: cfg_distill.metrics.DistinctN}

    Args:
        metrics: name -> metric.
        collapse_below: the threshold of the diversity metrics; 0 for no warning.
        relative: whether the threshold is a share of the first value of this fit, else a value.
        baselines: whether the first validation also draws and scores samples of the start model, without and with the
            teacher's guidance: both stand in the picture then, as where the path comes from and where it leads. They are
            drawn with the random numbers of the student's samples. That costs the sampling of three validations, once.
    """

    def __init__(
        self,
        metrics: dict[str, SampleMetric],
        collapse_below: float = 0.5,
        relative: bool = True,
        baselines: bool = False,
    ) -> None:
        self.metrics = metrics
        self.collapse_below = collapse_below
        self.relative = relative
        self.baselines = baselines
        self.measured: dict[str, dict[str, float]] = {}
        self._of_baselines: dict[str, dict[str, SampleMetric]] = {}
        self.history: list[dict[str, float]] = []
        self._collapsed: list[str] = []
        self._groups = torch.zeros(2)

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, found without loading weights."""
        found: list[Problem] = []
        for name, metric in self.metrics.items():
            found += problems_of(metric, context, under=f"metrics.{name}.init_args")
        if not self.metrics:
            found.append(Problem("metrics", "expected at least one metric, but got none."))
        highest = 1.0 if self.relative else math.inf
        if not 0 <= self.collapse_below <= highest:
            what = "a share in [0, 1] of the first value" if self.relative else "a number of at least 0"
            found.append(Problem("collapse_below", f"expected {what}, but got {self.collapse_below}."))
        return found

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if problems := self.problems():
            raise ConfigError([problem.under(type(self).__name__) for problem in problems])
        for metric in self.metrics.values():
            # Moved first: loading may embed a folder of sound. The module itself is not moved yet, the strategy knows where to.
            metric.to(trainer.strategy.root_device).load()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._groups = torch.zeros(2, device=pl_module.device)
        for metric in self.metrics.values():
            metric.to(pl_module.device)
            metric.reset()
        wanted = ("base", "guided base") if self.baselines and not self.measured and not trainer.sanity_checking else ()
        self._of_baselines = {
            name: {key: cast(SampleMetric, metric.clone()) for key, metric in self.metrics.items()} for name in wanted
        }

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        samples: Samples = outputs["samples"]
        for metric in self.metrics.values():
            metric.update(samples)
        for baseline, metrics in self._of_baselines.items():
            with trainer.precision_plugin.val_step_context():
                drawn = pl_module.draw_of_start(samples.asked, outputs["seeds"], guided=baseline == "guided base")
            for metric in metrics.values():
                metric.update(drawn)
        identical_B = identical_groups(samples)
        self._groups += torch.stack([identical_B.sum(), torch.tensor(len(identical_B), device=identical_B.device)])

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        groups = trainer.strategy.reduce(self._groups, reduce_op="sum").tolist()
        if not groups[1]:
            return
        values = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        values["identical_groups"] = groups[0] / groups[1]
        # Equal on all processes already: torchmetrics and the sums above saw to it.
        pl_module.log_dict({f"val/{name}": value for name, value in values.items()}, sync_dist=True)
        first = {f"overview/{axis}": values[name] for axis, name in self._axes.items() if name is not None}
        pl_module.log_dict(first, sync_dist=True)
        for baseline, metrics in self._of_baselines.items():
            self.measured[baseline] = {name: float(metric.compute()) for name, metric in metrics.items()}
        self._of_baselines = {}
        if trainer.sanity_checking:
            return
        self.history.append({"step": float(trainer.global_step)} | values)
        self._warn(values, round(groups[0]), round(groups[1]))
        self._show(trainer)

    # Collapse

    def _warn(self, values: dict[str, float], identical: int, groups: int) -> None:
        reasons = {}
        for name, metric in self.metrics.items():
            known = (past.get(name, math.nan) for past in self.history)  # a resumed fit may have another metric
            first = next((value for value in known if not math.isnan(value)), math.nan)
            threshold = lowest_of(first, self.collapse_below) if self.relative else self.collapse_below
            if metric.axis == "diversity" and self.collapse_below and values[name] < threshold:
                reasons[name] = f"{name} is {values[name]:.4g}, below {threshold:.4g}"
        if identical:
            reasons["identical_groups"] = f"all samples of {identical} of {groups} prompts are identical"
        for name, reason in reasons.items():
            if name not in self._collapsed:
                rank_zero_warn(
                    f"Collapse at step {self.history[-1]['step']:.0f}: {reason}."
                    " Raise the weight of the diversity loss, or train less."
                )
        self._collapsed = list(reasons)

    # The picture

    @property
    def _axes(self) -> dict[str, str | None]:
        """The first metric of each axis."""
        return {
            axis: next((name for name, metric in self.metrics.items() if metric.axis == axis), None)
            for axis in ("quality", "diversity")
        }

    def _show(self, trainer: Trainer) -> None:
        quality, diversity = self._axes.values()
        if quality is None or diversity is None or not trainer.is_global_zero:
            return
        for sink in sinks(trainer):
            sink.figure("front", path_figure(self.history, quality, diversity, self.measured), trainer.global_step)

    # State

    def state_dict(self) -> dict[str, Any]:
        return {
            "history": [dict(row) for row in self.history],
            "collapsed": list(self._collapsed),
            "baselines": {name: dict(values) for name, values in self.measured.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history, self._collapsed = list(state_dict["history"]), list(state_dict["collapsed"])
        self.measured = dict(state_dict.get("baselines", {}))  # version 0.1 measured none


def identical_groups(samples: Samples) -> Tensor:
    """Whether all samples of a prompt are the same tokens, ``[B]``; never for groups of one."""
    tokens_BGKT = samples.rollout.tokens_BGKT
    # Cells behind the end token hold the pad token: equal samples are equal there too.
    same_B = (tokens_BGKT == tokens_BGKT[:, :1]).flatten(1).all(1)
    return same_B if tokens_BGKT.shape[1] > 1 else torch.zeros_like(same_B)


def path_figure(
    history: list[dict[str, float]],
    quality: str,
    diversity: str,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Quality over diversity along a training: one point per validation, the first hollow, both ends with their steps.

    Args:
        history: step and values of each validation; a metric that a validation lacks has no point.
        quality: the metric of the vertical axis.
        diversity: the metric of the horizontal axis.
        baselines: name -> values of what the path is compared with.
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    x, y = ([row.get(name, math.nan) for row in history] for name in (diversity, quality))
    axes.plot(x, y, color="#0072B2", linewidth=1.2, marker="o", markersize=4)
    axes.plot(x[:1], y[:1], color="#0072B2", marker="o", markersize=8, markerfacecolor="white")
    labels = {f"step {history[place]['step']:.0f}": (x[place], y[place]) for place in (0, -1)}
    for name, values in (baselines or {}).items():
        labels[name] = values.get(diversity, math.nan), values.get(quality, math.nan)
        axes.plot(*labels[name], color="#444444", marker="s" if name == "guided base" else "^", markersize=7)
    for label, place in labels.items():
        axes.annotate(label, place, textcoords="offset points", xytext=(6, 6))
    axes.set_xlabel(_axis(diversity, "diversity"))
    axes.set_ylabel(_axis(quality, "quality"))
    axes.grid(color="#E6E6E6")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _axis(metric: str, axis: str) -> str:
    return metric if metric == axis else f"{metric} ({axis})"
