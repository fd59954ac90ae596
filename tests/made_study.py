"""Made-up results of a study, on disk: systems whose differences are known, samples, logs and a record."""

from __future__ import annotations

import json
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import Headline, System, hypervolumes
from cfg_distill.evaluation.written import stem_of
from cfg_distill.files import write_text
from cfg_distill.study.config import Study, load_study

PROMPTS = ["a jig in D", "a slow air", 'a <script>alert("x")</script> reel', *[f"march {n}" for n in range(9)]]
AXES = {"quality": "quality", "diversity": "diversity", "bigram": "diversity", "rests": "guard"}
NOISE = 0.004
"""Of a difference on one prompt. Of its mean over the 12 prompts, an interval is about .005 wide."""

LINE = {
    "base": ("base", 0.60, 0.60, 0.80, 0.00, None),
    "guidance 2": ("guidance", 0.70, 0.40, 0.80, 0.00, None),
    "quality": ("student", 0.70, 0.41, 0.80, 0.00, 0.0),
    "half": ("merge", 0.69, 0.50, 0.83, 0.00, 0.5),
    "diversity": ("student", 0.60, 0.62, 0.86, 0.10, 1.0),
}
"""Name -> kind, quality, diversity, bigram diversity, rests and knob."""


def read_study(path: str | Path) -> Study:
    """A study file without problems; else all of them are raised."""
    study, problems = load_study(path)
    if problems:
        raise ConfigError(problems)
    return study


def system(
    name: str,
    kind: str,
    means: Mapping[str, float],
    knob: float | None = None,
    seed: int = 0,
    prompts: Sequence[str] = (),
) -> System:
    """A system with given means: hard prompts are hard for all systems, and the noise on top is small."""
    prompts = list(prompts or PROMPTS)
    hard_P = np.linspace(-0.1, 0.1, len(prompts))
    random = np.random.default_rng([seed, *map(ord, name)])
    values = {}
    for metric, mean in means.items():
        noise_SP = random.normal(0, NOISE, (2, len(prompts)))
        noise_SP -= noise_SP.mean()
        spread = 0.0 if AXES.get(metric) == "guard" else 1.0
        values[metric] = (mean + spread * (hard_P + noise_SP)).tolist()
    guidance = 2.0 if kind == "guidance" else 1.0
    folder = {"student": "students", "merge": "merges"}.get(kind)
    model = f"somewhere/else/{folder}/{name}" if folder else "tunes:base"
    axes = {metric: AXES[metric] for metric in means}
    made = System(name, kind, model, 0.8, guidance, 4, [0, 1], prompts, axes, values, relative_cost=guidance)  # type: ignore[arg-type]
    made.knob = knob
    return made


def line(changes: Mapping[str, Sequence[Any]] | None = None) -> list[System]:
    """The systems of :data:`LINE`, some of them changed or added."""
    rows = LINE | dict(changes or {})
    return [
        system(name, row[0], dict(zip(AXES, row[1:5], strict=True)), row[5])
        for name, row in rows.items()
        if row is not None
    ]


def tone(file: Path, seconds: float = 1.0, rate: int = 8000) -> None:
    """A WAV file of a tone."""
    samples = (8000 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 440 / rate)).astype("<i2")
    with wave.open(str(file), "wb") as stream:
        stream.setnchannels(1)
        stream.setsampwidth(2)
        stream.setframerate(rate)
        stream.writeframes(samples.tobytes())


def write_samples(folder: Path, name: str, prompts: int, kind: str = "tunes") -> None:
    """Samples as a study writes them: tunes, sound or text."""
    folder.mkdir(parents=True)
    for place, prompt in enumerate(PROMPTS[:prompts], start=1):
        for number in (1, 2):
            stem = stem_of(place, prompt, number)
            content = f"{stem}.wav" if kind == "sound" else f"<b>{name}</b> says {place}.{number}"
            (folder / f"{stem}.txt").write_text(f"{prompt}\n\n{content}\n", encoding="utf-8")
            if kind != "text":
                tone(folder / f"{stem}.wav", 0.5 + 0.5 * number)
            if kind == "tunes":
                (folder / f"{stem}.abc").write_text(f"X:1\nT:{prompt}\nK:D\n|: {name} :|\n", encoding="utf-8")


def write_study(
    folder: Path,
    systems: Sequence[System] | None = None,
    kind: str = "tunes",
    prompts: int = 2,
    claims: bool = True,
    **record: Any,
) -> Path:
    """A finished study on disk.

    Args:
        folder: for it.
        systems: None for the line.
        kind: of the samples; empty for no samples.
        prompts: number of prompts with written samples.
        claims: whether the study file has claims.
        record: changes of the keys of the study file.
    """
    systems = line() if systems is None else list(systems)
    for each in systems:
        each.save(folder / "systems" / f"{each.name}.json")
        if kind:
            write_samples(folder / "samples" / each.name, each.name, prompts, kind)
    claimed = {
        "start": "base",
        "guidance": "guidance 2",
        "quality": "quality",
        "diversity": "diversity",
        "merge": "half",
    }
    study = {
        "out": str(folder),
        "fits": {name: {"config": "fit.yaml"} for name in ("quality", "diversity")},
        "merges": {"half": {"models": ["quality", "diversity"], "weights": [0.5, 0.5], "method": "lerp", "start": ""}},
        "evaluation": {
            "headline": {"quality": "quality", "diversity": "diversity", "independent": "bigram"},
            "metrics": {"diversity": {"class_path": "cfg_distill.metrics.PairwiseCosineDiversity"}},
        },
        "claims": claimed | {"margin": 0.02} if claims else None,
    } | record
    content = {"study": study, "recipes": {}, "files": {}, "version": "0.1.0"}
    (folder / "study.json").write_text(json.dumps(content), encoding="utf-8")
    verdicts = [{"claim": "Guidance lowers diversity", "verdict": "holds", "evidence": "a = +0.1; b = <i>+0.2</i>"}]
    points = [each.point() for each in systems]
    volumes = hypervolumes(points, Headline("quality", "diversity", "bigram"))
    write_text(folder / "front.json", json.dumps({"systems": points, "claims": verdicts, "hypervolume": volumes}))
    for name in ("front.png", "table.txt"):  # drawing the picture takes longer than all the rest
        (folder / name).touch()
    return folder


def write_logs(folder: Path) -> None:
    """The log of a fit as Lightning's CSVLogger writes it."""
    run = folder / "version_0"
    run.mkdir(parents=True)
    rows = [f"{step},{1 / (step + 1)},,0" for step in range(0, 50, 5)] + ["49,,0.7,0", "99,,0.8,1"]
    (run / "metrics.csv").write_text("step,train/kl_per_token,val/quality,epoch\n" + "\n".join(rows) + "\n")
