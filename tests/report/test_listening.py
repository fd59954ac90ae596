"""``cfg-distill listen``: what is in the folder, what raters cannot see, and the page in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from browser import OpenPage, browser, open_page, pages  # noqa: F401
from report_studies import TUNES, standing_in
from tiny import tiny_folder

from cfg_distill.audio import Waveform, compressed, write_audio
from cfg_distill.cli import main
from cfg_distill.evaluation.headline import Headline
from cfg_distill.evaluation.written import Writer
from cfg_distill.generators import CausalLM, open_generator
from cfg_distill.guidance import Guidance
from cfg_distill.report import clips
from cfg_distill.report.clips import Finished, _written, common_gain, encoded, read_finished
from cfg_distill.report.listening_request import PRESETS, evenly
from cfg_distill.report.sounds import clip as on_the_page
from cfg_distill.sampling import Sampling, draw
from cfg_distill.sampling.samples import Samples
from cfg_distill.study.config import Evaluation, Study
from cfg_distill.study.parts import Fit, SystemConfig
from cfg_distill.study.record import digest

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning")
Listen = Callable[..., Path]


@pytest.fixture
def listen(tmp_path: Path, capsys: pytest.CaptureFixture) -> Listen:
    """Writes a listening test of a study, with further words of the command, and returns its folder."""

    def written(study: Path, *words: str, out: str = "test") -> Path:
        with standing_in(study.parent):
            assert main(["listen", "out", f"--out={tmp_path / out}", *words]) == 0, capsys.readouterr().err
        return tmp_path / out

    return written


def data_of(test: Path) -> dict[str, Any]:
    page = (test / "page" / "index.html").read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def key_of(test: Path) -> dict[str, Any]:
    return json.loads((test / "key.json").read_text())


# The folder


def test_clips_are_the_samples_that_the_study_wrote(tunes: Path, listen: Listen, monkeypatch) -> None:
    monkeypatch.setattr(CausalLM, "load", lambda self: pytest.fail("loaded"))
    test = listen(tunes, "--prompts=3", "--variety=2", "--systems", "base", "guidance 2")
    key, data = key_of(test), data_of(test)
    assert key["source"] == "written by the study" and key["prompts"] == TUNES[:3]
    assert key["systems"] == ["base", "guidance 2"] and key["against"] == "guidance 2"
    assert [item["kind"] for item in key["items"].values()].count("quality") == 6
    items = {item["id"]: item for item in data["items"]}
    assert items.keys() == key["items"].keys() and data["page"] == key["page"]
    for item, meaning in key["items"].items():
        assert items[item]["prompt"] == TUNES[meaning["prompt"]]
        # Group -> system for variety; one clip of one system for quality.
        groups = (
            {meaning["system"]: items[item]["clips"]}
            if meaning["kind"] == "quality"
            else {meaning["groups"][group["id"]]: group["clips"] for group in items[item]["groups"]}
        )
        for system, names in groups.items():
            for number, clip in enumerate(names, start=1):
                (source,) = (tunes / "samples" / system).glob(f"0{meaning['prompt'] + 1}-*-{number}.flac")
                samples, rate = soundfile.read(test / "page" / data["clips"][clip]["file"], dtype="int16")
                np.testing.assert_array_equal(samples, soundfile.read(source, dtype="int16")[0])
                assert data["clips"][clip]["seconds"] == pytest.approx(len(samples) / rate, abs=1e-3)
    assert json.loads((tunes / "listening" / f"{key['page']}.json").read_text()) == key


def test_of_a_student_with_several_training_seeds_the_first_one_is_heard(tmp_path: Path) -> None:
    study = Study(
        "out", evaluation=Evaluation("prompts.txt", {}, Headline("quality", "diversity")), training_seeds=[4, 7]
    )
    finished = Finished(tmp_path, study, {})
    assert finished.written_of("half") is None
    for seed in (7, 4):
        outputs = [tmp_path / f"systems/half/seed {seed}.json", tmp_path / f"samples/half/seed {seed}"]
        outputs[1].mkdir(parents=True)
        outputs[0].parent.mkdir(parents=True, exist_ok=True)
        outputs[0].write_text("{}")
        (outputs[1] / "01-a-jig-1.txt").write_text("a jig\n\nC:1\n")
        (tmp_path / "steps").mkdir(exist_ok=True)
        (tmp_path / f"steps/evaluate half seed {seed}.json").write_text(json.dumps({"made": digest(outputs)}))
    assert finished.written_of("half") == tmp_path / "samples/half/seed 4"
    (tmp_path / "samples/half/seed 4/01-a-jig-1.txt").write_text("changed")
    assert finished.written_of("half") is None


def test_the_page_does_not_tell_which_system_a_clip_is_of(tunes: Path, listen: Listen) -> None:
    test = listen(tunes, "--prompts=3", "--variety=2", "--seed=1")
    page, key = (test / "page" / "index.html").read_text(), key_of(test)
    data = json.dumps(data_of(test))
    for secret in (*key["systems"], "tunes:base", str(tunes), "out/samples", "guidance"):
        assert secret not in data and f'"{secret}"' not in page, secret
    files = [file for file in (test / "page").rglob("*") if file.is_file()]
    assert len(files) == 1 + 3 * (3 + 2)  # a second sample only of the two prompts that are compared
    assert all(re.fullmatch(r"[0-9a-f]{16}\.flac|index\.html", file.name) for file in files)
    assert len({file.stat().st_mtime for file in files}) == 1  # else the order of writing would tell
    # Names sorted, as the page and the file system list them, leave the systems mixed.
    by_item = [key["items"][item["id"]] for item in data_of(test)["items"]]
    assert list(key["items"]) == [item["id"] for item in data_of(test)["items"]] == sorted(key["items"])
    systems = [meaning["system"] for meaning in by_item if meaning["kind"] == "quality"]
    assert systems != sorted(systems, key=key["systems"].index)
    # The side of the system of comparison is no constant.
    compared = [item for item in data_of(test)["items"] if item["kind"] == "variety"]
    sides = [key["items"][item["id"]]["groups"][item["groups"][0]["id"]] == "guidance 2" for item in compared]
    assert set(sides) == {False, True}


def test_the_same_command_gives_the_same_page_and_another_seed_another(texts: Path, listen: Listen) -> None:
    words = ["--prompts=3", "--variety=2"]
    pages = [
        (listen(texts, *words, *more, out=str(n)) / "page/index.html").read_bytes()
        for n, more in enumerate(([], [], ["--seed=1"]))
    ]
    assert pages[0] == pages[1] != pages[2]


def test_samples_are_drawn_where_the_written_ones_do_not_suffice(texts: Path, listen: Listen) -> None:
    enough = listen(texts, "--prompts=3", "--variety=2", out="enough")
    assert key_of(enough)["source"] == "written by the study"
    for n, words in enumerate((["--prompts=4", "--variety=0"], ["--prompts=3", "--group=3", "--variety=1"])):
        test = listen(texts, *words, out=str(n))
        assert key_of(test)["source"] == "drawn under seed 0"
        assert any(clip["text"] for clip in data_of(test)["clips"].values())
    own = texts.parent / "own.txt"
    own.write_text("w7 w8\nw2\n")
    test = listen(texts, "--prompts=2", "--variety=1", f"--prompt-file={own}", out="own")
    assert key_of(test)["prompts"] == ["w7 w8", "w2"]


def test_drawn_texts_are_what_the_models_say(texts: Path, listen: Listen) -> None:
    """Independent of the page: the study's model, sampled by hand under the same seed."""
    test = listen(texts, "--prompts=4", "--variety=0", "--seed=5", "--systems", "guidance 2")
    key, data = key_of(test), data_of(test)
    with standing_in(texts.parent):
        model = open_generator("base").load()
        samples = draw(model, key["prompts"], Sampling(1, 8), Guidance(2.0), seed=5)
    clips = {key["items"][item["id"]]["prompt"]: data["clips"][item["clips"][0]]["text"] for item in data["items"]}
    assert [clips[place] for place in range(4)] == samples.outputs


def test_a_prompt_with_a_carriage_return_has_its_samples(tmp_path: Path) -> None:
    """As the cell of a table made on Windows has one."""
    prompt, sample = "w1\r\nw2", "w4\rw5"
    writer = Writer(CausalLM(tiny_folder(tmp_path / "model")), tmp_path / "out", prompts=1, samples=1)
    writer(Samples([prompt], [sample], rollout=None))  # type: ignore[arg-type]
    writer.finish()
    (stem,) = {file.with_suffix("") for file in (tmp_path / "out").iterdir()}
    assert _written(stem, prompt).text == sample


def test_a_sample_that_was_changed_is_drawn_anew(texts: Path, listen: Listen, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(texts.parent, copy)
    changed = next((copy / "out/samples/base").glob("01-*-1.txt"))
    changed.write_text(changed.read_text().replace("\n\n", "\n\nnot of the model "))
    test = listen(copy / "out", "--prompts=3", "--variety=1")
    assert key_of(test)["source"] == "drawn under seed 0"
    assert "not of the model" not in (test / "page/index.html").read_text()


def test_a_sample_without_sound_is_listened_to_all_the_same(tmp_path: Path) -> None:
    """CSM and Dia may end at once; of such a clip libsndfile writes a FLAC that it cannot read."""
    for form in ("wav", "flac", "ogg"):
        write_audio(tmp_path / f"01-a-{form}-1.wav", Waveform(torch.zeros(1, 0), 8000))
        file = compressed(tmp_path / f"01-a-{form}-1.wav", form)
        assert encoded(file, common_gain([file]))[2] == 0 and on_the_page(file)[1] == 0
        assert _written(file.with_suffix(""), "a").file == file


def test_one_gain_for_all(tmp_path: Path) -> None:
    loud, quiet = np.linspace(-2, 2, 800, dtype="float32"), np.linspace(-0.5, 0.5, 800, dtype="float32")
    for name, samples in (("loud", loud), ("quiet", quiet)):
        soundfile.write(tmp_path / f"{name}.wav", samples, 8000, subtype="FLOAT")
    files = [tmp_path / "loud.wav", tmp_path / "quiet.wav"]
    gain = common_gain(files)
    assert gain == pytest.approx(0.99 / 2)
    for file, samples in zip(files, (loud, quiet), strict=True):
        content, suffix, seconds = encoded(file, gain)
        (tmp_path / f"out{suffix}").write_bytes(content)
        np.testing.assert_allclose(soundfile.read(tmp_path / f"out{suffix}")[0], samples * gain, atol=1e-4)
        assert seconds == 0.1
    assert common_gain(files[1:]) == 1.0


def test_sound_that_was_turned_down_alone_is_drawn_anew(sounds: Path, listen: Listen, tmp_path: Path) -> None:
    """Written samples of a loud model each have a gain of their own."""
    words = ["--prompts=3", "--variety=0", "--systems", "base"]
    assert key_of(listen(sounds, *words, out="one"))["source"] == "written by the study"
    copy = tmp_path / "copy"
    shutil.copytree(sounds.parent, copy)
    file = next((copy / "out/samples/base").glob("01-*-1.flac"))
    samples, rate = soundfile.read(file)
    soundfile.write(file, samples * 0.99 / abs(samples).max(), rate, subtype="PCM_16")
    entry = copy / "out/steps/evaluate base.json"
    made = digest([copy / "out/systems/base.json", copy / "out/samples/base"])
    entry.write_text(json.dumps(json.loads(entry.read_text()) | {"made": made}))
    assert key_of(listen(copy / "out", *words, out="two"))["source"] == "drawn under seed 0"


def test_prompts_of_a_sorted_file_are_taken_evenly() -> None:
    assert evenly(101, 101) == list(range(101))
    assert evenly(24, 12) == list(range(0, 24, 2))
    assert PRESETS["paper"] == (101, 3, 50)


# Bad input


def test_all_problems_at_once(texts: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(texts.parent)
    monkeypatch.setattr(CausalLM, "load", lambda self: pytest.fail("loaded"))

    def said(*words: str) -> str:
        assert main(["listen", *words]) == 2
        message = capsys.readouterr().err
        assert "Traceback" not in message
        return message

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    message = said("out", f"--out={tmp_path / 'mine'}", "--systems", "bas", "--group=1", "--raters=0", "--overwrite")
    assert "5 problems" in message and "Did you mean `base`?" in message
    assert "Option `--group`: expected at least 2, but got 1" in message
    assert "Option `--raters`: expected at least 1, but got 0" in message and "thesis.tex" in message
    message = said("out", f"--out={tmp_path / 'new'}", "--preset=paper")
    assert "Option `--preset`: expected at most 6 prompts, since the study has no more, but got 101." in message
    assert "`--prompt-file`" in message
    assert "`--prompts`: expected at most 6" in said("out", f"--out={tmp_path / 'new'}", "--prompts=7")
    assert "`--variety`: expected at most 2" in said("out", f"--out={tmp_path / 'new'}", "--prompts=2", "--variety=3")
    message = said("out", f"--out={tmp_path / 'new'}", "--prompts=2", "--systems", "base", "--against=guidance 2")
    assert "`--against`: expected one of the rated systems" in message
    assert "holds the input" in said("out", "--out=.", "--prompts=2") or "is the input" in said("out", "--out=.")
    assert "does not exist" in said("none", "--out=x")
    assert "holds no study.json" in said(str(tmp_path), "--out=x")
    Path("new.yaml").write_text("out: runs/new\n")
    assert "has not been run" in said("new.yaml", "--out=x") and "study new.yaml" in said("new.yaml", "--out=x")
    Path("recipe.yaml").write_text("model: {}\n")
    assert "has no key `out`" in said("recipe.yaml", "--out=x")
    Path("five.yaml").write_text("out: 5\n")
    assert "File `five.yaml`: expected a study file, but its key `out` is 5" in said("five.yaml", "--out=x")
    assert not (tmp_path / "new").exists()


def test_a_study_that_is_not_finished_or_of_another_version(texts: Path, tmp_path: Path, capsys) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(texts.parent, copy)
    (copy / "out/systems/base.json").unlink()
    (copy / "out/systems/guidance 2.json").write_text("{")
    assert main(["listen", str(copy / "out"), f"--out={tmp_path / 'x'}", "--prompts=2"]) == 2
    message = capsys.readouterr().err
    assert "2 problems" in message and "is not finished: 1 of" in message and "(`base.json`)" in message
    assert "`guidance 2.json` cannot be read" in message and "it goes on" in message
    record = json.loads((copy / "out/study.json").read_text())
    record["study"]["colour"], record["version"] = "blue", "9.9"
    (copy / "out/study.json").write_text(json.dumps(record))
    assert main(["listen", str(copy / "out"), f"--out={tmp_path / 'x'}"]) == 2
    assert "version 9.9 wrote: Key `colour`" in capsys.readouterr().err


@pytest.mark.parametrize("tail", ["students/student", "students/student/seed 0", "merges/student/seed 0"])
def test_the_model_of_a_study_that_was_moved(texts: Path, tail: str, tmp_path: Path) -> None:
    """Of several training seeds, the models lie one folder deeper."""
    copy = shutil.copytree(texts, tmp_path / "moved")
    finished = read_finished(copy)
    finished.study.fits["student"] = Fit("fit.yaml")
    finished.systems["student"] = replace(finished.systems["base"], kind="student", model=f"runs/old/{tail}")
    assert "it is not there" in str(*finished.problems_of_model("student"))
    (copy / tail).mkdir(parents=True)
    assert finished.model_of("student") == str(copy / tail) and finished.problems_of_model("student") == []


def test_a_student_of_another_study_is_not_taken_for_one_of_this(texts: Path) -> None:
    finished = read_finished(texts)
    (finished.folder / "students/quality").mkdir(parents=True)
    finished.study.fits["quality"] = Fit("fit.yaml")
    finished.study.baselines["earlier"] = SystemConfig("runs/first/students/quality")
    finished.systems["earlier"] = replace(finished.systems["base"], model="runs/first/students/quality")
    assert finished.model_of("earlier") == "runs/first/students/quality"
    shutil.rmtree(finished.folder / "students")


def test_a_test_is_replaced_only_when_asked_for(texts: Path, listen: Listen, capsys) -> None:
    test = listen(texts, "--prompts=2", "--variety=0")
    with standing_in(texts.parent):
        assert main(["listen", "out", f"--out={test}", "--prompts=3"]) == 2
        assert "`--overwrite`" in capsys.readouterr().err
    assert len(key_of(listen(texts, "--prompts=3", "--variety=0", "--overwrite"))["prompts"]) == 3
    with standing_in(texts.parent):  # a good place, in which the study writes nothing
        assert main(["listen", "out", "--out=out/listening/inside", "--prompts=2"]) == 0


# The page


def rate(page: Any) -> None:
    """One item of quality, by clicks."""
    page.click(".play")
    page.click("#quality label:nth-child(4)")
    page.click("#adherence label:nth-child(2)")
    page.click("#next")


def progress(page: Any) -> str:
    return page.inner_text("#progress").split(",")[0]


@pytest.mark.parametrize("width", [390, 1280])
def test_rate_reload_go_on_and_finish(
    width: int,
    tunes: Path,
    listen: Listen,
    open_page: OpenPage,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    test = listen(tunes, "--prompts=3", "--variety=2", "--systems", "base", "guidance 2")
    page = open_page(test / "page/index.html", width=width, dark=width == 390, accept_downloads=True)
    page.click("text=Begin")
    assert "Write a name" in page.inner_text("#name-hint")
    page.fill("#rater", "Anna")
    page.click("text=Begin")
    # Nothing goes on before the clip was played.
    page.click("#next", force=True)
    assert page.inner_text("#hint") == "Play the clip first." and progress(page) == "0 of 8"
    for _ in range(3):
        rate(page)
    assert progress(page) == "3 of 8"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.eval_on_selector_all("button, .tile", "all => all.map(e => e.getBoundingClientRect().height)")
    assert min(sizes) >= 44  # to be hit by a finger
    prompt = page.inner_text(".prompt")
    page.reload()
    assert page.inner_text(".saved").startswith("Anna: 3 of 8 done")
    page.click("text=Go on")
    assert progress(page) == "3 of 8" and page.inner_text(".prompt") == prompt
    # The rest by keyboard alone.
    for _ in range(3):
        page.keyboard.press(" ")
        page.wait_for_selector(".player.heard")
        for key in ("5", "3", "ArrowLeft", "ArrowRight"):  # which turn the page, also from a score
            page.keyboard.press(key)
        assert page.eval_on_selector_all("input:checked", "all => all.map(each => each.value)") == ["5", "3"]
        page.keyboard.press("Enter")
    assert "which group is more varied" in page.inner_text("h1")
    page.keyboard.press("Enter")
    for choice in ("a", "e"):
        for number in range(4):
            page.keyboard.press(str(number + 1))
            page.wait_for_selector(f".player.heard >> nth={number}")
        page.keyboard.press(choice)
        page.keyboard.press("Enter")
    assert "Thank you" in page.inner_text("h1") and progress(page) == "8 of 8 done"
    with page.expect_download() as download:
        page.click("#download")
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    content, key = json.loads(file.read_text()), key_of(test)
    assert file.name == f"ratings-{key['page']}-anna.json"
    assert content["finished"] and content["rater"] == "Anna" and content["answers"].keys() == key["items"].keys()
    scores = [(a["quality"], a["adherence"]) for a in content["answers"].values() if "quality" in a]
    assert sorted(scores) == [(4, 2)] * 3 + [(5, 3)] * 3
    choices = [answer for answer in content["answers"].values() if "more" in answer]
    assert sorted(answer["more"] == "equal" for answer in choices) == [False, True]
    assert [a["shown"].index(a["more"]) for a in choices if a["more"] != "equal"] == [0]
    answers = content["answers"].values()
    assert all(answer["plays"] >= 1 and answer["at"] >= content["started"] for answer in answers)
    assert sum(answer["seconds"] for answer in answers) > 0
    capsys.readouterr()
    assert main(["ratings", str(file), "--listen", str(test)]) == 0
    assert "8 answers by Anna" in capsys.readouterr().out


def test_a_saved_copy_goes_on_in_another_browser(
    tunes: Path,
    listen: Listen,
    open_page: OpenPage,  # noqa: F811
    tmp_path: Path,
) -> None:
    test = listen(tunes, "--prompts=3", "--variety=2", "--systems", "base", "guidance 2")
    page = open_page(test / "page/index.html", accept_downloads=True)
    page.fill("#rater", "Ben")
    page.keyboard.press("Enter")
    for _ in range(2):
        rate(page)
    with page.expect_download() as download:
        page.click("text=Save a copy")
    copy = tmp_path / "copy.json"
    download.value.save_as(copy)
    assert len(json.loads(copy.read_text())["answers"]) == 2
    other = open_page(test / "page/index.html", width=390)
    assert other.locator(".saved").count() == 0
    foreign = copy.read_text().replace(key_of(test)["page"], "0" * 12)
    for text, problem in (("{", "not JSON"), ("{}", "no ratings"), (foreign, "another page")):
        (tmp_path / "wrong.json").write_text(text)
        other.set_input_files("input[type=file]", tmp_path / "wrong.json")
        other.wait_for_selector(f"[role=alert] >> text={problem}")
    other.set_input_files("input[type=file]", copy)
    other.wait_for_selector("#next")
    assert progress(other) == "2 of 8"
    # Back to what was answered: the scores stand there, and can be changed.
    other.keyboard.press("ArrowLeft")
    assert other.is_checked("#quality label:nth-child(4) input")
    other.keyboard.press("Tab")
    other.click("#quality label:nth-child(1)")
    assert other.evaluate("Object.values(result().answers).map((a) => a.quality).sort().join()") == "1,4"


def test_every_rater_has_an_order_and_sides_of_their_own(texts: Path, listen: Listen, open_page: OpenPage) -> None:  # noqa: F811
    page = open_page(listen(texts, "--prompts=5", "--variety=5") / "page/index.html")
    orders = page.evaluate("['anna', ' Anna ', 'ben', 'cleo'].map((name) => orderOf(name).join())")
    assert orders[0] == orders[1] and len(set(orders)) == 3
    assert len({"".join(sorted(order)) for order in orders}) == 1
    kinds = page.evaluate("orderOf('anna').map((id) => id === INTRO ? id : items.get(id).kind)")
    assert kinds == ["quality"] * 15 + ["variety"] + ["variety"] * 10
    first = page.evaluate(
        "['anna', 'ben', 'cleo'].map((name) => data.items.filter((i) => i.groups)"
        ".map((item) => Number(groupsOf(item, name)[0] === item.groups[0])).join(''))"
    )
    assert len(set(first)) == 3 and all({"0", "1"} == set(sides) for sides in first)


def test_texts_are_read_and_not_interpreted(
    texts: Path,
    listen: Listen,
    open_page: OpenPage,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nasty = "</script><b>bold</b> {{ data }} & <!-- \u2028 end"
    monkeypatch.setattr(
        clips, "_written", lambda stem, prompt: clips.Clip(text="" if stem.name.endswith("-2") else nasty)
    )
    page = open_page(listen(texts, "--prompts=2", "--variety=1") / "page/index.html", width=390)
    assert page.title() == "Reading test"
    page.fill("#rater", "Cleo")
    page.keyboard.press("Enter")
    assert page.inner_text(".words") == nasty
    assert page.locator(".play").count() == 0
    for _ in range(6):
        for key in ("3", "3", "Enter"):
            page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert "This text is empty." in page.inner_text(".groups")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    assert progress(page) == "7 of 8"


def test_a_clip_that_is_missing_says_so(tunes: Path, listen: Listen, browser: Any) -> None:  # noqa: F811
    test = listen(tunes, "--prompts=1", "--variety=0", "--systems", "base")
    next((test / "page/clips").glob("*.flac")).unlink()

    def look() -> None:
        with pages(browser) as opened:
            page = opened(test / "page/index.html")
            page.fill("#rater", "Dora")
            page.keyboard.press("Enter")
            page.wait_for_selector("[role=alert] >> text=Is the folder whole?")
            assert page.inner_text("#hint") == "Go on without this item."
            page.keyboard.press("Enter")  # a rater is not stuck
            assert page.inner_text("h1") == "Still open: 1 item"

    with pytest.raises(AssertionError, match="ERR_FILE_NOT_FOUND"):
        look()


def test_a_browser_that_keeps_nothing(texts: Path, listen: Listen, open_page: OpenPage) -> None:  # noqa: F811
    test = listen(texts, "--prompts=1", "--variety=0", "--systems", "base")
    page = open_page(test / "page/index.html", accept_downloads=True)
    page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new Error('blocked') }})")
    page.reload()
    assert "This browser keeps nothing" in page.inner_text(".problem")
    page.fill("#rater", "Eve")
    page.keyboard.press("Enter")
    for key in ("4", "4", "Enter"):
        page.keyboard.press(key)
    with page.expect_download() as download:
        page.click("#download")
    assert json.loads(Path(download.value.path()).read_text())["finished"]
