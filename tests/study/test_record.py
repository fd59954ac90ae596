"""What counts as a change of a study that has begun."""

from __future__ import annotations

import pytest
from made_study import read_study

from cfg_distill.errors import ConfigError
from cfg_distill.study.record import changes, digest, own_code, record_of
from cfg_distill.study.run import run_steps


@pytest.fixture
def begun(place) -> dict:
    return record_of(read_study("study.yaml"))


def test_the_same_study_has_no_changes(begun):
    assert changes(begun, record_of(read_study("study.yaml"))) == []


def test_a_study_begun_before_there_were_dtypes_goes_on(begun):
    del begun["study"]["evaluation"]["dtype"]
    assert changes(begun, record_of(read_study("study.yaml"))) == []


def test_a_study_of_version_0_1_goes_on(begun):
    """It had no sweeps, training seeds, stages, timing or filters of a system, and a claim about plain temperature."""
    study = begun["study"]
    for key in ("min_p", "development", "stage", "timing"):
        del study["evaluation"][key]
    del study["sweeps"], study["training_seeds"], study["claims"]["guards"]
    for system in study["baselines"].values():
        del system["top_k"], system["top_p"], system["min_p"]
    study["claims"]["temperature"] = ["base T 0.8"]
    assert changes(begun, record_of(read_study("study.yaml"))) == []


def test_a_filter_that_is_set_later_is_a_change(begun, change):
    assert changes(begun, record_of(read_study(change({"evaluation/min_p": 0.3})))) == ["evaluation.min_p: 0.0 -> 0.3"]


@pytest.mark.parametrize("what", ["sound", "dataset"])
def test_data_in_a_folder_that_changed(place, change, what):
    """A reference of real sound, and prompts that Hugging Face `datasets` saved."""
    (place / "data" / "inner").mkdir(parents=True)
    (place / "data" / ("dataset_info.json" if what == "dataset" else "one.wav")).write_text("1")
    fad = {"class_path": "cfg_distill.metrics.FAD", "init_args": {"reference": "data"}}
    begun = record_of(read_study(change({"evaluation/metrics/fad": fad})))
    (place / "data" / "inner" / "two.wav").write_text("2")
    (found,) = changes(begun, record_of(read_study("study.yaml")))
    assert found.startswith("files.data: ")


def test_what_a_study_writes_is_no_input(place, change):
    (place / "out").mkdir()
    (place / "out" / "sample.wav").write_text("1")
    (place / "sound.wav").write_text("1")
    recipe = place / "fit.yaml"
    recipe.write_text(recipe.read_text().replace("  logger: false", "  default_root_dir: out\n  logger: false"))
    assert not {"out", "."} & record_of(read_study(change({"evaluation/field": "."})))["files"].keys()


def test_further_training_seeds_are_an_addition(change):
    begun = record_of(read_study(change({"training_seeds": [0, 1]})))
    assert changes(begun, record_of(read_study(change({"training_seeds": [0, 1, 2]})))) == []
    assert changes(begun, record_of(read_study(change({"training_seeds": [1, 2]})))) == [
        "training_seeds: [0, 1] -> [1, 2]"
    ]
    one = record_of(read_study(change({"training_seeds": [0]})))
    assert changes(one, record_of(read_study(change({"training_seeds": [0, 1]})))) == ["training_seeds: [0] -> [0, 1]"]


def test_a_longer_sweep_is_an_addition(change):
    sweep = {"model": "base", "temperature": [0.6, 0.7]}
    begun = record_of(read_study(change({"sweeps": {"plain": sweep}})))
    longer = change({"sweeps": {"plain": sweep | {"temperature": [0.5, 0.6, 0.7], "min_p": [0.1]}}})
    assert changes(begun, record_of(read_study(longer))) == []
    shorter = change({"sweeps": {"plain": sweep | {"temperature": [0.6]}}})
    assert changes(begun, record_of(read_study(shorter))) == ["sweeps.plain.temperature: [0.6, 0.7] -> [0.6]"]


@pytest.mark.parametrize(
    "addition",
    [
        {"merges/quarter": {"models": ["quality", "diversity"], "weights": [0.75, 0.25]}},
        {"baselines/guidance 3": {"model": "base", "guidance": 3.0}},
        {"systems": {"half T 0.8": {"model": "half", "temperature": 0.8}}},
        {"evaluation/metrics/repetition": {"class_path": "cfg_distill.metrics.Repetition"}},
        {"fits/third": {"config": "fit.yaml"}},
        {"claims/guards": {"length": "< 7"}},
        {"sweeps": {"plain": {"model": "base", "temperature": [0.5]}}},
        {"out": "elsewhere", "parallel": 1},
    ],
)
def test_additions_are_no_changes(begun, change, addition):
    assert changes(begun, record_of(read_study(change(addition)))) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"evaluation/samples": 4}, "evaluation.samples: 3 -> 4"),
        ({"evaluation/dtype": "bfloat16"}, 'evaluation.dtype: "float32" -> "bfloat16"'),
        ({"claims/margin": 0.1}, "claims.margin: 0.02 -> 0.1"),
        ({"merges/half/weights": [0.4, 0.6]}, "merges.half.weights: [0.5, 0.5] -> [0.4, 0.6]"),
        ({"baselines/base T 0.8": None}, "baselines.base T 0.8: "),
        ({"fits/quality/overrides": {"trainer.max_steps": 5}}, "recipes.quality.trainer.max_steps: 12 -> 5"),
    ],
)
def test_a_change_is_named_with_both_values(begun, change, changed, said):
    found = changes(begun, record_of(read_study(change(changed))))
    assert any(line.startswith(said) for line in found), found


def test_a_recipe_prompts_or_weights_that_changed(begun, place):
    (place / "fit.yaml").write_text((place / "fit.yaml").read_text().replace("1.0e-2", "2.0e-2"))
    (place / "train.txt").write_text("other\n")
    (place / "base" / "model.safetensors").write_text("other weights")
    found = "\n".join(changes(begun, record_of(read_study("study.yaml"))))
    assert "recipes.quality.model.optimizer.init_args.lr: 0.01 -> 0.02" in found
    assert "files.train.txt: " in found
    assert "files.base: " in found


def test_a_study_that_changed_is_refused_before_anything_runs(begun, place, change):
    out = place / "out"
    out.mkdir()
    import json

    (out / "study.json").write_text(json.dumps(begun))
    with pytest.raises(ConfigError) as caught:
        run_steps(change({"evaluation/samples": 4}))
    message = str(caught.value)
    assert "evaluation.samples: 3 -> 4" in message
    assert "--overwrite" in message
    assert "--out" in message
    assert sorted(path.name for path in out.iterdir()) == ["study.json"]


def test_strange_files_are_not_written_among(place):
    (place / "out").mkdir()
    (place / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds files, but no study"):
        run_steps("study.yaml")


def test_a_digest_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("1")
    first = digest([tmp_path])
    (tmp_path / ".hidden").write_text("a temporary file")
    assert digest([tmp_path]) == first
    (tmp_path / "a").write_text("2")
    second = digest([tmp_path])
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, digest([tmp_path])}) == 3


def test_own_code_is_found_without_an_import(tmp_path, monkeypatch):
    installed = tmp_path / "lib" / "site-packages"
    files = {
        "here/single.py": "raise SystemExit('was run')",
        "here/mine/__init__.py": "from mine.words import Words",
        "here/mine/words.py": "",
        "here/mine/deep/judge.py": "",
        "here/space/sub/part.py": "this is no Python",
        "here/prompts.py": "",
        "here/prompts.txt": "a prompt",
        "path/further.py": "",
        "path/single.py": "hidden by the one in the current folder",
        "lib/site-packages/theirs.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path / "here")
    for folder in (tmp_path / "path", installed):
        monkeypatch.syspath_prepend(folder)
    spec = {"class_path": "single.Words", "init_args": {"parts": [{"class_path": "further.Part"}, "mine.Words"]}}
    found = own_code({"words": spec, "more": "mine.deep.judge.Judge"})
    assert list(found) == ["further.py", "mine", "mine/deep/judge.py", "single.py"]
    assert list(own_code("space.sub.part.Reward")) == ["space/sub/part.py"]
    strangers = ["cfg_distill.metrics.DistinctN", "torch.optim.AdamW", "json.JSONDecoder", "theirs.Part", "no.module"]
    assert own_code([*strangers, "prompts.txt", "a" * 300 + ".b", None, 3]) == {}
    (tmp_path / "here/mine/words.py").write_text("import this")
    changed = own_code({"words": spec})
    assert [name for name in changed if found[name] != changed[name]] == ["mine"]
