"""``generate`` for models of sound: WAV files of the asked length, loud ones turned down, what is wrong said at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_audio import tone
from tiny_musicgen import tiny_musicgen
from transformers import AutoTokenizer, MusicgenForConditionalGeneration

from cfg_distill.audio import Waveform, read_audio, write_audio
from cfg_distill.cli import main
from cfg_distill.evaluation import renderers
from cfg_distill.generators import MusicGen

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")


@pytest.fixture(scope="module")
def musicgen(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_musicgen(tmp_path_factory.mktemp("musicgen"), positions=160)


def said(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert main(list(words)) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


def test_sound_is_written_as_wav(musicgen: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["generate", "--model", musicgen, "--prompt", "80s synth pop", "rock", "--samples", "2", "--out", "sounds"]
    assert main([*words, "--seconds", "0.5"]) == 0
    output = capsys.readouterr().out
    assert "== 80s synth pop (2 of 2)\n0.50 s, 3200 Hz, mono, peak" in output and "Wrote 4 samples to sounds." in output
    names = ["01-80s-synth-pop-1", "01-80s-synth-pop-2", "02-rock-1", "02-rock-2"]
    assert sorted(file.name for file in Path("sounds").iterdir()) == [f"{name}.wav" for name in names]
    clip = read_audio("sounds/02-rock-1.wav")
    assert clip.rate == 3200 and clip.samples.shape == (1, 1600)
    assert "`sounds` exists. Name another one, or pass `--overwrite`." in said(capsys, *words)


def test_greedy_sound_is_that_of_transformers(musicgen: str, folder: Path) -> None:
    words = ["generate", "--model", musicgen, "--prompt", "80s synth pop", "--samples", "1", "--temperature", "0"]
    assert main([*words, "--max-new-tokens", "20", "--guidance", "3", "--out", "sounds"]) == 0
    model = MusicgenForConditionalGeneration.from_pretrained(musicgen)
    tokens = AutoTokenizer.from_pretrained(musicgen)("80s synth pop", return_tensors="pt")
    expected_11L = model.generate(**tokens, do_sample=False, guidance_scale=3.0, max_length=20 + 4)
    torch.testing.assert_close(
        read_audio("sounds/01-80s-synth-pop-1.wav").samples, expected_11L[0], atol=1 / 32000, rtol=0
    )


def test_loud_sound_is_turned_down_and_said(
    musicgen: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def louder(file: Any, clip: Any) -> float:
        return write_audio(file, tone(200, level=1.98))

    monkeypatch.setattr(renderers, "write_audio", louder)
    words = ["generate", "--model", musicgen, "--prompt", "rock", "--samples", "1", "--out", "sounds"]
    assert main([*words, "--max-new-tokens", "4"]) == 0
    assert "01-rock-1.wav: turned down by 6.0 dB, so that it does not clip." in capsys.readouterr().out


def test_silent_samples_are_named(
    musicgen: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [Waveform(torch.zeros(1, 320), 3200), tone(200), Waveform(torch.zeros(1, 0), 3200), tone(300)]
    monkeypatch.setattr(MusicGen, "decode", lambda self, tokens_NKT, mask_NKT: clips)
    words = ["generate", "--model", musicgen, "--prompt", "rock", "calm", "--samples", "2", "--out", "sounds"]
    assert main([*words, "--max-new-tokens", "4"]) == 0
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith("Prompt")] == [
        "Prompt `rock`: sample 1 is silent.",
        "Prompt `calm`: sample 1 is silent.",
    ]


def test_the_length_is_bounded_by_the_position_table(
    musicgen: str, folder: Path, capsys: pytest.CaptureFixture
) -> None:
    words = ["generate", "--model", musicgen, "--prompt", "rock", "--samples", "1", "--out", "sounds"]
    message = said(capsys, *words, "--seconds", "2")
    assert (
        f"`--seconds`: expected at most 1.5, since `{musicgen}` has positions for 157 frames at 100 per second, but got 2"
        in message
    )
    assert "expected at most 1.5" in said(capsys, *words)  # ten seconds, where nothing is said
    for seconds in ("-1", "inf", "1e308", "nan"):
        assert "expected a finite number above 0, but got" in said(capsys, *words, f"--seconds={seconds}")
    assert main([*words, "--seconds", "1.5"]) == 0


def test_sound_goes_to_samples_and_replaces_nothing(musicgen: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["generate", "--prompt", "80s synth pop", "--seconds", "0.5"]
    message = said(capsys, *words)
    assert "`--model`: expected the model that draws the samples, but it is missing" in message
    assert "facebook/musicgen-small" in message and "tunes:base" in message and "an export" in message
    words += ["--model", musicgen, "--samples", "1"]
    assert main(words) == 0
    (file,) = Path("samples").iterdir()
    assert file.name == "01-80s-synth-pop-1.wav" and read_audio(file).seconds == 0.5
    before = file.read_bytes()
    assert "`--out`: `samples` exists. Name another one, or pass `--overwrite`." in said(capsys, *words, "--seed", "1")
    assert file.read_bytes() == before


def test_all_problems_at_once(
    musicgen: str, tiny_model: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("full").mkdir()
    Path("full", "a.wav").touch()
    words = ["--seconds=1", "--max-new-tokens=5", "--out", "full"]
    message = said(capsys, "generate", "--model", musicgen, "--prompt", "rock", *words)
    assert "2 problems" in message and "both are the length" in message and "`full` exists" in message
    message = said(capsys, "generate", "--model", tiny_model, "--prompt", "w1", "--seconds=1", "--melody=x.wav")
    assert "`--seconds`: is for models of sound" in message and "`--melody`: is for models of sound" in message
    monkeypatch.setattr("cfg_distill.audio.importlib.util.find_spec", lambda name: None)
    message = said(capsys, "generate", "--model", musicgen, "--prompt", "rock", "--seconds=1", "--out", "x")
    assert 'pip install ".[audio]"' in message


def test_a_model_that_diverged_is_named(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    model = MusicgenForConditionalGeneration.from_pretrained(tiny_musicgen(tmp_path / "diverged"))
    with torch.no_grad():
        model.decoder.model.decoder.layers[1].fc1.weight.fill_(torch.nan)
    model.save_pretrained(tmp_path / "diverged")
    words = ["--model", str(tmp_path / "diverged"), "--prompt", "rock", "--max-new-tokens", "5", "--out", "sounds"]
    message = said(capsys, "generate", *words)
    assert (
        "these weights hold NaN or infinity: decoder.model.decoder.layers.1.fc1.weight. The model diverged" in message
    )
    assert not Path("sounds").exists()


def test_a_melody_model_follows_a_file(
    musicgen: str,
    tmp_path_factory: pytest.TempPathFactory,
    folder: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    melody = tiny_musicgen(tmp_path_factory.mktemp("melody"), kind="melody", positions=160)
    write_audio("tune.wav", tone(440, seconds=1.0))
    words = ["--prompt", "rock", "--samples", "1", "--seconds", "0.2", "--out", "sounds"]
    assert main(["generate", "--model", melody, "--melody", "tune.wav", *words]) == 0
    assert read_audio("sounds/01-rock-1.wav").seconds == pytest.approx(0.2)
    # Nothing is loaded for what is wrong.
    monkeypatch.setattr(MusicGen, "load", lambda self: pytest.fail("loaded"))
    tuned = ["generate", "--model", melody, "--prompt", "rock", "--melody", "tune.wav", "--out", "other"]
    message = said(capsys, *tuned, "--seconds", "0.9")  # 160 positions, less 3 for the delays and 69 before the sound
    assert f"`--seconds`: expected at most 0.8, since `{melody}` has positions for 88 frames" in message
    message = said(capsys, *tuned, "--max-new-tokens", "89")
    assert "Option `--max-new-tokens`: expected at most 88" in message
    Path("no.wav").write_text("words")
    message = said(capsys, "generate", "--model", melody, "--melody", "no.wav", *words, "--overwrite")
    assert "Prompt 'rock', melody: File `no.wav`: expected sound" in message
    message = said(capsys, "generate", "--model", melody, *words, "--overwrite")
    assert "Prompt 'rock': expected a melody, which this model reads, but it has none." in message
    message = said(capsys, "generate", "--model", musicgen, "--melody", "tune.wav", *words, "--overwrite")
    assert "Prompt 'rock': carries the condition `melody`, which the model does not read." in message
