"""FSDP2: each process keeps a share of every weight, and the layers are gathered while they run.

    at rest       rank 0 | rows of each weight |   rank 1 | other rows |     weights, gradients, optimiser, averages, teacher
    sampling      every rank holds the student whole, gathered once per rollout (or one layer at a time, execution.gather)
    scoring       one layer at a time, of the teacher and then of the student; embeddings and head stay for the whole pass
    backward      one layer at a time; the gradients of all ranks are averaged, and each rank keeps its rows

The layers are gathered by all ranks at once. So all ranks run them equally often: a rank with fewer micro-batches repeats its
last one without effect, and samples are padded to the longest of all ranks. The parts that need no layer (rewards, decoding of
samples) differ freely.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Shard, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from cfg_distill.checkpoints.shards import gathered, problem_of_folder, read_folder, sharded_like, write_folder
from cfg_distill.errors import ConfigError, Problem
from cfg_distill.generators import Generator
from cfg_distill.generators.frozen import Frozen
from cfg_distill.sampling import Samples, in_step

if TYPE_CHECKING:
    from cfg_distill.distillation.module import CFGDistillation

T = TypeVar("T")


class FSDP2(ModelParallelStrategy):
    """``--trainer.strategy fsdp2``: student and teacher in shards over all processes, by torch's ``fully_shard``.

    A checkpoint is one file, as of any other strategy: every strategy can go on with it. The first process makes it, and holds
    it in its memory meanwhile. With ``save_distributed_checkpoint`` it is a folder, in which each process writes its own rows
    (:mod:`cfg_distill.checkpoints.shards`). Both are read on any number of processes.

    Args:
        save_distributed_checkpoint: write a folder in place of a file.
        process_group_backend: of torch.distributed; null for NCCL on GPUs and gloo on CPUs.
        timeout_seconds: after which a process that waits for another one fails.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout_seconds: float = 1800,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_seconds),
        )

    @property
    def mesh(self) -> DeviceMesh:
        """All processes in one row."""
        return self.device_mesh["data_parallel"]

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        # Gathered weights are used again: made in inference mode, they could not be differentiated afterwards.
        for loop in (trainer.fit_loop.epoch_loop.val_loop, trainer.validate_loop, trainer.test_loop):
            loop.inference_mode = False

    # Checkpoints: shards until they are written, and from when they are read

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        return (optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer).state_dict()

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        path = Path(self.broadcast(filepath))
        if self._save_distributed_checkpoint:
            write_folder(checkpoint, path, self.global_rank, self.world_size, self.barrier)
            return
        content = gathered(checkpoint, keep=self.is_global_zero)
        if self.is_global_zero:
            self.checkpoint_io.save_checkpoint(content, path, storage_options=storage_options)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        if not path.is_dir():
            return self.checkpoint_io.load_checkpoint(path, weights_only=weights_only)
        if problem := problem_of_folder(path):
            raise ConfigError(Problem("ckpt_path", problem))
        # Each process keeps its own rows: whole, the checkpoint may be larger than the machine.
        return read_folder(path, take=self._rows)

    def _rows(self, tensor: Tensor) -> Tensor:
        return distribute_tensor(tensor, self.mesh, [Shard(0)], src_data_rank=None)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own = self.lightning_module.state_dict()
        state = {name: sharded_like(tensor, own[name]) if name in own else tensor
                 for name, tensor in checkpoint["state_dict"].items()}  # fmt: skip
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(_sharded(state, optimizer))


StrategyRegistry.register("fsdp2", FSDP2, description="Student and teacher in shards over all processes")


def _sharded(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state with the tensors of a parameter's shape in shards, as the parameter is."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    of = dict(zip(numbers, parameters, strict=True))
    return dict(state) | {
        "state": {
            number: {key: sharded_like(value, of[number]) if _is_like(value, of[number]) else value
                     for key, value in values.items()}
            for number, values in state["state"].items()
        }
    }  # fmt: skip


def _is_like(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


# The models


def is_sharded(model: nn.Module) -> bool:
    """Whether a model, or a layer of it, is gathered when it runs."""
    return isinstance(model, FSDPModule)


def shard(module: CFGDistillation) -> None:
    """Cut student and teacher into shards, if the strategy is fsdp2.

    The teacher of a LoRA student shares the tensors of its base. A shard belongs to one model: here the teacher gets its own.
    Under mixed precision the layers are gathered in bfloat16, to which their weights would be cast in each product. Gradients
    are averaged in float32, and the shards stay as they are.
    """
    if module.device_mesh is None:
        return
    assert module.teacher is not None
    if module.student.lora is not None:
        module.teacher.model = copy.deepcopy(module.teacher.model)
    lower = module.trainer.precision == "bf16-mixed"
    policy = MixedPrecisionPolicy(torch.bfloat16 if lower else None, torch.float32, cast_forward_inputs=False)
    for generator in (module.student, module.teacher):
        cut(generator, module.device_mesh["data_parallel"], policy)


def cut(generator: Generator, mesh: DeviceMesh, policy: MixedPrecisionPolicy = MixedPrecisionPolicy()) -> None:
    """Cut a generator into shards. Each layer is a unit of its own; the rest, embeddings and head, is one more.

    Args:
        generator: loaded, whole.
        mesh: the processes, in one row.
        policy: of the layers.

    Raises:
        ConfigError: a network without layers.
    """
    layers = [module for module in generator.model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        text = f"expected ddp, since fsdp2 finds no layers of transformers in `{type(generator).__name__}`. Use ddp."
        raise ConfigError(Problem("/trainer.strategy", text))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    fully_shard(generator, mesh=mesh, reshard_after_forward=False)
    _gather_in_passes(generator)


def _gather_in_passes(generator: Any) -> None:
    """Let the passes of a generator do what ``forward`` of a sharded module does: gather embeddings and head.

    They stay gathered behind a pass, for the losses: until its backward pass, or until :func:`at_rest`.
    """

    def run(_: Any, call: Callable[[], None]) -> None:
        call()

    generator.run = run.__get__(generator)
    register_fsdp_forward_method(generator, "run")
    running = False

    def wrapped(method: Callable[..., T]) -> Callable[..., T]:
        def within(*arguments: Any, **named: Any) -> T:
            nonlocal running
            if running:  # a pass that calls another one
                return method(*arguments, **named)
            found: list[T] = []
            running = True
            try:
                # Neither arguments nor result pass through FSDP: it would look for tensors in them.
                generator.run(lambda: found.append(method(*arguments, **named)))
            finally:
                running = False
            return found[0]

        return within

    generator.prefill = wrapped(generator.prefill)
    generator.step = wrapped(generator.step)
    generator.predictions = wrapped(generator.predictions)


def _units(generator: nn.Module) -> list[FSDPModule]:
    return [module for module in generator.modules() if isinstance(module, FSDPModule)]


@contextmanager
def sampling_from(module: CFGDistillation, generator: Generator | None) -> Iterator[None]:
    """While samples are drawn: the model that draws them is whole on every process, or all processes decode in step."""
    if not isinstance(generator, FSDPModule):
        yield
    elif module.execution.gather == "layer":
        with in_step(lambda done: agreed(module, int(not done)) == 0):
            yield
        cast(FSDPModule, generator).reshard()
    else:
        with whole_weights(generator):
            yield


@contextmanager
def whole_weights(generator: Generator) -> Iterator[None]:
    """All weights of a sharded generator on every process, until the context ends. They must not change meanwhile."""
    units = _units(generator)
    try:
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not generator, recurse=False)
            unit.reshard()


@contextmanager
def at_rest(module: CFGDistillation) -> Iterator[None]:
    """Leave student and teacher in shards when the context ends."""
    yield
    for generator in (module.student, module.teacher):
        if isinstance(generator, FSDPModule):
            generator.reshard()


# What all processes do equally often


def agreed(module: CFGDistillation, number: int) -> int:
    """The largest of the numbers of all processes. All of them call this at the same time."""
    largest = torch.tensor(number, device=module.device)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return int(largest)


def in_equal_number(module: CFGDistillation, parts: Sequence[T]) -> Iterator[tuple[T, bool]]:
    """Parts of a batch, and whether each counts: a process that has fewer than another repeats its last one, for nothing."""
    most = agreed(module, len(parts)) if is_sharded(module.student) else len(parts)
    for number in range(most):
        yield parts[min(number, len(parts) - 1)], number < len(parts)


def in_equal_length(module: CFGDistillation, samples: Samples) -> Samples:
    """Samples padded to the longest of all processes."""
    if not is_sharded(module.student):
        return samples
    length = agreed(module, samples.rollout.tokens_BGKT.shape[-1])
    return replace(samples, rollout=samples.rollout.padded(length, module.student.pad_token))


def problems_of_sharding(module: CFGDistillation, trainer: Trainer) -> list[Problem]:
    """What does not work in shards, of a trainer that makes some."""
    return problems_in_shards(module, trainer.precision) if isinstance(trainer.strategy, FSDP2) else []


def problems_in_shards(module: CFGDistillation, precision: str) -> list[Problem]:
    """What does not work in shards; keys are relative to ``model``."""
    found = []
    if precision == "16-mixed":
        text = "expected 32-true or bf16-mixed under fsdp2, but got 16-mixed. Use bf16-mixed."
        found.append(Problem("/trainer.precision", text))
    if module.redraw and module.execution.gather == "layer":
        text = (
            f"expected 0 where `@/model.execution.gather` is layer, since processes redraw at different times, but got"
            f" {module.redraw}. Set it to 0, or gather by rollout."
        )
        found.append(Problem("redraw", text))
    # The teacher's shards are gathered for a fixed number of passes; these draw from it as often as a process needs to.
    if module.opening is not None:
        text = "expected none under fsdp2, whose processes would draw openings of different lengths. Remove it, or use ddp."
        found.append(Problem("opening", text))
    for name, loss in module.mix.items():
        if any(_draws_from_start(part) for part in loss.modules()):
            text = "expected a reward without samples of the start model under fsdp2: processes would draw them at different"
            found.append(Problem(f"losses.{name}", f"{text} times. Use ddp, or name the `generator` of StartSamples."))
    return found


def _draws_from_start(part: nn.Module) -> bool:
    """Whether a reference of a loss or reward draws from the start model."""
    held = (value.model if isinstance(value, Frozen) else value for value in vars(part).values())
    return any(getattr(value, "draws_from_start", False) is True for value in held)
