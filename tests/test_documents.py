"""YAML and JSON files within limits, and what is said of the others."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import yaml

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.files import parse_yaml, read_json, read_versioned, read_yaml
from cfg_distill.files.documents import MOST_BYTES, MOST_LEVELS, MOST_VALUES, VERSION


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels))])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (bomb(9), f"expected at most {MOST_VALUES:,} values, each alias counted with what it stands for"),
        ("a: &a {b: *a}", r"line 1: the alias `\*a` stands for what it is a part of"),
        ("a:\n - &x [1, [*x]]", r"line 2: the alias `\*x` stands for what it is a part of"),
        ("[" * 3000, f"expected at most {MOST_LEVELS} levels"),
        ("a: " + "9" * 5000, "cannot be read: Exceeds the limit"),
        ("\n".join(f"k{n}: 1" for n in range(MOST_VALUES)), "expected at most"),
        ("a: {b: 1, c: {d: 2, d: 3}}", r"Key `a\.c\.d`: line 1 says it again, after line 1"),
        ("a: 1\nmodel:\n  b: 1\nmodel: {}\na: 2", r"Key `model`: line 4 says it again, after line 2.*\n.*Key `a`: line 5"),
        ("a:\n\tb: 1", "Indent with spaces"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("# " + "x" * MOST_BYTES["YAML"], "expected at most 2,000,000 bytes"),
        ("a: !!bool maybe", "not of the type that its tag"),
        ("a: !!timestamp x", "not of the type that its tag"),
        ("- a", "expected keys and values, but got list"),
        ("a: b: c", "Mend that line"),
    ],
)  # fmt: skip
def test_yaml_beyond_the_limits(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"(?s)recipe.yaml`: .*{said}"):
        read_yaml(file)


def test_yaml_is_what_the_library_makes_of_it() -> None:
    """The look through the events changes nothing: random nested values, with aliases, as the library alone reads them."""
    draw = random.Random(0)

    def value(level: int) -> object:
        kind = draw.choice(("number", "text", "list", "dict")) if level else "number"
        if kind == "list":
            return [value(level - 1) for _ in range(draw.randrange(4))]
        if kind == "dict":
            return {f"k{draw.randrange(99)}": value(level - 1) for _ in range(draw.randrange(4))}
        return draw.choice([1, 2.5, True, None, "", "a b", "null", "x: y"]) if kind == "text" else draw.randrange(9)

    for _ in range(50):
        shared = value(2)
        whole = {"first": shared, "second": [shared, value(4)], "third": {"again": shared}}
        assert parse_yaml(yaml.safe_dump(whole)) == yaml.safe_load(yaml.safe_dump(whole))


def test_text_that_yaml_takes(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1e-3\r\nwhen: 2023-13-45\r\nb: [{c: 1}, {c: 2}]\r\n")
    assert read_yaml(file) == {"a": 0.001, "when": "2023-13-45", "b": [{"c": 1}, {"c": 2}]}
    file.write_bytes("a: caf\xe9".encode("latin-1"))
    with pytest.raises(ConfigError, match="expected YAML in UTF-8"):
        read_yaml(file)
    with pytest.raises(ConfigError, match="it is a folder"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "cannot be read"), ("[1]", "but got list"), ("[" * 100_000, "cannot be read"), ("", "cannot be read")],
)
def test_json_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_json(file)
    file.write_text('{"a": 1}')
    assert read_json(file) == {"a": 1}


@pytest.mark.parametrize("command", ["fit --config", "plan --config", "study"])
def test_a_newer_file_is_refused_in_one_message(tmp_path: Path, capsys: pytest.CaptureFixture, command: str) -> None:
    """Its keys may be new ones, so nothing else of it is checked."""
    file = tmp_path / "new.yaml"
    file.write_text(f"version: {VERSION + 1}\nmodle: {{}}\n")
    assert main([*command.split(), str(file)]) == 2
    said = capsys.readouterr().err
    assert f"new.yaml`: Key `version`: the keys of this file are of version {VERSION + 1}, but cfg-distill" in said
    assert f"reads versions up to {VERSION}. Update the package: " in said and "modles" not in said
    assert "problems" not in said and "Traceback" not in said


@pytest.mark.parametrize("version", ["0", "1.0", "true", "new", "null"])
def test_what_is_no_version(tmp_path: Path, version: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"version: {version}\na: 2")
    with pytest.raises(
        ConfigError, match=r"Key `version`: expected a whole number from 1 to .* Remove the key: it means 1"
    ):
        read_versioned(file)
    for written in ("", "version: 1\n"):
        file.write_text(f"{written}a: 2")
        assert read_versioned(file) == {"a": 2}
