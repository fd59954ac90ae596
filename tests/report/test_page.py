"""report.html as text: what it holds, what it escapes, and that it copes with what is not there."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from made_study import PROMPTS, line, system, tone, write_logs, write_samples, write_study

from cfg_distill.audio import compressed
from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import System
from cfg_distill.evaluation.choice import Rule, guard_of
from cfg_distill.report import drawing, write_report
from cfg_distill.report import sounds as sounds_module
from cfg_distill.report.curves import charts_of, read_curves
from cfg_distill.report.drawing import Scale, front_panel, scale_of
from cfg_distill.report.meanings import meaning_of
from cfg_distill.report.results import read_results
from cfg_distill.report.sounds import SECONDS, clip

soundfile = pytest.importorskip("soundfile", reason="the audio extra is missing")


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A finished study of tunes."""
    return write_study(tmp_path / "study", prompts=3)


def page_of(study: Path, **settings: bool) -> str:
    return write_report(study, **settings).read_text(encoding="utf-8")


def change_front(study: Path, **changes: object) -> None:
    file = study / "front.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_the_decision_is_on_top(study: Path) -> None:
    page = page_of(study)
    assert "<h1>Ship <em>half</em>, knob 0.5</h1>" in page
    assert "the most diverse point whose quality is not more than 0.02 below <b>guidance 2</b>" in page
    assert page.index("<h1>") < page.index('id="front"') < page.index('id="samples"') < page.index('id="claims"')
    assert f"cfg-distill choose {study} --out my-model" in page


def test_the_first_line_counts_prompts_samples_and_seeds(study: Path) -> None:
    assert "Study study · 12 held-out prompts × 4 samples × 2 sampling seeds<" in page_of(study)
    for file in (study / "systems").glob("*.json"):
        system = json.loads(file.read_text())
        if system["kind"] == "student":
            file.write_text(json.dumps(system | {"training_seeds": [4, 5, 6]}))
    assert "2 sampling seeds, students of 3 training seeds<" in page_of(study)


def test_a_study_without_a_merge_shows_the_samples_of_its_one_student(study: Path) -> None:
    front = json.loads((study / "front.json").read_text())
    file = study / "study.json"
    record = json.loads(file.read_text())
    record["study"]["claims"] |= {"diversity": None, "merge": None}
    file.write_text(json.dumps(record))
    one = [
        point for point in front["systems"] if point["kind"] not in ("student", "merge") or point["name"] == "quality"
    ]
    nothing = {"system": None, "knob": None, "reason": "None is good.", "margin": 0.02, "guards": [], "rejected": []}
    change_front(study, systems=one, choice=nothing)
    page = page_of(study)
    assert 'data-system="quality" data-prompt="1">' in page and 'data-system="half"' not in page


def test_a_choice_that_the_user_made_is_the_one_that_is_shown(study: Path) -> None:
    mine = {"system": "quality", "knob": 0.0, "reason": "I like it.", "margin": 0.5, "guards": [], "rejected": []}
    change_front(study, choice=mine)
    page = page_of(study)
    assert "Ship <em>quality</em>, knob 0</h1>" in page and "I like it." in page


@pytest.mark.parametrize(
    "words",
    [
        [],
        *(pytest.param(words, marks=pytest.mark.slow) for words in (["--margin=0.2"], ["--margin=0.2", "--guard"])),
        ["--guard", "rests<0.5", "rests > base - 1"],
    ],
)
def test_the_command_of_the_page_makes_the_choice_of_the_page(study: Path, words: list[str]) -> None:
    write_report(study)
    assert main(["choose", str(study), *words]) == 0
    chosen = json.loads((study / "front.json").read_text())["choice"]
    (command,) = re.findall(
        r"cfg-distill (choose .*?) --out my-model", html.unescape((study / "report.html").read_text())
    )
    assert len(shlex.split(command)) == 2 or words
    assert main(shlex.split(command)) == 0
    assert json.loads((study / "front.json").read_text())["choice"] == chosen
    assert (chosen["system"] == "diversity") == ("--margin=0.2" in words)


def test_a_guard_shows_its_value_and_its_bound(study: Path) -> None:
    rule = Rule("quality", ["diversity"], 9.0, [guard_of("rests<0.2")])
    change_front(study, choice=read_results(study).choose(rule=rule).entry())
    page = page_of(study)
    assert "Ship <em>diversity</em>" in page and "every guard holds" in page
    assert re.search(r"<dt>rests, guard &lt; 0.2</dt><dd><strong>0.1</strong> <span>\[0.\d+, 0.10\d\]", page)


def test_prompts_and_samples_are_data(study: Path) -> None:
    page = page_of(study)
    assert '<script>alert("x")</script>' not in page
    assert "a &lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; reel" in page
    assert "<i>+0.2</i>" not in page and "&lt;i&gt;+0.2&lt;/i&gt;" in page
    # The script tags are the page's own: its data, and its code.
    assert len(re.findall(r"<script", page)) == 2


def test_text_samples_are_data_too(tmp_path: Path) -> None:
    page = page_of(write_study(tmp_path / "study", kind="text"))
    assert "<b>half</b> says 1.1" not in page and "&lt;b&gt;half&lt;/b&gt; says 1.1" in page
    assert '<h2 id="samples-title">Read</h2>' in page and "<audio" not in page
    assert not (tmp_path / "study" / "report_files").exists()


def test_names_of_systems_are_data_too(tmp_path: Path) -> None:
    odd = '<u>odd</u> & "quoted"\''
    study = write_study(tmp_path / "study", kind="")
    front = json.loads((study / "front.json").read_text())
    renamed = json.loads(json.dumps(front).replace('"half"', json.dumps(odd)))
    (study / "front.json").write_text(json.dumps(renamed))
    made = system(odd, "merge", {"quality": 0.69, "diversity": 0.5, "bigram": 0.83, "rests": 0.0}, 0.5)
    made.save(study / "systems" / "odd.json")
    page = page_of(study)
    assert "<u>odd</u>" not in page and "&lt;u&gt;odd&lt;/u&gt;" in page


def test_nothing_is_loaded_from_a_network(study: Path) -> None:
    page = page_of(study)
    assert not re.findall(r"https?://|//cdn|@import|url\(", page)


def test_sound_lies_beside_the_page_and_is_small(study: Path) -> None:
    page = page_of(study)
    files = sorted((study / "report_files").iterdir())
    assert len(files) == 5 * 3 * 2 and {file.suffix for file in files} == {".ogg"}
    assert 'src="report_files/guidance%202-01-1.ogg"' in page
    samples, rate = soundfile.read(study / "report_files" / "half-01-1.ogg")
    assert (len(samples), rate) == (8000, 8000)
    wav = study / "samples" / "half" / "01-a-jig-in-d-1.wav"
    assert (study / "report_files" / "half-01-1.ogg").stat().st_size < wav.stat().st_size / 2


def test_sound_inside_the_page(study: Path) -> None:
    page = page_of(study, inline=True)
    assert not (study / "report_files").exists()
    (first, *_) = re.findall(r'src="data:audio/ogg;base64,([^"]+)"', page)
    assert soundfile.read(io.BytesIO(base64.b64decode(first)))[1] == 8000
    assert "report_files/" not in page
    assert '"data:audio' in page_of(study)  # written anew, the page keeps its form
    assert '"data:audio' not in page_of(study, inline=False)


def test_without_the_audio_extra_the_sound_is_the_wav_file(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds_module, "soundfile_library", lambda: None)
    page = page_of(study)
    assert 'src="report_files/half-01-1.wav"' in page and 'data-seconds="1.0"' in page
    assert (study / "report_files" / "half-01-1.wav").read_bytes()[:4] == b"RIFF"


def test_without_the_audio_extra_flac_is_named_and_the_page_is_written(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a study that was made where the extra is."""
    wav = study / "samples" / "half" / "01-a-jig-in-d-1.wav"
    flac = compressed(wav, "flac")
    monkeypatch.setattr(sounds_module, "soundfile_library", lambda: None)
    assert f"{flac} cannot be read" in page_of(study)
    assert (study / "report_files" / "half-01-2.wav").is_file()


def test_long_clips_are_cut_and_fade_out(tmp_path: Path) -> None:
    tone(tmp_path / "long.wav", SECONDS + 5)
    content, seconds = clip(tmp_path / "long.wav")
    samples, rate = soundfile.read(io.BytesIO(content))
    assert seconds == SECONDS and len(samples) == SECONDS * rate
    assert abs(samples[: rate // 2]).max() > 0.2 and abs(samples[-rate // 100 :]).max() < 0.02


def test_clips_are_encoded_once(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = page_of(study)
    encoded: list[str] = []
    monkeypatch.setattr(sounds_module, "clip", lambda file: encoded.append(file.name) or clip(file))
    assert page_of(study) == before and encoded == []
    changed = study / "samples" / "half" / "02-a-slow-air-2.wav"
    os.utime(changed, (changed.stat().st_atime, changed.stat().st_mtime + 100))
    page_of(study)
    assert encoded == ["02-a-slow-air-2.wav"]


def test_a_sound_that_cannot_be_read_is_named(study: Path) -> None:
    broken = study / "samples" / "half" / "01-a-jig-in-d-1.wav"
    broken.write_bytes(b"RIFF, and no more")
    page = page_of(study)
    assert f"{broken} cannot be read." in page
    assert len(list((study / "report_files").iterdir())) == 29


def test_the_page_of_somebody_else_is_kept(study: Path) -> None:
    (study / "report.html").write_text("<html>mine</html>")
    with pytest.raises(ConfigError, match="cfg-distill did not write it"):
        write_report(study)
    assert (study / "report.html").read_text() == "<html>mine</html>"


def test_every_number_and_sign_of_the_tables(study: Path) -> None:
    page = page_of(study)
    assert len(re.findall(r'<td>0.620 <small>±0.0\d\d</small><span class="best"', page)) == 1  # of diversity
    assert "<h3>Guards</h3>" in page and "half the width of its 95 % bootstrap interval" in page
    assert "Mean cosine distance between the samples of a prompt" in page  # the metric says what it is
    assert re.search(r'<tr class="merge chosen"><th scope="row">half</th>', page)
    assert '<p class="verdict holds">holds</p>' in page and "<h3>Guidance lowers diversity</h3>" in page


def test_the_scores_of_a_prompt_are_its_own(study: Path) -> None:
    half = next(each for each in line() if each.name == "half")
    mean = sum(row[1] for row in half.values["quality"]) / 2
    article = re.search(r'data-system="half" data-prompt="1">.*?</article>', page_of(study), re.DOTALL)
    assert article and f"quality {mean:.2f} · diversity" in article[0]


def test_keys_of_later_versions_are_shown_when_they_are_there(study: Path) -> None:
    front = json.loads((study / "front.json").read_text())
    for point in front["systems"]:
        point |= {
            "seconds": 0.0123,
            "training_seeds": [0, 1, 2],
            "missing": {"bigram": 2} if point["name"] == "half" else {},
        }
    (half,) = [each for each in line() if each.name == "half"]
    for values in half.values["bigram"]:
        values[:2] = [math.nan, math.nan]
    half.save(study / "systems" / "half.json")
    real = system("real: tunes", "real", {"quality": 0.95, "diversity": 0.9})
    broken = system("degenerate: loops", "degenerate", {"quality": 0.2, "diversity": 0.0})
    (study / "ladder.json").write_text(json.dumps([vars(real), vars(broken)]))
    front["systems"] += [real.point(), broken.point()]
    height = {"mean": 0.1, "low": 0.08, "high": 0.12}
    curve = [{"system": "half", "knob": 0.5, "height": height, "verdict": "holds"}]
    front["fronts"] = [
        {"quality": "quality", "diversity": "bigram", "cost": "equal", "baselines": ["base"], "curve": curve}
    ]
    front["timing"] = [{"system": "base", "rows": rows, "tokens": 64, "seconds": 0.5 / rows} for rows in (1, 4)]
    front["notes"] = ["One training seed: the <intervals> of `a jig` say nothing about another training run."]
    part, guard = {"part": "a part", "verdict": "undecided"}, {"text": "rests < 0.1 of half", "verdict": "holds"}
    claim = {"name": "C1", "claim": "It holds", "verdict": "undecided", "evidence": ""}
    front["claims"] = [claim | {"parts": [part], "guards": [guard]}]
    change_front(study, **front)
    page = page_of(study)
    assert '<th scope="col">Seconds</th>' in page and "<td>0.0123</td>" in page
    assert "bigram, 1 baseline of equal cost" in page and "+0.100 [+0.080, +0.120]" in page
    assert '<th scope="col">4 at once</th>' in page and "<td>0.125</td>" in page
    assert "the &lt;intervals&gt; of <b>a jig</b> say nothing" in page
    assert "<h3>C1 It holds</h3>" in page and "guard rests &lt; 0.1 of half" in page
    lost = "\u201d, \u201c".join(map(html.escape, half.prompts[:2]))
    assert f"has no value on up to 2 prompts\n      (\u201c{lost}\u201d)" in page
    assert "This page was written with" in page and f"torch {torch.__version__}" in page
    # Rows of the ladder stand below all systems, have no cost, and are no rivals: the best mean is a system's.
    table = page[page.index("<h3>Quality</h3>") : page.index("<h3>Diversity</h3>")]
    systems, rows = re.findall(r"<tbody.*?</tbody>", table, re.DOTALL)
    assert 'aria-label="best"' in systems and 'aria-label="best"' not in rows and "0.950 <small>" in rows
    assert '<th colspan="2" scope="rowgroup">Real and degenerate samples</th>' in rows
    assert re.findall(r'<tr class="(\w+)"><th scope="row">([^<]*)</th><td></td><td></td>', rows) == [
        ("real", "tunes"), ("degenerate", "loops"),
    ]  # fmt: skip
    labels = re.findall(r'<text class="label other"[^>]*>([^<]*)</text>', page)
    assert labels == ["real: tunes"] and "drawn by no system" in page
    assert 'data-system="real: tunes" aria-label' in page and 'data-system="degenerate: loops" aria-label' not in page
    assert "samples that no system drew" in page


def test_a_knob_beyond_the_second_student(tmp_path: Path) -> None:
    page = page_of(write_study(tmp_path / "out", line({"beyond": ("merge", 0.62, 0.8, 0.85, 0.01, 1.5)})))
    assert '<input id="dial" type="range" min="0.0" max="1.5"' in page
    assert (
        "the share of <b>diversity</b> in its merge with <b>quality</b>; above 1 lies beyond <b>diversity</b>" in page
    )
    places = re.findall(r'<span style="left: ([\d.]+)%">(\w+)</span>', page)
    assert {name: float(place) for place, name in places}["beyond"] == 100.0
    assert {name: float(place) for place, name in places}["diversity"] == pytest.approx(100 / 1.5)


def test_an_evaluation_has_a_page_too(tmp_path: Path) -> None:
    """Numbered files, no study file, no claims, no guided system: no decision and no knob, and no error."""
    folder = write_study(tmp_path / "out", line()[:1], kind="")
    (folder / "study.json").unlink()
    change_front(folder, claims=[])
    (folder / "systems" / "base.json").rename(folder / "systems" / "01 base.json")
    write_samples(folder / "samples" / "01 base", "base", 2)
    page = page_of(folder)
    assert "<h1>Evaluation out</h1>" in page and "so nothing is recommended" in page
    assert 'id="dial"' not in page and 'id="claims"' not in page and page.count("<audio") == 4


def test_the_settings_say_how_the_systems_were_sampled(study: Path) -> None:
    for number, file in enumerate(sorted((study / "systems").glob("*.json"))):
        system = json.loads(file.read_text())
        file.write_text(json.dumps(system | {"temperature": 0.5, "top_p": 0.9, "min_p": 0.1 if number else 0.0}))
    assert "<dt>Sampling</dt><dd>temperature 0.5, top-p 0.9, min-p 0 to 0.1</dd>" in page_of(study)


@pytest.mark.parametrize("name", ["facebook/musicgen-small", "students/quality", "{elsewhere}/quality"])
def test_the_sound_of_a_model_of_any_name_lies_beside_the_page(tmp_path: Path, name: str) -> None:
    """An evaluation names a system as the user named the model: a hub name and a path have slashes."""
    name = name.format(elsewhere=tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    folder = write_study(tmp_path / "out", line()[:1], kind="")
    (folder / "study.json").unlink()
    content = json.loads((folder / "front.json").read_text().replace('"base"', json.dumps(name)))
    change_front(folder, claims=[], systems=content["systems"])
    made = (folder / "systems" / "base.json").read_text().replace('"name": "base"', f'"name": {json.dumps(name)}')
    (folder / "systems" / "base.json").unlink()
    (folder / "systems" / "01 model.json").write_text(made)
    write_samples(folder / "samples" / "01 model", "base", 2, kind="sound")
    assert 'src="report_files/01%20model-01-1.ogg"' in page_of(folder)
    assert len(list((folder / "report_files").iterdir())) == 4
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_metrics_of_one_axis_alone_make_no_picture(tmp_path: Path) -> None:
    only = [system(name, "model", {"diversity": 0.5}) for name in ("a", "b")]
    folder = write_study(tmp_path / "out", only, kind="")
    (folder / "study.json").unlink()
    page = page_of(folder)
    assert '<svg class="front"' not in page and "<h3>Diversity</h3>" in page


def test_of_several_training_seeds_the_first_is_heard(study: Path) -> None:
    folder = study / "samples" / "half"
    one = System.read(study / "systems" / "half.json")
    one.model += "/seed 2"  # the model of the first seed, though not the first by its letters
    one.save(study / "systems" / "half.json")
    for seed in (2, 10):
        write_samples(study / "samples" / "new" / f"seed {seed}", f"half of seed {seed}", 2)
    shutil.rmtree(folder)
    (study / "samples" / "new").rename(folder)
    for seed, fit in ((2, "quality"), (10, "quality"), (2, "diversity")):
        write_logs(study / "fits" / fit / f"seed {seed}")
    page = page_of(study)
    assert "half of seed 2" in page and "half of seed 10" not in page
    # Both seeds of the first fit look alike, in two charts; one more line is in the legend.
    assert page.count('class="curve fit0" d="M') == 2 * 2 + 1


def test_training_curves_of_both_kinds_of_logs(study: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    write_logs(study / "fits" / "quality")
    writer = SummaryWriter(study / "fits" / "diversity" / "version_0")
    for step in range(20):
        writer.add_scalar("train/kl_per_token", 0.5 + step / 100, step)
    writer.add_text("samples/0", "no scalar", 1)
    writer.close()
    curves = read_curves(study / "fits" / "diversity")
    assert [step for step, _ in curves["train/kl_per_token"]] == list(range(20)) and len(curves) == 1
    assert curves["train/kl_per_token"][7][1] == pytest.approx(0.57)
    assert read_curves(study / "fits" / "quality")["val/quality"] == [(49, 0.7), (99, 0.8)]
    page = page_of(study)
    assert 'id="training"' in page and page.count('class="chart"') == 2
    assert '<path class="curve fit1"' in page and "optimiser steps" in page


def test_a_log_that_a_killed_run_cut_short(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path / "version_0")
    for step in range(20):
        writer.add_scalar("train/loss", step, step)
    writer.close()
    (file,) = (tmp_path / "version_0").iterdir()
    file.write_bytes(file.read_bytes()[:-30])
    assert [step for step, _ in read_curves(tmp_path)["train/loss"]] == list(range(19))


def test_a_later_run_wins_and_long_logs_are_thinned(tmp_path: Path) -> None:
    for run, value in (("version_2", 1.0), ("version_10", 2.0)):
        (tmp_path / run).mkdir()
        rows = "\n".join(f"{step},{value}" for step in range(1000))
        (tmp_path / run / "metrics.csv").write_text(f"step,train/loss\n{rows}\n")
    curves = read_curves(tmp_path)
    assert {value for _, value in curves["train/loss"]} == {2.0}
    (chart,) = charts_of({"quality": curves})
    assert 150 < len(chart.lines[0][1]) <= 240


# Coordinates


def test_ticks_are_round_and_inside() -> None:
    assert [text for _, text in Scale(0.0, 1.0, 0, 100).ticks(5)] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert [text for _, text in Scale(12.0, 260.0, 0, 100).ticks(5)] == ["50", "100", "150", "200", "250"]
    scale = scale_of([3.0, 3.0], 0, 100)  # no width: some is made
    assert scale(3.0) == pytest.approx(50)


def test_a_point_is_drawn_where_its_means_are() -> None:
    points = [each.point() for each in line()]
    panel = front_panel(points, ("quality", "diversity"), ["half", "base"], ["half"], ["quality", "half", "diversity"])
    dots = {dot.name: dot for dot in panel.dots}
    for point in points:
        dot = dots[point["name"]]
        assert dot.x == pytest.approx(panel.across(point["diversity"]["diversity"]["mean"]))
        assert dot.y == pytest.approx(panel.up(point["quality"]["quality"]["mean"]))
    assert dots["base"].x > dots["guidance 2"].x and dots["base"].y > dots["guidance 2"].y  # pixels count from the top
    assert [knob for knob, _, _ in panel.knob] == [0.0, 0.5, 1.0]
    assert panel.knob[1][1:] == (dots["half"].x, dots["half"].y)
    assert {dot.name for dot in panel.dots if dot.label} == {"half", "base"}
    assert [dot.name for dot in panel.dots if dot.shown] == ["half"]


def test_points_without_a_name_to_show_are_drawn_all_the_same() -> None:
    panel = front_panel([each.point() for each in line()], ("quality", "diversity"), [], [], [])
    assert panel.dots and not [dot for dot in panel.dots if dot.label]


def test_a_small_hollow_point_has_an_outline_whatever_it_is() -> None:
    style = (Path(drawing.__file__).parent / "templates" / "parts.css").read_text(encoding="utf-8")
    assert all(f".quiet.{family} .mark {{ stroke: " in style for family in {*drawing.FAMILIES.values(), "other"})


def test_meanings_are_read_from_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        'raise SystemExit\nclass Words:\n    """Number of words; see :func:`count`.\n\n    More."""\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert meaning_of({"class_path": "mine.Words"}) == "Number of words."
    assert (
        meaning_of({"class_path": "mine.Nothing"}) == meaning_of({"class_path": "gone.Words"}) == meaning_of(None) == ""
    )
    assert meaning_of({"class_path": "cfg_distill.tunes.metrics.TuneQuality"})
    assert len(PROMPTS) == 12
