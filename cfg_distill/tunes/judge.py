"""The judge: which origin, rhythm and mode does a tune have, and is it music at all, by its music tokens alone?

The judge never sees the condition. So its probability of the asked value measures how well a sample follows its prompt.
Its head ``real`` is the probability that a tune is one of the books, and not a loop, shuffled bars, random notes or rests.
Shapes: N segments, C values of an attribute.
"""

import random
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.functional import cross_entropy

from cfg_distill.errors import Problem, problems_of_counts, problems_of_shares
from cfg_distill.folders import problems_of_folder, resolve
from cfg_distill.tunes.bars import read_note
from cfg_distill.tunes.negatives import REAL
from cfg_distill.tunes.network import NetworkConfig, TuneNetwork, load_network
from cfg_distill.tunes.quality import FILE as BOUNDS
from cfg_distill.tunes.quality import bounds_of, known_runs, load_bounds, measured, save_bounds
from cfg_distill.tunes.segments import ATTRIBUTES, UNLABELLED, SegmentsData
from cfg_distill.tunes.tokenizer import VALUES
from cfg_distill.tunes.training import FolderTraining

DRAWS = 8
"""Segments of each validation tune on which the temperatures are fitted."""


def balanced_accuracy(logits_NC: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy, and its mean over the values that occur; unlabelled segments do not count."""
    known_N = labels_N != UNLABELLED
    labels_N, hits_N = labels_N[known_N], (logits_NC.argmax(-1) == labels_N)[known_N].float()
    each = [hits_N[labels_N == value].mean() for value in labels_N.unique()]
    return hits_N.mean(), torch.stack(each).mean()


def balanced_nll(logits_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Negative log-likelihood in which every value that occurs weighs the same, whatever its number of segments."""
    known_N = labels_N != UNLABELLED
    logits_NC, labels_N = logits_NC[known_N], labels_N[known_N]
    losses_N = cross_entropy(logits_NC, labels_N, reduction="none")
    return torch.stack([losses_N[labels_N == value].mean() for value in labels_N.unique()]).mean()


def best_temperature(logits_NC: Tensor, labels_N: Tensor) -> float:
    """The divisor of the logits with the lowest balanced NLL (temperature scaling, Guo et al. 2017, section 4.2)."""
    candidates = torch.logspace(-1, 1, 161).tolist()
    return float(min(candidates, key=lambda temperature: balanced_nll(logits_NC / temperature, labels_N).item()))


class JudgeTraining(FolderTraining):
    """Trains the judge with logit adjustment (Menon et al. 2021, Eq. 10): the loss adds the log frequency of each value
    to its logit, so that the logits themselves stand for values equally likely beforehand. Without it a judge of modes
    would call everything major.

    The head ``real`` learns from as many real segments as degenerate ones, so it needs no adjustment.

    Logs ``val/<head>`` (accuracy), ``val/<head>_balanced``, and ``val/nll`` (balanced, mean over the heads). At the end the
    temperatures are fitted on the validation tunes, and the bounds of :mod:`cfg_distill.tunes.quality` are taken from them.

    Args:
        optimizer: of all parameters.
        out: the folder to write: config.json and model.safetensors.
        smoothing: label smoothing.
        width: of the convolutions.
        blocks: the number of convolutions; block b looks at every 2^b-th token.
        kernel: of the convolutions.
        dropout: while training.
        common: the further arguments of :class:`FolderTraining`.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        out: str = "runs/tunes/judge",
        smoothing: float = 0.05,
        width: int = 96,
        blocks: int = 5,
        kernel: int = 5,
        dropout: float = 0.15,
        **common: Any,
    ) -> None:
        super().__init__(optimizer, out, **common)
        self.smoothing = smoothing
        self.width, self.blocks, self.kernel, self.dropout = width, blocks, kernel, dropout

    def problems(self) -> list[Problem]:
        found = super().problems() + problems_of_counts(width=self.width, blocks=self.blocks, kernel=self.kernel)
        if self.kernel > 0 and self.kernel % 2 == 0:  # its padding would make the sequence longer
            found.append(Problem("kernel", f"expected an odd number, but got {self.kernel}."))
        return found + problems_of_shares(smoothing=self.smoothing, dropout=self.dropout)

    def configure_model(self) -> None:
        if not list(self.children()):  # Lightning asks again for each stage
            music = self.trainer.datamodule.music  # type: ignore[attr-defined]
            heads = {attribute: len(VALUES[attribute]) for attribute in ATTRIBUTES} | {REAL: 2}
            self.network = TuneNetwork(NetworkConfig(music, heads, self.width, self.blocks, self.kernel, self.dropout))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        outputs = self.network(batch["tokens"])
        losses = []
        for head, logits_NC in outputs.items():
            prior_C = self._prior(head).to(logits_NC.device)
            labels_N = batch[head]
            if bool((labels_N != UNLABELLED).any()):
                losses.append(
                    cross_entropy(
                        logits_NC + prior_C, labels_N, ignore_index=UNLABELLED, label_smoothing=self.smoothing
                    )
                )
        loss = torch.stack(losses).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._log("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._log("test", batch)

    def write(self, folder: str) -> None:
        data: SegmentsData = self.trainer.datamodule  # type: ignore[attr-defined]
        self.network.eval()
        self._fit_temperatures(data)
        self.network.save(folder)
        tunes = [" ".join(tune.tokens[: data.longest]) for tune in data.tunes["validation"]]
        real_N = Judge(folder).probabilities(tunes)[REAL][:, 1]
        known = known_runs(" ".join(tune.tokens) for tune in data.tunes["train"])
        save_bounds(bounds_of(measured(tunes, real_N, known)), folder)

    @torch.no_grad()
    def _fit_temperatures(self, data: SegmentsData) -> None:
        """On several segments of each validation tune."""
        batches = [data.collate(data.tunes["validation"], random.Random(data.seed + draw)) for draw in range(DRAWS)]
        outputs = [self.network(batch["tokens"].to(self.device)) for batch in batches]
        for head in self.network.config.heads:
            logits_NC = torch.cat([output[head].cpu() for output in outputs])
            labels_N = torch.cat([batch[head] for batch in batches])
            self.network.config.temperatures[head] = best_temperature(logits_NC, labels_N)

    def _prior(self, head: str) -> Tensor:
        """Log frequency of the values of a head in training, ``[values]``."""
        if head == REAL:
            return torch.zeros(2)
        counts_C = self.trainer.datamodule.counts(head)  # type: ignore[attr-defined]
        return (counts_C / counts_C.sum()).log()

    def _log(self, stage: str, batch: dict[str, Tensor]) -> None:
        values: dict[str, Tensor] = {}
        nlls = []
        for head, logits_NC in self.network(batch["tokens"]).items():
            plain, balanced = balanced_accuracy(logits_NC, batch[head])
            values |= {f"{stage}/{head}": plain, f"{stage}/{head}_balanced": balanced}
            nlls.append(balanced_nll(logits_NC, batch[head]))
        values[f"{stage}/nll"] = torch.stack(nlls).mean()
        self.log_dict(values, prog_bar=True, batch_size=len(batch["tokens"]), sync_dist=True)


class Judge:
    """The trained judge over decoded tunes. Constructing one loads nothing; :meth:`load` does.

    Args:
        path: a folder, or "tunes:judge".
    """

    def __init__(self, path: str = "tunes:judge") -> None:
        self.path = path

    @cached_property
    def network(self) -> TuneNetwork:
        """Loaded when it is first asked for."""
        return load_network(self.path)

    @cached_property
    def bounds(self) -> dict[str, float]:
        """Where real tunes end: see :mod:`cfg_distill.tunes.quality`."""
        return load_bounds(resolve(self.path))

    def problems(self) -> list[Problem]:
        """What is wrong with the folder, found without loading weights."""
        found = problems_of_folder(self.path)
        if not found and not (Path(resolve(self.path)) / BOUNDS).is_file():
            text = f"expected a judge with a file {BOUNDS}, but `{self.path}` has none."
            found.append(Problem("", f"{text} Make it again by recipes/tunes/judge.yaml."))
        return [problem.under("path") for problem in found]

    def load(self) -> Self:
        """Load the network; does nothing the second time."""
        _ = self.network
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Frozen: copies share it."""
        return self

    def probabilities(self, tunes: Sequence[str], device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Calibrated probabilities by attribute, ``[N, values]`` in the order of :data:`cfg_distill.tunes.tokenizer.VALUES`;
        and ``real``, ``[N, 2]``, of which the second is the probability that the tune is one of the books.

        All values count as equally likely beforehand. A tune without notes has probability 0 for every value: silence
        must not earn the prior.
        """
        with torch.autocast(torch.device(device).type, enabled=False):  # a fit may ask in bfloat16
            logits = self.load().network.to(device).read(tunes)
        sounds_N1 = torch.tensor([[_sounds(tune)] for tune in tunes], dtype=torch.bool, device=device)
        return {name: logits_NC.softmax(-1) * sounds_N1 for name, logits_NC in logits.items()}


def _sounds(tune: str) -> bool:
    """Whether a tune has a note."""
    notes = (read_note(token) for token in tune.split())
    return any(note is not None and note.pitch is not None for note in notes)
