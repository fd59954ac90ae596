"""A dry run of a deep model: a few of its equal blocks run, and what all of them would hold and compute follows exactly.

Every count of a walk is a straight line in the number of blocks, where all blocks do the same. So is the most that lives at one
place of the code: in the first block or the second, in the last or the one before it, behind one of them, or on the way back
through it. What lives in a block between lies on the line from the second to the last but one. So the peak of all blocks is the
highest of these places. The peak itself is no straight line: another place may be the highest in a deeper model.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from cfg_distill.planning.dry import Ledger, numbers_of

DEPTHS = (3, 4)
"""Numbers of blocks that run. From three on the second is neither the first nor the last."""

Counts = dict[Hashable, int | float]
"""What a walk counts, by names. The bytes of a peak stand under its name and each of its places: see :func:`peaks_of`."""


def blocks_of(network: nn.Module) -> nn.ModuleList:
    """The blocks of a network, which run one after another: its largest list of modules; an empty one where it has none."""
    lists = (each for each in network.modules() if isinstance(each, nn.ModuleList))
    return max(lists, key=lambda each: numbers_of(each.parameters()), default=nn.ModuleList())


def peaks_of(name: str, ledger: Ledger) -> Counts:
    """The peaks of a ledger at all places, among the counts of a walk."""
    return {(name, place): size for place, size in ledger.peaks.items()}


def highest(counts: Counts, name: str) -> int:
    """The peak of a name: that of its highest place."""
    return max(int(size) for key, size in counts.items() if isinstance(key, tuple) and key[0] == name)


def counted(networks: Sequence[nn.Module], walk: Callable[[Ledger], Counts]) -> Counts:
    """What a walk through all blocks of some networks counts.

    Args:
        networks: of equal depth. Where it is at most seven, or blocks differ, all of them run.
        walk: runs the networks inside the ledger.
    """
    depth = len(blocks_of(networks[0]))
    if depth <= sum(DEPTHS) or not all(_is_even(each) and len(blocks_of(each)) == depth for each in networks):
        with Ledger() as ledger:
            return walk(ledger)
    few, more = (_walked(networks, number, walk) for number in DEPTHS)
    further = depth - DEPTHS[0]
    return {name: few[name] + further * (more[name] - few[name]) for name in few.keys() & more.keys()}


def _is_even(network: nn.Module) -> bool:
    """Whether all blocks do the same."""
    kinds = getattr(getattr(network, "config", None), "layer_types", None) or []
    return len(set(kinds)) < 2 and all(_kind(one) == _kind(other) for one, other in pairwise(blocks_of(network)))


def _kind(module: nn.Module) -> Hashable:
    """Class, settings and weights of a module and its parts, without its number."""
    plain = {name: value for name, value in vars(module).items() if isinstance(value, bool | int | float | str | None)}
    settings = frozenset((name, value) for name, value in plain.items() if name != "layer_idx")
    weights = [
        (name, each.shape, each.dtype, each.requires_grad) for name, each in module.named_parameters(recurse=False)
    ]
    return type(module), settings, tuple(weights), tuple((name, _kind(part)) for name, part in module.named_children())


@contextmanager
def shallow(networks: Sequence[nn.Module], depth: int) -> Iterator[None]:
    """Until the context ends, the networks have their first blocks only."""
    cut = []
    for network in networks:
        blocks = blocks_of(network)
        owners = ((part, name) for part in network.modules() for name, each in part.named_children() if each is blocks)
        cut += [(owner, name, blocks) for owner, name in owners]
    for owner, name, blocks in cut:
        owner._modules[name] = blocks[:depth]
    try:
        yield
    finally:
        for owner, name, blocks in cut:
            owner._modules[name] = blocks


def _walked(networks: Sequence[nn.Module], depth: int, walk: Callable[[Ledger], Counts]) -> Counts:
    first = [(number, block) for each in networks for number, block in enumerate(blocks_of(each)[:depth])]
    begun: list[int] = []
    with shallow(networks, depth), Ledger() as ledger, ExitStack() as hooks:
        for number, block in first:
            hooks.enter_context(_watched(block, number, ledger, begun))
        counts = walk(ledger)
    found: Counts = {}
    for key, size in counts.items():
        match key:
            case (name, (turn, way, int(at))):
                if at < 2:
                    found[name, turn, way, at] = size
                if at >= depth - 2:
                    found[name, turn, way, at - depth] = size
            case _:
                found[key] = size
    return found


@contextmanager
def _watched(block: nn.Module, number: int, ledger: Ledger, begun: list[int]) -> Iterator[None]:
    """Tell a ledger which block runs, in which pass, and which way."""

    def enters(*_: Any) -> None:
        if number == 0:
            begun.append(number)
        ledger.place = (len(begun), "in", number)

    def leaves(_: nn.Module, given: Any, made: Any) -> None:
        turn = len(begun)

        def returns(_: Tensor) -> None:
            ledger.place = (turn, "back", number)

        result = next(each for each in tree_leaves(made) if isinstance(each, Tensor))
        if result.requires_grad:
            result.register_hook(returns)
        ledger.place = (turn, "behind", number)

    hooks = [block.register_forward_pre_hook(enters), block.register_forward_hook(leaves)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
