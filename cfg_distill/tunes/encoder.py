"""Contrastive tune encoder: two segments of one tune lie close together, segments of different tunes apart.

As the paper trains its music embedding (section 4.1 there). The loss is InfoNCE (van den Oord et al. 2018, Eq. 4) in
both directions. Shapes: M tunes, N = 2M segments, D embedding width.
"""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cfg_distill.tunes.training import NetworkTraining


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


class EncoderTraining(NetworkTraining):
    """Trains the encoder; logs ``train/loss``, ``val/loss`` and ``val/retrieval`` (top 1 among all validation tunes).

    Args:
        optimizer: of all parameters.
        out: the folder to write: config.json and model.safetensors.
        embedding: D, width of the embedding.
        temperature: divisor of the cosines in the loss.
        common: the further arguments of :class:`NetworkTraining`.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        out: str = "runs/tunes/encoder",
        embedding: int = 96,
        temperature: float = 0.1,
        **common: Any,
    ) -> None:
        super().__init__(optimizer, out, **common)
        self.embedding, self.temperature = embedding, temperature

    def heads(self) -> dict[str, int]:
        return {"embedding": self.embedding}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, _ = self._loss_and_retrieval(batch)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._log("val", batch)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self._log("test", batch)

    def _log(self, stage: str, batch: dict[str, Tensor]) -> None:
        loss, hits = self._loss_and_retrieval(batch)
        values = {f"{stage}/loss": loss, f"{stage}/retrieval": hits}
        self.log_dict(values, prog_bar=True, batch_size=len(batch["tokens"]), sync_dist=True)

    def _loss_and_retrieval(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        embedding_ND = normalize(self.network(batch["tokens"])["embedding"].float(), dim=-1)
        first_MD, second_MD = embedding_ND[0::2], embedding_ND[1::2]
        total, count = info_nce(first_MD, second_MD, batch["family"][0::2], self.temperature)
        return total / count, retrieval(first_MD, second_MD)
