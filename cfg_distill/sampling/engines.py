"""Engines that draw samples, and the first of them: a server of vLLM. Shapes: N rows, T tokens of one of them."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib import error, request
from urllib.parse import urlsplit

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.folders import whole_path
from cfg_distill.generators import CausalLM
from cfg_distill.sampling.distribution import Sampling

T = TypeVar("T")
log = logging.getLogger(__name__)

START = "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {base} --enable-lora --max-lora-rank {rank}"
START_WHOLE = "VLLM_SERVER_DEV_MODE=1 vllm serve {base}"
_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for."""
RELOAD = "reload_weights"
"""vLLM's own method of its workers, which reads the weights of a folder in place of those it has."""
ANSWER_SECONDS = 20
"""In which a server says who it is."""
PAUSE_SECONDS = 0.5
"""Between two looks at an engine that is gone."""
ONE_AT_A_TIME = threading.Lock()
"""Held by a rollout whose weights another one would replace."""


class EngineGoneError(Exception):
    """The engine does not answer: it may come back."""


@dataclass(frozen=True)
class Order:
    """One sample to draw.

    Attributes:
        prompt: its tokens.
        seed: of its random numbers.
    """

    prompt: list[int]
    seed: int


@dataclass(frozen=True)
class Drawn:
    """One sample.

    Attributes:
        tokens: the end token included.
        log_probs: of the tokens at temperature 1, as the engine computes them.
    """

    tokens: list[int]
    log_probs: list[float]


class Engine(Protocol):
    """Draws samples of a student: of its base with an adapter, or of whole weights."""

    def problems(self) -> list[Problem]:
        """What is wrong with its settings."""
        ...

    def problems_with(self, student: CausalLM, sampling: Sampling) -> list[Problem]:
        """Why it cannot draw from a student; it may be asked over the network."""
        ...

    def draw(
        self,
        student: CausalLM,
        weights: Path,
        orders: Sequence[Order],
        sampling: Sampling,
    ) -> list[Drawn]:
        """A sample for each order.

        Args:
            student: whose base the engine holds.
            weights: the folder of its adapter, or of all its weights, which no rollout before had.
            orders: the samples.
            sampling: their distribution and longest length.

        Raises:
            EngineGoneError: it does not answer.
            ConfigError: it refuses.
        """
        ...


def room_for(rank: int) -> int:
    """The least rank of adapters that vLLM can be told of, and that has room for one of this rank."""
    return next((each for each in _LORA_RANKS if each >= rank), rank)


def _start_of(student: CausalLM) -> str:
    """The command that starts a server for a student."""
    if student.lora is None:
        return START_WHOLE.format(base=whole_path(student.path))
    return START.format(base=whole_path(student.path), rank=room_for(student.lora.rank))


def patiently(attempt: Callable[[], T], seconds: float) -> T:
    """Make an attempt until the engine answers, with one message when it does not and one when it does again.

    Args:
        attempt: may raise :class:`EngineGoneError`.
        seconds: how long to wait.

    Raises:
        ConfigError: the engine did not come back.
    """
    since: float | None = None
    while True:
        try:
            found = attempt()
        except EngineGoneError as gone:
            if since is None:
                since = time.monotonic()
                log.warning("%s The fit waits for it, up to %g seconds.", gone, seconds)
            if time.monotonic() - since > seconds:
                text = f"{gone} It did not come back within {seconds:g} seconds. Start it, and go on with the last checkpoint."
                raise ConfigError(Problem("/model.sampler", text)) from gone
            time.sleep(PAUSE_SECONDS)
        else:
            if since is not None:
                log.warning("The engine is back after %.0f seconds. The fit goes on.", time.monotonic() - since)
            return found


class Server:
    """An OpenAI-compatible server of vLLM.

    Args:
        url: of the server.
        model: the name under which it serves the base; empty: its only base.
        parallel: requests at once.
        answer_seconds: in which it must answer a request for samples.
    """

    def __init__(self, url: str, model: str, parallel: int, answer_seconds: float) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self.parallel = parallel
        self.answer_seconds = answer_seconds

    def problems(self) -> list[Problem]:
        parts = urlsplit(self.url)
        if parts.scheme in ("http", "https") and parts.netloc:
            return []
        text = f"expected the address of a vLLM server, such as http://localhost:8000, but got `{self.url}`."
        return [Problem("url", text)]

    def problems_with(self, student: CausalLM, sampling: Sampling) -> list[Problem]:
        start = _start_of(student)
        try:
            models = [each for each in self._ask("/v1/models")["data"] if not each.get("parent")]
            problems = self._problems_of_model(models, student, sampling, start)
            if problems:
                return problems
            # An empty request is refused by a server that takes such weights, and unknown to any other.
            whole = student.lora is None
            path, kind = ("/collective_rpc", "weights") if whole else ("/v1/load_lora_adapter", "adapters")
            if self._post(path, {}, ANSWER_SECONDS)[0] == 404:
                text = f"expected a server that loads {kind} while it runs, but `{self.url}` does not. Start it so: {start}"
                return [Problem("url", text)]
            return self._problems_of_tokenizer(student, models[0]["id"])
        except EngineGoneError as gone:
            return [Problem("url", f"expected a vLLM server that answers. {gone} Start one: {start}")]
        except ConfigError as refused:
            return [Problem("url", f"{each.text} Start one so: {start}") for each in refused.problems]
        except (ValueError, LookupError, TypeError, AttributeError):  # an answer of another shape
            return [
                Problem(
                    "url", f"expected a vLLM server, but `{self.url}` answers as something else. Start one: {start}"
                )
            ]

    def _problems_of_model(
        self, models: list[dict[str, Any]], student: CausalLM, sampling: Sampling, start: str
    ) -> list[Problem]:
        """Another model than the student's base, or one that is served too short."""
        served = {each["id"]: each for each in models}
        if not served:
            return [Problem("url", f"expected a server of a model, but `{self.url}` serves none. Start it so: {start}")]
        if self.model and self.model not in served:
            return [Problem("model", f"expected one of {', '.join(served)}, which it serves, but got `{self.model}`.")]
        if not self.model and len(served) != 1:
            return [Problem("model", f"expected a name, since `{self.url}` serves {', '.join(served)}. Choose one.")]
        own = served[self.model] if self.model else models[0]
        root = str(own.get("root") or own["id"])
        if not self.model and Path(root).name != Path(whole_path(student.path)).name:
            text = (
                f"expected a server of the student's base, `{student.path}`, but `{self.url}` serves `{root}`. Start it so:"
                f" {start}. If it is the same model in another folder, set `@.model` to {own['id']}."
            )
            return [Problem("url", text)]
        longest = own.get("max_model_len")
        if longest and sampling.max_new_tokens >= longest:
            text = f"expected less than {longest}, the `--max-model-len` of `{self.url}`, but got {sampling.max_new_tokens}."
            return [Problem("/model.sampling.max_new_tokens", text)]
        return []

    def _problems_of_tokenizer(self, student: CausalLM, served: str) -> list[Problem]:
        """Words of all parts of the vocabulary that the server reads as other tokens."""
        size = len(student.tokenizer)
        text = student.tokenizer.decode(range(0, size, max(1, size // 64)), skip_special_tokens=True)
        wanted = student.tokenizer(text, add_special_tokens=False)["input_ids"]
        body = {"model": self.model or served, "prompt": text, "add_special_tokens": False}
        if self._ask("/tokenize", body).get("tokens") == wanted:
            return []
        text = (
            f"expected a server with the tokenizer of `{student.path}`, but `{self.url}` has another one. Start it from the"
            " student's base, without `--tokenizer`."
        )
        return [Problem("url", text)]

    def draw(self, student: CausalLM, weights: Path, orders: Sequence[Order], sampling: Sampling) -> list[Drawn]:
        holding = self._with_weights if student.lora is None else self._with_adapter
        with holding(student, weights) as name, ThreadPoolExecutor(min(self.parallel, len(orders))) as pool:
            common = {"model": name, **asked_of(student, sampling)}
            return list(pool.map(lambda order: self._sample(order, common), orders))

    @contextmanager
    def _with_adapter(self, student: CausalLM, folder: Path) -> Iterator[str]:
        """Load an adapter until the context ends; its name."""
        name = f"{folder.parent.name}-{folder.name}"
        status, said = self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        # It is there already where an attempt before this one was broken off.
        if status != 200 and "already been loaded" not in said:
            text = f"{self._refused(f'the adapter `{folder}`', status, said)} Start it so: {_start_of(student)}"
            raise ConfigError(Problem("/model.sampler", text))
        try:
            yield name
        finally:
            with suppress(EngineGoneError):  # and its adapters with it
                self._post("/v1/unload_lora_adapter", {"lora_name": name}, ANSWER_SECONDS)

    @contextmanager
    def _with_weights(self, student: CausalLM, folder: Path) -> Iterator[str]:
        """Put other weights into the model that is served; its name. The weights stay until the next ones come."""
        order = {"method": RELOAD, "kwargs": {"weights_path": str(folder)}}
        with ONE_AT_A_TIME:  # a rollout of validation waits for one that runs ahead
            status, said = self._post("/collective_rpc", order, self.answer_seconds)
            if status != 200:
                text = f"{self._refused(f'the weights `{folder}`', status, said)} Start it so: {_start_of(student)}"
                raise ConfigError(Problem("/model.sampler", text))
            # What it kept of prompts is of the weights before.
            if not self._ask("/reset_prefix_cache?reset_running_requests=true", {})["success"]:
                text = f"expected a vLLM server of this fit alone, but `{self.url}` works for others, too. Start another one."
                raise ConfigError(Problem("/model.sampler", text))
            yield self.model or self._ask("/v1/models")["data"][0]["id"]

    def _sample(self, order: Order, common: dict[str, Any]) -> Drawn:
        body = {**common, "prompt": order.prompt, "seed": order.seed}
        choice = self._ask("/v1/completions", body, self.answer_seconds)["choices"][0]
        if choice.get("token_ids") is None:
            text = f"expected vLLM 0.10.2 or newer, which returns tokens, but `{self.url}` returns texts. Upgrade it."
            raise ConfigError(Problem("/model.sampler", text))
        return Drawn(choice["token_ids"], choice["logprobs"]["token_logprobs"])

    def _ask(self, path: str, body: dict[str, Any] | None = None, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        status, said = self._post(path, body, seconds)
        if status != 200:
            raise ConfigError(Problem("/model.sampler", self._refused(f"a request to {path}", status, said)))
        return json.loads(said)

    def _refused(self, what: str, status: int, said: str) -> str:
        reason = " ".join(said[:300].split()).rstrip(".")
        text = f"expected a vLLM server that takes {what}, but `{self.url}` refuses it with status {status}"
        return f"{text}: {reason}." if reason else f"{text}."

    def _post(self, path: str, body: dict[str, Any] | None, seconds: float = 60.0) -> tuple[int, str]:
        """Status and text of an answer; without a body, of a question."""
        data = None if body is None else json.dumps(body).encode()
        asked = request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with request.urlopen(asked, timeout=seconds) as answer:
                return answer.status, answer.read().decode()
        except error.HTTPError as refused:
            said = refused.read().decode(errors="replace")
            # An adapter that does not fit is an error of a server that is well.
            if refused.code >= 500 and not self._is_well():
                raise EngineGoneError(
                    f"The vLLM server at {self.url} fails: {said[:200] or refused.reason}."
                ) from refused
            return refused.code, said
        except (OSError, ValueError) as gone:  # refused, broken off, too late; half an answer
            raise EngineGoneError(f"The vLLM server at {self.url} does not answer ({gone}).") from gone

    def _is_well(self) -> bool:
        try:
            with request.urlopen(f"{self.url}/health", timeout=ANSWER_SECONDS):
                return True
        except OSError:
            return False

    def __str__(self) -> str:
        return f"vLLM at {self.url}"


def asked_of(student: CausalLM, sampling: Sampling) -> dict[str, Any]:
    """The distribution as vLLM's parameters. All are stated: a server's defaults are those of the model's generation config."""
    return {
        "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": list(student.end_tokens),
        "ignore_eos": True,  # our own end tokens decide
        "skip_special_tokens": False,
        "logprobs": 0,  # of the token that was drawn
        "return_token_ids": True,
    }
