"""``export --push`` through the real huggingface_hub, to a small server on this machine that answers as a hub does."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from test_publishing import words_of

from cfg_distill.cli import main


class Hub(ThreadingHTTPServer):
    """Keeps what is committed. ``wrong_card`` is its objection to the card."""

    files: dict[str, bytes]
    wrong_card = ""


class Handler(BaseHTTPRequestHandler):
    server: Hub

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
            answers[self.path] = {"commitUrl": f"{place}/commit/{'0' * 40}", "commitOid": "0" * 40}
        content = json.dumps(answers[self.path]).encode()
        self.send_response(400 if errors and self.path.endswith("yaml") else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.chdir(tmp_path)
    with Hub(("127.0.0.1", 0), Handler) as server:
        server.files = {}
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "a-token")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_hub_receives_the_files_of_the_folder(hub: Hub, tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    assert main(words_of(tiny_model)) == 0
    written = {file.name: file.read_bytes() for file in Path("out").iterdir()}
    assert hub.files == written and "model.safetensors" in written
    assert f"Pushed out to {constants.ENDPOINT}/me/student." in capsys.readouterr().out


def test_a_hub_that_refuses_the_card_is_told(hub: Hub, tiny_model: str, capsys: pytest.CaptureFixture) -> None:
    hub.wrong_card = '"license" must be one of [apache-2.0, mit]'
    assert main(words_of(tiny_model)) == 2
    message = capsys.readouterr().err
    assert hub.wrong_card in message and "`out` was written, but not pushed" in message and hub.files == {}
