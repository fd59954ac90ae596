"""Which outputs earn no diversity, and that embeddings of them are zero whatever the encoder says."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cfg_distill.audio import Waveform
from cfg_distill.embedders import Embedder, NGramCounts, embedded, is_empty

RATE = 8000
NOISE = torch.randn(1, RATE, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("output", "empty"),
    [
        ("", True),
        (" \n\t", True),
        ("... !? |: :|", True),
        ("\U0001f642", True),
        ("a", False),
        ("!7", False),
        ("c:1", False),
        ("\u4e2d", False),
        (Waveform(torch.zeros(2, RATE), RATE), True),
        (Waveform(torch.zeros(1, 0), RATE), True),
        (Waveform(1e-4 * NOISE, RATE), True),
        (Waveform(0.1 * NOISE, RATE), False),
        (Waveform(torch.cat([torch.zeros(1, RATE), 0.1 * NOISE[:, :1000]], dim=-1), RATE), False),
        (Waveform(torch.full((1, RATE), torch.nan), RATE), False),
        (3, False),
    ],
)
def test_what_is_empty(output, empty):
    assert is_empty(output) is empty


class Far(Embedder):
    """The odd output lies far from all others; a NaN stays one."""

    def problems(self, context: Any = None) -> list:
        return []

    def load(self) -> "Far":
        return self

    def embed(self, outputs: Sequence[Any]) -> Tensor:
        return torch.tensor([[-5.0, torch.nan] if is_empty(output) else [1.0, 2.0] for output in outputs])


def test_embeddings_of_empty_outputs_are_zero():
    outputs = ["a", "", "b", "..."]
    assert Far().degenerate(outputs).tolist() == [False, True, False, True]
    assert embedded(Far(), outputs).tolist() == [[1, 2], [0, 0], [1, 2], [0, 0]]
    assert torch.equal(embedded(Far(), ["a", "b"]), Far().embed(["a", "b"]))


def test_an_embedder_may_say_more():
    class Short(NGramCounts):
        def degenerate(self, outputs: Sequence[str]) -> Tensor:
            return torch.tensor([len(output) < 3 for output in outputs])

    assert embedded(Short(), ["a", "a b c"]).any(-1).tolist() == [False, True]
    assert Short().degenerate([]).shape == NGramCounts().degenerate([]).shape == (0,)
