"""The rows of a ladder in a study: which ladder, when it is climbed, and that the rows compete with nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_study import line, write_study

from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import Headline, System
from cfg_distill.report.results import read_results
from cfg_distill.study.check import problems_of
from cfg_distill.study.climbing import ladder_of, problems_of_ladder
from cfg_distill.study.config import load_study
from cfg_distill.study.forecast import Forecast
from cfg_distill.study.jobs import DrawFront, decoded, encoded
from cfg_distill.study.parts import Claims
from cfg_distill.study.record import changes, record_of
from cfg_distill.study.steps import plan

LADDER = '''

from cfg_distill.evaluation import Ladder, Rung, samples_of

REPORT = [f"w{n}" for n in range(9)]


class Climb(Ladder):
    """Real texts of five words and more, loops of one; guided samples that must not be drawn for a table."""

    def prompts(self):
        return ["own one", "own two"]

    def problems(self, prompts):
        return ["no prompts"] if not prompts else []

    def rungs(self, prompts):
        def draw():
            raise AssertionError("drawn, although no row shows it")

        real = [[f"a{n} b c d e", f"f{n} g h i j k"] for n in range(len(prompts))]
        yield Rung("written", "real", samples_of(prompts, real))
        yield Rung("guided", "guided", draw)
        yield Rung("looping", "degenerate", samples_of(prompts, [["la", "la"]] * len(prompts)))


class Known(Climb):
    """A ladder of the prompts of the report."""

    def prompts(self):
        return REPORT
'''


@pytest.fixture
def climb(place: Path, change, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A study whose metrics file also holds a ladder."""
    monkeypatch.syspath_prepend(str(place))
    Path("climb.py").write_text(Path("mine.py").read_text() + LADDER)
    change({"evaluation/ladder": "climb.Climb", "evaluation/metrics/words/class_path": "climb.Words"})
    return place


def step_of(kind: str):
    (step,) = [step for step in plan(load_study("study.yaml")[0], Path("out")) if step.kind == kind]
    return step


def test_the_ladder_is_the_one_of_the_file_or_of_the_base(place, change):
    def named(**keys):
        return ladder_of(load_study(change({f"evaluation/{key}": value for key, value in keys.items()}))[0])

    def of_folder(name: str) -> None:
        Path("base/cfg_distill.json").write_text(json.dumps({"ladder": name}))

    assert named() == ("", "")  # the folder names none
    of_folder("cfg_distill.evaluation.ladder_text.TextLadder")
    assert named() == ("cfg_distill.evaluation.ladder_text.TextLadder", "")
    of_folder("theirs.Ladder")
    name, remark = named()
    assert name == "" and "`base` names the ladder `theirs.Ladder`" in remark and "`evaluation.ladder`" in remark
    assert named(ladder="theirs.Ladder") == ("theirs.Ladder", "")
    assert named(ladder="none") == ("", "")
    Path("base/cfg_distill.json").write_text("{")
    change({"evaluation/ladder": "model"})
    (problem,) = [p for p in problems_of(load_study("study.yaml")[0]) if "cfg_distill.json" in str(p)]
    assert problem.path == "evaluation.ladder"


def test_the_step_waits_for_nothing_and_leaves_all_other_steps_as_they_are(climb, change):
    steps = plan(load_study("study.yaml")[0], Path("out"))
    ladder, time, front = (next(step for step in steps if step.kind == kind) for kind in ("ladder", "time", "front"))
    assert ladder.needs == [] and ladder.outputs == [Path("out/ladder.json")]
    assert "ladder" in time.after and "ladder" in front.needs
    assert decoded(encoded(ladder.work)) == ladder.work
    assert Forecast(steps, 1)._described(ladder, None) == "scoring real and degenerate samples"
    then = {step.label: (step.config, step.needs) for step in steps if step.kind not in ("ladder", "front")}
    before = record_of(load_study("study.yaml")[0])
    study = load_study(change({"evaluation/ladder": "none"}))[0]
    now = {step.label: (step.config, step.needs) for step in plan(study, Path("out")) if step.kind != "front"}
    assert now == then
    assert changes(before, record_of(study)) == []  # and a study that was begun without the key goes on


def test_the_rows_take_the_prompts_of_the_study_where_there_are_enough(climb, change):
    Path("report.txt").write_text("\n".join(["W1 ", "unknown", *(f"w{n}" for n in range(2, 9))]))
    for ladder, prompts in (
        ("climb.Climb", ["own one", "own two"]),
        ("climb.Known", ["W1", *(f"w{n}" for n in range(2, 9))]),
    ):
        change({"evaluation/ladder": ladder})
        job = step_of("ladder").work
        assert problems_of_ladder(ladder, job.evaluation) == []
        assert job.run(lambda done, total: None) == {}
        rows = [System(**row) for row in json.loads(Path("out/ladder.json").read_text())]
        assert [(row.name, row.kind) for row in rows] == [
            ("real: written", "real"), ("degenerate: looping", "degenerate"),
        ]  # fmt: skip
        assert rows[0].prompts == prompts and rows[0].samples == 2 and rows[0].model == ladder
        assert rows[0].values["words"] == [pytest.approx([5.5 / 6] * len(prompts))]
        assert set(rows[0].axes) == {"words", "distinct", "length"}


@pytest.mark.parametrize(
    ("ladder", "told"),
    [("tuns", "expected one of tunes, text, sound"), ("climb.Clim", "Clim"), ("climb.Words", "a Ladder")],
)
def test_a_ladder_that_is_none_is_named(climb, change, ladder, told):
    change({"evaluation/ladder": ladder})
    (problem,) = problems_of_ladder(ladder, step_of("ladder").work.evaluation)
    assert problem.path == "evaluation.ladder" and told in problem.text


def test_the_rows_are_in_front_json_and_the_table_and_compete_with_nothing(tmp_path: Path):
    systems = line()
    for each in systems:
        each.save(tmp_path / "systems" / f"{each.name}.json")
    above = {"quality": "quality", "diversity": "diversity", "bigram": "diversity", "rests": "guard"}
    values = {metric: [[0.99 if metric != "rests" else 0.5] * 12] for metric in above}
    prompts = [*systems[0].prompts[:6], *(f"other {n}" for n in range(6))]
    rows = [
        System(f"{kind}: samples", kind, "x.Ladder", 1.0, 1.0, 4, [0], prompts, above, values, relative_cost=0.0)
        for kind in ("real", "degenerate")
    ]
    (tmp_path / "ladder.json").write_text(json.dumps([vars(row) for row in rows]))
    files = {each.name: [str(tmp_path / "systems" / f"{each.name}.json")] for each in systems}
    claims = Claims("base", "guidance 2", "quality", 0.02, "diversity", "half", {"rests": "< 0.01"})
    fronts, tables = [], []
    for ladder in ("", str(tmp_path / "ladder.json")):
        knobs = [each.knob for each in systems]
        job = DrawFront(files, Headline("quality", "diversity", "bigram"), claims, knobs, str(tmp_path), {}, "", ladder)
        job.run(lambda done, total: None)
        fronts.append(json.loads((tmp_path / "front.json").read_text()))
        tables.append((tmp_path / "table.txt").read_text())
    without, with_rows = fronts
    assert [each["name"] for each in with_rows["systems"][-2:]] == ["real: samples", "degenerate: samples"]
    assert with_rows["systems"][-1]["guards"]["rests"]["mean"] == 0.5
    for key in ("claims", "fronts", "hypervolume"):
        assert without[key] == with_rows[key], key
    assert with_rows["notes"] == [
        *without["notes"],
        "The rows real and degenerate show the range of each metric: samples that no system drew, 4 for each of 12"
        " prompts, some of them others.",
    ]
    block = tables[1].split("\n\n")[0].splitlines()
    assert block[-3] == block[1] and block[-2].startswith("real: samples") and "*" not in block[-2] + block[-1]
    assert "0x" not in tables[1] and block[2].split()[:2] == ["base", "1x"]
    assert [name for name in tables[0].splitlines()[2].split() if "*" in name] == [
        name for name in tables[1].splitlines()[2].split() if "*" in name
    ]


def test_results_hold_the_rows_and_a_broken_file_is_named(tmp_path: Path):
    folder = write_study(tmp_path / "out", kind="")
    row = System("real: x", "real", "x", 1.0, 1.0, 4, [0], ["p"], {"quality": "quality"}, {"quality": [[0.9]]})
    front = json.loads((folder / "front.json").read_text())
    front["systems"].append(row.point())
    (folder / "front.json").write_text(json.dumps(front))
    with pytest.raises(ConfigError, match="`real: x` is missing"):
        read_results(folder)
    (folder / "ladder.json").write_text(json.dumps([vars(row)]))
    results = read_results(folder)
    assert results.systems["real: x"].kind == "real"
    assert all(each.system.kind != "real" for each in results.choose().candidates)
    (folder / "ladder.json").write_text("[{")
    with pytest.raises(ConfigError, match=r"ladder.json` cannot be read.*scores those samples anew"):
        read_results(folder)
