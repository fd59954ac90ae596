"""Hub names without a network: said first, asked once, ten seconds at most; and a folder's name that is a typo."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cfg_distill.cli import main
from cfg_distill.errors import ConfigError
from cfg_distill.folders import from_hub, hub, problems_of_folder


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A hub at a local port that takes connections and never answers; the limits it was waited for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = prepared(monkeypatch, server.getsockname()[1])
        yield asked


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A hub at a local port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return prepared(monkeypatch, port)


def prepared(monkeypatch: pytest.MonkeyPatch, port: int) -> list[float]:
    asked: list[float] = []
    plain = hub.urllib.request.urlopen

    def counted(request, timeout):
        asked.append(timeout)
        return plain(request, timeout=timeout)

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub.urllib.request, "urlopen", counted)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return asked


def test_a_typo_without_a_network_is_told_in_one_attempt(
    closed: list[float], folder: Path, tiny_model: str, capsys: pytest.CaptureFixture
) -> None:
    (folder / "students").mkdir()
    (folder / "students" / "half").symlink_to(tiny_model)
    began = time.monotonic()
    assert main(["generate", "--model", "students/hlaf", "--prompt", "w1"]) == 2
    assert time.monotonic() - began < hub.SECONDS and closed == [10.0], "asked once"
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("There is no folder `students/hlaf`: asking http://127.0.0.1")
    assert "does not answer" in said[1] and "refused" in said[1]
    assert "there is no folder `students/hlaf`, and the hub cannot be asked without a network. Did you mean" in said[2]
    assert "`students/half`?" in said[2] and len(said) == 3


def test_a_hub_that_swallows_packets_is_waited_for_no_longer(
    silent: list[float], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert hub.SECONDS <= 10
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    began = time.monotonic()
    assert main(["generate", "--model", "owner/swallowed", "--prompt", "w1"]) == 2
    assert len(silent) == 1 and time.monotonic() - began < 30
    assert "asking http://127.0.0.1" in (said := capsys.readouterr().err) and "(0.3 s at most)" in said
    assert "the hub cannot be asked without a network" in said


def test_no_hub_is_asked_for_what_can_be_no_hub_name(closed: list[float], folder: Path) -> None:
    (folder / "student").mkdir()
    for path, hint in (("./studnet", "Did you mean `student`?"), ("my model", "")):
        (problem,) = problems_of_folder(path)
        assert hint in problem.text and "does not exist" in problem.text
    assert not closed


def test_what_the_cache_holds_is_used(
    closed: list[float], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(hub, "in_cache", lambda name: True)
    assert problems_of_folder("owner/cached") == [] and closed == [10.0]
    assert "asking" not in capsys.readouterr().err


class Refusing:
    """A class of transformers that cannot load."""

    @staticmethod
    def from_pretrained(path: str) -> None:
        raise ValueError(path)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "Validator 'sizes':\n    ValueError: 99 is no power of 2.\n  more",
            "'sizes': ValueError: 99 is no power of 2.",
        ),
        ("No such thing.\nTry another:\nplace", "it: No such thing."),
        ("Broken:", "it: Broken."),
    ],
)
def test_a_cause_on_the_second_line_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str, told: str
) -> None:
    def refuse(path: str) -> None:
        raise ValueError(said)

    monkeypatch.setattr(Refusing, "from_pretrained", refuse)
    with pytest.raises(ConfigError) as caught:
        from_hub(Refusing, str(tmp_path), "a codec")
    assert f"{told} Without a network" in str(caught.value)
