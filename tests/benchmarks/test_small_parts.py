"""What is to take no time beside its surroundings: the help beside Python's start, measuring tunes beside drawing them."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from measure import Row, interleaved, report, use_threads

from cfg_distill.generators import CausalLM
from cfg_distill.guidance import Guidance
from cfg_distill.sampling import Sampling, rollout
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.metrics import MelodicDiversity

pytestmark = pytest.mark.bench
PROMPTS = ["A lively Irish jig in G major", "A slow waltz in D minor", "A reel in A major", "A march in C major"]


def _started(code: str) -> float:
    """Processor seconds of a new Python that runs the code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


def test_help() -> None:
    code = {"ours": "from cfg_distill.cli import main; main(['--help'])", "argparse": "import argparse, dataclasses"}
    of = interleaved({name: lambda text=text: _started(text) for name, text in code.items()})
    rows = [Row("cfg-distill --help", "importing argparse and dataclasses", of["ours"] / of["argparse"], 2.0, 1.5, True,
                f"{of['ours']:.3f} s : {of['argparse']:.3f} s")]  # fmt: skip
    report("help", rows, "A command line that answers at once, processor seconds")


def test_measuring_tunes() -> None:
    use_threads()
    generator, embedder, samples = CausalLM("tunes:base").load(), Tunes().load(), 8
    drawn: list[str] = []

    def draw() -> None:
        sampled = rollout(generator, PROMPTS, Sampling(samples=samples, max_new_tokens=80), Guidance(1.0))
        drawn[:] = generator.decode(sampled.tokens_BGKT.flatten(0, 1), sampled.mask_BGKT.flatten(0, 1))

    def embed() -> None:
        embedder.embed(drawn)

    def melodies() -> None:
        for first in range(0, len(drawn), samples):
            MelodicDiversity().score_group(drawn[first : first + samples])

    of = interleaved({"draw": draw, "embed": embed, "melodies": melodies})
    rows = [
        Row(what, "drawing them", of[side] / of["draw"], 0.2, 0.1, True, f"{of[side]:.3f} s : {of['draw']:.3f} s")
        for what, side in (("embedding tunes", "embed"), ("melodic diversity of tunes", "melodies"))
    ]
    report("measuring", rows, f"{len(drawn)} tunes of 80 tokens from tunes:base")
