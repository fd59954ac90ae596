"""Groups of texts as samples."""

from collections.abc import Callable

import pytest
import torch

from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples


def _samples(prompts: list[str], groups: list[list[str]]) -> Samples:
    lengths_BG = torch.tensor([[len(text.split()) + 1 for text in group] for group in groups])
    mask_BGKT = (torch.arange(int(lengths_BG.max())) < lengths_BG[..., None])[:, :, None]
    rollout = Rollout(torch.zeros(mask_BGKT.shape, dtype=torch.long), mask_BGKT, torch.zeros(mask_BGKT.shape))
    return Samples(prompts, [text for group in groups for text in group], rollout)


@pytest.fixture
def samples_of() -> Callable[[list[str], list[list[str]]], Samples]:
    return _samples
