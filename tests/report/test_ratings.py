"""``cfg-distill ratings``: numbers from files of raters, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fenced import blocks
from report_studies import standing_in

from cfg_distill.cli import main
from cfg_distill.report.opinions import opinion_table

LIKED = {"base": 2.0, "guidance 2": 4.0, "base T 0.8": 3.0}
VARIED = {"base": 0.95, "base T 0.8": 0.5}
Rate = Callable[..., Path]


@pytest.fixture(scope="module")
def test(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A listening test of three systems on six prompts, in a copy of its study."""
    copy = tmp_path_factory.mktemp("rated")
    shutil.copytree(texts.parent, copy, dirs_exist_ok=True)
    (copy / "out/front.json").write_text(json.dumps({"systems": [{"name": name, "quality": {}} for name in LIKED]}))
    with standing_in(copy):
        assert main(["listen", "out", "--out=test", "--prompts=6", "--variety=6"]) == 0
    return copy / "test"


@pytest.fixture
def key(test: Path) -> dict[str, Any]:
    return json.loads((test / "key.json").read_text())


@pytest.fixture
def rate(key: dict[str, Any], tmp_path: Path) -> Rate:
    """Writes the file of a rater who hears what LIKED and VARIED say, with noise; returns its path."""

    def written(name: str, seed: int, file: str = "", bias: float = 0.0, noise: float = 0.5, **changes: Any) -> Path:
        random, answers = np.random.default_rng(seed), {}
        for item, meaning in key["items"].items():
            answer: dict[str, Any] = {"at": "2026-01-01T00:00:00.000Z", "plays": 1, "seconds": 12.0}
            if meaning["kind"] == "quality":
                for scale in ("quality", "adherence"):
                    score = LIKED[meaning["system"]] + bias + random.normal(0, noise)
                    answer[scale] = int(np.clip(round(score), 1, 5))
            else:
                by_system = {system: group for group, system in meaning["groups"].items()}
                other = next(system for system in by_system if system != "guidance 2")
                wins = random.random() < VARIED[other]
                answer["more"] = by_system[other if wins else "guidance 2"]
                answer["shown"] = list(random.permutation(list(meaning["groups"])))
            answers[item] = answer
        content = {"format": "cfg-distill ratings", "version": 1, "page": key["page"], "rater": name}
        content |= {"started": "", "saved": "", "items": len(answers), "finished": True, "answers": answers}
        path = tmp_path / (file or f"ratings-{name}.json")
        path.write_text(json.dumps(content | changes))
        return path

    return written


def opinions(test: Path, *files: Path) -> dict[str, Any]:
    assert main(["ratings", *map(str, files), "--listen", str(test)]) == 0
    return json.loads((test / "ratings.json").read_text())


def test_means_differences_and_verdicts(test: Path, key: dict, rate: Rate, capsys: pytest.CaptureFixture) -> None:
    files = [rate(name, seed, bias=0.4 * seed) for seed, name in enumerate(("anna", "ben", "cleo"))]
    found = opinions(test, *files)
    answers = [json.loads(file.read_text())["answers"] for file in files]
    for system in LIKED:
        for scale in ("quality", "adherence"):
            scores = [
                each[item][scale] for each in answers for item, of in key["items"].items() if of.get("system") == system
            ]
            interval = found["systems"][system][scale]
            assert interval["mean"] == pytest.approx(np.mean(scores), abs=1e-4)
            assert 1 <= interval["low"] < interval["mean"] < interval["high"] <= 5
    quality = found["differences"]["base"]["quality"]
    means = {name: found["systems"][name]["quality"]["mean"] for name in LIKED}
    assert quality["mean"] == pytest.approx(means["base"] - means["guidance 2"], abs=1e-3)
    assert quality["verdict"] == "worse" and "to_decide" not in quality
    variety = found["differences"]["base"]["variety"]
    won = [
        of["groups"][each[item]["more"]] == "base"
        for each in answers
        for item, of in key["items"].items()
        if of["kind"] == "variety" and "base" in of["groups"].values()
    ]
    assert (variety["won"], variety["equal"], variety["lost"]) == (sum(won), 0, 18 - sum(won))
    assert variety["mean"] == pytest.approx(np.mean(won), abs=1e-4) and variety["verdict"] == "more varied"
    undecided = found["differences"]["base T 0.8"]["variety"]
    assert undecided["verdict"] == "undecided" and undecided["to_decide"].keys() >= {"prompts", "raters"}
    assert found["agreement"]["quality"] > 0.5
    assert "guidance 2" not in found["differences"]
    table = capsys.readouterr().out
    assert table.startswith(opinion_table(found)) and (test / "ratings.txt").read_text().strip() in table
    assert "Krippendorff" in table and "undecided" in table
    assert re.search(r"undecided +(\d+ more (prompt|rater)s? \(\d+ ratings\)|no number)", table)


def test_the_severity_of_a_rater_cancels_in_differences(test: Path, rate: Rate) -> None:
    found = opinions(test, *(rate(str(bias), 0, bias=bias, noise=0) for bias in (-1, 0, 1)))
    mean = found["systems"]["guidance 2"]["quality"]
    assert mean["mean"] == 4 and mean["low"] < 3 and mean["high"] == 5
    assert (
        found["differences"]["base T 0.8"]["quality"]["low"]
        == -1
        == found["differences"]["base T 0.8"]["quality"]["high"]
    )
    assert 0 < found["agreement"]["quality"] < 0.7


def test_equal_counts_half_and_sides_are_counted(test: Path, key: dict, rate: Rate) -> None:
    file = rate("anna", 0)
    content = json.loads(file.read_text())
    for item, meaning in key["items"].items():
        if meaning["kind"] == "variety":
            first, second = meaning["groups"]
            content["answers"][item] |= {"more": "equal" if "base" in meaning["groups"].values() else second}
            content["answers"][item]["shown"] = [first, second]
    file.write_text(json.dumps(content))
    found = opinions(test, file)
    assert found["differences"]["base"]["variety"]["mean"] == 0.5
    assert found["differences"]["base"]["variety"]["equal"] == 6
    assert found["share_of_A"] == 0.0


@pytest.mark.parametrize("damage", [{"page": "x"}, {"systems": 5, "items": []}])
def test_a_key_that_is_damaged(
    tmp_path: Path, rate: Rate, key: dict, damage: dict, capsys: pytest.CaptureFixture
) -> None:
    content = damage if "page" in damage else key | damage
    (tmp_path / "key.json").write_text(json.dumps({"format": key["format"], "version": key["version"]} | content))
    assert main(["ratings", str(rate("anna", 0)), "--listen", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert (
        "expected the key of a listening test, but `s" in said
        and "`items` is missing or damaged. Write the test again." in said
    )


def test_what_is_open_is_told(test: Path, key: dict, rate: Rate, capsys: pytest.CaptureFixture) -> None:
    whole, part = rate("anna", 0), rate("ben", 1)
    content = json.loads(part.read_text())
    kept = [item for item, of in key["items"].items() if of["kind"] == "quality" and of["prompt"] < 3]
    content["answers"] = {item: content["answers"][item] | {"quality": 3, "adherence": 3} for item in kept}
    part.write_text(json.dumps(content))
    found = opinions(test, whole, part)
    assert "2 of 3 planned raters." in found["remarks"]
    assert f"ben left {len(key['items']) - 9} of {len(key['items'])} items open." in found["remarks"]
    assert "ben gave 3 to everything." in found["remarks"]
    alone = opinions(test, part)  # three prompts decide nothing
    assert {each["quality"]["verdict"] for each in alone["differences"].values()} == {"undecided"}
    assert all("variety" not in each for each in alone["differences"].values())
    assert "One rater: the intervals are of this rater's taste, and say nothing of another's." in alone["remarks"]
    assert alone["agreement"] == {"quality": None, "adherence": None, "variety": None}


def test_a_listening_test_under_the_home_folder_finds_its_study(
    test: Path, rate: Rate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(test.parent))
    file = rate("anna", 0)
    with standing_in(test.parent):
        assert main(["ratings", str(file), f"--listen=~/{test.name}", "--out=~/told", "--add-to-front"]) == 0
    assert (test.parent / "told" / "ratings.json").is_file()
    assert "opinion" in (test.parent / "out" / "front.json").read_text()


def test_the_study_keeps_the_key(test: Path, rate: Rate, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    files = [rate("anna", 0), rate("ben", 1)]
    study = test.parent / "out"
    with standing_in(test.parent):  # a second test of the study has a key of its own
        assert main(["listen", "out", f"--out={tmp_path / 'second'}", "--prompts=2", "--variety=0"]) == 0
    assert main(["ratings", *map(str, files), f"--study={study}", f"--out={tmp_path / 'o'}", "--add-to-front"]) == 0
    found = json.loads((tmp_path / "o/ratings.json").read_text())
    systems = json.loads((study / "front.json").read_text())["systems"]
    for system in systems:
        assert system["opinion"]["quality"] == found["systems"][system["name"]]["quality"]
        assert system["opinion"]["raters"] == 2
    assert systems[0]["opinion"]["variety"]["mean"] == found["differences"]["base"]["variety"]["mean"]
    assert "variety" not in systems[1]["opinion"]  # the system of comparison
    before = (study / "front.json").read_bytes()
    opinions(test, *files)
    assert (study / "front.json").read_bytes() == before  # only when asked


# Bad input


def test_every_wrong_file_is_named_at_once(test: Path, key: dict, rate: Rate, tmp_path: Path, capsys) -> None:
    item = next(item for item, of in key["items"].items() if of["kind"] == "quality")
    pair = next(item for item, of in key["items"].items() if of["kind"] == "variety")
    answers = json.loads(rate("fine", 0).read_text())["answers"]
    (tmp_path / "broken.json").write_text(rate("x", 0).read_text()[:300])
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "other.json").write_text('{"systems": []}')
    files = [
        rate("fine", 0),
        rate("Fine", 1, "fine too.json"),
        rate("high", 0, answers={item: {"quality": 6, "adherence": 3}}),
        rate("half", 0, answers={item: {"quality": 2.5, "adherence": 3}}),
        rate("truth", 0, answers={item: {"quality": True, "adherence": 3}}),
        rate("gap", 0, answers={item: {"quality": 3}}),
        rate("group", 0, answers={pair: {"more": "A"}}),
        rate("stray", 0, answers=answers | {"f" * 16: {"quality": 3}}),
        rate("clock", 0, answers={item: {"quality": 3, "adherence": 3, "seconds": -1}}),
        rate("idle", 0, answers={}),
        rate("later", 0, version=2),
        *(tmp_path / name for name in ("broken.json", "binary.json", "list.json", "other.json", "none.json")),
        test / "key.json",
    ]
    assert main(["ratings", *map(str, files), f"--listen={test}"]) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message and "16 problems" in message
    for expected in (
        "`fine too.json` are all by fine",
        f"`ratings-high.json`: item `{item}`: expected a quality from 1 to 5, but got 6",
        "`ratings-half.json`: item `" + item + "`: expected a quality from 1 to 5, but got 2.5",
        "`ratings-truth.json`: item `" + item + "`: expected a quality from 1 to 5, but got True",
        "`ratings-gap.json`: item `" + item + "`: expected a adherence from 1 to 5, but got None",
        "`ratings-group.json`: item `" + pair + "`: expected a group of the page or `equal`, but got 'A'",
        "`ratings-stray.json`: expected items of the page, but got `ffff",
        "`ratings-clock.json`: item `" + item + "`: expected seconds of at least 0",
        "idle has answered nothing",
        "expected version 1 of ratings, but got 2",
        "`broken.json`: expected JSON, but it cannot be read",
        "`binary.json`: expected JSON",
        "`list.json`: expected ratings, but it holds a list",
        "`other.json`: expected the file of a rater, but it is another file",
        "`none.json`: expected ratings, but it does not exist",
        "`key.json`: expected the file of a rater, but it is a cfg-distill listening key",
    ):
        assert expected in message, expected


def test_files_of_another_page_and_a_mix(test: Path, rate: Rate, tmp_path: Path, capsys) -> None:
    own, foreign = rate("anna", 0), rate("ben", 1, page="0" * 12)
    assert main(["ratings", str(foreign), f"--listen={test}"]) == 2
    message = capsys.readouterr().err
    assert "but it is of page 000000000000" in message and "problems" not in message
    assert main(["ratings", str(own), str(foreign), f"--listen={test}"]) == 2
    message = capsys.readouterr().err
    assert "Expected ratings of one page, but got a mix (000000000000: `ratings-ben.json`; " in message
    assert "problems" not in message
    assert main(["ratings", str(own), f"--listen={tmp_path}"]) == 2
    assert "holds no key" in capsys.readouterr().err


def test_files_of_the_user_are_not_replaced(test: Path, rate: Rate, tmp_path: Path, capsys) -> None:
    for name, content in (("ratings.json", '{"mine": 1}'), ("ratings.txt", "mine"), ("ratings.json", "[")):
        out = tmp_path / f"mine {len(content)}"
        out.mkdir()
        (out / name).write_text(content)
        assert main(["ratings", str(rate("anna", 0)), f"--listen={test}", f"--out={out}"]) == 2
        assert f"{name}` exists, and this command did not write it" in capsys.readouterr().err
        assert (out / name).read_text() == content
    assert main(["ratings", str(rate("anna", 0)), f"--listen={test}", "--study=x"]) == 2
    assert "not allowed with argument" in capsys.readouterr().err
    copy = tmp_path / "copy"
    shutil.copytree(test, copy)
    key = json.loads((copy / "key.json").read_text())
    (copy / "key.json").write_text(json.dumps(key | {"study": str(tmp_path / "gone")}))
    assert main(["ratings", str(rate("anna", 0)), f"--listen={copy}", "--add-to-front"]) == 2
    assert "Option `--add-to-front`: expected the front of the study" in capsys.readouterr().err


def test_a_place_in_a_file_is_refused(test: Path, rate: Rate, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """It was a traceback."""
    (tmp_path / "file").write_text("mine")
    assert main(["ratings", str(rate("anna", 0)), f"--listen={test}", f"--out={tmp_path / 'file' / 'sub'}"]) == 2
    assert f"Option `--out`: `{tmp_path / 'file'}` is a file, so `sub` cannot lie in it." in capsys.readouterr().err


def test_few_prompts_decide_nothing_however_clear(test: Path, key: dict, rate: Rate) -> None:
    files = []
    for name in ("anna", "ben", "cleo"):
        content = json.loads(rate(name, 0).read_text())
        for item, of in key["items"].items():
            if of["kind"] == "quality":
                content["answers"][item] |= {"quality": int(LIKED[of["system"]]), "adherence": 3}
            if of["prompt"] == 5:
                del content["answers"][item]
        files.append(rate(name, 0, answers=content["answers"]))
    five = opinions(test, *files)["differences"]["base"]["quality"]
    assert (five["mean"], five["low"], five["high"]) == (-2, -2, -2)
    assert (
        five["verdict"] == "undecided"
        and five["to_decide"]["prompts"] == 1
        and five["to_decide"]["ratings_by_prompts"] == 6
    )
    assert five["to_decide"]["raters"] is None


def test_the_commands_of_the_page(texts: Path, rate: Rate, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """docs/listening.md, with a study of six prompts as runs/quickstart."""
    shutil.copytree(texts.parent, tmp_path / "desk")
    (tmp_path / "desk/runs").mkdir()
    (tmp_path / "desk/out").rename(tmp_path / "desk/runs/quickstart")
    listen, ratings = (words[1:] for block in blocks("docs/listening.md") for words in block.commands())
    with standing_in(tmp_path / "desk"):
        assert main([*listen, "--prompts=6"]) == 0
        key = json.loads(Path("runs/quickstart/listening/first/key.json").read_text())
        answers = {item: {"quality": 3, "adherence": 4} for item, of in key["items"].items() if of["kind"] == "quality"}
        Path("ratings-anna.json").write_text(rate("anna", 0, page=key["page"], answers=answers).read_text())
        files = [str(file) for word in ratings for file in Path().glob(word) if "*" in word]
        assert main(["ratings", *files, *ratings[2:]]) == 0
        assert Path("runs/quickstart/ratings.json").is_file()
    assert "18 answers by anna" in capsys.readouterr().out
