"""Model cards: what a hub's parser reads in them, what they tell, that no path of this machine is in any file."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from lightning.pytorch.callbacks import ModelCheckpoint
from made_study import write_study
from safetensors.torch import load_file, save_file
from tiny_fits import FirstToken, batches, student_of, trainer
from transformers import GenerationConfig

from cfg_distill.cli import main
from cfg_distill.evaluation import EvaluateRequest
from cfg_distill.evaluation.models import _name
from cfg_distill.files import make_readable, strangers
from cfg_distill.folders.card import tell_measured, write_card
from cfg_distill.folders.checksums import write_checksums
from cfg_distill.folders.history import History, history_of, of_base, of_merge, remarks_on_guiding, shown, terms_of
from cfg_distill.folders.profile import profile_of
from cfg_distill.generators import CausalLM, LoRA
from cfg_distill.losses import PolicyGradient, ReverseKL
from cfg_distill.merging import merge_folders


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    """A model with a licence, a notice and settings of its samples."""
    folder = tmp_path_factory.mktemp("bases") / "my-base"
    shutil.copytree(tiny_model, folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A base\n")
    (folder / "NOTICE.txt").write_text("Copyright of the base")
    (folder / "cfg_distill.json").write_text('{"renderer": "mine.Renderer"}')
    return folder


@pytest.fixture(scope="module")
def checkpoints(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole student and an adapter, after a step."""
    found = {}
    for name, lora in (("whole", None), ("adapter", LoRA(rank=2))):
        root = tmp_path_factory.mktemp(name)
        saved = ModelCheckpoint(root / "version_0" / "checkpoints", filename="last", every_n_train_steps=1)
        losses = {"kl": ReverseKL(), "diversity": PolicyGradient(FirstToken(), weight=0.25)}
        student = student_of(str(base), generator=CausalLM(str(base), lora=lora), losses=losses)
        trainer([saved], root, max_steps=1).fit(student, batches(2))
        recipe = {"recipe": str(root / "private" / "mine.yaml")}
        (root / "version_0" / ".lock").write_text(json.dumps(recipe))
        found[name] = root / "version_0" / "checkpoints" / "last.ckpt"
    return found


@pytest.fixture(scope="module")
def students(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both exports, and merges of each with itself."""
    out = tmp_path_factory.mktemp("students")
    for name, file in checkpoints.items():
        assert main(["export", "--checkpoint", str(file), "--out", str(out / name)]) == 0
        shutil.copytree(out / name, out / "other" / name)
        words = ["--models", str(out / name), str(out / "other" / name), "--weights", "0.7", "0.3"]
        assert main(["merge", *words, "--out", str(out / f"{name}-30")]) == 0
    return out


CASES = [
    ("whole", "transformers", None),
    ("adapter", "peft", None),
    ("whole-30", "transformers", 0.3),
    ("adapter-30", "peft", 0.3),
]


@pytest.mark.parametrize(("name", "library", "knob"), CASES)
def test_a_hub_reads_the_card(students: Path, base: Path, name: str, library: str, knob: float | None) -> None:
    folder = students / name
    card = ModelCard.load(folder / "README.md")
    head = card.data.to_dict()
    assert head["license"] == "mit" and head["library_name"] == library and head["pipeline_tag"] == "text-generation"
    assert "base_model" not in head  # a folder of this machine is nobody else's base
    tags = {"cfg-distill", "classifier-free-guidance", "distillation"}
    assert set(head["tags"]) == tags | ({"lora"} if library == "peft" else set()) | ({"merge"} if knob else set())
    assert "**Do not guide this model.**" in card.text and "| base | my-base |" in card.text
    assert "kl: ReverseKL, weight 1; diversity: PolicyGradient, weight 0.25 (beta)" in card.text
    assert "| guidance of the teacher (gamma) | 2 |" in card.text
    assert (f"| knob | {knob} (0 is" in card.text) == (knob is not None)
    assert ("--merged" in card.text) == (library == "peft")
    if knob is None:
        assert "| recipe | mine.yaml |" in card.text and "| steps | 1, live weights |" in card.text
    made = history_of(folder)
    assert made is not None and made.distilled and made.guidance == 2 and made.knob == (knob and pytest.approx(knob))
    profile = profile_of(folder)
    assert profile is not None and profile.renderer == "mine.Renderer"
    assert (folder / "NOTICE.txt").read_text() == "Copyright of the base"
    settings = GenerationConfig.from_pretrained(folder)
    assert settings.top_k == 0 and settings.guidance_scale in (None, 1.0)


@pytest.mark.parametrize("name", [case[0] for case in CASES])
def test_no_path_of_this_machine_is_told(students: Path, base: Path, name: str) -> None:
    """But for the base of an adapter, without which peft could not load it here."""
    for file in (students / name).glob("*"):
        content = file.read_bytes()
        if file.name == "adapter_config.json":
            content = content.replace(str(base).encode(), b"")
        assert str(base.parent).encode() not in content and str(students).encode() not in content, file
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in (students / name).iterdir())


def test_an_edited_card_is_the_users(students: Path, checkpoints: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(students / "whole", tmp_path / "whole")
    words = ["export", "--checkpoint", str(checkpoints["whole"]), "--out", str(tmp_path / "whole"), "--overwrite"]
    assert strangers(tmp_path / "whole") == [] and main(words) == 0
    with (tmp_path / "whole" / "README.md").open("a") as card:
        card.write("Mine.\n")
    assert main(words) == 2
    assert "does not write README.md there" in capsys.readouterr().err
    assert (tmp_path / "whole" / "README.md").read_text().endswith("Mine.\n")
    tell_measured(tmp_path / "whole", "x", {"quality": {}})
    assert (tmp_path / "whole" / "README.md").read_text().endswith("Mine.\n")


def test_the_front_is_told(students: Path, tmp_path: Path) -> None:
    shutil.copytree(students / "whole", tmp_path / "whole")
    interval = {"mean": 0.5, "low": 0.25, "high": 0.75}
    tell_measured(
        tmp_path / "whole", "shipped", {"quality": {"tune_quality": interval}, "diversity": {}, "name": "half"}
    )
    text = (tmp_path / "whole" / "README.md").read_text()
    assert "# shipped\n" in text and "| quality | tune_quality | 0.500 | 0.250 to 0.750 |" in text
    assert strangers(tmp_path / "whole") == []
    tell_measured(tmp_path, "no model", {})
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_guiding_a_student_again_is_remarked(students: Path, tmp_path: Path, command: str, capsys: Any) -> None:
    (tmp_path / "prompts.txt").write_text("w1\n")
    asked = {"generate": ["--prompt", "w1"], "evaluate": ["--prompts", str(tmp_path / "prompts.txt")]}[command]
    words = [command, "--model", str(students / "whole"), *asked, "--samples=2", "--max-new-tokens=2"]
    words += [] if command == "generate" else ["--metrics", str(tmp_path / "metrics.yaml")]
    (tmp_path / "metrics.yaml").write_text("distinct: {class_path: cfg_distill.metrics.DistinctN}\n")
    told = f"`{students / 'whole'}` was distilled and already carries guidance 2. Guided again, it overshoots."
    assert main([*words, "--guidance", "2"]) == 0
    assert f"Option `--guidance`: {told}" in capsys.readouterr().err
    assert main(words) == 0
    assert told not in capsys.readouterr().err


def test_a_student_is_known_by_its_card_alone_and_under_an_adapter(base: Path, students: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(students / "whole", tmp_path / "copy")
    (copy / "cfg_distill.json").unlink()
    (remark,) = remarks_on_guiding([str(copy)], [1.0, 2.0])
    assert remark.text.startswith(f"`{copy}` was distilled and already carries guidance.")
    shutil.copytree(students / "adapter", tmp_path / "on it")
    for name in ("cfg_distill.json", "README.md"):
        (tmp_path / "on it" / name).unlink()
    config = tmp_path / "on it" / "adapter_config.json"
    for named, expected in ((students / "whole", 1), (base, 0)):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": str(named)}))
        assert len(remarks_on_guiding([str(tmp_path / "on it")], [2.0])) == expected
    assert not remarks_on_guiding([str(base), "tunes:base", "me/my-model"], [2.0])


def test_one_model_is_guided_and_the_others_are_not(base: Path, students: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "prompts.txt").write_text("w1\n")
    (tmp_path / "metrics.yaml").write_text("distinct: {class_path: cfg_distill.metrics.DistinctN}\n")
    words = ["--prompts", str(tmp_path / "prompts.txt"), "--metrics", str(tmp_path / "metrics.yaml"), "--samples=2"]
    models = [str(base), f"{base}@2", str(students / "whole"), f"{students / 'adapter'}@1.5"]
    assert main(["evaluate", "--model", *models, *words, "--max-new-tokens=2", "--out", str(tmp_path / "out")]) == 0
    systems = json.loads((tmp_path / "out" / "front.json").read_text())["systems"]
    assert [each["guidance"] for each in systems] == [1, 2, 1, 1.5]
    assert [each["name"] for each in systems] == ["my-base", "my-base, guidance 2", "whole", "adapter, guidance 1.5"]
    err = capsys.readouterr().err
    assert err.count("overshoots") == 1 and f"`{students / 'adapter'}` was distilled" in err
    for scale, named in (("0", "my-base, guidance 0"), ("2", "my-base, guidance 2"), ("1", "my-base")):
        request = EvaluateRequest([f"{base}@{scale}"], tmp_path / "prompts.txt", metrics=tmp_path / "metrics.yaml")
        assert _name(request.points[0], request.points) == named  # of one point alone, too
        assert any("0 samples the negative branch alone" in each.text for each in request.remarks()) == (scale == "0")
    (tmp_path / "odd@2").mkdir()  # a folder of such a name is no guided model
    assert main(["evaluate", "--model", str(tmp_path / "odd@2"), *words]) == 2
    assert "odd@2` holds no config.json" in capsys.readouterr().err


def test_what_is_known_of_start_models(base: Path, students: Path) -> None:
    tunes, smol, hub = of_base("tunes:base"), of_base("text:smollm2"), of_base("facebook/musicgen-small")
    assert (tunes.base, tunes.hub, tunes.licence, tunes.base_is_on_hub) == ("tunes:base", "", "apache-2.0", False)
    assert (smol.hub, smol.licence) == ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0") and not smol.base_is_on_hub
    assert (hub.hub, hub.licence, hub.base_is_on_hub) == ("facebook/musicgen-small", "cc-by-nc-4.0", True)
    assert of_base("somebody/unheard-of").licence == ""
    assert of_base(str(students / "whole")).licence == "mit"  # inherited through the student's own history
    assert shown(str(base)) == "my-base"


def test_a_base_on_the_hub_is_named_with_its_relation(students: Path, tmp_path: Path) -> None:
    for name, relation in (("whole", "finetune"), ("adapter", "adapter")):
        shutil.copytree(students / name, tmp_path / name)
        write_card(tmp_path / name, name, of_base("facebook/musicgen-small"))
        head = ModelCard.load(tmp_path / name / "README.md").data.to_dict()
        assert (head["base_model"], head["base_model_relation"]) == ("facebook/musicgen-small", relation)
        assert head["license"] == "cc-by-nc-4.0"
        assert "--merged" not in (tmp_path / name / "README.md").read_text()


def test_a_merge_of_models_from_elsewhere_is_no_student(tiny_model: str, tmp_path: Path) -> None:
    words = ["--models", tiny_model, tiny_model, "--weights", "0.5", "0.5", "--out", str(tmp_path / "out")]
    assert main(["merge", *words]) == 0
    made = history_of(tmp_path / "out")
    assert made is not None and not made.distilled
    assert "Do not guide" not in (tmp_path / "out" / "README.md").read_text()
    assert ModelCard.load(tmp_path / "out" / "README.md").data.tags == ["cfg-distill", "merge"]


@pytest.mark.parametrize("first", ["base", "student"])
def test_a_merge_with_the_base_is_a_student_in_either_order(
    base: Path, students: Path, tmp_path: Path, first: str
) -> None:
    """And samples as one: settings of the base may guide it once more."""
    guiding = shutil.copytree(base, tmp_path / "guiding")
    settings = GenerationConfig.from_pretrained(base)
    settings.guidance_scale = 3.0
    settings.save_pretrained(guiding)
    shares = [(str(guiding), "0.2"), (str(students / "whole"), "0.8")][:: 1 if first == "base" else -1]
    models, weights = zip(*shares, strict=True)
    assert main(["merge", "--models", *models, "--weights", *weights, "--out", str(tmp_path / "out")]) == 0
    made = history_of(tmp_path / "out")
    assert made is not None and made.distilled and len(remarks_on_guiding([str(tmp_path / "out")], [2.0])) == 1
    assert GenerationConfig.from_pretrained(tmp_path / "out").guidance_scale in (None, 1.0)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "Do not guide this model" in text and "`generation_config.json` switches guidance off" in text


def test_a_card_says_what_the_settings_do(base: Path, tmp_path: Path) -> None:
    guiding = shutil.copytree(base, tmp_path / "guiding")
    GenerationConfig(guidance_scale=3.0).save_pretrained(guiding)
    words = ["--models", str(guiding), str(base), "--weights", "0.5", "0.5", "--out", str(tmp_path / "out")]
    assert main(["merge", *words]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "`generation_config.json` guides it by 3." in text and "switches guidance off" not in text


def test_two_licences_are_left_to_the_user(tmp_path: Path) -> None:
    for name, licence in (("a", "mit"), ("b", "cc-by-nc-4.0"), ("c", "mit")):
        (tmp_path / name).mkdir()
        told = {"history": asdict(History("x", licence=licence))}
        (tmp_path / name / "cfg_distill.json").write_text(json.dumps(told))
    assert of_merge({name: tmp_path / name for name in "ac"}, "lerp", [0.5, 0.5]).licence == "mit"
    assert of_merge({name: tmp_path / name for name in "ab"}, "lerp", [0.5, 0.5]).licence == ""


def test_a_history_that_cannot_be_read_is_none(tmp_path: Path) -> None:
    for text in ("", "[]", "{}", '{"history": 3}', '{"history": {"hub": "x"}}'):
        (tmp_path / "cfg_distill.json").write_text(text)
        assert history_of(tmp_path) is None
    (tmp_path / "cfg_distill.json").write_text(json.dumps({"history": asdict(History("x")) | {"later": 1}}))
    assert history_of(tmp_path) == History("x")


def test_files_are_as_readable_as_their_folder(tmp_path: Path) -> None:
    (tmp_path / "weights").touch(0o600)
    tmp_path.chmod(0o750)
    make_readable(tmp_path)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("licence", "said"),
    [
        ("cc-by-nc-4.0", "no commercial use: neither of this model nor of its merges and students. Name the base"),
        ("cc-by-nc-sa-4.0", "Share it under the same licence."),
        ("cc-by-4.0", "that of the base. Name the base, and say that the weights were changed."),
        ("apache-2.0", "Keep the licence and the notices of the base"),
        ("llama3.2", "Read what it says of derived models"),
        ("", "That of the base holds. It was not found beside the base: name it in README.md"),
    ],
)
def test_the_card_says_what_the_licence_means_for_a_student(licence: str, said: str, tmp_path: Path) -> None:
    write_card(tmp_path, "student", History("facebook/musicgen-small", licence=licence))
    text = (tmp_path / "README.md").read_text()
    assert said in text and said in terms_of(licence) and "distilling them lifts no condition" in text
    assert (f"license: {licence}" in text) == bool(licence)


def test_an_export_says_the_licence(checkpoints: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    assert main(["export", "--checkpoint", str(checkpoints["whole"]), "--out", str(tmp_path / "student")]) == 0
    assert "\nLicence: mit, that of the base. Keep the licence" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["whole", "adapter"])
def test_a_card_has_what_a_study_measured_of_exactly_these_weights(
    students: Path, checkpoints: dict[str, Path], name: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    study = write_study(tmp_path / "study", kind="")
    for part in ("students/quality", "students/diversity", "merges/half"):
        shutil.copytree(students / name, study / part)
    for weights in (study / "students/diversity").glob("*.safetensors"):
        save_file({key: 1.5 * value for key, value in load_file(weights).items()}, weights, {"format": "pt"})
    write_checksums(study / "students/diversity")
    merge_folders([study / "students/quality", study / "students/diversity"], [0.5, 0.5], "lerp", study / "merges/half",
                  overwrite=True)  # fmt: skip
    file = study / "fits" / "quality" / "version_0" / "checkpoints" / "last.ckpt"
    file.parent.mkdir(parents=True)
    shutil.copyfile(checkpoints[name], file)
    models = ["--models", str(study / "students/quality"), str(study / "students/diversity"), "--weights"]
    cases = {
        "fit": (["export", "--checkpoint", str(file)], "0.700"),
        "elsewhere": (["export", "--checkpoint", str(checkpoints[name])], ""),
        "half": (["merge", "--study", str(study), "--knob", "0.5"], "0.690"),
        "named": (["merge", *models, "0.5", "0.5"], "0.690"),
        "third": (["merge", "--study", str(study), "--knob", "0.3"], ""),
    }
    capsys.readouterr()
    for case, (words, quality) in cases.items():
        assert main([*words, "--out", str(tmp_path / case)]) == 0
        said, card = capsys.readouterr().out, (tmp_path / case / "README.md").read_text()
        assert (f"Its card has what {study} measured" in said) == ("## Measured" in card) == bool(quality), case
        assert strangers(tmp_path / case) == []
        if quality:
            assert "On 12 held-out prompts, 4 samples of each per seed, temperature 0.8." in card
            assert "| axis | metric | mean | 95 % interval | guidance 2 |" in card and "| guard | rests | " in card
            assert f"| quality | quality | {quality} | 0." in card and " | 0.700 (0." in card
    (study / "front.json").unlink()
    assert main(["merge", "--study", str(study), "--knob", "0.5", "--out", str(tmp_path / "none")]) == 2
    assert main(["merge", *models, "0.5", "0.5", "--out", str(tmp_path / "unfinished")]) == 0
    assert "## Measured" not in (tmp_path / "unfinished" / "README.md").read_text()
