"""Made-up tunes for the tests of the tune encoder and judge."""

from cfg_distill.tunes.corpus import Tune
from cfg_distill.tunes.negatives import JudgeData
from cfg_distill.tunes.segments import SegmentsData


class TinyData(SegmentsData):
    """Eight made-up tunes, each of its own two notes: separable, so that a few steps must learn them.

    Even ones are Irish reels in major, odd ones American jigs in minor; the last one says nothing.
    """

    def setup(self, stage: str | None = None) -> None:
        notes = [f"{letter}:1" for letter in "CDEFGABcdefgab"] + ["c':1", "d':1"]
        self.music = ["|", *notes]
        self.numbers = {token: number for number, token in enumerate(self.music, start=1)}
        tunes = [
            Tune(
                name=str(n),
                origin="any" if n == 7 else ("american" if n % 2 else "irish"),
                rhythm="any" if n == 7 else ("jig" if n % 2 else "reel"),
                metre="6/8",
                mode="any" if n == 7 else ("minor" if n % 2 else "major"),
                tokens=tuple(notes[2 * n : 2 * n + 2] * 20),
                cluster=n,
            )
            for n in range(8)
        ]
        self.tunes = dict.fromkeys(("train", "validation", "test"), tunes)


class TinyJudgeData(TinyData, JudgeData):
    """The same tunes; degenerate ones hold bar signs alone."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.negatives = {"train": [[" ".join(["|"] * 40)]]}
