"""What rewards share that compare samples with a reference."""

from __future__ import annotations

from cfg_distill.references.base import WithReference
from cfg_distill.rewards.embedded import UnderEmbedder
from cfg_distill.sampling.start import StartModel


class Compared(WithReference, UnderEmbedder):
    """A reward that compares samples with a frozen reference.

    Args:
        embedder: the frozen model, of samples and reference alike.
        reference: what the samples are compared with.
        settings: of the class that holds the baseline.
    """

    def attach(self, start: StartModel) -> None:
        self.reference.attach(start)
