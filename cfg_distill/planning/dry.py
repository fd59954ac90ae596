"""A dry run: the code of a training step on tensors that have shapes and no values, and what it would hold and compute.

torch's ``FakeTensorMode`` makes such tensors. So any model of transformers can be planned by its config alone, and the plan
follows the code: no formula per architecture has to be kept in step with it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self
from weakref import finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary

from cfg_distill.generators.networks import without_weights
from cfg_distill.losses.chunked import turns_by

_aten = torch.ops.aten


@contextmanager
def dry() -> Iterator[None]:
    """Let everything in this block run without values; model folders are then read as far as their config."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Answers(), without_weights(), _casts_in_place():
        yield


@contextmanager
def _casts_in_place() -> Iterator[None]:
    """``module.to(dtype)`` puts new parameters in place of the old. torch's own swaps contents, which fake ones refuse."""
    plain = nn.Module._apply

    def apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        made: dict[int, nn.Parameter] = {}
        for part in self.modules():
            for name, old in part._parameters.items():
                if old is not None and id(old) not in made:
                    with torch.no_grad():
                        new = fn(old)
                    made[id(old)] = old if new is old else nn.Parameter(new, old.requires_grad)
                if old is not None:
                    part._parameters[name] = made[id(old)]
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = fn(buffer)
        return self

    nn.Module._apply = apply  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module._apply = plain  # type: ignore[method-assign]


class _Answers(TorchFunctionMode):
    """Answers what code asks of values that do not exist, such that it takes the longest way.

    - A condition is false: a mask hides something, and is made.
    - A number is 1.
    - A weight stays as it is made: no initialiser runs.
    - A mask has every cell: all samples have their full length.
    - A recurrent layer makes its output and no intermediates, as a library's kernel does; torch would take a step per frame.
    - Attention is the kernel that keeps no scores: queries, keys, values, the result and a logarithm per query and head (Dao et
      al., arXiv 2205.14135). CPUs and GPUs have it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.__bool__, torch.equal):
            return False
        if func is torch.allclose:  # asked of the head: almost all are linear
            return True
        if func in (Tensor.item, Tensor.__float__):
            return 1.0
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        if func is Tensor.cpu:
            return args[0]
        if func is Tensor.__deepcopy__:
            return _copied(*args)
        if func in (Tensor.nonzero, torch.nonzero):
            mask = args[0]
            return tuple(torch.empty(mask.numel(), dtype=torch.long) for _ in range(mask.ndim))
        if func is scaled_dot_product_attention:
            return _attention(*args, **kwargs)
        if func is torch.lstm:
            return _lstm(*args)
        return func(*args, **kwargs)


def _copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """A deep copy, as torch makes one; its own looks at the data."""
    if id(tensor) not in memo:
        made = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made
    return memo[id(tensor)]


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        low = torch.get_autocast_dtype("cpu")
        query, key, value = query.to(low), key.to(low), value.to(low)
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = (each.repeat_interleave(repeats, dim=-3) for each in (key, value))
    if attn_mask is not None:  # the kernel adds the mask, in the queries' dtype
        attn_mask = torch.empty(attn_mask.shape, dtype=query.dtype)
    kernel = _aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]


def _lstm(rows: Tensor, state: tuple[Tensor, Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    is_both_ways = rest[5]
    made = rows.new_empty(*rows.shape[:-1], state[0].shape[-1] * (2 if is_both_ways else 1))
    return made, torch.empty_like(state[0]), torch.empty_like(state[1])


_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: (0, 1.0),
    # Of the scores again, and of the gradients of scores, queries, keys and values: five products in place of two.
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: (1, 2.5),
}
"""Kernels of attention: where the query stands, and FLOPs as a multiple of those of the forward pass."""


class Ledger(TorchDispatchMode):
    """What runs inside, in bytes and FLOPs.

    A multiplication and an addition are two FLOPs. Matrix products, convolutions and attention count; all else is small beside
    them. Memory is that of the tensors which the code makes; what a kernel takes for itself does not show.

    Of the chunks of a sum over cells three run: the first, the second, which counts for all like it, and the last.

    Attributes:
        live: bytes of the tensors that were made inside and still exist.
        peaks: the most that ``live`` has been since :meth:`begin`, at each place of the code.
        flops: of all but attention, since :meth:`begin`.
        attention: FLOPs of attention, by the number of keys.
        place: where the code is; whoever watches it sets this.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.place: Hashable = None
        self.peaks: dict[Hashable, int] = {}
        self.flops = 0.0
        self.attention: Counter[int] = Counter()
        self._times = 1
        self._seen = WeakIdKeyDictionary()

    def __enter__(self) -> Self:
        self._turns = turns_by(self._turn)
        self._turns.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._turns.__exit__(*error)

    def _turn(self, starts: Sequence[int]) -> Iterator[int]:
        """In the second turn the one before it has left its memory, as in all later ones."""
        middle = len(starts) - 2
        if middle < 1:
            yield from starts
            return
        yield starts[0]
        self._times *= middle
        yield starts[1]
        self._times //= middle
        yield starts[-1]

    def begin(self) -> int:
        """Forget the peaks and the FLOPs; returns the bytes that live."""
        self.place, self.peaks, self.flops = None, {None: self.live}, 0.0
        self.attention.clear()
        return self.live

    @property
    def peak(self) -> int:
        """The most that ``live`` has been since :meth:`begin`."""
        return max(self.peaks.values(), default=0)

    @property
    def all_flops(self) -> float:
        """Attention included."""
        return self.flops + sum(self.attention.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:  # asked all the time
            return args[0].device
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):  # not made inside if it is met here first: a view of it takes no memory
                self._seen.setdefault(tensor.untyped_storage(), 0)
        made = func(*args, **kwargs)
        self._compute(func._overloadpacket, args, kwargs, made)
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._meet(tensor)
        return made

    def _compute(self, kernel: Any, args: Any, kwargs: Any, made: Any) -> None:
        if kernel in _ATTENTION:
            first, times = _ATTENTION[kernel]
            shapes = [each.shape for each in args[first : first + 3]]
            self.attention[shapes[1][-2]] += self._times * int(times * sdpa_flop_count(*shapes))
        elif kernel in flop_registry:
            self.flops += self._times * flop_registry[kernel](*args, **kwargs, out_val=made)

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self._seen:
            return
        size = storage.nbytes()
        self._seen[storage] = size
        self.live += size
        self.peaks[self.place] = max(self.peaks.get(self.place, 0), self.live)
        finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def bytes_of(tensors: Any) -> int:
    """Bytes of the memory behind tensors: what two of them share counts once.

    Example:
        >>> weight = torch.zeros(3, 2)
        >>> bytes_of([weight, weight.T, torch.zeros(2, dtype=torch.bfloat16)])
        28
    """
    storages = WeakIdKeyDictionary()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage] = storage.nbytes()
    return sum(storages.values())


def numbers_of(tensors: Any) -> int:
    """Numbers in tensors; a tensor that stands there twice counts once."""
    return sum(math.prod(tensor.shape) for tensor in {id(tensor): tensor for tensor in tensors}.values())
