"""``cfg-distill evaluate`` of models of sound: metrics of a file, clips to be heard, what is wrong at once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import tiny_folder
from tiny_audio import noise, tiny_clap, tiny_hubert
from tiny_musicgen import tiny_musicgen

from cfg_distill.audio import read_audio, write_audio
from cfg_distill.cli import main
from cfg_distill.embedders import CLAP
from cfg_distill.folders import find_file
from cfg_distill.generators import MusicGen, open_generator
from cfg_distill.rewards.pairwise import pairwise_diversity
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
PROMPTS = ["80s synth pop", "calm jazz piano", "loud rock"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, two encoders, prompts, real sound, and the shipped metrics with these encoders' paths."""
    place = tmp_path_factory.mktemp("sound")
    for seed, name in enumerate(("one", "two")):
        tiny_musicgen(place / name, seed=seed, positions=128)
    tiny_clap(place / "clap")
    tiny_hubert(place / "hubert")
    tiny_folder(place / "text")
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    for seed in range(3):
        write_audio(place / "music" / f"{seed}.wav", noise(seed, seconds=0.6, rate=3200, level=0.1))
    shipped = find_file("recipes/musicgen/metrics.yaml").read_text()
    local = shipped.replace("laion/larger_clap_music", str(place / "clap"))
    metrics = yaml.safe_load(local.replace("MIT/ast-finetuned-audioset-10-10-0.4593", str(place / "hubert")))
    embedder = metrics["adherence"]["init_args"]["embedder"]
    for name in ("KAD", "FAD"):
        settings = {"embedder": embedder, "reference": str(place / "music"), "seconds": 0.3}
        metrics[name.lower()] = {"class_path": f"cfg_distill.metrics.{name}", "init_args": settings}
    (place / "metrics.yaml").write_text(yaml.safe_dump(metrics, sort_keys=False))
    return place


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


@pytest.mark.slow
def test_points_of_models_of_sound(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["evaluate", "--model", "one", "two", "--prompts", "prompts.txt", "--metrics", "metrics.yaml"]
    out = tmp_path / "points"
    assert main([*words, "--seconds=0.3", "--samples=3", "--guidance", "1", "3", "--written=2", f"--out={out}"]) == 0
    front = json.loads((out / "front.json").read_text())
    names = [system["name"] for system in front["systems"]]
    assert names == ["one", "one, guidance 3", "two", "two, guidance 3"]
    system = front["systems"][0]
    assert list(system["quality"]) == ["adherence"]
    assert list(system["diversity"]) == ["diversity", "second_diversity", "vendi"]
    assert list(system["guards"]) == [
        *("silence", "noise", "copies", "clipping", "repetition", "empty_share", "length", "kad", "fad")
    ]
    assert system["guards"]["length"] == {"mean": 30.0, "low": 30.0, "high": 30.0}
    assert system["guards"]["fad"]["low"] < system["guards"]["fad"]["mean"] < system["guards"]["fad"]["high"]
    assert (out / "front.png").exists() and "adherence" in capsys.readouterr().out
    # The value is that of the metric's own formula on the samples that the seed gives.
    samples = draw(open_generator("one").load(), PROMPTS, Sampling(3, 30))
    embedding_ND = CLAP("clap").load().embed(samples.outputs)
    expected = pairwise_diversity(embedding_ND.unflatten(0, (3, 3))).mean()
    assert system["diversity"]["diversity"]["mean"] == pytest.approx(float(expected), rel=1e-3)
    # Clips to be heard: two samples of two prompts.
    heard = out / "samples" / "01 one"
    assert sorted(file.name for file in heard.glob("*.flac")) == [
        *(
            "01-80s-synth-pop-1.flac",
            "01-80s-synth-pop-2.flac",
            "02-calm-jazz-piano-1.flac",
            "02-calm-jazz-piano-2.flac",
        )
    ]
    clip = read_audio(heard / "02-calm-jazz-piano-2.flac")
    assert clip.seconds == pytest.approx(0.3) and clip.rate == 3200
    np.testing.assert_allclose(clip.samples, samples.outputs[4].samples, atol=1 / 32000)
    assert (heard / "02-calm-jazz-piano-2.txt").read_text() == "calm jazz piano\n\n02-calm-jazz-piano-2.flac\n"


def test_what_can_be_said_of_any_sound(here: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["evaluate", "--model", "one", "--prompts", "prompts.txt", "--samples=1", "--max-new-tokens=8"]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in ("silence", "clipping", "repetition", "empty_share", "length"))


def test_all_problems_of_sound_at_once(here: Path, capsys: pytest.CaptureFixture) -> None:
    def said(*words: str) -> str:
        assert main(["evaluate", "--prompts", "prompts.txt", *words]) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    message = said("--model", "one", "--guidance=-1")  # ten seconds, where nothing is said
    assert "2 problems" in message and "`--seconds`: expected at most 1.2, since `one` has positions for" in message
    assert "both are the length" in said("--model", "one", "--seconds=1", "--max-new-tokens=5")
    assert "`--seconds`: is for models of sound, but `text` writes text" in said("--model", "text", "--seconds=1")
    assert "models of text, or models of sound, but got both" in said("--model", "one", "text", "--seconds=1")
    settings = {"class_path": "cfg_distill.metrics.CLAPAdherence"}
    settings["init_args"] = {"embedder": {"class_path": "cfg_distill.embedders.CLAP", "init_args": {"path": "hubert"}}}
    Path("wrong.yaml").write_text(yaml.safe_dump({"adherence": settings}))
    message = said("--model", "one", "--seconds=0.1", "--metrics", "wrong.yaml")
    assert (
        "Option `--metrics`: File `wrong.yaml`: Key `adherence.init_args" in message
        and "its config.json says `hubert`" in message
    )


def test_a_missing_tune_is_told_before_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    melody = tiny_musicgen(tmp_path / "melody", "melody", positions=128)
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "rock", "conditions": {"melody": "none.wav"}}\n{"prompt": "jazz"}\n')
    monkeypatch.setattr(MusicGen, "load", lambda self: pytest.fail("loaded"))
    assert main(["evaluate", "--model", melody, "--prompts", str(file), "--seconds=0.2"]) == 2
    message = capsys.readouterr().err
    assert "2 problems" in message and "Prompt 'rock', melody: Expected a sound file, but `none.wav`" in message
    assert "Prompt 'jazz': expected a melody" in message
