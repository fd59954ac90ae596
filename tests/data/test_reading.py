"""Prompts from files of every kind, and what is said of bad ones."""

from __future__ import annotations

import copy
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from cfg_distill.data import read_prompts
from cfg_distill.data.reading import normalised
from cfg_distill.errors import ConfigError
from cfg_distill.folders import names
from cfg_distill.prompt import Prompt


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "an Irish jig\n\n  a reel \n"),
        ("a.txt", "\ufeffan Irish jig\r\na reel"),
        ("a.jsonl", '{"prompt": "an Irish jig", "id": 1}\n\n"a reel"\n'),
        ("a.csv", 'id,prompt\n1,"an Irish jig"\n2,a reel\n'),
        ("a.tsv", "prompt\tid\nan Irish jig\t1\na reel\t2\n"),
    ],
)
def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path, name: str, text: str) -> None:
    assert read_prompts(written(tmp_path, name, text)) == ["an Irish jig", "a reel"]


def test_a_quoted_cell_may_hold_commas_and_lines(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, "a.csv", 'text\n"slow,\nsad"\n'), field="text") == ["slow,\nsad"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", " \n\n", "at least one prompt"),
        ("a.md", "a reel", r"one of \.txt, \.jsonl, \.csv, \.tsv"),
        (
            "a.jsonl",
            '{"promt": "a reel"}',
            r"line 1: expected a field `prompt`.*Did you mean `promt`\? Rename it in the file, or name yours as `field`",
        ),
        ("a.jsonl", '"a reel"\n{"prompt": ', "line 2: expected a JSON object"),
        ("a.jsonl", '{"prompt": 3}', "expected text in `prompt`, but got int"),
        ("a.csv", "text,id\na reel,1\n", r"expected a field `prompt`, but it has \['text', 'id'\]"),
        ("a.csv", 'prompt\n"a reel', "line 2: expected CSV"),
        ("a.csv", '"prompt" ,x\na reel,1\n', "line 1: expected CSV"),
        ("a.tsv", 'prompt\tx\na\tb\nc\t"hi" she said\n', "line 3: expected CSV"),
        (
            "a.csv",
            "prompt,prompt\na reel,a jig\n",
            r"line 1: expected a header that names each column once, but got \['pro",
        ),
        ("a.csv", "prompt,conditions.\na reel,a.wav\n", "line 1: expected a header that names each column once"),
        ("a.csv", "\nprompt\na reel\n", r"line 1: expected a header that names each column once, but got \[\]"),
        ("a.csv", "prompt\na reel\na reel, slow\n", "line 3: expected CSV, but it has more than the 1 cells"),
    ],
)
def test_bad_files_are_named_with_their_mistake(tmp_path: Path, name: str, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_prompts(written(tmp_path, name, text))


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"`nowhere\.txt` does not exist"):
        read_prompts("nowhere.txt")
    with pytest.raises(ConfigError, match="`` does not exist"):
        read_prompts("")


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match="expected text in UTF-8"):
        read_prompts(tmp_path / "a.txt")


def test_shipped_prompts_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "package"
    (shipped / "tunes").mkdir(parents=True)
    (shipped / "tunes" / "train.txt").write_text("shipped")
    monkeypatch.setattr(names, "RECIPES", shipped)
    monkeypatch.chdir(tmp_path)
    assert read_prompts("recipes/tunes/train.txt") == ["shipped"]
    (tmp_path / "recipes" / "tunes").mkdir(parents=True)
    (tmp_path / "recipes" / "tunes" / "train.txt").write_text("mine")
    assert read_prompts("recipes/tunes/train.txt") == ["mine"]


class _Rows(SimpleNamespace):
    def __getitem__(self, field: str) -> list[str]:
        return self.columns[field]


def test_a_dataset_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = _Rows(column_names=["text"], columns={"text": ["a reel", " "]})
    loaded: dict[str, object] = {str(tmp_path): rows, str(tmp_path / "all"): {"train": rows}}
    (tmp_path / "all").mkdir()
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_from_disk=loaded.__getitem__))
    assert read_prompts(tmp_path, field="text") == ["a reel"]
    with pytest.raises(ConfigError, match=r"expected a field `prompt`, but it has \['text'\]"):
        read_prompts(tmp_path)
    with pytest.raises(ConfigError, match=r"Name one, as `.*all/train`"):
        read_prompts(tmp_path / "all")
    columns = {
        "prompt": ["a reel", "a jig"],
        "teacher_prompt": ["Play {prompt}", None],
        "conditions": [{"melody": None}, {"melody": "a.wav"}],
        "conditions.bass": ["b.wav", ""],
    }
    loaded[str(tmp_path)] = _Rows(column_names=list(columns), columns=columns)
    assert read_prompts(tmp_path) == [Prompt("a reel", "Play {prompt}", bass="b.wav"), Prompt("a jig", melody="a.wav")]
    loaded[str(tmp_path)] = _Rows(
        column_names=["prompt", "conditions"], columns={"prompt": ["a"], "conditions": ["good"]}
    )
    with pytest.raises(ConfigError, match="row 1: expected names and texts in `conditions`"):
        read_prompts(tmp_path)
    for cell in (None, 3, ["a reel"]):
        loaded[str(tmp_path)] = _Rows(column_names=["prompt"], columns={"prompt": ["a jig", cell]})
        with pytest.raises(ConfigError, match=r"row 2: expected text in `prompt`, but got"):
            read_prompts(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="pip install datasets"):
        read_prompts(tmp_path)


def test_normalised_keeps_what_tells_prompts_apart() -> None:
    assert normalised(" A  Reel\t") == normalised("a reel") != normalised("a reel in G")
    assert (
        normalised("caf\u00e9") == normalised("cafe\u0301") == normalised("\ufeffca\u200bf\u00e9") != normalised("cafe")
    )


def test_files_of_windows_that_were_joined(tmp_path: Path) -> None:
    assert read_prompts(written(tmp_path, "a.txt", "\ufeffa jig\n\ufeffa reel\n\u200b\n")) == ["a jig", "a reel"]


def test_a_space_in_the_header_of_a_table_loses_no_column(tmp_path: Path) -> None:
    table = written(tmp_path, "a.csv", 'prompt, teacher_prompt, conditions.melody\na jig,Play {prompt}," "\n')
    assert read_prompts(table) == [Prompt("a jig", "Play {prompt}")]


def test_conditions_travel_with_their_prompt(tmp_path):
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": " a waltz ", "conditions": {"melody": "a.wav"}}\n{"prompt": "a march"}\n')
    table = tmp_path / "prompts.csv"
    table.write_text("prompt,conditions.melody\na waltz,a.wav\na march,\n")
    for file in (lines, table):
        waltz, march = read_prompts(file)
        assert (waltz, march) == (Prompt("a waltz", melody="a.wav"), "a march")
        assert waltz.conditions == {"melody": "a.wav"}
        for copied in (copy.deepcopy(waltz), pickle.loads(pickle.dumps(waltz))):
            assert copied == waltz and copied.conditions == waltz.conditions
    lines.write_text('{"prompt": "a waltz", "conditions": ["a.wav"]}\n')
    with pytest.raises(ConfigError, match="line 1: expected names and texts in `conditions`"):
        read_prompts(lines)
