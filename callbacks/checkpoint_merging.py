"""CheckpointMerging: at the end of a fit, the line between the student and a partner, scored."""

from contextlib import nullcontext
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from cfg_distill import checkpoints
from cfg_distill.callbacks.mergeable import Mergeable, mergeable
from cfg_distill.callbacks.student_ema import StudentEMA
from cfg_distill.checkpoints import Which
from cfg_distill.checkpoints.shards import is_folder
from cfg_distill.errors import ConfigError, Context, Problem, problems_of
from cfg_distill.files import MERGE_FILE, MODEL_FILES, expanded, problems_of_out, staged_folder, write_json
from cfg_distill.folders import problems_of_folder, resolve, write_checksums
from cfg_distill.folders.card import write_card
from cfg_distill.folders.history import History, history_of, of_base, shown
from cfg_distill.metrics import SampleMetric
from cfg_distill.sampling import Places, Seeds

SCORES = "merges.json"
WRITTEN = (SCORES, *(f"*/{name}" for name in MODEL_FILES))
"""The files in ``out``."""


class CheckpointMerging(Callback):
    """Merge the trained student with a partner over a list of weights, score each merge, and write each as a folder.

    At the end of a fit that was not interrupted, each merge stands in the student while it samples the validation
    prompts, under the same seeds for every weight. Then the student's own weights are restored, to the bit. ``out`` receives
    a Hugging Face folder per weight, named by it, and ``merges.json`` with the scores; they are logged as
    ``merge/<weight>/<metric>``. The folder appears whole, at the end.

    The start model of ``slerp`` and ``liti`` is the teacher. The adapters of LoRA students are merged exactly, and written as
    adapter folders whose rank is the sum of the two. Of a sharded student (FSDP2) every process holds the models whole, on the
    CPU, while they are merged.

    Args:
        partner: a checkpoint of a fit from the same start model, or a Hugging Face folder; empty for ``liti``, which
            merges the student with the start model.
        weights: the shares of the student just trained, in [0, 1]; the partner has the rest.
        method: ``lerp``, ``slerp`` or ``liti``.
        metrics: name -> metric.
        use: the student's live weights (``raw``) or the averages of :class:`StudentEMA` (``ema``).
        use_partner: the same for a partner that is a checkpoint.
        out: the folder to write; empty for ``merged`` beside the logs.
        overwrite: replace ``out``, if it holds nothing but such merges.

    Attributes:
        recipe_path: where the arguments stand in a recipe, for messages.
    """

    def __init__(
        self,
        partner: str = "",
        weights: list[float] = [0.25, 0.5, 0.75],  # noqa: B006 - never changed; shown as the default by --help
        method: Literal["lerp", "slerp", "liti"] = "lerp",
        metrics: dict[str, SampleMetric] = {},  # noqa: B006
        use: Which = "raw",
        use_partner: Which = "raw",
        out: str = "",
        overwrite: bool = False,
    ) -> None:
        self.partner = partner
        self.weights = weights
        self.method = method
        self.metrics = metrics
        self.use = use
        self.use_partner = use_partner
        self.out = out
        self.overwrite = overwrite
        self.recipe_path = type(self).__name__
        self._out = Path()

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with the settings, found without loading weights."""
        found = [problem for name, metric in self.metrics.items()
                 for problem in problems_of(metric, context, under=f"metrics.{name}.init_args")]  # fmt: skip
        if self.method == "liti" and self.partner:
            found.append(Problem("partner", "liti merges with the start model. Leave it empty, or use lerp."))
        if self.method != "liti":
            found += self._problems_of_partner()
        if not self.weights or not all(0 <= weight <= 1 for weight in self.weights):
            found.append(Problem("weights", f"expected numbers in [0, 1], but got {self.weights}."))
        return found + (self._problems_of_out(Path(self.out)) if self.out else [])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        found = self.problems()
        if self.use == "ema" and self._ema(trainer) is None:
            found.append(Problem("use", "ema needs the callback StudentEMA. Add it, or use raw."))
        self._out = expanded(self.out or Path(trainer.log_dir or trainer.default_root_dir) / "merged")
        if not self.out:
            found += self._problems_of_out(self._out)
        if found:
            raise ConfigError(self._placed(found))
        for metric in self.metrics.values():
            metric.load()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.metrics and not _num_validation_batches(trainer):
            text = "merges are scored on the validation prompts, but there are none. Set `@/data.validation`, and leave"
            text += " `@/trainer.limit_val_batches` above 0."
            raise ConfigError(self._placed([Problem("metrics", text)]))
        # A partner that does not fit is reported now, and not after hours.
        self._merge(pl_module, self.weights[0], self._models(trainer, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        models = self._models(trainer, pl_module)
        rows = []
        with staged_folder(self._out) if trainer.is_global_zero else nullcontext() as folder:
            for weight in self.weights:
                merged = self._merge(pl_module, weight, models)
                with mergeable(pl_module).swapped_in(merged):
                    scores = self._score(trainer, pl_module)
                    rows.append({"weight": weight, "folder": f"{weight:g}", "metrics": scores})
                    if folder is not None:
                        self._save(pl_module, merged, folder, rows[-1])
                for logger in trainer.loggers:
                    shown = {f"merge/{weight:g}/{name}": value for name, value in scores.items()}
                    logger.log_metrics(shown, step=trainer.global_step)
            if folder is not None:
                table = self._provenance() | {"rows": rows}
                write_json(folder / SCORES, table)
        rank_zero_info(f"Merges with {self.partner or 'the start model'}, in {self._out}:\n{_table(rows)}")
        trainer.strategy.barrier()

    # The models

    def _models(self, trainer: Trainer, module: LightningModule) -> list[Any]:
        """What is merged, the student last."""
        source = mergeable(module)
        ema = self._ema(trainer)
        own = source.own(ema.averages(module) if self.use == "ema" and ema is not None else {})
        if self.method == "liti":
            return [own]
        path = expanded(resolve(self.partner))
        try:
            is_model = path.is_dir() and not is_folder(path)
            return [source.of_folder(str(path)) if is_model else self._of_checkpoint(source, path), own]
        except ConfigError as error:
            raise ConfigError(self._placed(error.problems)) from error

    def _of_checkpoint(self, source: Mergeable, path: Path) -> Any:
        try:
            checkpoint = checkpoints.read(path)
        except ConfigError as error:
            raise ConfigError(error.under("partner")) from error
        if problems := checkpoint.problems_of(self.use_partner):
            raise ConfigError([problem.under("use_partner") for problem in problems])
        return source.of_checkpoint(checkpoint, self.use_partner)

    def _merge(self, module: LightningModule, weight: float, models: list[Any]) -> Any:
        weights = [weight] if self.method == "liti" else [1 - weight, weight]
        return mergeable(module).merge(self.method, models, weights, with_start=self.method in ("slerp", "liti"))

    # What is made of a merge

    def _score(self, trainer: Trainer, module: LightningModule) -> dict[str, float]:
        if not self.metrics:
            return {}
        for metric in self.metrics.values():
            metric.to(module.device)
            metric.reset()
        loaders: Any = trainer.val_dataloaders
        drawing: Any = module
        places = Places()
        limit = trainer.num_val_batches[0]
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            for number, prompts in enumerate(islice(loaders, None if limit == float("inf") else int(limit))):
                seeds = Seeds((0,), places.of(module, len(prompts), number == 0))
                with drawing.gathered():
                    samples = drawing.draw(prompts, seeds)
                for metric in self.metrics.values():
                    metric.update(samples)
        return {name: float(metric.compute()) for name, metric in self.metrics.items()}

    def _save(self, module: LightningModule, merged: Any, folder: Path, row: dict[str, Any]) -> None:
        place = folder / row["folder"]
        mergeable(module).save(merged, place)
        write_checksums(place)
        write_json(place / MERGE_FILE, self._provenance() | row)
        write_card(place, f"{self._out.name}-{row['folder']}", self._history(module, row["weight"]))

    def _history(self, module: Any, weight: float) -> History:
        """What the model card of a merge tells."""
        losses = {
            name: {"class": type(loss).__name__, "weight": float(loss.weight)} for name, loss in module.losses.items()
        }
        own = replace(
            of_base(module.student.path),
            guidance=module.guidance.strongest,
            losses=losses,
            step=int(module.trainer.global_step),
            weights=self.use,
        )
        partner = history_of(self.partner) if self.partner else of_base(module.student.path)
        parents = {shown(self.partner) if self.partner else "start model": partner, "this fit": own}
        return replace(
            own,
            losses={},
            step=None,
            weights="",
            method=self.method,
            shares=[1 - weight, weight],
            parents={name: {} if each is None else asdict(replace(each, parents={})) for name, each in parents.items()},
        )

    def _provenance(self) -> dict[str, Any]:
        return {
            "method": self.method,
            "partner": shown(self.partner) if self.partner else "the start model",
            "student_weights": self.use,
            "partner_weights": self.use_partner,
        }

    def _problems_of_partner(self) -> list[Problem]:
        path = expanded(self.partner)
        if not self.partner:
            return [Problem("partner", "expected a checkpoint or a model folder, but got none. Name one.")]
        if path.is_file() or is_folder(path):
            return []
        if path.suffix == ".ckpt":
            return [Problem("partner", f"expected a checkpoint, but `{path}` does not exist. Check the path.")]
        return [problem.under("partner") for problem in problems_of_folder(self.partner)]

    def _placed(self, problems: list[Problem]) -> list[Problem]:
        return [problem.under(self.recipe_path) for problem in problems]

    def _problems_of_out(self, out: Path) -> list[Problem]:
        return problems_of_out(out, [self.partner] if self.partner else [], self.overwrite, WRITTEN)

    @staticmethod
    def _ema(trainer: Trainer) -> StudentEMA | None:
        return next((callback for callback in trainer.callbacks if isinstance(callback, StudentEMA)), None)  # type: ignore[attr-defined]


def _num_validation_batches(trainer: Trainer) -> int:
    """The batches of validation prompts. Lightning asks for them later where no validation is due in the first epoch."""
    if trainer.val_dataloaders is None and trainer.enable_validation:
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        trainer.training = True
    return int(sum(trainer.num_val_batches))


def _table(rows: list[dict[str, Any]]) -> str:
    names = list(rows[0]["metrics"])
    lines = ["weight  " + "  ".join(f"{name:>10}" for name in names)]
    lines += [f"{row['weight']:<6g}  " + "  ".join(f"{row['metrics'][name]:>{max(10, len(name))}.4f}" for name in names)
              for row in rows]  # fmt: skip
    return "\n".join(lines)
