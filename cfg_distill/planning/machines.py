"""What a device holds, computes and reads in a second: published numbers of GPUs, and this machine."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Problem, nearest
from cfg_distill.recipe.ranks import most_processes

GB = 1e9


@dataclass(frozen=True)
class Device:
    """One device.

    Attributes:
        name: in words.
        memory: bytes.
        half: FLOPs per second of dense products in bfloat16 or float16, added up in float32.
        single: FLOPs per second of products in float32, without TF32, which torch leaves off.
        bandwidth: bytes per second between memory and processor.
        is_cpu: whether it is the processor of this machine, whose memory all processes share.
    """

    name: str
    memory: float
    half: float
    single: float
    bandwidth: float
    is_cpu: bool = False

    def rate(self, dtype: torch.dtype) -> float:
        """FLOPs per second of products in a dtype."""
        return self.single if dtype == torch.float32 else self.half

    def seconds(self, work: list[tuple[float, float]], dtype: torch.dtype) -> float:
        """The least time for parts of work that wait for each other.

        .. math:: \\sum_i \\max(\\text{FLOPs}_i / \\text{rate}, \\text{bytes}_i / \\text{bandwidth})

        The roofline of Williams, Waterman and Patterson, CACM 52(4), 2009.
        """
        rate = self.rate(dtype)
        return sum(max(flops / rate, moved / self.bandwidth) for flops, moved in work)


GPUS = {
    "h100": Device("NVIDIA H100 SXM", 80 * GB, 989e12, 67e12, 3.35e12),
    "h100-pcie": Device("NVIDIA H100 PCIe", 80 * GB, 756e12, 51e12, 2.0e12),
    "h200": Device("NVIDIA H200 SXM", 141 * GB, 989e12, 67e12, 4.8e12),
    "b200": Device("NVIDIA B200", 180 * GB, 2250e12, 80e12, 8.0e12),
    "a100": Device("NVIDIA A100 80 GB SXM", 80 * GB, 312e12, 19.5e12, 2.039e12),
    "a100-40": Device("NVIDIA A100 40 GB SXM", 40 * GB, 312e12, 19.5e12, 1.555e12),
    "l40s": Device("NVIDIA L40S", 48 * GB, 362e12, 91.6e12, 0.864e12),
    "l4": Device("NVIDIA L4", 24 * GB, 121e12, 30.3e12, 0.3e12),
    "a10g": Device("NVIDIA A10G", 24 * GB, 70e12, 35e12, 0.6e12),
    "4090": Device("NVIDIA GeForce RTX 4090", 24 * GB, 165e12, 82.6e12, 1.008e12),
    "3090": Device("NVIDIA GeForce RTX 3090", 24 * GB, 71e12, 35.6e12, 0.936e12),
    "t4": Device("NVIDIA T4 (float16)", 16 * GB, 65e12, 8.1e12, 0.32e12),
}
"""By the names of ``--gpu``: memory, dense tensor-core rate, float32 rate and bandwidth from NVIDIA's data sheets."""


def gpu_named(name: str) -> Device | None:
    """The kind of GPU that a driver's name says; None of one that is not known here.

    Example:
        >>> gpu_named("NVIDIA H100 PCIe").name, gpu_named("NVIDIA A100-SXM4-80GB").name, gpu_named("NVIDIA L40")
        ('NVIDIA H100 PCIe', 'NVIDIA A100 80 GB SXM', None)
    """
    words = {word.removesuffix("GB") for word in re.split(r"\W+", name.upper())}
    fitting = [key for key in GPUS if words.issuperset(key.upper().split("-"))]
    return GPUS[max(fitting, key=len)] if fitting else None


def problems_of_device(gpu: str | None, memory: float | None, devices: int) -> list[Problem]:
    """Why there are no such devices. Arguments: see :func:`device_of`.

    More devices than this machine has are a problem only where nothing says that it is about another machine.
    """
    found = []
    if gpu is not None and gpu.lower() not in GPUS:
        found.append(Problem("gpu", f"expected one of {', '.join(GPUS)}, but got `{gpu}`.{nearest(gpu, GPUS)}"))
    if memory is not None and not 0 < memory < math.inf:
        found.append(Problem("memory", f"expected a number of GB above 0, but got {memory:g}."))
    if devices < 1:
        found.append(Problem("devices", f"expected at least 1, but got {devices}."))
    elif gpu is None and memory is None and devices > (there := _num_here()):
        kind = "the GPUs" if torch.cuda.is_available() else "the processes that a fit starts on the cores"
        text = (
            f"expected at most {there}, {kind} of this machine, but got {devices}. Set it to {there} or less. For another"
            " machine say what a device of it has: `@.memory` or `@.gpu`."
        )
        found.append(Problem("devices", text))
    return found


def device_of(gpu: str | None, memory: float | None, devices: int) -> Device:
    """The device of a plan.

    Args:
        gpu: one of :data:`GPUS`; None for what this machine has.
        memory: GB of 10^9 bytes per device; None for what the device has.
        devices: how many there shall be.

    Raises:
        ConfigError: see :func:`problems_of_device`.
    """
    if problems := problems_of_device(gpu, memory, devices):
        raise ConfigError(problems)
    found = GPUS[gpu.lower()] if gpu is not None else _here(devices)
    return found if memory is None else replace(found, memory=memory * GB)


def _num_here() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else most_processes()


def _here(devices: int) -> Device:
    """A device of this machine: a GPU by its name, else the share of a process in memory and cores."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        rates = gpu_named(found.name)
        if rates is None:
            half, single = (_measured_rate("cuda", dtype, size=8192) for dtype in (torch.bfloat16, torch.float32))
            rates = Device("", 0, half, single, _measured_bandwidth("cuda"))
        return replace(rates, name=found.name, memory=float(found.total_memory))
    rate = _measured_rate("cpu") / devices
    share = f", shared by {devices} processes" if devices > 1 else ""
    name = f"this machine's CPU ({torch.get_num_threads()} threads{share})"
    return Device(name, _memory_here() / devices, rate, rate, _measured_bandwidth("cpu") / devices, is_cpu=True)


def _memory_here() -> float:
    """Bytes of this machine, or those that its container may take."""
    whole = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    given = limit.read_text().strip() if limit.is_file() else "max"
    return min(whole, float(given)) if given.isdigit() else whole


@torch.no_grad()
def _measured_rate(device: str, dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """FLOPs per second of a square product, by the kernel of this package's layers: the best of a few."""
    from cfg_distill.generators.linear import product

    rows, weight = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return max(2.0 * size**3 / _timed(lambda: product(rows, weight, None)) for _ in range(4))


@torch.no_grad()
def _measured_bandwidth(device: str, size: int = 2**24) -> float:
    """Bytes per second that are read: the best of a few sums over 64 MiB."""
    numbers = torch.ones(size, device=device)
    return max(4.0 * size / _timed(numbers.sum) for _ in range(4))


def _timed(run: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    float(run().flatten()[0])  # waits for a GPU
    return time.perf_counter() - began


def libraries() -> int:
    """Bytes that this process holds: the libraries of a fit are loaded, and next to nothing else; 0 where nobody says."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if status.is_file() else 0
