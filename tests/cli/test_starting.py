"""What a new user starts with: init, weight: auto, a schema for the editor, completion in the shell."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fenced import ROOT
from made_study import read_study
from tiny import tiny_folder
from tiny_audio import tiny_clap
from tiny_dia import tiny_dia
from tiny_musicgen import tiny_musicgen
from tiny_songs import YUE_PROMPT, tiny_yue

from cfg_distill import generators
from cfg_distill.cli import COMMANDS, init, main
from cfg_distill.cli.completion import candidates, options
from cfg_distill.data import read_prompts
from cfg_distill.files.documents import VERSION
from cfg_distill.generators import Prompt
from cfg_distill.generators.base import Generator
from cfg_distill.recipe import Recipe
from cfg_distill.study import starting
from cfg_distill.study.check import problems_of
from cfg_distill.study.schema import KINDS, schema_of

PROMPTS = [f"w{number} w{number + 1}" for number in range(12)]
SPEECH = [f"[S1] Line {number}." for number in range(12)]


def passes(recipe: Path) -> None:
    """A fit of a recipe is checked, and stops before weights load."""
    from cfg_distill.recipe.command_line import start

    start("fit", ["--config", str(recipe)], check_only=True)


# init


def test_every_model_that_writes_no_text_has_a_kind_of_its_own() -> None:
    classes = [each for each in vars(generators).values() if isinstance(each, type) and issubclass(each, Generator)]
    assert {each.__name__ for each in classes} - {"Generator", "CausalLM"} == set(starting.OF_GENERATOR)
    assert "text" not in starting.OF_GENERATOR.values()


@pytest.mark.parametrize(
    "kind", ["text", "music", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("tunes", "speech", "songs"))]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_init_writes_passes_the_checks(
    kind: str, folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # the command line sets it; this test shall not leave it behind
    make = {"text": tiny_folder, "tunes": lambda _: "tunes:base", "music": tiny_musicgen, "speech": tiny_dia}.get(
        kind, tiny_yue
    )
    model = str(make(folder / "model"))
    prompts: Any = {"tunes": [f"a jig in {key}" for key in "ABCDEFG"], "speech": SPEECH}.get(kind, PROMPTS)
    suffix = "txt"
    if kind == "songs":
        suffix, prompts = "jsonl", [Prompt(each, **YUE_PROMPT) for each in PROMPTS]
        lines = [json.dumps({"prompt": each, "conditions": YUE_PROMPT}) for each in PROMPTS]
        Path(model, "cfg_distill.json").write_text('{"generator": "YuE"}')
    else:
        lines = prompts
    (folder / f"prompts.{suffix}").write_text("\n".join(lines) + "\n\n")
    words = ["init", "--model", model, "--prompts", f"prompts.{suffix}", "--device", "cpu", "--guidance", "2.5"]
    if kind == "music":
        words += ["--embedder", tiny_clap(folder / "clap")]
        monkeypatch.setitem(
            vars(starting)["KINDS"],
            "music",
            starting.Kind("music", 3.0, (8, 8), 1e-5, None, "cfg_distill.embedders.CLAP"),
        )
    assert main(words) == 0
    out, err = capsys.readouterr()
    mine = folder / "my-study"
    parts = [read_prompts(mine / "prompts" / f"{name}.{suffix}") for name in ("train", "validation", "report")]
    assert (
        sorted((prompt for part in parts for prompt in part), key=str) == sorted(prompts, key=str)
        and len(parts[2]) == len(prompts) // 3
    )
    passes(mine / "quality.yaml")
    assert all(yaml.safe_load(each.read_text())["version"] == VERSION for each in mine.glob("*.yaml"))
    recipe = Recipe.read([mine / "quality.yaml"])
    assert recipe.at("model.guidance.scale") == 2.5 and recipe.model_path == model
    if kind in ("speech", "songs"):
        what = {"speech": "speech", "songs": "codes of songs"}[kind]
        assert f"This package has none for {what}." in err and "--embedder" in err and "docs/extending.md" in err
        assert out.endswith("Then: cfg-distill fit --config my-study/quality.yaml\n")
        assert not (mine / "study.yaml").exists() and not (mine / "diversity.yaml").exists()
        return
    passes(mine / "diversity.yaml")
    assert out.endswith("Then: cfg-distill study my-study/study.yaml\n")
    study = read_study(mine / "study.yaml")
    assert problems_of(study) == []
    assert study.claims.guards.keys() == study.evaluation.metrics.keys() & starting.BOUNDS.keys()
    independent = {"text": ("words", "bigrams"), "tunes": ("melodic_diversity",)}.get(kind, (None,))
    assert study.evaluation.headline.independent in independent
    embedder = Recipe.read([mine / "diversity.yaml"]).at("model.losses.diversity.reward.embedder.class_path")
    assert embedder.rpartition(".")[2] in {"text": ("WordCounts", "TransformerEmbedder"), "tunes": ("Tunes",)}.get(
        kind, ("CLAP",)
    )


@pytest.mark.parametrize("name", ["lr=1e-3,bs=4", "[one] {two}", "my study"])
def test_a_path_may_hold_what_means_something_to_yaml_or_a_shell(
    folder: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    (folder / "p.txt").write_text("\n".join(f"a jig in {key}" for key in "ABCDEFG"))
    assert main(["init", "--model", "tunes:base", "--prompts", "p.txt", "--device", "cpu", "--out", name]) == 0
    then = capsys.readouterr().out.splitlines()[-1].removeprefix("Then: ")
    assert shlex.split(then) == ["cfg-distill", "study", f"{name}/study.yaml"]
    assert f"#   {then}\n" in Path(name, "study.yaml").read_text()
    study = read_study(Path(name, "study.yaml"))
    assert (study.fits["quality"].config, study.evaluation.prompts) == (
        f"{name}/quality.yaml",
        f"{name}/prompts/report.txt",
    )
    assert Recipe.read([f"{name}/diversity.yaml"]).prompt_files["train"] == f"{name}/prompts/train.txt"


def test_prompts_are_split_as_they_are_read(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """A line separator within a prompt ends no line, and of equal prompts one is kept: it would be in two parts."""
    (folder / "prompts.jsonl").write_text(
        "".join(f'{{"prompt": "{each}"}}\n' for each in ["a\u2028b", *PROMPTS, "A\u2028B"])
    )
    words = ["init", "--model", tiny_folder(folder / "model"), "--prompts", "prompts.jsonl", "--device", "cpu"]
    assert main(words) == 0
    assert "1 of the prompts stood in the file before, and was left out." in capsys.readouterr().err
    parts = [read_prompts(folder / "my-study/prompts" / f"{name}.jsonl") for name in ("train", "validation", "report")]
    assert sorted(str(each) for part in parts for each in part) == sorted(["a\u2028b", *PROMPTS])
    (folder / "same.txt").write_text("one\nOne\n" * 9)
    assert main([*words[:3], "--prompts", "same.txt", "--device", "cpu", "--out", "other"]) == 2


def test_what_init_refuses(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "few.txt").write_text("one\ntwo\n")
    (folder / "table.csv").write_text("prompt\none\n")
    (folder / "my-study").mkdir()
    (folder / "my-study" / "thesis.txt").write_text("mine")
    words = ["init", "--model", "nowhere/at/all/x", "--device", "cpu", "--guidance", "1", "--embedder", "os.path"]
    assert main([*words, "--prompts", "few.txt", "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert "4 problems" in said or "5 problems" in said
    for text in (
        "Option `--model`",
        "Option `--prompts`: expected at least 6 different prompts",
        "Option `--guidance`: expected a number above 1",
        "Option `--embedder`: expected an Embedder",
        "thesis.txt",
    ):
        assert text in said, text
    assert (folder / "my-study" / "thesis.txt").read_text() == "mine"
    assert main(["init", "--model", "tunes:base", "--prompts", "table.csv", "--device", "cpu", "--out", "new"]) == 2
    assert "expected a file with one prompt per line, .txt or .jsonl, but got `table.csv`" in capsys.readouterr().err
    few = ["init", "--model", "tunes:base", "--prompts", "few.txt", "--device", "cpu", "--out", "new"]
    assert main([*few, "--embedder", "cfg_distill.embedders.TransformerEmbedder"]) == 2
    said = capsys.readouterr().err
    assert "Option `--embedder`: expected an embedder that needs nothing else, but `cfg_distill.embedders.Tran" in said
    assert "needs a model. Give the folder or hub name of that model instead." in said
    assert main(["init", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "Option `--model`" in said and "Option `--prompts`" in said and "no terminal" in said


def test_on_a_terminal_init_asks(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    answers = {"Model": tiny_folder(folder / "model"), "Prompts": "prompts.txt", "Device": ""}
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        return next(text for start, text in answers.items() if question.startswith(start))

    monkeypatch.setattr(init.sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    monkeypatch.setattr(starting, "found_device", lambda: "gpu")
    assert main(["init"]) == 0
    assert asked[2] == "Device (cpu or gpu) [gpu]: "
    assert Recipe.read(["my-study/quality.yaml"]).at("trainer.precision") == "bf16-mixed"
    answers["Device"] = "tpu"
    assert main(["init", "--out", "other"]) == 2
    assert "Option `--device`: expected cpu or gpu, but got `tpu`." in capsys.readouterr().err


def test_an_empty_answer_is_asked_again_and_an_ended_input_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    answers = iter(["", "  ", "tunes:base"])

    def answer(question: str) -> str:
        if (found := next(answers, None)) is None:
            raise EOFError
        return found

    monkeypatch.setattr(init.sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr("builtins.input", answer)
    assert main(["init"]) == 2
    assert "Option `--prompts`: expected an answer, but the input ended." in capsys.readouterr().err


# weight: auto


def recipe_of(folder: Path, callbacks: Any, **losses: Any) -> Path:
    file = folder / "auto.yaml"
    kl = {"kl": {"class_path": "cfg_distill.losses.ReverseKL"}}
    file.write_text(yaml.safe_dump({"model": {"losses": kl | losses}, "trainer": {"callbacks": callbacks}}))
    return file


def test_an_automatic_weight_is_a_calibration(folder: Path) -> None:
    reward = {"class_path": "cfg_distill.losses.PolicyGradient", "init_args": {"weight": "auto"}}
    file = recipe_of(
        folder, {"speed": "a.Throughput"}, diversity=reward, short={"class_path": "m.Short", "weight": "auto"}
    )
    recipe = Recipe.read([file], {"trainer.callbacks.beta_diversity.ratio": 0.25})
    assert recipe.at("model.losses.diversity.weight") == 0.0 and recipe.at("model.losses.short.weight") == 0.0
    callbacks = recipe.at("trainer.callbacks")
    assert list(callbacks) == ["speed", "beta_diversity", "beta_short"]
    assert callbacks["beta_diversity"] == {
        "class_path": "cfg_distill.callbacks.BetaCalibration",
        "init_args": {"loss": "diversity", "reference": "kl", "ratio": 0.25},
    }
    assert "its gradient shall be 0.25 times as long as that of `kl`" in recipe.notes[0]
    listed = recipe_of(folder, ["a.Throughput"], diversity=reward)
    assert list(Recipe.read([listed]).at("trainer.callbacks")) == ["Throughput", "beta_diversity"]
    given = Recipe.read([listed], {"model.losses.diversity.weight": 3.0})  # a number wins over `auto`
    assert given.at("model.losses.diversity.weight") == 3.0 and given.at("trainer.callbacks") == ["a.Throughput"]


# A schema for editors


def errors_of(file: Path, validators: dict[str, Any]) -> list[str]:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    kind = (
        "study" if "evaluation" in content else "recipe" if content.keys() & {"model", "data", "trainer"} else "metrics"
    )
    return [
        f"{'.'.join(map(str, each.absolute_path))}: {each.message}" for each in validators[kind].iter_errors(content)
    ]


def test_every_shipped_file_fits_its_schema_and_mistakes_do_not(folder: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="the dev extra is missing")
    validators = {}
    for kind in KINDS:
        schema = schema_of(kind)
        jsonschema.Draft7Validator.check_schema(schema)
        validators[kind] = jsonschema.Draft7Validator(schema)
    shipped = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert {str(file): errors for file in shipped if (errors := errors_of(file, validators))} == {}

    def changed(recipe: str, old: str, new: str) -> list[str]:
        text = (ROOT / recipe).read_text(encoding="utf-8")
        assert old in text
        (folder / "changed.yaml").write_text(text.replace(old, new, 1))
        return errors_of(folder / "changed.yaml", validators)

    assert changed("recipes/tunes/diversity.yaml", "  guidance:", "  guidence:")
    assert changed("recipes/tunes/diversity.yaml", "scale: 2.0", "scale: two")
    assert changed("recipes/tunes/diversity.yaml", "max_steps: 250", "max_step: 250")
    assert changed("recipes/tunes/diversity.yaml", "momentum: 0.95", "momentom: 0.95")
    assert changed("recipes/quickstart.yaml", "  prompts: recipes", "  promts: recipes")
    assert changed("recipes/quickstart.yaml", "weights: [0.75, 0.25]", "weights: lots")
    assert not changed("recipes/tunes/diversity.yaml", "weight: 10.0 ", "weight: auto ")


def test_the_schema_says_what_a_key_means(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["schema", "recipe", "--out", "recipe.schema.json"]) == 0
    keys = json.loads((folder / "recipe.schema.json").read_text())["properties"]["model"]["properties"]
    assert "samples that are scored and differentiated at once" in keys["micro_batch"]["description"]
    assert main(["schema", "recipe", "--out", "recipe.schema.json"]) == 2
    assert "`recipe.schema.json` exists" in capsys.readouterr().err
    assert main(["schema", "study"]) == 0
    assert json.loads(capsys.readouterr().out)["required"] == ["out", "evaluation"]


# Completion


def test_completion_offers_commands_options_and_recipes() -> None:
    assert candidates(["val"]) == ["validate", "validate-metrics"]
    assert candidates([""]) == [*COMMANDS, "--help", "--version"]
    assert candidates(["merge", "--kn"]) == ["--knob"] and "--ckpt_path" in candidates(["fit", "--"])
    assert "recipes/quickstart.yaml" in candidates(["study", "rec"])
    assert candidates(["fit", "--config", "recipes/tunes/q"]) == ["recipes/tunes/quality.yaml"]
    assert "tunes/quality" in candidates(["recipes", "tunes/q"]) and candidates(["merge", "--out", ""]) == []
    assert options("nonsense") == [] and all(options(command) for command in COMMANDS)


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is missing")
def test_the_script_completes_in_bash(folder: Path) -> None:
    script = f"""
        cfg-distill() {{ {sys.executable} -m cfg_distill.cli "$@"; }}
        eval "$(cfg-distill completion bash)"
        complete -p cfg-distill
        COMP_WORDS=(cfg-distill merge --kn); COMP_CWORD=2; _cfg_distill; echo "${{COMPREPLY[@]}}"
        COMP_WORDS=(cfg-distill compl); COMP_CWORD=1; _cfg_distill; echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.stdout.splitlines()[1:] == ["--knob", "completion"] and "-F _cfg_distill cfg-distill" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["completion", shell]) == 0
    assert re.search(r"cfg-distill completion words --", capsys.readouterr().out)
    if shutil.which(shell):
        assert main(["completion", shell]) == 0
        checked = subprocess.run(
            [shell, "-n"], check=False, input=capsys.readouterr().out, capture_output=True, text=True
        )
        assert checked.returncode == 0, checked.stderr


def test_a_schema_is_written_into_a_file(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "schemas").mkdir()
    assert main(["schema", "recipe", "--out", "schemas"]) == 2
    assert "expected a file, but `schemas` is a folder. Name a file in it." in capsys.readouterr().err
    assert (
        main(["schema", "recipe", "--out", "schemas/recipe.json"]) == 0 and (folder / "schemas/recipe.json").is_file()
    )
