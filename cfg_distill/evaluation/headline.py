"""Which metrics a picture and its claims are about. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Headline:
    """The metrics that the picture and the claims are about.

    Args:
        quality: a quality metric.
        diversity: the diversity metric of the reward.
        independent: a diversity metric that was no reward; None for none.
    """

    quality: str
    diversity: str
    independent: str | None = None
