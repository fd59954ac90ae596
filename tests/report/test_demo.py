"""cfg-distill demo: what it samples, what it refuses, and the page in a headless Chromium."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import OpenPage, browser, open_page  # noqa: F401
from made_study import AXES, line, system, write_study
from safetensors.torch import load_file
from tiny import tiny_folder
from tiny_fits import batches, every_step, student_of, trainer

from cfg_distill.cli import main
from cfg_distill.distillation.dial import Dial
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import GenerateRequest
from cfg_distill.folders.card import write_card
from cfg_distill.folders.history import History
from cfg_distill.generators import CausalLM, LoRA
from cfg_distill.guidance import Guidance
from cfg_distill.losses import ReverseKL
from cfg_distill.report import demo
from cfg_distill.report.playground import Playground

PLACES = ("students/quality", "students/diversity", "merges/half")


def playable(folder: Path, base: str, tokens: int, **changes: Any) -> Path:
    """A made-up study whose models are to be added."""
    headline = {"quality": "quality", "diversity": "diversity", "independent": "bigram"}
    evaluation = {"prompts": "report.txt", "metrics": {}, "headline": headline, "max_new_tokens": tokens}
    baselines = {"base": {"model": base}, "guidance 2": {"model": base, "guidance": 2.0}}
    systems = changes.pop("systems", line())
    for each in systems:
        each.model = each.model.replace("tunes:base", base)
    return write_study(folder, systems, kind="", baselines=baselines, evaluation=evaluation, **changes)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of tiny language models, each with its own weights."""
    folder = tmp_path_factory.mktemp("texts")
    study = playable(folder / "study", tiny_folder(folder / "base"), tokens=8)
    for seed, place in enumerate(PLACES, start=1):
        tiny_folder(study / place, seed=seed)
    return study


@pytest.fixture(scope="module")
def tunes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of tunes whose students are one adapter with a dial."""
    study = playable(tmp_path_factory.mktemp("tunes") / "study", "tunes:base", tokens=128)
    student = CausalLM("tunes:base", lora=LoRA(rank=2)).load()
    for place in PLACES:
        student.save(study / place)
        write_card(study / place, place, History("tunes:base", guidance=2.0, dialled=True))
    return study


@pytest.fixture(scope="module")
def dialled(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of tiny LoRA students that were trained with a dial up to guidance 3, and a third student without one."""
    base, folder = Playground(texts).finished.model_of("base"), tmp_path_factory.mktemp("dialled")
    plain = system("plain", "student", dict.fromkeys(AXES, 0.5))
    fits = {name: {"config": "fit.yaml"} for name in ("quality", "diversity", "plain")}
    study = playable(folder / "study", base, 8, systems=[*line(), plain], fits=fits, claims=False)
    for place, start, dial in ((0, "", Dial()), (1, str(study / PLACES[0]), Dial()), (None, "", None)):
        name = "students/plain" if place is None else PLACES[place]
        module = student_of(
            base, generator=CausalLM(base, lora=LoRA(rank=4, alpha=8.0)), guidance=Guidance(3.0), dial=dial, start=start,
            losses={"kl": ReverseKL()}, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
        )  # fmt: skip
        saved = folder / "fits" / name
        trainer([every_step(saved)], saved, max_steps=2).fit(module, batches(2))
        assert main(["export", "--checkpoint", str(saved / "saved" / "step=2.ckpt"), "--out", str(study / name)]) == 0
    ends = [str(study / place) for place in PLACES[:2]]
    assert main(["merge", "--models", *ends, "--weights", "0.5", "0.5", "--out", str(study / PLACES[2])]) == 0
    return study


def weights(folder: str | Path) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


@pytest.fixture(autouse=True)
def merges_among_the_tests_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


PLAYED = """
import signal, sys, threading
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from cfg_distill.report.demo import DemoRequest, Server

server = Server(DemoRequest(sys.argv[1], samples=1, port=0))
server._playground.draw("w1 w2", 0.3, 5)
threading.Timer(1.0, lambda: print(server._playground._merges, flush=True)).start()  # while it waits
server.wait()
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_no_merge_is_left_behind(texts: Path, tmp_path: Path, end: signal.Signals) -> None:
    """A setting of the knob is a whole model: gigabytes in a temporary folder."""
    pytest.importorskip("gradio")
    words = [sys.executable, "-c", PLAYED, str(texts)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)}) as demo:
        assert demo.stdout is not None
        merges = Path(demo.stdout.readline().strip())
        assert merges.parent == tmp_path and [each.name for each in merges.iterdir()] == ["0.3000"]
        demo.send_signal(end)
        try:
            assert demo.wait(60) == 0
        finally:
            demo.kill()
    assert not merges.exists()


def test_a_setting_of_the_knob_is_the_average_of_its_ends(texts: Path) -> None:
    playground = Playground(texts, samples=3)
    (merged, guided), _ = playground.draw("w1 w2", 0.3, seed=5)
    assert (merged.name, guided.name) == ("knob 0.30", "guidance 2")
    found, ends = weights(playground._merged(0.3, merged.name)), [weights(texts / place) for place in PLACES[:2]]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, 0.7 * ends[0][name] + 0.3 * ends[1][name])
    assert [len(each.samples) for each in (merged, guided)] == [3, 3]
    assert "1 forward pass per token" in merged.note and "2 forward passes per token" in guided.note
    (half, _), _ = playground.draw("w1 w2", 0.5, seed=5)
    assert (
        half.name == "half" and len(playground._held) == 2
    )  # the study's own merge; the base and one student in memory


def test_two_people_draw_in_turn_and_one_merged_folder_is_kept(texts: Path) -> None:
    playground = Playground(texts, samples=1)
    pieces = demo.Pieces(playground)
    with ThreadPoolExecutor(4) as people:
        drawn = list(people.map(lambda knob: pieces.samples("w1", knob, 0), [0.3, 0.3, 0.6, 0.3]))
    assert all('class="problem"' not in each for each in drawn)
    assert len(list(playground._merges.iterdir())) == 1


def test_a_full_disk_is_told_on_the_page(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Playground, "draw", full)
    assert "No space left on device" in demo.Pieces(Playground(texts)).samples("w1", 0.3, 0)


def test_a_proxy_is_not_asked_for_the_own_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "my.net")
    monkeypatch.setenv("no_proxy", "")
    demo._without_proxy("10.0.0.7")
    assert os.environ["NO_PROXY"] == "my.net,10.0.0.7,127.0.0.1,localhost"
    assert os.environ["no_proxy"] == "10.0.0.7,127.0.0.1,localhost"


def test_samples_are_those_of_generate(texts: Path) -> None:
    playground = Playground(texts, samples=3)
    (student, guided), _ = playground.draw("w3", 0.0, seed=7)
    base = playground.finished.model_of("base")
    for drawn, model, scale in ((student, str(texts / PLACES[0]), 1.0), (guided, base, 2.0)):
        request = GenerateRequest(model, ["w3"], 3, max_new_tokens=8, guidance=scale, seed=7)
        assert [sample.text for sample in drawn.samples] == request.draw().outputs
    assert [drawn.text for drawn in student.samples] != [drawn.text for drawn in guided.samples]


@pytest.mark.parametrize("knob", [0.0, 0.5, 0.3])
def test_the_dial_is_that_of_generate(dialled: Path, tmp_path: Path, knob: float) -> None:
    """At the ends of the knob, at the merge of the study, and at one that is made for the page."""
    playground = Playground(dialled, samples=3)
    assert playground.dial == "0 is no guidance, 1 is guidance 3"
    model = playground._merged(knob, playground.name_of(knob))
    drawn = {}
    for dial in (0.5, 1.0, None):
        (student, guided), remarks = playground.draw("w3", knob, 7, dial)
        drawn[dial] = [sample.text for sample in student.samples]
        assert drawn[dial] == GenerateRequest(model, ["w3"], 3, max_new_tokens=8, dial=dial, seed=7).draw().outputs
        assert student.name == playground.name_of(knob) + ("" if dial is None else f", dial {dial:.2f}")
        assert guided.name == "guidance 2" and remarks == [] and len(playground._held) == 2
    assert drawn[0.5] != drawn[1.0] == drawn[None]
    base = GenerateRequest(playground.finished.model_of("base"), ["w3"], 3, max_new_tokens=8, seed=7).draw().outputs
    assert [sample.text for sample in playground.draw("w3", knob, 7, 0.0)[0][0].samples] == base


def test_a_dial_where_there_is_none(texts: Path, dialled: Path) -> None:
    assert Playground(texts).dial == "" and "dial" not in demo.Pieces(Playground(texts)).front(0.5)
    playground = Playground(dialled)
    (plain, _), remarks = playground.draw("w3", "plain", 7, 0.5)
    assert plain.name == "plain" and remarks == ["plain was not trained with a dial: it is sampled as it is."]
    with pytest.raises(ConfigError, match="Expected a setting of the dial from 0 to 1"):
        playground.draw("w3", 0.0, 7, 1.5)
    assert "The ring is <b>half</b>, with the dial at 1." in demo.Pieces(playground).front(0.5)


def test_a_system_is_sampled_at_the_dial_of_its_study(tmp_path: Path, dialled: Path) -> None:
    """A further system of a study: the quality student at half of its guidance."""
    less = system("less", "student", dict.fromkeys(AXES, 0.5))
    less.model = str(dialled / PLACES[0])
    base = Playground(dialled).finished.model_of("base")
    systems = {"less": {"model": "quality", "dial": 0.5}}
    changed = line()
    for each in changed:
        each.knob = None
    study = playable(tmp_path / "study", base, 8, systems=[*changed, less], claims=False, merges={})
    record = json.loads((study / "study.json").read_text())
    record["study"]["systems"] = systems
    (study / "study.json").write_text(json.dumps(record))
    for place in PLACES:
        shutil.copytree(dialled / place, study / place)
    playground = Playground(study)
    (drawn, _), _ = playground.draw("w3", "less", 7)
    expected = GenerateRequest(str(study / PLACES[0]), ["w3"], 2, max_new_tokens=8, dial=0.5, seed=7).draw().outputs
    assert [sample.text for sample in drawn.samples] == expected and playground.dial_of("less") == 0.5


def test_without_a_line_a_model_is_chosen_by_its_name(tmp_path: Path, texts: Path) -> None:
    systems = [each for each in line() if each.name != "half"]
    for each in systems:
        each.knob = None
    base = Playground(texts).finished.model_of("base")
    study = playable(tmp_path / "study", base, 8, systems=systems, merges={}, claims=False)
    shutil.copytree(texts / "students", study / "students")
    playground = Playground(study)
    assert playground.line is None and playground.start == "quality" and playground.students == ["quality", "diversity"]
    assert playground.draw("w1", "diversity", 0)[0][0].name == "diversity"
    pieces = demo.Pieces(playground)
    dot = re.search(r'data-system="diversity".*?cx="([\d.]+)" cy="([\d.]+)"', pieces.front("diversity"), re.DOTALL)
    assert dot and f'class="cursor" r="10" cx="{dot[1]}" cy="{dot[2]}"' in pieces.front("diversity")
    assert "the model" in pieces.intro() and "Press Draw" in pieces.hint()


def test_what_is_typed_is_data(texts: Path) -> None:
    pieces = demo.Pieces(Playground(texts))
    shown = pieces.samples('w1 <script>alert("x")</script>', 0.0, None)
    assert "<script>" not in shown and 'class="system"' in shown
    texts_of = [
        re.findall(r'<p class="text">(.*?)</p>', pieces.samples(*given)) for given in (("w1", 0.0, 7), ("w1 ", 0.0, 7))
    ]
    assert texts_of[0] == texts_of[1] and len(texts_of[0]) == 4
    assert 'class="problem"' in pieces.samples("w1 " * 200, 0.0, 0)


def refused(words: list[str], capsys: pytest.CaptureFixture) -> str:
    capsys.readouterr()
    assert main(["demo", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


def test_what_is_refused(
    tmp_path: Path, texts: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_problems_of_gradio", list)
    assert "`nothing` does not exist" in refused(["nothing"], capsys)
    (tmp_path / "empty").mkdir()
    assert "it holds no study.json" in refused([str(tmp_path / "empty")], capsys)
    alone = playable(tmp_path / "alone", "tunes:base", 8, systems=line()[:2], fits={}, merges={}, claims=False)
    assert "the study has baselines alone. Add fits to its file." in refused([str(alone)], capsys)
    gone = playable(tmp_path / "gone", "tunes:base", 8)
    assert "expected its model in" in (said := refused([str(gone)], capsys)) and "Run the study again" in said
    assert "Option `--samples`: expected a number from 1 to 16, but got 0." in refused(
        [str(texts), "--samples=0"], capsys
    )
    assert "Option `--against`: expected a system of the study" in refused([str(texts), "--against", "x"], capsys)
    assert "`half` is sampled without guidance" in refused([str(texts), "--against", "half"], capsys)
    assert "Option `--port`: expected a number from 0 to 65535" in refused([str(texts), "--port=65536"], capsys)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        said = refused([str(tmp_path / "empty"), f"--port={port}"], capsys)
        assert f"Option `--port`: expected a free port, but {port} cannot be used" in said and "2 problems" in said
    playground = Playground(texts)
    for prompt, seed, expected in (
        ("\x07", 0, r"U\+0007"),
        ("w1", -1, "Expected a seed"),
        ("w1 " * 200, 0, "positions"),
    ):
        with pytest.raises(ConfigError, match=expected):
            playground.draw(prompt, 0.0, seed)


def test_without_the_extra_the_command_says_how_to_install_it(
    texts: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    assert 'pip install ".[demo]"' in refused([str(texts)], capsys)


@pytest.fixture(scope="module")
def server(tunes: Path) -> Iterator[str]:
    """The address of a page, served by a process of its own: Gradio leaves event loops open, which tests take for mistakes."""
    for extra in ("gradio", "soundfile"):
        if importlib.util.find_spec(extra) is None:
            pytest.skip(f"{extra} is missing")
    words = [sys.executable, "-m", "cfg_distill.cli", "demo", str(tunes), "--samples", "1", "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        said = process.stdout.readline()
        found = re.fullmatch(r"Open (http://127.0.0.1:\d+/) in a browser. Ctrl-C ends it.\n", said)
        if found is None:
            process.kill()
            pytest.fail(f"{said}{process.stderr.read()}")
        yield found[1]
        process.terminate()


def test_the_page_draws_plays_and_moves(open_page: OpenPage, server: str) -> None:  # noqa: F811
    page = open_page(server)
    page.locator("#prompt textarea").fill("A lively Irish jig in G major")
    page.locator("#draw").click()
    players = page.locator("#samples .player button")
    players.nth(1).wait_for(timeout=120_000)  # 5 s on a machine that does nothing else
    assert page.locator("#samples h3").all_inner_texts() == ["half, dial 1.00", "guidance 2"]
    assert page.locator("#samples audio[controls]").count() == 0  # the page's own players stand in their place
    page.locator("#samples summary").first.click()
    assert page.locator("#samples pre").first.inner_text().startswith("X:1\nT:A lively Irish jig in G major")
    players.first.click()
    page.wait_for_function("[...document.querySelectorAll('audio')].some((each) => each.currentTime > 0.05)")

    def cursor() -> tuple[str | None, ...]:
        ring = page.locator("#front .cursor").first
        return ring.get_attribute("cx"), ring.get_attribute("cy")

    before = cursor()
    page.locator("#setting input[type=range]").focus()
    page.keyboard.press("End")
    page.locator("#front b", has_text="diversity").wait_for()
    dot = page.locator("#front svg").first.locator(".dot[data-system='diversity'] .hit")
    assert cursor() == (dot.get_attribute("cx"), dot.get_attribute("cy")) != before
    assert "0 is no guidance, 1 is guidance 2" in page.locator("#dial").inner_text()
    page.locator("#dial input[type=range]").focus()
    page.keyboard.press("Home")
    page.locator("#prompt textarea").fill("a song without any sense")
    page.locator("#draw").click()
    page.locator("#samples h3", has_text="diversity, dial 0.00").wait_for()
    page.locator("#samples .note", has_text="not understood").wait_for()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_width_overflows(open_page: OpenPage, server: str, width: int) -> None:  # noqa: F811
    page = open_page(server, width=width)
    page.locator("#front svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
