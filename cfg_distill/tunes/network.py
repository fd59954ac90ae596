"""The small network under the judge, and the folder of a network (config.json, model.safetensors).

Shapes: N tunes, T tokens, C channels.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cfg_distill.folders import resolve
from cfg_distill.tunes.abc import parse_note


@dataclass
class NetworkConfig:
    """Everything but the weights.

    Attributes:
        music: the music tokens; number 0 is padding, token i has number i + 1.
        heads: outputs by name, with their widths.
        width, blocks, kernel: of the convolutions; block b looks at every 2^b-th token.
        dropout: in training.
        temperatures: divisor of the logits of a head, by name; 1 where none is given.
    """

    music: list[str]
    heads: dict[str, int]
    width: int = 96
    blocks: int = 5
    kernel: int = 5
    dropout: float = 0.15
    temperatures: dict[str, float] = field(default_factory=dict)


class Block(nn.Module):
    """Residual: layer norm, dilated convolution, GELU, linear."""

    def __init__(self, width: int, kernel: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv1d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation)
        self.linear = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_NTC: Tensor, mask_NT1: Tensor) -> Tensor:
        # Padding is zero before each convolution, like the border. So tokens behind a tune cannot reach it.
        inner_NTC = self.norm(hidden_NTC) * mask_NT1
        inner_NTC = self.convolution(inner_NTC.transpose(1, 2)).transpose(1, 2)
        return hidden_NTC + self.dropout(self.linear(nn.functional.gelu(inner_NTC)))


class SavedNetwork(nn.Module, ABC):
    """A network that hears tunes, and its folder.

    Args:
        config: everything but the weights, a dataclass.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def hear(self, tunes: Sequence[str]) -> Tensor:
        """Vectors of decoded tunes in evaluation mode, one per tune, of any length."""

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors, with numbers in float32 whatever the training's precision."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=1) + "\n", encoding="utf-8")
        state = {
            name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous()
            for name, tensor in self.state_dict().items()
        }
        save_file(state, folder / "model.safetensors")


class TuneNetwork(SavedNetwork):
    """Dilated convolutions over music tokens, mean over the tune, one linear head per output.

    Convolutions and a mean know no position: a network trained on short segments reads longer tunes alike. A token is
    embedded as the sum of three vectors: its own, its pitch's and its length's, so that rare tokens borrow from common.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__(config)
        self.numbers = {token: number for number, token in enumerate(config.music, start=1)}
        notes = [parse_note(token) or (token, token) for token in config.music]
        pitches, lengths = ([0, *_numbered([str(note[part]) for note in notes])] for part in (0, 1))
        self.register_buffer("pitch_of", torch.tensor(pitches), persistent=False)
        self.register_buffer("length_of", torch.tensor(lengths), persistent=False)
        self.token = nn.Embedding(len(config.music) + 1, config.width)
        self.pitch = nn.Embedding(max(pitches) + 1, config.width)
        self.length = nn.Embedding(max(lengths) + 1, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.kernel, 2**depth, config.dropout) for depth in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.width)
        self.hidden = nn.Linear(config.width, 2 * config.width)
        self.heads = nn.ModuleDict({name: nn.Linear(2 * config.width, width) for name, width in config.heads.items()})

    def forward(self, tokens_NT: Tensor) -> dict[str, Tensor]:
        """Token numbers, 0 for padding, to the outputs of the heads, each ``[N, width]``."""
        pooled_NC = self.dropout(self.pooled(tokens_NT))
        return {name: head(pooled_NC) / self.config.temperatures.get(name, 1.0) for name, head in self.heads.items()}

    def pooled(self, tokens_NT: Tensor) -> Tensor:
        """Token numbers to what the heads read, ``[N, 2 C]``."""
        mask_NT1 = (tokens_NT > 0).unsqueeze(-1).float()
        hidden_NTC = (
            self.token(tokens_NT) + self.pitch(self.pitch_of[tokens_NT]) + self.length(self.length_of[tokens_NT])  # type: ignore[index]
        )
        hidden_NTC = self.dropout(hidden_NTC)
        for block in self.blocks:
            hidden_NTC = block(hidden_NTC, mask_NT1)
        hidden_NTC = nn.functional.gelu(self.hidden(self.norm(hidden_NTC))) * mask_NT1
        return hidden_NTC.sum(1) / mask_NT1.sum(1).clamp(min=1.0)

    def numbers_of(self, tunes: Sequence[str]) -> Tensor:
        """Decoded tunes to token numbers ``[N, T]``, padded with 0. Words that are no music tokens are skipped."""
        rows = [[self.numbers[token] for token in tune.split() if token in self.numbers] for tune in tunes]
        tokens_NT = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.long)
        for row, numbers in enumerate(rows):
            tokens_NT[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.long)
        return tokens_NT

    def read(self, tunes: Sequence[str], batch: int = 64) -> dict[str, Tensor]:
        """The outputs for decoded tunes, in evaluation mode; tunes of like length are computed together."""
        return self._over(tunes, self, self.config.heads, batch)

    def hear(self, tunes: Sequence[str]) -> Tensor:
        """What the heads read, ``[N, 2 C]``, in evaluation mode."""
        return self._over(tunes, lambda tokens_NT: {"": self.pooled(tokens_NT)}, {"": 2 * self.config.width})[""]

    @torch.no_grad()
    def _over(
        self,
        tunes: Sequence[str],
        compute: Callable[[Tensor], dict[str, Tensor]],
        widths: dict[str, int],
        batch: int = 64,
    ) -> dict[str, Tensor]:
        was_training = self.training
        self.eval()
        device = self.norm.weight.device
        order = sorted(range(len(tunes)), key=lambda index: tunes[index].count(" "))
        outputs: dict[str, list[Tensor]] = {name: [] for name in widths}
        for start in range(0, len(order), batch):
            chosen = [tunes[index] for index in order[start : start + batch]]
            for name, output in compute(self.numbers_of(chosen).to(device)).items():
                outputs[name].append(output.float())
        self.train(was_training)
        back = torch.tensor(order, dtype=torch.long, device=device).argsort()
        return {
            name: torch.cat(parts)[back] if parts else torch.zeros(0, widths[name], device=device)
            for name, parts in outputs.items()
        }


def load_network(path: str) -> TuneNetwork:
    """The frozen network of a folder, or of a shipped one ("tunes:judge")."""
    folder = Path(resolve(path))
    network = TuneNetwork(NetworkConfig(**json.loads((folder / "config.json").read_text(encoding="utf-8"))))
    network.load_state_dict(load_file(folder / "model.safetensors"))
    return network.requires_grad_(False).eval()


def _numbered(names: Sequence[str]) -> list[int]:
    """Each name as a number from 1 on, in order of first use."""
    known: dict[str, int] = {}
    return [known.setdefault(name, len(known) + 1) for name in names]
