"""choose, compare, report and merge --knob: what they write, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from made_study import LINE, line, system, write_study
from tiny import tiny_folder

from cfg_distill.cli import main
from cfg_distill.evaluation import System
from cfg_distill.files import write_text
from cfg_distill.merging import merge_folders
from cfg_distill.report import run_study, studying
from cfg_distill.report.knob import line_of
from cfg_distill.report.opinions import add_opinions_to_front
from cfg_distill.report.results import read_results
from cfg_distill.study.ledger import amended
from cfg_distill.study.record import digest


@pytest.fixture
def study(folder: Path) -> Path:
    """A finished study in ``study``, where the test stands."""
    return write_study(folder / "study", kind="")


def front_of(study: Path) -> dict:
    return json.loads((study / "front.json").read_text())


def of_other_prompts(study: Path) -> System:
    found = System.read(study / "systems" / "half.json")
    return replace(found, prompts=[f"other {prompt}" for prompt in found.prompts])


def change_front(study: Path, change: Callable[[dict], object]) -> None:
    front = front_of(study)
    change(front)
    (study / "front.json").write_text(json.dumps(front))


def outputs_of(study: Path) -> list[Path]:
    """The files of a study's last step."""
    return [study / name for name in ("front.json", "front.png", "table.txt")]


def said_by(words: list[str], capsys: pytest.CaptureFixture) -> str:
    """What a refused command says."""
    capsys.readouterr()
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    return err


# choose


def test_choose_names_a_point_and_writes_it_into_the_front(study: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["choose", "study"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Recommended: half (knob 0.5).\n`half` is, under its least favourable measure,")
    assert "half*      +0.100 [" in said and "  diversity  quality is more than 0.02 below" in said
    choice = front_of(study)["choice"]
    assert (choice["system"], choice["knob"], choice["margin"], choice["guards"]) == ("half", 0.5, 0.02, [])
    assert [each["system"] for each in choice["rejected"]] == ["quality", "diversity"]


def test_margin_and_guards_of_the_command_line_win(study: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["choose", "study", "--margin", "0.2"]) == 0
    assert front_of(study)["choice"]["system"] == "diversity"
    assert main(["choose", "study", "--margin", "0.2", "--guard", "rests<0.04", "quality > 0.1"]) == 0
    choice = front_of(study)["choice"]
    assert choice["system"] == "half" and choice["guards"] == ["rests < 0.04", "quality > 0.1"]


def test_a_study_file_names_its_folder(study: Path, capsys: pytest.CaptureFixture) -> None:
    Path("study.yaml").write_text("out: study\n")
    assert main(["choose", "study.yaml"]) == 0
    assert front_of(study)["choice"]["system"] == "half"


def test_without_claims_the_only_guided_system_is_meant(folder: Path, capsys: pytest.CaptureFixture) -> None:
    study = write_study(folder / "study", kind="", claims=False)
    assert main(["choose", "study"]) == 0
    assert front_of(study)["choice"]["against"] == "guidance 2"


def test_without_claims_two_guided_systems_are_too_many(folder: Path, capsys: pytest.CaptureFixture) -> None:
    two = line({"guidance 3": ("guidance", 0.71, 0.3, 0.8, 0.0, None)})
    study = write_study(folder / "study", two, kind="", claims=False)
    assert "Option `--against`: expected the guided system" in said_by(["choose", "study"], capsys)
    assert main(["choose", "study", "--against", "guidance 3"]) == 0
    assert front_of(study)["choice"]["against"] == "guidance 3"


def test_no_point_is_a_plain_sentence_and_no_error(study: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["choose", "study", "--guard", "quality>0.9", "--out", "shipped"]) == 0
    said = capsys.readouterr().out
    assert "No point is recommended." in said and "the nearest is `quality`" in said
    assert "Nothing was copied to shipped" in said and not Path("shipped").exists()
    assert front_of(study)["choice"]["system"] is None


def test_out_copies_the_model(study: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_folder(study / "merges" / "half")
    assert main(["choose", "study", "--out", "shipped"]) == 0
    assert digest([Path("shipped")]) == digest([study / "merges" / "half"])
    said = said_by(["choose", "study", "--out", "shipped"], capsys)  # it is never replaced
    assert "`shipped` exists" in said


def test_the_model_of_the_first_training_seed(folder: Path, capsys: pytest.CaptureFixture) -> None:
    systems = line()
    for each in systems:
        each.model += "/seed 1"
    study = write_study(folder / "study", systems, kind="")
    made = tiny_folder(study / "merges" / "half" / "seed 1")
    write_text(study / "steps" / "merge half seed 1.json", json.dumps({"state": "done", "made": digest([Path(made)])}))
    assert main(["choose", "study", "--out", "shipped"]) == 0
    assert digest([Path("shipped")]) == digest([Path(made)])


def without_values(study: Path, metric: str, *names: str) -> None:
    """Make a metric NaN everywhere in some systems of a study, as a metric that does not apply to them."""
    for name in names:
        system = System.read(study / "systems" / f"{name}.json")
        system.values[metric] = [[float("nan")] * 12] * 2
        system.save(study / "systems" / f"{name}.json")


@pytest.mark.parametrize(
    ("metric", "name", "said"),
    [
        ("bigram", "guidance 2", "Left out: bigram."),
        ("rests", "half", "guard rests < 0.5 cannot be judged: 0 prompts with a value"),
        ("quality", "half", "quality cannot be judged: 0 prompts with a value"),
        ("diversity", "half", "; diversity did not count, which too few prompts have"),
    ],
)
def test_a_metric_that_is_nan_in_a_whole_system(
    study: Path, capsys: pytest.CaptureFixture, metric: str, name: str, said: str
) -> None:
    without_values(study, metric, name)
    assert main(["choose", "study", "--guard", "rests<0.5"]) == 0
    assert said in capsys.readouterr().out
    change_front(study, lambda front: front.pop("choice"))
    assert main(["report", "study"]) == 0  # it makes the choice of the default rule


def test_the_nearest_point_may_have_no_quality(study: Path, capsys: pytest.CaptureFixture) -> None:
    without_values(study, "quality", "quality", "half", "diversity")
    assert main(["choose", "study"]) == 0
    assert "No point is recommended." in capsys.readouterr().out


@pytest.mark.parametrize("margin", ["inf", "nan"])
def test_a_margin_is_a_finite_number(study: Path, capsys: pytest.CaptureFixture, margin: str) -> None:
    said = said_by(["choose", "study", "--margin", margin], capsys)
    assert f"Option `--margin`: expected a finite number of at least 0, but got {margin}." in said
    assert "choice" not in front_of(study)


def test_weights_that_changed_since_are_not_shipped(study: Path, capsys: pytest.CaptureFixture) -> None:
    tiny_folder(study / "merges" / "half")
    write_text(study / "steps" / "merge half.json", json.dumps({"state": "done", "made": "another"}))
    assert "are not those that were evaluated" in said_by(["choose", "study", "--out", "shipped"], capsys)
    assert not Path("shipped").exists() and "choice" not in front_of(study)


def test_a_model_that_is_gone(study: Path, capsys: pytest.CaptureFixture) -> None:
    assert "Run the study again: it remakes `half`" in said_by(["choose", "study", "--out", "shipped"], capsys)


def test_all_problems_of_a_choice_come_together(study: Path, capsys: pytest.CaptureFixture) -> None:
    words = [
        "choose",
        "study",
        "--margin=-1",
        "--guard",
        "rest<1",
        "rests",
        "--against",
        "guidance 3",
        "--out",
        "study",
    ]
    said = said_by(words, capsys)
    assert "5 problems" in said
    for option in ("--margin", "--guard", "--against", "--out"):
        assert f"Option `{option}`" in said
    assert "Did you mean `guidance 2`?" in said


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (lambda study: (study / "front.json").unlink(), "is not finished. Run it again"),
        (lambda study: (study / "front.json").write_text("{"), "expected JSON"),
        (lambda study: (study / "systems" / "half.json").unlink(), "`half` is missing"),
        (lambda study: (study / "systems" / "half.json").write_text("{"), "evaluates that system anew"),
        (lambda study: (study / "systems" / "half.json").write_text('{"colour": 1}'), "of another version"),
        (lambda study: of_other_prompts(study).save(study / "systems" / "half.json"), "it is of another study"),
        (lambda study: change_front(study, lambda front: front["systems"][0].pop("quality")), "of another version"),
        (lambda study: change_front(study, lambda front: front.pop("systems")), "has none"),
    ],
)
def test_damaged_results(study: Path, capsys: pytest.CaptureFixture, break_it, expected: str) -> None:
    break_it(study)
    assert expected in said_by(["choose", "study"], capsys)


def test_a_system_that_the_study_no_longer_has_is_left_alone(study: Path, capsys: pytest.CaptureFixture) -> None:
    """A part of a soup that was set to `evaluate: false`, and report prompts that changed with it."""
    old = study / "systems" / "part.json"
    replace(of_other_prompts(study), name="part").save(old)
    assert main(["choose", "study"]) == 0
    assert old.is_file() and "part" not in read_results(study).systems


def test_no_study(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert "`nowhere` does not exist" in said_by(["choose", "nowhere"], capsys)
    Path("empty").mkdir()
    assert "has no front.json. Run `cfg-distill study` first" in said_by(["choose", "empty"], capsys)


def test_a_step_that_was_done_stays_done_with_the_choice(study: Path) -> None:
    """A study run again would else make the front anew, and lose the choice."""
    outputs, entry = outputs_of(study), study / "steps" / "front.json"
    write_text(entry, json.dumps({"state": "done", "made": digest(outputs), "source": "s"}))
    assert main(["choose", "study"]) == 0
    assert json.loads(entry.read_text()) == {"state": "done", "made": digest(outputs), "source": "s"}


def test_a_step_that_was_done_stays_done_with_opinions(study: Path) -> None:
    outputs, entry = outputs_of(study), study / "steps" / "front.json"
    write_text(entry, json.dumps({"state": "done", "made": digest(outputs)}))
    opinions = {"systems": {"half": {"quality": {"mean": 4.0}}}, "differences": {}, "page": "p", "raters": ["anna"]}
    add_opinions_to_front(study / "front.json", opinions)
    found = {each["name"]: each.get("opinion") for each in front_of(study)["systems"]}
    assert found["half"] == {"quality": {"mean": 4.0}, "page": "p", "raters": 1} and found["base"] is None
    assert json.loads(entry.read_text())["made"] == digest(outputs)


def test_one_function_runs_the_steps_and_writes_choice_and_page(
    study: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked = []
    monkeypatch.setattr(studying, "run_steps", lambda *given: asked.append(given) or study)
    assert run_study("study.yaml", "study", overwrite=True) == study
    assert main(["study", "study.yaml", "--inline", "--remake", "time", "--remake", "evaluate"]) == 0
    assert asked == [("study.yaml", "study", True, ()), (Path("study.yaml"), None, False, ["time", "evaluate"])]
    assert front_of(study)["choice"]["system"] == "half" and "Ship <em>half</em>" in (study / "report.html").read_text()
    told = capsys.readouterr().out
    assert told.count("Recommended: half (knob 0.5).") == 2 and told.count("report.html") == 2


def test_a_step_whose_output_the_user_changed_stays_undone(study: Path) -> None:
    outputs, entry = outputs_of(study), study / "steps" / "front.json"
    write_text(entry, json.dumps({"state": "done", "made": "another"}))
    with amended(study, "front", outputs):
        (study / "table.txt").write_text("new")
    assert json.loads(entry.read_text())["made"] == "another"


def test_choose_renews_the_page(study: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["report", "study"]) == 0
    assert "Ship <em>half</em>, knob 0.5" in (study / "report.html").read_text()
    assert main(["choose", "study", "--margin", "0.2"]) == 0
    assert "Ship <em>diversity</em>, knob 1" in (study / "report.html").read_text()


# compare


def test_compare_pairs_systems_by_name(study: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    kind, quality, *others, knob = LINE["half"]
    better = line({"half": (kind, quality + 0.05, *others, knob), "new": ("student", 0.7, 0.5, 0.8, 0.0, None)})
    write_study(folder / "better", better, kind="")
    assert main(["compare", "study", "better"]) == 0
    rows = {each.split("  ")[0]: each for each in capsys.readouterr().out.splitlines()}
    assert "+0.050 [+0.0" in rows["half"] and rows["half"].count("higher") == 1
    assert rows["base"].count("+0.000 [+0.000, +0.000] equal") == 3
    assert "Only in better: new." in rows
    assert main(["compare", "better", "study"]) == 0
    assert "-0.050 [-0.0" in capsys.readouterr().out


def test_studies_of_other_seeds_are_paired_by_prompt(study: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    others = [system(each.name, each.kind, dict.fromkeys(each.axes, 0.5), seed=7) for each in line()]
    for each in others:
        each.seeds = [5]
        each.values = {metric: rows[:1] for metric, rows in each.values.items()}
    write_study(folder / "other", others, kind="")
    assert main(["compare", "other", "study"]) == 0
    (half,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("half")]
    mean, low, high = (float(each.strip("[],")) for each in half.split()[1:4])
    assert mean == pytest.approx(0.19, abs=0.005) and low < mean < high
    assert high - low < 0.02  # unpaired, the spread of the prompts alone would make it about .07


def test_compare_leaves_out_what_has_no_value(study: Path, capsys: pytest.CaptureFixture) -> None:
    without_values(study, "quality", "half")
    system = System.read(study / "systems" / "quality.json")
    system.values["bigram"] = [[0.5, *[float("nan")] * 11]] * 2
    system.save(study / "systems" / "quality.json")
    assert main(["compare", "study", "study"]) == 0
    said = capsys.readouterr().out
    rows = {each.split("  ")[0]: each.split() for each in said.splitlines()}
    assert rows["half"][1] == "-" and rows["half"].count("equal") == 2
    assert rows["quality"].count("equal") == 2 and rows["quality"][-1] == "undecided"
    assert "Undecided, since fewer than 8 prompts have a value in both: bigram of quality, quality of half." in said


def test_other_prompts_are_refused_with_one_message(study: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    prompts = [f"another {number}" for number in range(12)]
    others = [system(each.name, each.kind, dict.fromkeys(each.axes, 0.5), prompts=prompts) for each in line()]
    write_study(folder / "other", others, kind="")
    said = said_by(["compare", "study", "other"], capsys)
    assert said.count("\n") == 1
    assert "expected two studies on the same prompts" in said and "12 and 12 prompts, of which 0 are the same" in said


def test_nothing_in_common(study: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    renamed = line()
    for each in renamed:
        each.name = f"my {each.name}"
    write_study(folder / "other", renamed, kind="", claims=False)
    assert "have none in common" in said_by(["compare", "study", "other"], capsys)


def test_other_settings_are_named(study: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    evaluation = {"headline": {"quality": "quality", "diversity": "diversity"}, "metrics": {}, "samples": 16}
    write_study(folder / "other", kind="", evaluation=evaluation)
    assert main(["compare", "study", "other"]) == 0
    assert "differ in evaluation.metrics, evaluation.samples" in capsys.readouterr().out


# merge --knob


def test_a_knob_merges_the_two_students(study: Path, folder: Path, capsys: pytest.CaptureFixture) -> None:
    students = [tiny_folder(study / "students" / name, seed=seed) for seed, name in enumerate(("quality", "diversity"))]
    assert main(["merge", "--study", "study", "--knob", "0.3", "--out", "merged"]) == 0
    merge_folders(students, [0.7, 0.3], "lerp", folder / "by hand")
    weights = [folder / name / "model.safetensors" for name in ("merged", "by hand")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    words = ["merge", "--study", "study", "--knob", "0.3", "--method", "slerp", "--out", "arc"]
    assert "`--start`" in said_by(words, capsys)
    assert "`--method`: expected a method that `--knob` can" in said_by([*words[:-3], "soup", "--out", "arc"], capsys)
    assert main([*words, "--start", tiny_folder(folder / "start", seed=7)]) == 0


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--knob", "0.3"], ["`--study`: expected with `--knob`"]),
        (["--study", "study"], ["`--knob`: expected with `--study`"]),
        (
            ["--study", "study", "--knob", "30"],
            ["`--knob`: expected a number from 0 to 1, or beyond up to 5, but got 30"],
        ),
        (
            ["--study", "study", "--knob", "nan", "--models", "a", "b", "--weights", "1", "--start", "c"],
            ["`--models`", "`--weights`", "`--start`", "`--knob`: expected a number from 0 to 1"],
        ),
        (["--study", "study", "--knob", "0.3"], ["remakes `quality`"]),
        ([], ["`--models`: expected the folders to merge"]),
    ],
)
def test_what_a_knob_needs(study: Path, capsys: pytest.CaptureFixture, words: list[str], expected: list[str]) -> None:
    said = said_by(["merge", *words, "--out", "merged"], capsys)
    assert all(each in said for each in expected)
    assert not Path("merged").exists()


@pytest.mark.parametrize(("seeds", "seed"), [([], ""), ([3, 4], "seed 3")])
def test_an_end_of_the_knob_need_not_be_evaluated(
    folder: Path, capsys: pytest.CaptureFixture, seeds: list[int], seed: str
) -> None:
    """As the soup of recipes/smollm2/study_soup.yaml, which is a step on the way to the point beyond it."""
    made = {
        "soup": {"models": ["diversity", "quality"], "method": "soup", "evaluate": False},
        "half": {"models": ["quality", "soup"], "weights": [0.5, 0.5], "method": "lerp"},
    }
    fits = {name: {"config": "fit.yaml"} for name in ("quality", "diversity")}
    fits["quality"] |= {"evaluate": False}
    few = [each for each in line() if each.name != "quality"]
    study = write_study(folder / "study", few, kind="", claims=False, fits=fits, merges=made, training_seeds=seeds)
    words = ["merge", "--study", "study", "--knob", "0.3", "--out", "merged"]
    assert "Model `quality`: expected its model in" in said_by(words, capsys)
    ends = [tiny_folder(study / place / seed, seed=s) for s, place in enumerate(("students/quality", "merges/soup"))]
    assert main(words) == 0
    merge_folders(ends, [0.7, 0.3], "lerp", folder / "by hand")
    weights = [folder / name / "model.safetensors" for name in ("merged", "by hand")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_study_of_several_pairs_has_no_one_knob(folder: Path, capsys: pytest.CaptureFixture) -> None:
    pairs = {
        name: {"models": list(pair), "weights": [0.5, 0.5], "method": "lerp", "start": ""}
        for name, pair in (("one", ("quality", "diversity")), ("two", ("quality", "base")))
    }
    write_study(folder / "study", kind="", merges=pairs)
    assert "merges 2 pairs" in said_by(["merge", "--study", "study", "--knob", "0.3", "--out", "merged"], capsys)


def test_a_sum_is_on_no_line(folder: Path) -> None:
    lines = {
        "sharper": {"models": ["quality", "base"], "weights": [1.5, 0.5], "method": "sum", "start": "tunes:base"},
        "half": {"models": ["quality", "diversity"], "weights": [0.5, 0.5], "method": "slerp", "start": "tunes:base"},
    }
    study = write_study(folder / "study", kind="", merges=lines)
    for name in ("quality", "diversity"):
        tiny_folder(study / "students" / name)
    assert line_of("study").method == "slerp"
