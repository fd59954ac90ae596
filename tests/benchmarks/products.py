"""The products of a model's linear layers and head, by number of rows: torch's own against oneDNN's.

    python tests/benchmarks/products.py           SmolLM2-135M: the table of docs/performance.md, in milliseconds; 2 minutes
    python tests/benchmarks/products.py tunes     the shipped model, whose weights are small
    python tests/benchmarks/products.py sizes     its rollouts and the loss, by the sizes for each kind of processor; 3 minutes

Every weight is another one, read from memory, as in a forward pass.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from loss_sides import Inputs, ours
from measure import interleaved, machine, use_threads
from torch import Tensor

from cfg_distill.generators import CausalLM, Guidance, linear
from cfg_distill.sampling import Sampling, draw

MODELS = {"smollm2": (30, 576, 192, 1536, 49_152), "tunes": (4, 224, 224, 512, 301)}
"""Layers, width, width of keys, inner width, vocabulary."""
ROWS = (1, 4, 8, 16, 32, 64, 256, 1024)


def onednn(rows: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")


def seconds_of(num_rows: int, weights: list[Tensor], packed: list[Tensor]) -> dict[str, float]:
    """All products of that many rows, by column of the table."""
    x = {width: torch.randn(num_rows, width) for width in {weight.shape[1] for weight in weights}}
    g = {width: torch.randn(num_rows, width) for width in {len(weight) for weight in weights}}
    of_layers = weights[:-1]  # the head's gradient is summed chunk by chunk elsewhere
    sides: dict[str, Callable[[], list[Tensor]]] = {
        "torch": lambda: [torch.nn.functional.linear(x[w.shape[1]], w) for w in weights],
        "oneDNN, as it lies": lambda: [onednn(x[w.shape[1]], w) for w in weights],
        "oneDNN, packed": lambda: [onednn(x[w.shape[1]], p) for w, p in zip(weights, packed, strict=True)],
        "gradient of rows: torch": lambda: [g[len(w)] @ w for w in of_layers],
        "of rows: oneDNN": lambda: [onednn(g[len(w)], w.t()) for w in of_layers],
        "of weights: torch": lambda: [g[len(w)].t() @ x[w.shape[1]] for w in of_layers],
        "of weights: oneDNN": lambda: [onednn(g[len(w)].t(), x[w.shape[1]].t()) for w in of_layers],
    }
    return interleaved({name: partial(_forget, side) for name, side in sides.items()})


def _forget(side: Callable[[], list[Tensor]]) -> None:
    side()


def by_sizes() -> None:
    """Rollouts of 64 positions of the shipped model and the loss, by the sizes of each kind of processor."""
    print(machine())
    model, given = CausalLM("tunes:base").load(), Inputs()
    prompts = ["a lively Irish jig in D major", "a waltz in G", "a slow air in D", "a reel in E minor"]

    def draws(rows: int, guidance: Guidance | None) -> None:
        draw(model, prompts[: max(1, rows // 4)], Sampling(samples=min(4, rows), max_new_tokens=64), guidance)

    def loss() -> None:
        with torch.enable_grad():
            ours(given).backward()

    def under(sizes: tuple[int, int], side: Callable[[], None]) -> None:
        linear.LEAST_WORK, linear.LEAST_PACKED = sizes
        side()

    sides: dict[str, Callable[[], None]] = {"loss": loss}
    for rows in (1, 4, 16):
        sides[f"rollout, {rows} rows"] = partial(draws, rows, None)
        sides[f"rollout with guidance, {rows} rows"] = partial(draws, rows, Guidance(2.0))
    makers = {"AMD with AVX-512": (False, True), "AMD without": (False, False), "Intel": (True, True)}
    for what, side in sides.items():
        seconds = interleaved(
            {name: partial(under, linear.least_sizes(*maker), side) for name, maker in makers.items()}
        )
        ratios = ", ".join(f"{name} {each / seconds['Intel']:.2f}" for name, each in seconds.items())
        print(f"{what}, time by the sizes of Intel = 1: {ratios}", flush=True)


@torch.no_grad()
def main() -> None:
    use_threads()
    if sys.argv[1:] == ["sizes"]:
        by_sizes()
        return
    layers, width, keys, inner, vocabulary = MODELS[sys.argv[1] if len(sys.argv) > 1 else "smollm2"]
    shapes = [
        (width, width),
        (keys, width),
        (keys, width),
        (width, width),
        (inner, width),
        (inner, width),
        (width, inner),
    ]
    weights = [torch.randn(*shape) for shape in [*shapes * layers, (vocabulary, width)]]
    packed: list[Tensor] = []

    def pack() -> None:
        packed[:] = [torch.ops.mkldnn._reorder_linear_weight(weight, None) for weight in weights]

    print(machine())
    print(f"Packing takes {interleaved({'pack': pack})['pack'] * 1e3:.3g} ms.")
    for number, num_rows in enumerate(ROWS):
        seconds = seconds_of(num_rows, weights, packed)
        if not number:
            print(f"| rows | {' | '.join(seconds)} |\n|{'---|' * (len(seconds) + 1)}")
        print(f"| {num_rows} | {' | '.join(f'{value * 1e3:.3g}' for value in seconds.values())} |", flush=True)


if __name__ == "__main__":
    main()
