"""A device that is not the CPU, for machines that have no other: it finds what stands on the wrong device.

Its tensors compute on the CPU and say that they lie on ``simulated:0``. As with CUDA, an operation on tensors of both devices
is an error, unless it copies, indexes, or takes a number without dimensions. It knows nothing of kernels, autocast, streams and
memory: what it passes may still fail on a GPU, and what it refuses fails there.

torch registers it as a Python backend, for the whole process and for good.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
    raise ImportError("a simulated device needs a torch that takes backends written in Python, as 2.13 does")

NAME = "simulated"
waits: Counter[str] = Counter()
"""How often which operation has read a number from the device, for which a GPU would have been waited for."""

_aten = torch.ops.aten
_COPIES = (_aten.copy_.default, _aten._to_copy.default)
_INDEXES = (
    _aten.index.Tensor,
    _aten._unsafe_index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
)
_WAITS = (_aten._local_scalar_dense.default, _aten.nonzero.default)
_MADE_OF_NUMBERS = (torch.tensor, torch.as_tensor, torch.arange, torch.linspace)
_kept: list[Any] = []


class Simulated(Tensor):
    """A tensor of the simulated device, around one of the CPU."""

    inside: Tensor

    @staticmethod
    def __new__(cls, inside: Tensor) -> Simulated:
        made = Tensor._make_wrapper_subclass(
            cls, inside.size(), strides=inside.stride(), storage_offset=inside.storage_offset(), dtype=inside.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.inside = inside
        return made

    def __init__(self, inside: Tensor) -> None:
        pass

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"Simulated({self.inside})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """A checkpoint holds the tensor of the CPU."""
        return self.detach().cpu().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _inside(value: Any) -> Any:
    return value.inside if isinstance(value, Simulated) else value


def _wrapped(value: Any) -> Any:
    return Simulated(value) if isinstance(value, Tensor) and not isinstance(value, Simulated) else value


def _is_simulated(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation makes, on the device on which a GPU's would lie."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    takes_simulated = any(isinstance(each, Simulated) for each in tensors)
    if takes_simulated and func not in _COPIES:
        allowed = args[1] if func in _INDEXES and isinstance(args[0], Simulated) else ()
        for each in tensors:
            if not isinstance(each, Simulated) and each.ndim and not any(each is index for index in allowed):
                raise RuntimeError(f"{func}: a tensor {list(each.shape)} is on the CPU, and another on `{NAME}`.")
    if func in _WAITS:
        waits[str(func)] += 1
    device = kwargs.get("device")
    named = kwargs | ({"device": torch.device("cpu")} if device is not None else {})
    made = func(*tree_map(_inside, args), **tree_map(_inside, named))
    if func is _aten.copy_.default:
        return args[0]
    if not _is_simulated(device) if device is not None else not takes_simulated:
        return made
    made = tree_map(_wrapped, made)
    if func is _aten._to_copy.default or not takes_simulated:
        return made
    return return_and_correct_aliasing(func, args, kwargs, made)


class _Python(TorchFunctionMode):
    """What torch's C++ does for its own devices alone: tensors of Python's numbers, lists as indices, recurrent layers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _MADE_OF_NUMBERS and _is_simulated(kwargs.get("device")):
            return func(*args, **(kwargs | {"device": "cpu"})).to(kwargs["device"])
        if not args or not isinstance(args[0], Simulated):
            return func(*args, **kwargs)
        if func is Tensor.tolist:
            waits["tolist"] += 1
            return args[0].detach().cpu().tolist()
        if func is Tensor.new_tensor:
            return torch.tensor(*args[1:], **({"dtype": args[0].dtype} | kwargs)).to(args[0].device)
        if func in (Tensor.__setitem__, Tensor.__getitem__) and isinstance(args[1], list):
            args = (args[0], torch.tensor(args[1]), *args[2:])
        if func is torch.lstm:  # of codecs, which nobody differentiates
            inside = tree_map(lambda each: _inside(each.detach()) if isinstance(each, Tensor) else each, args)
            return tree_map(_wrapped, func(*inside))
        return func(*args, **kwargs)


def _keeping_ties(plain: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """``module.to(device)`` as it is for a GPU, where a weight that stands in two places stays one."""

    def apply(self: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:
        before: dict[str, nn.Parameter] = dict(self.named_parameters(remove_duplicate=False))
        made, first = plain(self, fn, recurse), dict[int, str]()
        for name, parameter in before.items():
            if (one := first.setdefault(id(parameter), name)) != name:
                owner, _, last = name.rpartition(".")
                self.get_submodule(owner)._parameters[last] = self.get_parameter(one)
        return made

    return apply


class _Module(torch.utils.backend_registration._DummyBackendModule):
    """torch asks it before ``autocast`` is switched off."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


class _Accelerator(Accelerator):
    """Lightning's view of it."""

    def setup_device(self, device: torch.device) -> None:
        pass

    def teardown(self) -> None:
        pass

    @staticmethod
    def parse_devices(devices: Any) -> Any:
        return devices

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [torch.device(NAME, 0)]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


class Strategy(SingleDeviceStrategy):
    """One simulated device."""

    def __init__(self) -> None:
        super().__init__(device=torch.device(NAME, 0), accelerator=_Accelerator())


def simulate() -> None:
    """Make the device known to torch; a second call does nothing."""
    if _kept:
        return
    torch.utils.backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("_", "IMPL")
    library.fallback(lambda func, *args, **kwargs: _computed(func, args, kwargs), "PrivateUse1")
    nn.Module._apply = _keeping_ties(nn.Module._apply)  # type: ignore[method-assign]
    mode = _Python()
    mode.__enter__()
    _kept.extend((library, mode))
