"""The parts of serve-check that need no engine: what a check says, what is installed and when, and what the page names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from serving import environment
from serving.__main__ import main
from serving.checks import Checks, Text, compare
from serving.environment import MERGEKIT, SOURCE, VLLM, Environment

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_a_check_that_fails_is_a_line_and_an_exit_code(capsys: pytest.CaptureFixture) -> None:
    expected = {"knob 0": [Text([1, 2, 3], [0.5, 1e-4, 0.5])], "knob 1": [Text([1, 2], [1.0, 1.0])]}
    checks = Checks()
    for got in ([[1, 2, 3]], [[1, 9, 9]]):  # the second leaves at a near tie
        holds, told = compare(expected, {"knob 0": got})
        checks(holds, "equal", told)
    assert checks.told() == 0
    for wrong in ([1, 2, 4], [1, 2], []):
        holds, told = compare(expected, {"knob 0": [wrong], "knob 1": [[1, 2]]})
        assert not holds and told.startswith("1 of 2 texts; knob 0, prompt 0: ")
    checks(holds, "equal", told)
    assert checks.told() == 1
    assert capsys.readouterr().out.splitlines() == [
        "ok      equal: 1 of 1 texts",
        "ok      equal: 0 of 1 texts, 1 more up to a near tie",
        "2 passed, 0 failed",
        "FAILED  equal: 1 of 2 texts; knob 0, prompt 0: it is empty",
        "2 passed, 1 failed",
    ]


def test_what_is_up_to_date_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(words: Sequence[Any], **settings: Any) -> str:
        ran.append([Path(str(word)).name for word in words])
        return ""

    monkeypatch.setattr(environment, "run", run)
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "CMakeLists.txt").touch()
    made = Environment(tmp_path)
    made.prepare(["llama", "peft"])
    packages = [words[-1] for words in ran if "install" in words]
    assert next(word for word in packages if word != "constraints.txt").startswith(
        "torch=="
    )  # before what depends on it
    assert ran[-1][:2] == ["nice", "-n"] and ran[-1][-3:] == ["llama-server", "-j", "2"]
    ran.clear()
    made.prepare(["llama", "peft"])
    assert ran == []
    monkeypatch.setattr(environment, "MERGEKIT", "mergekit==9")
    made.prepare(["llama", "peft"])
    assert any("mergekit==9" in words for words in ran) and not any("cmake" in words[:1] for words in ran)


def test_an_engine_that_there_is_not(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["serving", "--cache", "x", "--engines", "llama,sglang"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "expected some of llama, peft, mergekit, vllm, but got sglang" in capsys.readouterr().err


def test_the_page_names_what_is_installed() -> None:
    page = PAGE.read_text()
    for package in (SOURCE, MERGEKIT, VLLM):
        name, _, version = package.partition("==")
        assert f"{name} {version}" in page


def test_peft_on_tiny_students(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Every check of peft holds on tiny adapters of large numbers; with two of them exchanged behind its back, none passes."""
    from cfg_distill.generators import CausalLM, LoRA
    from cfg_distill.merging import merge_folders
    from serving import students as made
    from serving import torch_engines

    for module in (made, torch_engines):
        monkeypatch.setattr(module, "TOKENS", 6)
    monkeypatch.setattr(made, "PROMPTS", ("w1 w2", "w3"))
    students = made.Students(tmp_path, Environment(tmp_path), gguf=False)
    monkeypatch.setattr(made.Students, "_do", lambda self, *words: merge_by_words(merge_folders, words))
    for seed, name in enumerate(made.ADAPTERS):
        student = CausalLM(tiny_model, lora=LoRA(rank=2, alpha=2.0)).load()
        torch.manual_seed(seed)
        with torch.no_grad():
            for parameter in student.parameters():
                if parameter.requires_grad:
                    parameter.normal_()
        student.save(students.adapter(name))
        if name == "quality":
            student.merge_adapter().save(students.whole(name))
    students.merge()
    texts = students.texts()
    checks = Checks()
    torch_engines.check(students, texts, checks, None)
    assert checks.number == 5 and not checks.failed, capsys.readouterr().out
    students.adapter("quality").rename(tmp_path / "kept")
    students.adapter("diversity").rename(students.adapter("quality"))
    (tmp_path / "kept").rename(students.adapter("diversity"))
    checks = Checks()
    torch_engines.check(students, texts, checks, None)
    assert len(checks.failed) == 3  # not the whole model, nor `linear`, which compares peft with itself


def merge_by_words(merge: Any, words: Sequence[Any]) -> str:
    """`cfg-distill merge` in this process."""
    given = dict(zip(words[1::2], words[2::2], strict=False))
    where = words.index("--models"), words.index("--weights"), words.index("--out")
    merge(
        words[where[0] + 1 : where[1]], [float(w) for w in words[where[1] + 1 : where[2]]], given["--method"], words[-1]
    )
    return ""
