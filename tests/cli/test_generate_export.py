"""``generate``, ``export`` and ``merge``: what they write, what transformers makes of it, what they refuse."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from cfg_distill.callbacks import StudentEMA
from cfg_distill.checkpoints import spec_of
from cfg_distill.cli import main
from cfg_distill.generators import CausalLM


def said(capsys: pytest.CaptureFixture, *words: str) -> str:
    assert main(list(words)) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


# generate


def test_an_empty_prompt_is_told(tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    words = ["generate", "--model", tiny_model, "--samples", "1", "--max-new-tokens", "2", "--prompt"]
    assert main([*words, "w1", ""]) == 0
    assert "Option `--prompt`: 1 of 2 without a word." in capsys.readouterr().err
    assert main([*words, "w1"]) == 0
    assert "without a word" not in capsys.readouterr().err


def test_generate_is_seeded_and_prints(tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    words = ["generate", "--model", tiny_model, "--prompt", "w1 w2", "w3", "--samples", "2", "--max-new-tokens", "5"]
    shown = []
    for seed in ("0", "0", "1"):
        assert main([*words, "--seed", seed]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] != shown[2]
    assert "== w1 w2 (2 of 2)" in shown[0] and "== w3 (1 of 2)" in shown[0]


def test_samples_are_written_whatever_becomes_of_the_output(
    tiny_model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that goes away, as `| head -1` does, and an encoding that lacks a letter of the prompt."""
    words = ["generate", "--model", tiny_model, "--max-new-tokens", "9"]
    many = [*words, "--prompt", "w1 w2", "--samples", "300", "--out", "a"]
    with subprocess.Popen([sys.executable, "-m", "cfg_distill.cli", *many], stdout=subprocess.PIPE) as command:
        command.stdout.close()
        assert command.wait() == 0
    assert len(list(Path("a").iterdir())) == 300
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "latin-1", write_through=True))
    assert main([*words, "--prompt", "w1 🎵", "--samples", "2", "--out", "b"]) == 0
    assert b"w1 ?" in shown.getvalue() and len(list(Path("b").iterdir())) == 2


def test_generate_names_empty_samples(
    tiny_model: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", "--model", tiny_model, "--prompt", "w1 w2", "w3", "w4", "--samples", "3"]
    words += ["--max-new-tokens", "2", "--out", "samples"]
    texts = ["w5", "", "w6", "", " ", "...", "w7", "w8", "w9"]
    monkeypatch.setattr(CausalLM, "decode", lambda self, tokens_NKT, mask_NKT: texts)
    assert main(words) == 0
    output = capsys.readouterr()
    assert [line for line in output.err.splitlines() if line.startswith("Prompt")] == [
        "Prompt `w1 w2`: sample 2 is empty.",
        "Prompt `w3`: samples 1, 2 and 3 are empty.",
    ]
    assert "Wrote 9 samples" in output.out and Path("samples/01-w1-w2-2.txt").read_text() == ""
    texts[:] = ["w5"] * 9
    assert main([*words, "--overwrite"]) == 0
    assert "Prompt" not in capsys.readouterr().err


def test_greedy_samples_are_those_of_transformers(tiny_model: str, folder: Path) -> None:
    words = ["generate", "--model", tiny_model, "--prompt", "w1 w2", "--samples", "1", "--temperature", "0"]
    assert main([*words, "--max-new-tokens", "6", "--out", "samples"]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokens = tokenizer("w1 w2", return_tensors="pt")
    expected = model.generate(**tokens, do_sample=False, max_new_tokens=6)[0, tokens["input_ids"].shape[1] :]
    assert Path("samples/01-w1-w2-1.txt").read_text() == tokenizer.decode(expected, skip_special_tokens=True)


def test_generate_refuses_to_overwrite(tiny_model: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["generate", "--model", tiny_model, "--prompt", "w1", "--max-new-tokens", "2", "--out", "samples"]
    assert main(words) == 0
    assert "Option `--out`: `samples` exists. Name another one, or pass `--overwrite`." in said(capsys, *words)
    Path("samples/mine.txt").write_text("kept")
    assert main([*words, "--overwrite"]) == 0
    assert Path("samples/mine.txt").read_text() == "kept"
    Path("file").write_text("mine")
    assert "expected a folder, but `file` is a file" in said(capsys, *words[:-1], "file", "--overwrite")


def test_generate_names_all_problems(tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    words = ["--guidance=-1", "--temperature=-1", "--max-new-tokens=64", "--top-p=0", "--samples=0"]
    message = said(capsys, "generate", "--model", tiny_model, "--prompt", "w1", *words)
    assert "5 problems" in message
    for option in ("guidance", "temperature", "max-new-tokens", "top-p", "samples"):
        assert f"Option `--{option}`: expected" in message
    assert "give it as `--negative`" in message and "Key" not in message and "model." not in message
    for option in ("guidance", "temperature"):
        words = [f"--{option}=nan"]
        assert f"Option `--{option}`: expected" in said(
            capsys, "generate", "--model", tiny_model, "--prompt", "w1", *words
        )


def test_generate_tells_of_a_prompt_beyond_the_context(tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    for words in (64, 70):
        message = said(capsys, "generate", "--model", tiny_model, "--prompt", "w1 " * words)
        assert (
            f"expected at most 63 positions for it (the model has 64, and `max_new_tokens` is 1), but it takes {words}"
            in message
        )
    message = said(capsys, "generate", "--model", tiny_model, "--prompt", "w1 " * 60, "--max-new-tokens", "5")
    assert "Option `--max-new-tokens`: Prompt `w1" in message and "expected at most 4, but got 5" in message
    words = ["--guidance", "2", "--negative", "w2 " * 62, "--samples", "1"]
    assert (
        main(["generate", "--model", tiny_model, "--prompt", "w1", *words]) == 0
    )  # as long as the negative prompt leaves


def test_generate_uses_the_accelerator_and_the_dtype(tiny_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("cfg_distill.generators.device", lambda: torch.device("meta"))
    monkeypatch.setattr("cfg_distill.sampling.samples.rollout", lambda generator, *_: seen.append(generator) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["generate", "--model", tiny_model, "--prompt", "w1", "--dtype", "bfloat16"])
    assert {(weight.device.type, weight.dtype) for weight in seen[0].parameters()} == {("meta", torch.bfloat16)}


def test_generate_other_refusals(tiny_model: str, folder: Path, capsys: pytest.CaptureFixture) -> None:
    Path("hollow").mkdir()
    Path("hollow/config.json").write_text("{}")
    assert "Option `--model`: expected a model folder with weights" in said(
        capsys, "generate", "--model", "hollow", "--prompt", "w1"
    )
    assert "no effect without guidance" in said(
        capsys, "generate", "--model", tiny_model, "--prompt", "w1", "--negative", "w2"
    )
    assert "one of ['tunes:base'" in said(capsys, "generate", "--model", "tunes:bass", "--prompt", "w1")


def test_tunes_are_written_as_abc_midi_and_wav(folder: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["generate", "--model", "tunes:base", "--samples", "1", "--out", "tunes", "--max-new-tokens", "60"]
    assert main([*words, "--prompt", "a spooky Irish jig in G"]) == 0
    output = capsys.readouterr()
    assert "`spooky` not understood" in output.err
    assert "X:1" in output.out and "M:6/8" in output.out
    stem = Path("tunes/01-a-spooky-irish-jig-in-g-1")
    assert stem.with_suffix(".abc").read_text().startswith("X:1")
    assert stem.with_suffix(".mid").read_bytes()[:4] == b"MThd"
    assert stem.with_suffix(".wav").read_bytes()[:4] == b"RIFF"


def test_a_tune_prompt_of_which_nothing_is_understood(capsys: pytest.CaptureFixture) -> None:
    message = said(capsys, "generate", "--model", "tunes:base", "--prompt", "quantum chromodynamics", "dodecaphony")
    assert "problems" not in message  # one, of both prompts
    assert (
        "understood nothing in: 'quantum chromodynamics', 'dodecaphony'" in message and "rhythm (reel, jig" in message
    )


# export


@pytest.fixture
def checkpoint(folder: Path, tiny_model: str) -> Path:
    """A checkpoint as a fit writes it: a student that moved, and averages that lie elsewhere."""
    student = CausalLM(tiny_model).load()
    state = {f"student.{name}": value + 0.5 for name, value in student.state_dict().items()}
    content: dict[str, Any] = {
        "state_dict": state | {"losses.kl.weight": torch.ones(())},
        "generator": spec_of(student),
        "global_step": 7,
        "callbacks": {StudentEMA().state_key: {"weights": {name: value - 0.25 for name, value in state.items()}}},
    }
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


@pytest.mark.parametrize(
    ("words", "shift", "kind"),
    [
        ([], 0.25, "the averages of StudentEMA"),
        (["--weights", "ema"], 0.25, "the averages of StudentEMA"),
        (["--weights", "raw"], 0.5, "the raw (live) weights"),
    ],
)
def test_exported_folders_load_with_transformers_alone(
    checkpoint: Path, tiny_model: str, capsys: pytest.CaptureFixture, words: list[str], shift: float, kind: str
) -> None:
    assert main(["export", "--checkpoint", "last.ckpt", "--out", "student", *words]) == 0
    assert f"Wrote student: {kind} of last.ckpt at step 7." in capsys.readouterr().out
    start = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    student = AutoModelForCausalLM.from_pretrained("student")
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, start[name] + shift)
    assert student.generation_config.top_k == 0 and student.generation_config.temperature == 1.0
    tokens = AutoTokenizer.from_pretrained("student")("w1 w2", return_tensors="pt")
    assert student.generate(**tokens, max_new_tokens=3).shape[0] == 1
    assert not list(Path().glob(".student*"))


def test_export_refusals(checkpoint: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", "--checkpoint", "last.ckpt", "--out", "student"]) == 0
    again = ["export", "--checkpoint", "last.ckpt", "--out", "student"]
    assert "`student` exists" in said(capsys, *again)
    assert main([*again, "--overwrite"]) == 0

    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    message = said(capsys, "export", "--checkpoint", "nowhere.ckpt", "--out", "mine", "--overwrite")
    assert (
        "`nowhere.ckpt` does not exist" in message and "`mine` is not replaced" in message and "thesis.txt" in message
    )
    assert Path("mine/thesis.txt").exists()

    Path("text.ckpt").write_text("no checkpoint")
    assert "cannot be read as a checkpoint" in said(capsys, "export", "--checkpoint", "text.ckpt", "--out", "x")
    torch.save({"state_dict": {}}, "other.ckpt")
    assert "names no generator" in said(capsys, "export", "--checkpoint", "other.ckpt", "--out", "x")
    assert "`mine` is a folder without a checkpoint.pt. It holds no last checkpoint: check the path." in said(
        capsys, "export", "--checkpoint", "mine", "--out", "x"
    )
    assert "a file of prompts is for `cfg-distill evaluate`" in said(capsys, "generate", "--prompts", "train.txt")
    assert "Argument `STUDY`: " in said(capsys, "choose", "mine")

    content = torch.load("last.ckpt", weights_only=True) | {"callbacks": {}}
    torch.save(content, "raw.ckpt")
    assert "holds none. Use raw" in said(capsys, "export", "--checkpoint", "raw.ckpt", "--out", "x", "--weights", "ema")
    content["generator"]["init_args"]["path"] = "./gone"
    torch.save(content, "gone.ckpt")
    message = said(capsys, "export", "--checkpoint", "gone.ckpt", "--out", "x")
    assert "its start model is needed again" in message and "`./gone` does not exist" in message
    assert not Path("x").exists()


# merge


def test_merge(folder: Path, tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.save_pretrained("other")
    words = ["merge", "--models", tiny_model, "other", "--out", "merged"]
    assert main([*words, "--weights", "0.75", "0.25"]) == 0
    merged = AutoModelForCausalLM.from_pretrained("merged").state_dict()
    for name, value in AutoModelForCausalLM.from_pretrained(tiny_model).state_dict().items():
        torch.testing.assert_close(merged[name], value + 0.25)
    message = said(capsys, *words, "--weights", "0.75")
    assert "2 problems" in message and "Option `--weights`: expected 2" in message and "merged" in message


def test_off_a_terminal_no_bar_of_weights_is_drawn(
    tiny_model: str, checkpoint: Path, capsys: pytest.CaptureFixture
) -> None:
    Path("prompts.txt").write_text("w1\n")
    commands = {
        "generate": ["--model", tiny_model, "--prompt", "w1", "--samples", "1", "--max-new-tokens", "2"],
        "evaluate": ["--model", tiny_model, "--prompts", "prompts.txt", "--samples", "2", "--max-new-tokens", "2"],
        "export": ["--checkpoint", "last.ckpt", "--out", "student"],
    }
    for command, words in commands.items():
        logging.enable_progress_bar()  # another test may have been quiet already
        assert main([command, *words]) == 0
        assert "Loading weights" not in capsys.readouterr().err, command
