"""A model folder says how its samples are rendered and what is measured of them; what it may not decide is what is imported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import tiny_folder

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.evaluation import Renderer
from cfg_distill.evaluation.chosen import SOUND_METRICS, TEXT_METRICS, default_metrics
from cfg_distill.evaluation.renderers import class_paths, renderer_of
from cfg_distill.folders import find_file, resolve
from cfg_distill.folders.profile import PROFILE, Profile, copy_profile, is_trusted, profile_of
from cfg_distill.generators import CausalLM
from cfg_distill.generators.lora import LoRA
from cfg_distill.merging import merge_folders
from cfg_distill.tunes.renderer import TuneRenderer

LOUD = """
from cfg_distill.evaluation import Renderer

print("imported")


class Loud(Renderer):
    def text(self, sample, prompt):
        return sample.upper()

    def write(self, sample, prompt, folder, stem):
        (folder / f"{stem}.loud").write_text(f"{prompt}: {sample.upper()}")
        return f"{stem}: shouted"


class Quiet:
    pass
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a model, and a module of the user's that holds a renderer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    tiny_folder(tmp_path / "model")
    Path("loud.py").write_text(LOUD)
    Path("prompts.txt").write_text("w1 w2\nw3\n")
    return tmp_path


def says(content: Any, folder: str = "model") -> None:
    Path(folder, PROFILE).write_text(content if isinstance(content, str) else json.dumps(content))


WORDS = ["generate", "--model", "model", "--prompt", "w1", "--samples=1", "--max-new-tokens=5"]


def test_a_users_model_is_rendered_by_the_users_class(place: Path, capsys: pytest.CaptureFixture) -> None:
    says({"renderer": "loud.Loud"})
    assert main([*WORDS, "--out", "samples", "--trust", "loud"]) == 0
    output = capsys.readouterr().out
    assert "imported" in output and "W" in output and "01-w1-1: shouted" in output
    assert [path.name for path in Path("samples").iterdir()] == ["01-w1-1.loud"]
    words = ["--prompts", "prompts.txt", "--samples=2", "--max-new-tokens=4", "--written=1"]
    assert main(["evaluate", "--model", "model", *words, "--out", "points", "--trust", "loud"]) == 0
    names = {path.name for path in Path("points/samples/01 model").iterdir()}
    assert names == {f"01-w1-w2-{number}.{kind}" for number in (1, 2) for kind in ("loud", "txt")}
    assert Path("points/samples/01 model/01-w1-w2-1.txt").read_text().startswith("w1 w2\n\nw")


def test_a_model_folder_does_not_decide_what_is_imported(place: Path, capsys: pytest.CaptureFixture) -> None:
    says({"renderer": "loud.Loud"})
    assert main([*WORDS, "--out", "samples"]) == 0
    output = capsys.readouterr()
    assert "imported" not in output.out
    assert "Option `--trust`: model `model` names the renderer `loud.Loud`" in output.err
    assert [path.name for path in Path("samples").iterdir()] == ["01-w1-1.txt"]
    assert type(renderer_of("model")[0]) is Renderer


@pytest.mark.parametrize(
    "metric",
    [
        {"class_path": "evil.Metric"},
        "evil.Metric",
        {"class_path": "cfg_distill.metrics.VendiScore", "init_args": {"embedder": {"class_path": "evil.Embedder"}}},
        {"class_path": "cfg_distill.metrics.VendiScore", "init_args": {"embedder": "evil.Embedder"}},
        {"class_path": "cfg_distill.rewards.Mixed", "init_args": {"rewards": ["evil.Reward"]}},
    ],
)
def test_nor_do_its_metrics(place: Path, metric: Any) -> None:
    (place / "evil.py").write_text("raise SystemExit('imported')")
    says({"metrics": {"good": {"class_path": "cfg_distill.metrics.DistinctN"}, "bad": metric}})
    specs, (remark,) = default_metrics([CausalLM("model")])
    assert specs == TEXT_METRICS
    assert remark.path == "trust" and "names the metric `evil." in remark.text and "name it here: `evil`" in remark.text
    assert default_metrics([CausalLM("model")], trust=["evil"])[0].keys() == {"good", "bad"}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "import nothing_of_this_name\n",
            "its renderer `mine_too.Page` cannot be imported: No module named 'nothing_of",
        ),
        (
            "from cfg_distill.evaluation import Renderer\nclass Page(Renderer):\n    def __init__(self, size): pass\n",
            "expected a renderer that takes no arguments",
        ),
        ("x = 1\n", "there is none under the name `mine_too.Page`"),
    ],
)
def test_why_a_renderer_does_not_do(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, code: str, said: str
) -> None:
    monkeypatch.syspath_prepend(str(place))
    (place / "mine_too.py").write_text(code)
    says({"renderer": "mine_too.Page"})
    words = ["generate", "--model", "model", "--prompt", "w1", "--max-new-tokens=2", "--trust", "mine_too"]
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tune", "is_empty"), [("z:1 |]", True), ("z:8 | z:8 |]", True), ("", True), ("z:1 d:1 |]", False)]
)
def test_a_tune_of_rests_is_empty(tune: str, is_empty: bool) -> None:
    assert TuneRenderer().is_empty(tune) == is_empty


def test_trust_ends_at_the_name_of_a_module() -> None:
    assert is_trusted("cfg_distill.metrics.DistinctN")
    assert not any(
        is_trusted(name) for name in ("cfg_distill_evil.X", "cfg_distill", "os.system", "evil.cfg_distill.X")
    )
    assert is_trusted("mine.X", ["mine"]) and not is_trusted("mines.X", ["mine"]) and not is_trusted("os.system", [""])
    assert class_paths({"a": ["x.Y", "laion/clap", "./file.yaml", 3, None, {"b": "z.W"}]}) == ["x.Y", "z.W"]
    odd = ["evil.Q ", "evil.Q\n", "evil..Q", "evil.1Q", " evil.Q", "evil.payload.a b"]
    assert class_paths(odd) == odd and not any(map(is_trusted, odd))


def _texts(folder: Path) -> list[tuple[str, str]]:
    return sorted((file.name, file.read_text()) for file in folder.iterdir())


def test_filters_and_a_negative_prompt_of_an_evaluation(place: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["evaluate", "--model", "model", "--prompts", "prompts.txt", "--samples=2", "--max-new-tokens=6"]
    found = {}
    for name, more in {
        "plain": ["--guidance", "1", "3"], "negative": ["--guidance", "1", "3", "--negative", "w5 w6"], "top": ["--top-k=1"]
    }.items():  # fmt: skip
        assert main([*words, *more, "--out", name]) == 0
        found[name] = [json.loads(file.read_text()) for file in sorted(Path(name, "systems").glob("*.json"))]
        assert json.loads(Path(name, "front.json").read_text())["choice"] is None
    assert found["top"][0]["top_k"] == 1 and found["plain"][0]["top_k"] == 0
    drawn = {name: [_texts(each) for each in sorted(Path(name, "samples").iterdir())] for name in ("plain", "negative")}
    assert drawn["plain"][0] == drawn["negative"][0] and drawn["plain"][1] != drawn["negative"][1]
    capsys.readouterr()
    assert main([*words, "--negative", "w5"]) == 2
    assert "Option `--negative`: has no effect without guidance. Set `--guidance` above 1." in capsys.readouterr().err
    assert main([*words, "--top-p", "0"]) == 2
    assert "Option `--top-p`" in capsys.readouterr().err


def test_metrics_of_the_folder_are_those_of_evaluate(place: Path, capsys: pytest.CaptureFixture) -> None:
    says({"metrics": {"one": {"class_path": "cfg_distill.metrics.DistinctN", "init_args": {"n": 1}}}})
    words = ["evaluate", "--model", "model", "--prompts", "prompts.txt", "--samples=2", "--max-new-tokens=4"]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "diversity: one" in table and "distinct_2" not in table
    shutil.copytree("model", "other")
    says({"metrics": {}}, "other")
    assert default_metrics([CausalLM("model"), CausalLM("other")])[0] == TEXT_METRICS  # they do not agree


class Sound:
    """A generator of sound, as far as metrics ask."""

    sample_rate = 3200

    def __init__(self, path: str) -> None:
        self.path = path


def test_the_kind_of_model_decides_where_no_folder_does(place: Path) -> None:
    assert default_metrics([Sound("model")]) == (SOUND_METRICS, [])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("{", "cfg_distill.json`: expected JSON, but it cannot be read"),
        ("[]", "expected keys and values, but got list"),
        ({"rendrer": "x.Y"}, "the key `rendrer` is unknown. Did you mean `renderer`?"),
        ({"renderer": 3}, "expected a class path as `renderer`, but got 3"),
        ({"metrics": 3}, "names with class_path and init_args as `metrics`, but got 3"),
        ({"renderer": "cfg_distill.nothing.Here"}, "there is none under the name `cfg_distill.nothing.Here`"),
        ({"renderer": "cfg_distill.metrics.DistinctN"}, "there is none under the name `cfg_distill.metrics.DistinctN`"),
    ],
)
def test_what_is_wrong_with_a_profile_is_told(
    place: Path, capsys: pytest.CaptureFixture, content: Any, wanted: str
) -> None:
    says(content)
    assert main(WORDS) == 2
    message = capsys.readouterr().err
    assert wanted in message and "Option `--model`" in message and "Traceback" not in message


def test_keys_of_a_later_release_are_skipped(place: Path) -> None:
    says({"licence": "MIT"})
    assert profile_of("model") == Profile()


# Tunes


def test_the_shipped_base_says_of_itself_that_it_writes_tunes() -> None:
    profile = profile_of("tunes:base")
    assert profile is not None and isinstance(renderer_of("tunes:base")[0], TuneRenderer)
    expected = yaml.safe_load(find_file("recipes/tunes/metrics.yaml").read_text())
    assert default_metrics([CausalLM("tunes:base")]) == (expected, [])


def test_a_folder_of_version_0_1_is_known_by_its_tokenizer(tmp_path: Path) -> None:
    shutil.copytree(resolve("tunes:base"), tmp_path / "old")
    (tmp_path / "old" / PROFILE).unlink()
    assert profile_of(str(tmp_path / "old")) is None
    assert isinstance(renderer_of(str(tmp_path / "old"))[0], TuneRenderer)
    # A tokenizer that lacks one of the slots is none of tunes.
    text = (tmp_path / "old" / "tokenizer.json").read_text()
    (tmp_path / "old" / "tokenizer.json").write_text(text.replace("<mode:any>", "<mood:any>"))
    assert type(renderer_of(str(tmp_path / "old"))[0]) is Renderer


def test_exports_merges_and_adapters_carry_the_profile(tmp_path: Path) -> None:
    base = profile_of("tunes:base")
    for name in ("a", "b"):
        CausalLM("tunes:base").load().save(tmp_path / name)
        assert profile_of(str(tmp_path / name)) == base
    merge_folders([tmp_path / "a", tmp_path / "b"], [0.5, 0.5], "lerp", tmp_path / "merged")
    assert profile_of(str(tmp_path / "merged")) == base
    CausalLM("tunes:base", lora=LoRA(rank=2)).load().save(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / PROFILE).exists()
    assert profile_of(str(tmp_path / "adapter")) == base
    copy_profile(str(tmp_path / "adapter"), tmp_path)
    assert (tmp_path / PROFILE).is_file()


def test_a_renderer_that_is_asked_for_in_vain_by_a_base_that_is_gone(tmp_path: Path) -> None:
    CausalLM(tiny_folder(tmp_path / "base"), lora=LoRA(rank=2)).load().save(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "base")
    assert profile_of(str(tmp_path / "adapter")) is None


def test_an_unknown_shipped_name_is_told() -> None:
    with pytest.raises(ConfigError, match="one of"):
        profile_of("tunes:bass")


def test_results_replace_results_and_nothing_else(place: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["evaluate", "--prompts", "prompts.txt", "--samples=2", "--max-new-tokens=4", "--out", "points", "--model"]
    Path("points").mkdir()
    Path("points", "thesis.tex").touch()
    assert main([*words, "model"]) == 2
    assert "expected a new folder, but `points` exists. Name another, or allow it with `--overwrite`" in said(capsys)
    assert main([*words, "model", "--overwrite"]) == 2
    assert "this package does not write thesis.tex there" in said(capsys)
    assert [path.name for path in Path("points").iterdir()] == ["thesis.tex"]
    Path("points", "thesis.tex").unlink()
    shutil.copytree("model", "other")
    assert main([*words, "model", "other"]) == 0
    assert main([*words, "other", "--overwrite"]) == 0
    assert [path.name for path in Path("points", "systems").iterdir()] == ["01 other.json"]
    assert [path.name for path in Path("points", "samples").iterdir()] == ["01 other"]
    Path("points", "samples", "01 other", "notes.md").touch()
    assert main([*words, "other", "--overwrite"]) == 2
    assert "notes.md" in said(capsys)


def said(capsys: pytest.CaptureFixture) -> str:
    return " ".join(capsys.readouterr().err.split())
