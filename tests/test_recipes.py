"""Every shipped recipe is what it says: it parses, its classes take its arguments, its files are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser
from made_study import read_study
from tiny import tiny_folder

from cfg_distill.cli.recipes import description, shipped
from cfg_distill.data import read_prompts
from cfg_distill.data.reading import normalised
from cfg_distill.errors import ConfigError
from cfg_distill.folders import RECIPES
from cfg_distill.metrics import SampleMetric
from cfg_distill.recipe.checks import Walk
from cfg_distill.recipe.command_line import start
from cfg_distill.study.check import problems_of

NAMES = sorted(shipped())
CONTENT = {name: yaml.safe_load(shipped()[name].read_text()) for name in NAMES}
OVERLAYS = [  # of recipes/tunes/diversity.yaml
    name for name in NAMES if "neighbours" in name.split("/")[:-1] or name == "tunes/music"
]
FITS = [name for name in NAMES if "trainer" in CONTENT[name] and name not in OVERLAYS]
STUDIES = [name for name in NAMES if "fits" in CONTENT[name]]
GENERATORS = {name: CONTENT[name]["model"].get("generator", {}) for name in FITS}
LANGUAGE = {name: made["init_args"]["path"] for name, made in GENERATORS.items() if "CausalLM" in str(made)}
KINDS = ("MusicGen", "AceStep", "YuE", "CSM")
SOUND = [
    name for name, made in GENERATORS.items() if any(kind in str(made) for kind in KINDS)
]  # tests/generators: test_musicgen_recipes.py, test_songs.py, test_csm.py
ELSEWHERE = [name for name, path in LANGUAGE.items() if "/" in path or path.startswith("text:")]  # a hub, a package
ENGINES = ["text/vllm"]  # of any LoRA recipe; its server is asked by tests/sampling/test_vllm.py
TEACHERS = {"smollm2/negative": "negative", "smollm2/last_token": "drop"}  # overlays of recipes/smollm2/quality.yaml
METRICS = [name for name in NAMES if name not in [*FITS, *STUDIES, *OVERLAYS, *ENGINES, *TEACHERS]]


@pytest.fixture(scope="module")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A language model with a chat template, and room for the samples of any recipe."""
    folder = tmp_path_factory.mktemp("local")
    tiny_folder(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }} w0 {% endfor %}")
    return str(folder)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_line_describes_it(name: str) -> None:
    assert shipped()[name].read_text().startswith("# ")
    assert 20 < len(description(shipped()[name])) < 110


@pytest.mark.parametrize("name", [name for name in FITS if name not in SOUND])
def test_a_fit_has_no_problems_in_any_folder(name: str, folder: Path, local_model: str) -> None:
    words = ["--config", f"recipes/{name}.yaml"]
    if name in ELSEWHERE:  # nothing is downloaded or converted here: a local model stands for it
        words.append(f"--model.generator.init_args.path={local_model}")
    start("fit", words, check_only=True)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_has_no_problems_and_says_how_it_is_run(name: str, folder: Path) -> None:
    words = ["--config", "recipes/tunes/diversity.yaml", "--config", f"recipes/{name}.yaml"]
    start("fit", words, check_only=True)
    assert f"cfg-distill fit {' '.join(words)}" in shipped()[name].read_text()
    (loss,) = (part for key, part in CONTENT[name]["model"]["losses"].items() if key != "kl")
    if loss is None:  # no reward, but another teacher
        assert CONTENT[name]["model"]["guidance"]["schedule"] != "constant"
    else:  # another loss, or another reward
        assert "class_path" in loss or loss["reward"]["class_path"] != "cfg_distill.rewards.PairwiseDiversity"


@pytest.mark.parametrize("name", TEACHERS)
def test_an_overlay_of_guided_text_has_no_problems_and_changes_the_teacher_alone(
    name: str, folder: Path, local_model: str
) -> None:
    words = ["--config", "recipes/smollm2/quality.yaml", "--config", f"recipes/{name}.yaml"]
    assert f"cfg-distill fit {' '.join(words)}" in shipped()[name].read_text()
    words.append(f"--model.generator.init_args.path={local_model}")
    start("fit", words, check_only=True)
    of_text = {"generator": {"init_args": {"chat_template": False}}} if TEACHERS[name] == "drop" else {}
    (changed,) = CONTENT[name].values()
    assert changed == {**of_text, "guidance": {TEACHERS[name]: changed["guidance"][TEACHERS[name]]}}
    if of_text:  # under a chat template it would be refused
        with pytest.raises(ConfigError, match=r"expected `prompt` as `drop`"):
            start("fit", [*words, "--model.generator.init_args.chat_template=true"], check_only=True)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_no_problems_in_any_folder(name: str, folder: Path) -> None:
    assert problems_of(read_study(f"recipes/{name}.yaml")) == []


@pytest.mark.parametrize("name", ENGINES)
def test_an_overlay_of_an_engine_asks_for_its_server(name: str, folder: Path, local_model: str) -> None:
    words = ["--config", "recipes/text/lora_7b.yaml", "--config", f"recipes/{name}.yaml"]
    words += [f"--model.generator.init_args.path={local_model}", "--model.sampler.init_args.url=http://127.0.0.1:9"]
    with pytest.raises(
        ConfigError, match=r"Key `model.sampler.init_args.url`: expected a vLLM server that answers"
    ) as found:
        start("fit", words, check_only=True)
    assert len(found.value.problems) == 1
    assert "--config recipes/text/lora_7b.yaml --config recipes/text/vllm.yaml" in shipped()[name].read_text()


@pytest.mark.parametrize("name", METRICS)
def test_a_file_of_metrics_names_metrics(name: str) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--metrics", type=dict[str, SampleMetric])
    walk = Walk()
    walk.keys(parser, {"metrics": CONTENT[name].get("metrics", CONTENT[name])})
    assert walk.problems == []


@pytest.mark.parametrize("room", ["tunes", "smollm2"])
def test_prompts_of_the_recipes_are_shipped_texts_without_overlap(room: str) -> None:
    prompts = {
        name: [normalised(p) for p in read_prompts(RECIPES / room / "prompts" / f"{name}.txt")]
        for name in ("train", "validation", "report")
    }
    everything = [prompt for each in prompts.values() for prompt in each]
    assert len(set(everything)) == len(everything)
    assert len(prompts["report"]) >= 24


def test_the_full_study_of_the_tunes_is_what_a_report_needs() -> None:
    study = read_study("recipes/tunes/study.yaml")
    assert len(study.training_seeds) >= 3
    assert len(read_prompts(study.evaluation.prompts)) >= 96
    assert study.evaluation.stage == "report" and study.claims is not None and study.claims.guards
    swept = study.swept()
    assert len(swept) == 2 + 3 - 1  # less the base, which is named
    assert {study.kind(name) for name in swept} == {"base", "guidance"}
