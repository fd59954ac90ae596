"""Contrastive tune encoder: two parts of one tune lie close together, parts of different tunes apart.

As the paper trains its music embedding (section 4.1 there). The loss is InfoNCE (van den Oord et al. 2018, Eq. 4) in
both directions. Key, octave and bar signs cannot reach the networks (phrases.py, figures.py). That notes made rests and other
rhythms change little is learnt: parts are changed so (pairs.py), and a part is held to itself as it was.
Shapes: M tunes, D embedding width.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cfg_distill.errors import Problem, problems_of_counts, problems_of_positive, problems_of_shares
from cfg_distill.folders import resolve
from cfg_distill.tunes.figures import FiguresConfig, FiguresNetwork
from cfg_distill.tunes.notes import NotesNetwork
from cfg_distill.tunes.phrases import PhrasesConfig, PhrasesNetwork
from cfg_distill.tunes.training import FolderTraining

NETWORKS: dict[str, tuple[type[NotesNetwork], Any]] = {
    "phrases": (PhrasesNetwork, PhrasesConfig),
    "figures": (FiguresNetwork, FiguresConfig),
}


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
    r"""Trains an encoder on :class:`cfg_distill.tunes.pairs.TunePairs`.

    .. math:: \mathcal L = \text{InfoNCE}(e(x'), e(y')) + \lambda \, \overline{1 - \cos(e(x'), e(x))}

    x and y are two parts of one tune, x' and y' the same with notes made rests, some x' in other rhythms too. Logs
    ``train/loss``, and of the validation tunes ``val/loss``, ``val/retrieval`` (top 1 among all of them) and ``val/rests``
    (mean distance of x' from x).

    Args:
        optimizer: of all parameters.
        out: the folder to write: config.json and model.safetensors.
        kind: of network: ``phrases``, convolutions over the notes, the encoder of the reward; or ``figures``, a linear map of
            counts of melodic figures, which begins with latent semantic analysis.
        embedding: D, width of the embedding.
        dropout: in training; of figures, the share of the counts that is left out.
        temperature: divisor of the cosines in InfoNCE.
        steadiness: lambda, weight of the distance of a part from itself as it was.
        common: the further arguments of :class:`FolderTraining`.
    """

    def __init__(
        self,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        out: str = "runs/tunes/encoder",
        kind: Literal["phrases", "figures"] = "phrases",
        embedding: int = 128,
        dropout: float = 0.1,
        temperature: float = 0.1,
        steadiness: float = 0.3,
        **common: Any,
    ) -> None:
        super().__init__(optimizer, out, **common)
        self.kind, self.embedding, self.dropout = kind, embedding, dropout
        self.temperature, self.steadiness = temperature, steadiness

    def problems(self) -> list[Problem]:
        found = super().problems() + problems_of_counts(embedding=self.embedding)
        return found + problems_of_shares(dropout=self.dropout) + problems_of_positive(temperature=self.temperature)

    def configure_model(self) -> None:
        if not list(self.children()):  # Lightning asks again for each stage
            network, config = NETWORKS[self.kind]
            self.network = network(config(self.embedding, self.dropout))
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


def load_encoder(path: str) -> NotesNetwork:
    """The frozen network of a folder, or of a shipped one ("tunes:encoder", "tunes:figures")."""
    folder = Path(resolve(path))
    given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (found,) = (pair for pair in NETWORKS.values() if set(given) == set(asdict(pair[1]())))
    network = found[0](found[1](**given))
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.requires_grad_(False).eval()


def problems_of_encoder(path: str) -> list[Problem]:
    """Why a folder that is there holds no encoder that :func:`load_encoder` reads."""
    file = Path(resolve(path)) / "config.json"
    known = [set(asdict(config())) for _, config in NETWORKS.values()]
    if file.is_file() and set(json.loads(file.read_text(encoding="utf-8"))) not in known:
        text = (
            f"expected a tune encoder, but `{path}` holds another kind of model, or an encoder of an earlier version. Make one"
            " with `cfg-distill fit --config recipes/tunes/encoder.yaml`."
        )
        return [Problem("", text)]
    return []
