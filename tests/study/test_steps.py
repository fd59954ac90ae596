"""The plan, and when a step may be skipped."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from made_study import read_study

from cfg_distill import generators
from cfg_distill.evaluation.anneal import Anneal
from cfg_distill.files import write_text
from cfg_distill.recipe.command_line import start
from cfg_distill.study.check import problems_of
from cfg_distill.study.config import load_study
from cfg_distill.study.jobs import decoded, encoded
from cfg_distill.study.ledger import Ledger
from cfg_distill.study.record import changes, record_of
from cfg_distill.study.run import Runner
from cfg_distill.study.steps import Step, plan


@pytest.fixture
def steps(place) -> dict[str, Step]:
    return {step.label: step for step in plan(read_study("study.yaml"), place / "out")}


def test_the_plan_is_in_order_of_need(steps, place):
    seen: set[str] = set()
    for step in steps.values():
        assert {*step.needs, *step.after} <= seen
        seen.add(step.label)
    assert steps["fit diversity"].needs == ["export quality"]
    assert steps["merge half"].needs == ["export diversity", "export quality"]
    assert steps["evaluate half"].needs == ["merge half"]
    assert steps["evaluate base"].needs == []
    evaluations = {label for label in steps if label.startswith("evaluate")}
    assert steps["time"].needs == ["export quality"]  # a further merge does not measure anew
    assert set(steps["time"].after) == evaluations  # it runs alone
    assert set(steps["front"].needs) == {*evaluations, "time"}


def test_training_seeds_make_every_chain_once_per_seed(place, change):
    study = read_study(
        change({"training_seeds": [0, 7], "merges/folders": {"models": ["base", "base"], "weights": [0.5, 0.5]}})
    )
    steps, out = {step.label: step for step in plan(study, place / "out")}, place / "out"
    assert {"fit quality seed 0", "fit quality seed 7", "merge half seed 7", "evaluate half seed 7"} <= steps.keys()
    assert {"evaluate base", "merge folders", "evaluate folders"} <= steps.keys()  # not trained: once
    fit = steps["fit diversity seed 7"]
    assert fit.needs == ["export quality seed 7"]
    assert f"--model.start={out / 'students' / 'quality' / 'seed 7'}" in fit.work and "--seed_everything=7" in fit.work
    assert f"--trainer.default_root_dir={out / 'fits' / 'diversity' / 'seed 7'}" in fit.work
    assert steps["merge half seed 7"].needs == ["export diversity seed 7", "export quality seed 7"]
    assert steps["merge half seed 7"].work.models == [
        str(out / "students" / name / "seed 7") for name in ("quality", "diversity")
    ]
    job = steps["evaluate half seed 7"].work
    assert (job.training_seeds, job.chain, job.kind) == ([7], "quality", "merge")
    assert steps["evaluate half seed 7"].outputs == [
        out / "systems" / "half" / "seed 7.json",
        out / "samples" / "half" / "seed 7",
    ]
    assert (steps["evaluate base"].work.training_seeds, steps["evaluate base"].work.chain) == ([], "")
    front = steps["front"]
    assert front.work.systems["half"] == [str(out / "systems" / "half" / f"seed {seed}.json") for seed in (0, 7)]
    assert out / "systems" / "half.json" in front.outputs and out / "systems" / "base.json" not in front.outputs


def test_a_step_on_the_way_is_made_but_not_evaluated(place, change):
    before = {step.label: step for step in plan(read_study("study.yaml"), place / "out")}
    begun, claims = record_of(read_study("study.yaml")), yaml.safe_load((place / "study.yaml").read_text())["claims"]
    study = read_study(change({"fits/diversity/evaluate": False, "merges/half/evaluate": False, "claims": None}))
    assert problems_of(study) == []
    after = {step.label: step for step in plan(study, place / "out")}
    assert before.keys() - after.keys() == {"evaluate diversity", "evaluate half"} and after.keys() <= before.keys()
    assert after["merge half"] == before["merge half"]  # so what was made of it is not stale
    assert [line.split(":")[0] for line in changes(begun, record_of(study))] == ["claims"]
    assert [str(each) for each in problems_of(read_study(change({"claims": claims})))] == [
        f"Key `claims.{key}`: expected a system, but `{name}` has `evaluate: false`. Remove that, or name another system."
        for key, name in (("diversity", "diversity"), ("merge", "half"))
    ]
    study = read_study(change({"claims": None, "systems": {"half T 0.8": {"model": "half", "temperature": 0.8}}}))
    assert "evaluate half T 0.8" in {step.label for step in plan(study, place / "out")}


def test_fits_of_one_recipe_differ_by_their_offset_and_a_soup_averages_them_once_per_seed(place, change):
    fit = {"config": "fit.yaml", "start": "quality", "seed_offset": 1000}
    changed = {"training_seeds": [0, 7], "fits/again": fit}
    study = read_study(change(changed | {"merges/soup": {"models": ["diversity", "again"], "method": "soup"}}))
    assert problems_of(study) == []
    steps, out = {step.label: step for step in plan(study, place / "out")}, place / "out"
    assert "--seed_everything=7" in steps["fit diversity seed 7"].work
    assert "--seed_everything=1007" in steps["fit again seed 7"].work
    assert steps["fit again seed 7"].config["training_seed"] == 1007
    assert steps["fit again seed 7"].needs == ["export quality seed 7"]
    folders = [str(out / "students" / name / "seed 7") for name in ("diversity", "again")]
    assert steps["merge soup seed 7"].work.models == folders
    assert steps["evaluate soup seed 7"].work.training_seeds == [7]


def test_a_system_may_begin_by_a_start_model(place, change):
    """An option of a study: a point of its own, with the start model as it was made under the same training seed."""
    anneal = {"base": "quality", "kind": "step", "step_at": 0.3}
    changed = {"training_seeds": [0, 7], "systems/annealed": {"model": "diversity", "anneal": anneal}}
    study = read_study(change(changed | {"systems/from base": {"model": "base", "anneal": {"base": "base"}}}))
    assert problems_of(study) == []
    steps, out = {step.label: step for step in plan(study, place / "out")}, place / "out"
    step = steps["evaluate annealed seed 7"]
    assert step.needs == ["export diversity seed 7", "export quality seed 7"]
    job = decoded(encoded(step.work))
    assert job == step.work and job.kind == "model"
    assert job.system.anneal == Anneal("step", step_at=0.3, base=str(out / "students" / "quality" / "seed 7"))
    assert steps["evaluate from base"].work.system.anneal == Anneal(base="base")
    before = {each.label: each for each in plan(read_study(change({"systems": None})), out)}
    assert steps["evaluate base"].config == before["evaluate base"].config  # and is not evaluated anew
    wrong = {"systems/annealed": {"model": "diversity", "anneal": {"base": "qualty", "pwer": 2}}}
    study, problems = load_study(change(wrong))
    assert [str(each).split(":")[0] for each in problems] == ["Key `systems.annealed.anneal.pwer`"]
    assert "Did you mean `quality`?" in str(problems_of(study)[0])


CODES = {"class_path": "cfg_distill.sampling.Codes", "init_args": {"values": 3, "template": "{label} {prompt}"}}


def test_overlays_are_laid_over_a_recipe_and_a_student_is_asked_as_it_was_trained(place, change):
    (place / "codes.yaml").write_text(yaml.safe_dump({"model": {"conditioner": CODES}, "trainer": {"max_steps": 5}}))
    study = read_study(
        change({"fits/diversity/overlays": ["codes.yaml"], "merges/half/models": ["diversity", "quality"]})
    )
    assert problems_of(study) == []
    steps = {step.label: step for step in plan(study, place / "out")}
    words = steps["fit diversity"].work
    assert words[:5] == ["fit", "--config", "fit.yaml", "--config", "codes.yaml"]
    assert study.fits["diversity"].recipe.max_steps == 5 and study.fits["quality"].recipe.max_steps == 12
    for name, codes in (("diversity", CODES), ("half", CODES), ("quality", None), ("base", None)):
        job = decoded(encoded(steps[f"evaluate {name}"].work))
        assert job.system.conditioner == codes == job.system.conditioner, name
    assert "conditioner" not in steps["evaluate base"].config["point"]
    (missing,) = problems_of(read_study(change({"fits/diversity/overlays": ["none.yaml"]})))
    assert missing.path == "fits.diversity.overlays" and "`none.yaml` does not exist" in str(missing)


def test_one_training_seed_keeps_the_folders(place, change, steps):
    one = {step.label: step for step in plan(read_study(change({"training_seeds": [7]})), place / "out")}
    assert one.keys() == steps.keys()
    assert "--seed_everything=7" in one["fit quality"].work and "--seed_everything=7" not in steps["fit quality"].work
    assert one["fit quality"].outputs == steps["fit quality"].outputs
    assert one["evaluate half"].work.training_seeds == [7]
    assert steps["evaluate half"].work.training_seeds == [1]  # of the recipe


def test_a_new_setting_that_is_not_used_leaves_old_results_as_they_are(steps):
    """A study of version 0.1 is not evaluated anew because a system could have a min-p."""
    config = steps["evaluate base"].config
    assert not {"min_p", "development", "stage", "timing"} & config.keys()
    assert config["point"].keys() == {"model", "temperature", "guidance", "negative", "negative_system", "dtype"}


def test_seconds_are_measured_for_the_systems_of_the_claims(place, change, steps):
    assert list(steps["time"].work.systems) == ["base", "guidance 2", "quality"]
    assert steps["time"].work.systems["quality"].model == str(place / "out" / "students" / "quality")
    without = {step.label: step for step in plan(read_study(change({"claims": None})), place / "out")}
    assert list(without["time"].work.systems) == ["base", "guidance 2", "quality"]
    none = [step.label for step in plan(read_study(change({"evaluation/timing": []})), place / "out")]
    assert "time" not in none


def test_a_fit_is_the_command_of_a_user_and_goes_on(steps, place):
    words = steps["fit diversity"].work
    assert isinstance(words, list)
    assert words[:3] == ["fit", "--config", "fit.yaml"]
    assert "--model.guidance.scale=3.0" in words
    assert f"--model.start={place / 'out' / 'students' / 'quality'}" in words
    assert f"--trainer.default_root_dir={place / 'out' / 'fits' / 'diversity'}" in words
    assert "--ckpt_path=last" in words


def test_a_fit_of_a_study_measures_no_baselines(place, change):
    key = "--trainer.callbacks.diversity.init_args.baselines=false"
    study = read_study(
        change({"fits/diversity/config": "recipes/tunes/diversity.yaml", "fits/diversity/overrides": {}})
    )
    steps = {step.label: step.work for step in plan(study, place / "out")}
    assert key in steps["fit diversity"] and not any("baselines" in word for word in steps["fit quality"])
    words = [word for word in steps["fit diversity"][1:] if not word.startswith("--model.start")]
    command = start("fit", words, check_only=True)
    assert command.callbacks["trainer.callbacks.diversity.init_args"].baselines is False


def test_every_system_is_evaluated_in_its_dtype_and_at_its_dial(place, change, monkeypatch):
    study = read_study(change({"evaluation/dtype": "bfloat16", "baselines/base/dtype": "float16"}))
    jobs_of = {step.subject: step.work for step in plan(study, place / "out") if step.kind == "evaluate"}
    dtypes = {name: job.system.dtype for name, job in jobs_of.items()}
    assert dtypes == dict.fromkeys(jobs_of, "bfloat16") | {"base": "float16"}
    opened = []
    monkeypatch.setattr(generators, "open_generator", lambda path, **settings: opened.append((path, settings)) or 1 / 0)
    system = replace(jobs_of["base"].system, dial=0.5)
    job = replace(jobs_of["base"], system=system, evaluation=replace(study.evaluation, metrics={}))
    with pytest.raises(ZeroDivisionError):
        job.run(lambda done, total: None)
    assert opened == [("base", {"dial": 0.5, "dtype": "float16"})]


def test_what_the_study_makes_itself_changes_no_plan(steps, place):
    """A fingerprint of a model that is there only after the first run would make that run's work look stale."""
    for folder in ("students/quality", "students/diversity", "merges/half"):
        (place / "out" / folder).mkdir(parents=True)
        (place / "out" / folder / "config.json").write_text("{}")
    for step in plan(read_study("study.yaml"), place / "out"):
        assert step == steps[step.label]


def test_a_sample_that_is_missing_or_changed_is_found_by_its_hash_and_made_again(steps):
    step, ledger = steps["evaluate base"], Ledger(steps["front"].outputs[0].parent)
    values, folder = step.outputs

    def evaluate() -> None:
        ledger.begin(step)
        assert not folder.exists()  # nothing of the spoilt samples is left
        write_text(values, "{}")
        write_text(folder / "01-w5-1.txt", "w5: w1 w2")
        ledger.finish(step, 1.0, 1.0)

    evaluate()
    for spoil in (lambda: (folder / "01-w5-1.txt").write_text("w5: w1 w3"), (folder / "01-w5-1.txt").unlink):
        assert ledger.is_done(step)
        spoil()
        assert not ledger.is_done(step)
        evaluate()


@pytest.fixture
def step(tmp_path) -> Step:
    return Step("merge", "half", [], [tmp_path / "made"], config={"weights": [0.5]}, traces=[tmp_path / "trace"])


def made(ledger: Ledger, step: Step, content: str = "weights") -> None:
    ledger.begin(step)
    step.outputs[0].write_text(content)
    ledger.finish(step, 1.0, 100.0)


def test_a_step_is_skipped_only_while_all_is_as_it_was(tmp_path, step):
    ledger = Ledger(tmp_path)
    assert not ledger.is_done(step)
    made(ledger, step)
    assert Ledger(tmp_path).is_done(step)
    step.config = {"weights": [0.4]}
    assert not ledger.is_done(step)
    step.config = {"weights": [0.5]}
    step.outputs[0].write_text("other weights")
    assert not ledger.is_done(step)
    step.outputs[0].unlink()
    assert not ledger.is_done(step)


def test_a_step_is_remade_when_one_before_it_made_something_else(tmp_path, step):
    ledger = Ledger(tmp_path)
    after = Step("evaluate", "half", [], [tmp_path / "value"], needs=["merge half"])
    made(ledger, step)
    made(ledger, after)
    made(ledger, step)
    assert ledger.is_done(after)  # remade, but the same
    made(ledger, step, "other weights")
    assert not ledger.is_done(after)


def test_other_code_is_told(tmp_path, step):
    made(Ledger(tmp_path), step)
    ledger = Ledger(tmp_path)
    ledger.source = "other code"
    assert ledger.is_done(step)
    assert ledger.other_code == ["merge half"]


def test_own_code_that_changed_is_told_and_remakes_nothing(place, capsys):
    """As with this package's own code: a line says which file changed, and `--remake` makes the steps again."""

    def planned() -> dict[str, Step]:
        return {step.label: step for step in plan(read_study("study.yaml"), place / "out")}

    ledger, before = Ledger(place / "out"), planned()
    names = ("evaluate base", "evaluate base T 0.8")
    for step in [before[name] for name in names]:
        ledger.begin(step)
        write_text(step.outputs[0], "{}")
        step.outputs[1].mkdir(parents=True)
        ledger.finish(step, 1.0, 1.0)
    assert all(ledger.is_done(planned()[name]) for name in names) and capsys.readouterr().err == ""
    metric = (place / "mine.py").read_text()
    (place / "mine.py").write_text(metric.replace("/ 6", "/ 7"))
    after, ledger = planned(), Ledger(place / "out")
    assert [ledger.fingerprint(after[name]) for name in names] == [ledger.fingerprint(before[name]) for name in names]
    assert all(ledger.is_done(after[name]) for name in names)
    assert capsys.readouterr().err == (
        "Note: `mine.py` changed after `evaluate base` was made, and maybe after other steps of this kind. They are kept."
        " To make them again: --remake evaluate\n"
    )
    noted_before = ledger.entry(names[0])
    del noted_before["code"]  # as an earlier version noted it
    ledger._write(after[names[0]], noted_before)
    assert Ledger(place / "out").is_done(after[names[0]]) and capsys.readouterr().err == ""


def test_a_step_notes_the_code_that_it_runs(place, change):
    (place / "my_reward.py").write_text("")
    (place / "my_generator.py").write_text("")
    losses = {"kl": {"class_path": "cfg_distill.losses.ReverseKL"}, "mine": {"class_path": "my_reward.Gain"}}
    key = "fits/quality/overrides"
    change({key: {"model.losses": losses, "model.generator": {"class_path": "my_generator.Mine", "init_args": {}}}})
    steps = {step.label: step for step in plan(read_study("study.yaml"), place / "out")}
    noted = {label: list(step.code) for label, step in steps.items() if step.code}
    evaluations = {label: ["mine.py"] for label in steps if label.startswith("evaluate")}
    assert noted == evaluations | {
        "fit quality": ["my_generator.py", "my_reward.py"],
        "export quality": ["my_generator.py"],
    }
    Ledger(place / "out").begin(Step("merge", "plain", [], [place / "made"]))
    assert "code" not in Ledger(place / "out").entry("merge plain")


def test_a_reopened_step_is_made_again(tmp_path, step):
    ledger = Ledger(tmp_path)
    ledger.reopen(step)
    assert not ledger.entry(step.label)
    made(ledger, step)
    step.traces[0].write_text("of the run that is made again")
    ledger.reopen(step)
    assert not Ledger(tmp_path).is_done(step)  # a run that was stopped there
    assert not ledger.begin(step)
    assert not step.outputs[0].exists() and not step.traces[0].exists()


def test_an_unfinished_step_goes_on_only_as_the_same_step(tmp_path, step):
    ledger = Ledger(tmp_path)
    assert not ledger.begin(step)
    step.traces[0].write_text("half done")
    ledger.pause(step, 5.0)
    assert ledger.begin(step)
    assert step.traces[0].exists()
    ledger.pause(step, 2.0)
    assert ledger.entry(step.label)["seconds"] == 7.0
    step.config = {"weights": [0.4]}
    assert not ledger.begin(step)
    assert not step.traces[0].exists()
    assert ledger.entry(step.label)["seconds"] == 0.0


def test_steps_that_are_made_again_do_not_share_an_accelerator(place, monkeypatch):
    """Their entries say that they are done, of other settings; a finished study asks for no accelerator."""
    folder, asked = place / "out", []
    study = read_study("study.yaml")
    steps, ledger = plan(study, folder), Ledger(folder)
    monkeypatch.setattr(Runner, "_share_accelerator", lambda runner: asked.append("shared"))
    monkeypatch.setattr(Ledger, "is_done", lambda ledger, step: "old" not in ledger.entry(step.label))
    monkeypatch.setattr(Runner, "_run_step", lambda runner, step: (asked.append("ran"), ledger._write(step, {})))
    for step in steps:
        ledger._write(step, {"state": "done", "old": True, "seconds": 1, "peak_memory_mb": 1})
    with (folder / ".lock").open("w") as lock:
        for expected in ("shared", *["ran"] * len(steps)), ():
            with (runner := Runner(study, steps, ledger, folder, lock)).display:
                runner.run()
            assert tuple(asked) == expected
            asked.clear()
