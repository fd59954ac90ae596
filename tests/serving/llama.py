"""llama.cpp's server: settings of both dials per request, what a request without scales gets, speed and memory."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from serving.checks import Checks, Text, Texts, compare, difference
from serving.environment import run
from serving.students import ADAPTERS, ALL, PROMPTS, TOKENS, Students
from serving.turns import in_turns, median

AT_ONCE = 7
TIMED_TOKENS = 128
CONTEXT = 4096
GIB = 2**30


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        port: on this machine.
        process: its number.
    """

    port: int
    process: int

    def ask(self, path: str, body: Any = None) -> Any:
        """The answer to a request; with a body it is a POST."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked, timeout=300) as answer:
            return json.load(answer)

    def greedy(self, prompt: list[int], scales: Sequence[float] | None, **more: Any) -> Any:
        """The greedy text of a prompt at scales of the adapters; None leaves the field out."""
        body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "return_tokens": True, "cache_prompt": False}
        if scales is not None:
            body["lora"] = [{"id": number, "scale": scale} for number, scale in enumerate(scales)]
        return self.ask("/completion", {**body, **more})

    def tokens(self, prompt: list[int], scales: Sequence[float] | None) -> list[int]:
        return list(self.greedy(prompt, scales)["tokens"])

    @property
    def resident(self) -> int:
        """The bytes of its memory that are in use, the file of the weights included."""
        status = Path(f"/proc/{self.process}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


@contextmanager
def serving(students: Students, *words: str, shown: bool = True) -> Iterator[Server]:
    """A server until the context ends; its command is printed unless the caller prints it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if shown:
        print(_command(words), flush=True)
    log = students.folder / f"server-{port}.log"
    command = [
        str(students.environment.server),
        *words,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "-t",
        str(os.cpu_count()),
    ]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as process:
        try:
            server = Server(port, process.pid)
            for _ in range(600):
                try:
                    server.ask("/health")
                    break
                except OSError:
                    if process.poll() is not None:
                        raise SystemExit(f"FAILED: the server stopped.\n{log.read_text()[-2000:]}") from None
                    time.sleep(0.2)
            yield server
        finally:
            process.terminate()


def check(students: Students, texts: Texts, checks: Checks) -> None:
    """Every check of this engine."""
    print(f"\nllama.cpp's server ({run([students.environment.server, '--version']).split(chr(10))[0]})")
    files = [str(students.adapter(name)) + ".gguf" for name in ADAPTERS]
    base = str(students.adapter("base")) + ".gguf"
    exact = ["-ctk", "f32", "-ctv", "f32", "-fa", "off"]  # as our own cache; the default is half precision
    with serving(students, "-m", base, "--lora", ",".join(files), "-np", "4", "-c", str(CONTEXT), *exact) as server:
        _settings(server, students, texts, checks)
        _without_scales(server, students, texts, checks)
        _at_once(server, students, texts, checks)
    with serving(students, "-m", base, "--lora", ",".join(files), "--lora-init-without-apply") as server:
        listed = [each["scale"] for each in server.ask("/lora-adapters")]
        checks(listed == [1, 1, 1], "trap: --lora-init-without-apply leaves the scales at 1", str(listed))
    scaled = ",".join(f"{file}:{scale}" for file, scale in zip(files, (1, 0, 0), strict=True))
    with serving(students, "-m", base, "--lora-scaled", scaled, *exact) as server:
        got = {"knob 0": [server.tokens(prompt, None) for prompt in students.prompt_tokens()]}
        checks(*_named("--lora-scaled sets what a request without `lora` gets", compare(texts, got)))
    files[2] = str(students.adapter("difference")) + ".gguf"
    with serving(students, "-m", base, "--lora", ",".join([files[0], files[2]]), *exact) as server:
        prompts = students.prompt_tokens()
        got = {f"knob {knob:g}": [server.tokens(prompt, [1, knob]) for prompt in prompts] for knob in (0.25, 0.5, 0.75)}
        checks(*_named("quality at 1 and the difference at l are the knob l", compare(texts, got)))
    _speed(students, base, checks)


def _named(what: str, found: tuple[bool, str]) -> tuple[bool, str, str]:
    return found[0], what, found[1]


def _settings(server: Server, students: Students, texts: Texts, checks: Checks) -> None:
    prompts, settings = students.prompt_tokens(), students.settings()
    for kind, count in (("knob", "five settings of the knob"), ("dial", "three settings of the dial")):
        asked = {name: each.scales for name, each in settings.items() if name.startswith(kind)}
        got = {name: [server.tokens(prompt, scales) for prompt in prompts] for name, scales in asked.items()}
        checks(*_named(f"{count}, per request, equal to our generator's", compare(texts, got)))
    got = {"base": [server.tokens(prompt, [0, 0, 0]) for prompt in prompts]}
    checks(*_named("all scales 0 is the base", compare(texts, got)))
    got = {"knob 0": [server.greedy(prompt, None, lora=[{"id": 0, "scale": 1}])["tokens"] for prompt in prompts]}
    checks(*_named("an adapter that the list leaves out counts 0", compare(texts, got)))
    chat = {"messages": [{"role": "user", "content": PROMPTS[0]}]}
    text = server.ask("/apply-template", chat)["prompt"]
    same = server.ask("/tokenize", {"content": text, "parse_special": True})["tokens"] == prompts[0]
    checks(same, "the chat template of the GGUF file makes our tokens of a prompt")
    half = server.greedy(prompts[0], settings["knob 0.5"].scales)["content"]
    asked = {**chat, "max_tokens": TOKENS, "temperature": 0, "lora": _scales(settings["knob 0.5"].scales)}
    said = server.ask("/v1/chat/completions", asked)["choices"][0]["message"]["content"]
    checks(said.strip() == half.strip(), "/v1/chat/completions takes the same field")


def _scales(scales: Sequence[float]) -> list[dict[str, float]]:
    return [{"id": number, "scale": scale} for number, scale in enumerate(scales)]


def _without_scales(server: Server, students: Students, texts: Texts, checks: Checks) -> None:
    prompts = students.prompt_tokens()
    got = {ALL: [server.tokens(prompt, None) for prompt in prompts]}
    checks(*_named("trap: a request without `lora` gets every adapter at scale 1, all added up", compare(texts, got)))
    others = [name for name in texts if name != ALL
              and not any(difference(ours, its) for ours, its in zip(texts[name], got[ALL], strict=True))]  # fmt: skip
    checks(not others, "trap: which is neither the base nor a setting of a student", ", ".join(others))
    server.ask("/lora-adapters", _scales([1, 0, 0]))
    got = {"knob 0": [server.tokens(prompt, None) for prompt in prompts]}
    checks(*_named("POST /lora-adapters sets what a request without `lora` gets", compare(texts, got)))
    server.ask("/lora-adapters", _scales([1, 1, 1]))


def _at_once(server: Server, students: Students, texts: Texts, checks: Checks) -> None:
    prompt, settings = students.prompt_tokens()[0], students.settings()
    chosen = dict(list(settings.items())[:AT_ONCE])

    def all_of(scales: list[tuple[float, float, float]]) -> tuple[list[list[int]], float]:
        began = time.monotonic()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(lambda each: server.tokens(prompt, each), scales)), time.monotonic() - began

    turns = in_turns({
        "different": lambda: all_of([each.scales for each in chosen.values()]),
        "equal": lambda: all_of([settings["knob 0.5"].scales] * AT_ONCE),
    })  # fmt: skip
    different, equal = (turns.of[kind][0][0] for kind in ("different", "equal"))
    got = {name: [tokens] for name, tokens in zip(chosen, different, strict=True)}
    checks(*_named(f"{AT_ONCE} different settings at once", compare({name: texts[name][:1] for name in chosen}, got)))
    expected: Text = texts["knob 0.5"][0]
    checks(not any(difference(expected, its) for its in equal), f"{AT_ONCE} equal settings at once")
    took = {kind: median([seconds for _, seconds in runs], unit=" s") for kind, runs in turns.of.items()}
    print(f"    {took['different']} for {AT_ONCE} different ones, {took['equal']} for {AT_ONCE} equal ones; {turns}")


def _speed(students: Students, base: str, checks: Checks) -> None:
    """One stream of a student against the two rows of guidance, as two requests of the base in one batch.

    Every run starts its own server, so that the memory of each run is its own, and no other server lies beside it. The server
    has no guidance: nothing mixes the two rows' logits, and each row goes on with its own tokens. So two rows are what guidance
    costs at least.
    """
    prompts = students.prompt_tokens()
    adapters = [str(students.adapter(name)) + ".gguf" for name in ("quality", "diversity")]
    one, two = (["-np", str(rows), "-c", str(rows * CONTEXT), "--cache-ram", "0"] for rows in (1, 2))
    kinds: dict[str, tuple[list[str], int, list[float] | None]] = {
        "student, one file": (["-m", f"{students.whole('quality')}.gguf", *one], 1, None),
        "student, base + 2 adapters": (["-m", base, "--lora", ",".join(adapters), *one], 1, [0.5, 0.5]),
        "base, 2 rows": (["-m", base, *two], 2, None),
    }

    def stream(server: Server, rows: int, scales: list[float] | None) -> float:
        """Tokens per second of the slower row: a guided token needs both."""
        more = {"n_predict": TIMED_TOKENS, "ignore_eos": True}
        with ThreadPoolExecutor(rows) as pool:
            answers = list(pool.map(lambda prompt: server.greedy(prompt, scales, **more), prompts[:rows]))
        return min(float(answer["timings"]["predicted_per_second"]) for answer in answers)

    def measured(words: list[str], rows: int, scales: list[float] | None) -> tuple[float, int]:
        """Tokens per second and resident bytes of a server that serves this alone."""
        with serving(students, *words, shown=False) as server:
            return stream(server, rows, scales), server.resident

    for words, _, _ in kinds.values():
        print(_command(words), flush=True)
    turns = in_turns({name: partial(measured, *kind) for name, kind in kinds.items()})
    rates, memory = ({name: [run[part] for run in runs] for name, runs in turns.of.items()} for part in (0, 1))
    print(f"    {turns}; {TIMED_TOKENS} tokens per row, memory at {CONTEXT} positions per row")
    print(f"    {'':28} {'tokens/s':>22} {'resident, GiB':>24}")
    for name in kinds:
        told = median(rates[name]), median([each / GIB for each in memory[name]], ".2f")
        print(f"    {name:28} {told[0]:>22} {told[1]:>24}")
    fast, large = ({name: statistics.median(values) for name, values in of.items()} for of in (rates, memory))
    ratio = fast["student, one file"] / fast["base, 2 rows"]
    checks(ratio > 1, "a student's stream is faster than the two rows of guidance", f"{ratio:.2f} times")
    saved = large["base, 2 rows"] - large["student, one file"]
    checks(saved > 0, "and its server is smaller", f"by {saved / 2**20:.0f} MiB at {CONTEXT} positions per row")


def _command(words: Sequence[str]) -> str:
    return f"  $ llama-server {' '.join(words)}"
