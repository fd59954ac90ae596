"""A small server that speaks vLLM's protocol, so that the tests need no vLLM: transformers samples behind it.

It loads the folders that it is told to load, adapters or whole weights, and draws with torch.multinomial under the seed of each
request. So nothing of ours is replaced: what reaches the student went through files and HTTP. ``tests/vllm_check.py``
makes the same comparisons with vLLM itself.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


class StandIn:
    """The models of a server, and what it was asked.

    Args:
        base: a model folder.
        lora: whether adapters may be loaded while it runs.
        development: whether its weights may be replaced.
        served: the name of the base; empty for the folder's.
    """

    def __init__(self, base: str, lora: bool = True, served: str = "", development: bool = False) -> None:
        self.base = base
        self.served = served or base
        self.lora = lora
        self.development = development
        self.model = AutoModelForCausalLM.from_pretrained(base).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.adapters: dict[str, Any] = {}
        self.loaded: list[str] = []
        self.is_cache_stale = True
        """Whether kept prompts are of weights before these, as those of the base are until whole weights come."""
        self.requests: list[dict[str, Any]] = []
        self.dead_until = 0.0
        """Until when every request is answered by an error of the server, as when its engine has ended."""
        self._lock = threading.Lock()

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/health":
            return (503 if time.monotonic() < self.dead_until else 200), ""
        if path != "/v1/models":
            return 404, {"detail": "Not Found"}
        base = {"id": self.served, "root": self.base, "parent": None, "max_model_len": 64}
        return 200, {"data": [base, *({"id": name, "root": name, "parent": self.served} for name in self.adapters)]}

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        with self._lock:
            if time.monotonic() < self.dead_until:
                return 500, {"error": "EngineDeadError"}
            if path == "/tokenize":
                return 200, {"tokens": self.tokenizer(body["prompt"], add_special_tokens=False)["input_ids"]}
            if path == "/v1/load_lora_adapter" and self.lora:
                return self._load(body)
            if path == "/v1/unload_lora_adapter" and self.lora:
                return (200, "") if self.adapters.pop(body["lora_name"], None) else (404, {"error": "unknown"})
            if path == "/collective_rpc" and self.development:
                return self._reload(body)
            if path == "/reset_prefix_cache?reset_running_requests=true" and self.development:
                self.is_cache_stale = False
                return 200, {"success": True}
            if path == "/v1/completions":
                return self._complete(body)
            return 404, {"detail": "Not Found"}

    def _load(self, body: dict[str, Any]) -> tuple[int, Any]:
        if not body.get("lora_name"):
            return 400, {"error": "Both 'lora_name' and 'lora_path' must be provided."}
        if body["lora_name"] in self.adapters:
            return 400, {"error": f"The lora adapter '{body['lora_name']}' has already been loaded."}
        config = Path(body["lora_path"]) / "adapter_config.json"
        if not config.is_file():
            return 404, {"error": f"No adapter found for {body['lora_path']}"}
        settings = json.loads(config.read_text())
        if settings["r"] > 8:
            return 500, {"error": f"LoRA rank {settings['r']} is greater than max_lora_rank 8."}
        model, factors = copy.deepcopy(self.model), load_file(config.with_name("adapter_model.safetensors"))
        with torch.no_grad():
            for name in [name.removesuffix(".lora_A.weight") for name in factors if name.endswith(".lora_A.weight")]:
                change = factors[f"{name}.lora_B.weight"] @ factors[f"{name}.lora_A.weight"]
                weight = model.get_submodule(name.removeprefix("base_model.model.")).weight
                weight += settings["lora_alpha"] / settings["r"] * change
        self.adapters[body["lora_name"]] = model
        self.loaded.append(body["lora_name"])
        return 200, ""

    def _reload(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body.get("method") != "reload_weights":
            return 400, {"detail": "Missing 'method' in request body"}
        folder = Path(body["kwargs"]["weights_path"])
        if [each.name for each in folder.glob("*.safetensors")] != ["model.safetensors"]:
            return 500, {"error": "Cannot find any model weights"}
        self.model, self.is_cache_stale = AutoModelForCausalLM.from_pretrained(folder).eval(), True
        self.loaded.append(folder.name)
        return 200, {"results": [None]}

    @torch.no_grad()
    def _complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.requests.append(body)
        models = self.adapters if self.is_cache_stale else self.adapters | {self.served: self.model}
        if body["model"] not in models:
            return 404, {"error": f"The model `{body['model']}` does not exist."}
        model, random = models[body["model"]], torch.Generator().manual_seed(body["seed"])
        tokens: list[int] = []
        log_probs: list[float] = []
        while len(tokens) < body["max_tokens"] and not (tokens and tokens[-1] in body["stop_token_ids"]):
            logits_V = model(torch.tensor([body["prompt"] + tokens])).logits[0, -1].float()
            if body["temperature"]:
                probs_V = (logits_V / body["temperature"]).softmax(-1)
                tokens.append(int(torch.multinomial(probs_V, 1, generator=random)))
            else:
                tokens.append(int(logits_V.argmax()))
            log_probs.append(float(logits_V.log_softmax(-1)[tokens[-1]]))
        return 200, {"choices": [{"token_ids": tokens, "logprobs": {"token_logprobs": log_probs}}]}


@contextmanager
def serving(stand_in: StandIn, port: int = 0) -> Iterator[str]:
    """Serve until the context ends; the address."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self, status: int, content: Any) -> None:
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self) -> None:
            self._answer(*stand_in.get(self.path))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self._answer(*stand_in.post(self.path, body))

        def log_message(self, *ignored: Any) -> None:
            """Nothing: tests have output of their own."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
