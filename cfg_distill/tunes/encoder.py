"""Contrastive tune encoder: two parts of one tune lie close together, parts of different tunes apart.

As the paper trains its music embedding (section 4.1 there). The loss is InfoNCE (van den Oord et al. 2018, Eq. 4) in
both directions. Key, octave and bar signs cannot reach the network (figures.py). That notes made rests change little is
learnt: parts have notes made rests (pairs.py), and a part is held to itself without them. Shapes: M tunes, D embedding width.
"""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cfg_distill.tunes.figures import FiguresConfig, FiguresNetwork
from cfg_distill.tunes.training import FolderTraining


def info_nce(first_MD: Tensor, second_MD: Tensor, family_M: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """InfoNCE of M pairs of unit vectors, both directions: the sum over 2M classifications, and 2M.

    Tunes of one family (near-duplicates) are no negatives for one another.
    """
    similarity_MM = first_MD @ second_MD.T / temperature
    siblings_MM = (family_M[:, None] == family_M[None, :]) & ~torch.eye(
        len(family_M), dtype=torch.bool, device=family_M.device
    )
    similarity_MM = similarity_MM.masked_fill(siblings_MM, -torch.inf)
    own_M = torch.arange(len(family_M), device=family_M.device)
    total = torch.stack(
        [cross_entropy(side_MM, own_M, reduction="sum") for side_MM in (similarity_MM, similarity_MM.T)]
    ).sum()
    return total, torch.tensor(2 * len(family_M), device=total.device)


def retrieval(first_MD: Tensor, second_MD: Tensor) -> Tensor:
    """Share of segments whose nearest segment of the other side, by cosine, is of their own tune; both directions."""
    similarity_MM = first_MD @ second_MD.T
    own_M = torch.arange(len(similarity_MM), device=similarity_MM.device)
    hits = (similarity_MM.argmax(0) == own_M).float().mean() + (similarity_MM.argmax(1) == own_M).float().mean()
    return hits / 2


class EncoderTraining(FolderTraining):
    r"""Trains the encoder on :class:`cfg_distill.tunes.pairs.TunePairs`, from latent semantic analysis on.

    .. math:: \mathcal L = \text{InfoNCE}(e(x'), e(y')) + \lambda \, \overline{1 - \cos(e(x'), e(x))}

    x and y are two parts of one tune, x' and y' the same with notes made rests. Logs ``train/loss``, and of the validation
    tunes ``val/loss``, ``val/retrieval`` (top 1 among all of them) and ``val/rests`` (mean distance of x' from x).

    Args:
        optimizer: of all parameters.
        out: the folder to write: config.json and model.safetensors.
        embedding: D, width of the embedding.
        dropout: share of the counts of figures that is left out in training.
        temperature: divisor of the cosines in InfoNCE.
        steadiness: lambda, weight of the distance of a part from itself with notes made rests.
        common: the further arguments of :class:`FolderTraining`.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        out: str = "runs/tunes/encoder",
        embedding: int = 192,
        dropout: float = 0.4,
        temperature: float = 0.1,
        steadiness: float = 4.0,
        **common: Any,
    ) -> None:
        super().__init__(optimizer, out, **common)
        self.embedding, self.dropout = embedding, dropout
        self.temperature, self.steadiness = temperature, steadiness

    def configure_model(self) -> None:
        if not list(self.children()):  # Lightning asks again for each stage
            self.network = FiguresNetwork(FiguresConfig(self.embedding, self.dropout))
            self.network.begin(self.trainer.datamodule.heard("train"))  # type: ignore[attr-defined]

    def write(self, folder: str) -> None:
        self.network.save(folder)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, _, _ = self._loss(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._log("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._log("test", batch)

    def _log(self, stage: str, batch: dict[str, Tensor]) -> None:
        loss, hits, rests = self._loss(batch)
        values = {f"{stage}/loss": loss, f"{stage}/retrieval": hits, f"{stage}/rests": rests}
        self.log_dict(values, prog_bar=True, batch_size=len(batch["family"]), sync_dist=True)

    def _loss(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        embedding_ND = normalize(self.network(batch["notes"].flatten(0, 1)).float(), dim=-1)
        first_MD, second_MD, plain_MD = embedding_ND.unflatten(0, (3, -1))
        total, count = info_nce(first_MD, second_MD, batch["family"], self.temperature)
        rests = 1 - (first_MD * plain_MD).sum(-1).mean()
        return total / count + self.steadiness * rests, retrieval(first_MD, second_MD), rests
