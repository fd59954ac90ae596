"""``export --push``: what is sent to a stand-in of the hub and to a server, and what is refused before a model is loaded."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from cfg_distill.checkpoints import spec_of
from cfg_distill.cli import main
from cfg_distill.folders import publishing
from cfg_distill.generators import CausalLM, LoRA


class Hub:
    """Writes down what a hub would get; ``error`` is raised in its place."""

    calls: ClassVar[list[tuple[Any, ...]]] = []
    error: ClassVar[Exception | None] = None

    def create_repo(self, name: str, repo_type: str, exist_ok: bool) -> Any:
        if self.error is not None:
            raise self.error
        self.calls.append(("create", name, repo_type, exist_ok))
        return SimpleNamespace(repo_id=name)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]) -> None:
        self.calls.append(("upload", repo_id, sorted(file.name for file in folder_path.iterdir())))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[Hub]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Hub, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a-token")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(publishing, "silence", lambda *arguments: "")
    return Hub


def words_of(tiny_model: str, lora: bool = False) -> list[str]:
    student = CausalLM(tiny_model, lora=LoRA(rank=2) if lora else None).load()
    names = {name for name, one in student.named_parameters() if one.requires_grad}
    state = {f"student.{name}": value for name, value in student.state_dict().items() if name in names}
    torch.save({"state_dict": state, "generator": spec_of(student)}, "last.ckpt")
    return ["export", "--checkpoint=last.ckpt", "--out=out", "--push=me/student"]


def test_a_student_is_pushed_with_its_card(hub: type[Hub], tiny_model: str, capsys: Any) -> None:
    assert main(words_of(tiny_model)) == 0
    (create, (upload, name, files)) = hub.calls
    assert create == ("create", "me/student", "model", True) and (upload, name) == ("upload", "me/student")
    assert {"README.md", "config.json", "model.safetensors", "cfg_distill.json"} <= set(files)
    assert "Pushed out to " in capsys.readouterr().out


def test_an_adapter_whose_base_nobody_else_has_is_not_pushed(hub: type[Hub], tiny_model: str, capsys: Any) -> None:
    words = words_of(tiny_model, lora=True)
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "Option `--push`: expected a model that others can load" in message and "--merged" in message
    assert not Path("out").exists() and hub.calls == []
    assert main([*words, "--merged"]) == 0 and len(hub.calls) == 2


@pytest.mark.parametrize(
    ("target", "name", "value", "told"),
    [
        (huggingface_hub, "get_token", lambda: None, "expected a token of the hub"),
        (constants, "HF_HUB_OFFLINE", True, "HF_HUB_OFFLINE is set"),
        (publishing, "silence", lambda *arguments: "no route", "does not answer (no route)"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_written(
    hub: type[Hub],
    tiny_model: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Any,
    target: Any,
    name: str,
    value: Any,
    told: str,
) -> None:
    words = words_of(tiny_model)
    monkeypatch.setattr(target, name, value)
    monkeypatch.setattr(CausalLM, "load", lambda self: pytest.fail("weights were loaded"))
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.startswith("cfg-distill export: Option `--push`: ") and told in message and message.count("\n") == 1
    assert not Path("out").exists()


def test_a_wrong_name_is_told(hub: type[Hub], tiny_model: str, capsys: Any) -> None:
    assert main([*words_of(tiny_model)[:-1], "--push=a/b/c"]) == 2
    assert "expected the name of a repository" in capsys.readouterr().err


@pytest.mark.parametrize("error", [HfHubHTTPError.__bases__[0]("no network"), OSError("a broken pipe")])
def test_a_hub_that_fails_later_leaves_the_folder(
    hub: type[Hub], tiny_model: str, monkeypatch: pytest.MonkeyPatch, capsys: Any, error: Exception
) -> None:
    monkeypatch.setattr(hub, "error", error)
    assert main(words_of(tiny_model)) == 2
    message = capsys.readouterr().err
    assert (
        f"`out` was written, but not pushed to `me/student`: {error}" in message
        and "hf upload me/student out" in message
    )
    assert (Path("out") / "model.safetensors").is_file()


class Server(ThreadingHTTPServer):
    """A hub on this machine, for the real huggingface_hub; keeps what is committed.

    ``wrong_card`` is its objection to the card.
    """

    files: dict[str, bytes]
    wrong_card = ""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert self.headers["Authorization"] == "Bearer a-token"
        place = f"http://{self.headers['Host']}/me/student"
        errors = [{"message": self.server.wrong_card}] if self.server.wrong_card else []
        answers: dict[str, Any] = {
            "/api/repos/create": {"url": place, "name": "me/student"},
            "/api/validate-yaml": {"errors": errors, "warnings": []},
        }
        if self.path.endswith("/preupload/main"):
            asked = [each["path"] for each in json.loads(body)["files"]]
            answers[self.path] = {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]}
        elif "/commit/main" in self.path:
            lines = [json.loads(line) for line in body.splitlines()]
            for value in [line["value"] for line in lines if line["key"] == "file"]:
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            for value in [line["value"] for line in lines if line["key"] == "deletedFile"]:
                del self.server.files[value["path"]]
            answers[self.path] = {"commitUrl": f"{place}/commit/{'0' * 40}", "commitOid": "0" * 40}
        self._answer(400 if errors and self.path.endswith("yaml") else 200, answers[self.path])

    def do_GET(self) -> None:
        if "/tree/main" not in self.path:
            return self._answer(404, {})
        there = [{"type": "file", "path": name, "size": 1, "oid": "0" * 40} for name in self.server.files]
        return self._answer(200, there)

    def _answer(self, status: int, found: Any) -> None:
        content = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.chdir(tmp_path)
    with Server(("127.0.0.1", 0), Handler) as made:
        made.files = {}
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{made.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "a-token")
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_a_hub_receives_the_files_of_the_folder(server: Server, tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    """In place of the adapter that was there, which transformers would load in their place; other files stay."""
    server.files = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"", "mine.safetensors": b"mine"}
    assert main(words_of(tiny_model)) == 0
    written = {file.name: file.read_bytes() for file in Path("out").iterdir()}
    assert server.files == written | {"mine.safetensors": b"mine"} and "model.safetensors" in written
    assert f"Pushed out to {constants.ENDPOINT}/me/student." in capsys.readouterr().out


def test_a_hub_that_refuses_the_card_is_told(server: Server, tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    server.wrong_card = '"license" must be one of [apache-2.0, mit]'
    assert main(words_of(tiny_model)) == 2
    message = capsys.readouterr().err
    assert server.wrong_card in message and "`out` was written, but not pushed" in message and server.files == {}
