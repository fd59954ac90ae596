"""What the random numbers of a rollout cost, by processor time: a stream per sample beside one generator for all.

python tests/benchmarks/seeds.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from cfg_distill.sampling import Seeds
from cfg_distill.sampling.distribution import draw_tokens

GROUP = 4


def milliseconds(work: Callable[..., object], *arguments: Any) -> float:
    """The shortest of five."""
    work(*arguments)
    taken = []
    for _ in range(5):
        began = time.process_time()
        work(*arguments)
        taken.append(time.process_time() - began)
    return 1000 * min(taken)


def of_one_generator(rows: int, codebooks: int, positions: int) -> None:
    random = torch.Generator().manual_seed(0)
    for _ in range(positions):
        torch.rand((rows, codebooks), dtype=torch.float64, generator=random)


def main() -> None:
    torch.set_num_threads(1)
    for rows, codebooks, positions in ((32, 1, 256), (600, 1, 256), (32, 4, 503), (600, 4, 1503)):
        seeds = Seeds((0, 1, 0), range(rows // GROUP))
        keyed = milliseconds(seeds.uniform_NKT, GROUP, codebooks, positions)
        one = milliseconds(of_one_generator, rows, codebooks, positions)
        of = f"{rows} rows, {codebooks} codebooks, {positions} positions"
        print(f"{of}: a stream per sample {keyed:.2f} ms, one generator {one:.2f} ms, per rollout")
    for rows in (32, 600):
        probs_NKV = torch.randn(rows, 1, 49_152).softmax(-1)
        ours = milliseconds(draw_tokens, probs_NKV, torch.rand(rows, 1, dtype=torch.float64))
        theirs = milliseconds(torch.multinomial, probs_NKV[:, 0], 1)
        print(f"{rows} rows, vocabulary 49,152: draw_tokens {ours:.2f} ms, multinomial {theirs:.2f} ms, per position")


if __name__ == "__main__":
    main()
