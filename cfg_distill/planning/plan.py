"""The plan of a fit: memory by part, work and the least time of a step, and which strategy and micro-batch fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cfg_distill.planning.depth import blocks_of
from cfg_distill.planning.dry import bytes_of, dry, numbers_of
from cfg_distill.planning.fit import IN_SHARDS, Fit
from cfg_distill.planning.machines import Device, libraries
from cfg_distill.planning.step import DryStep, Phase

ROOM = 0.92
"""The share of a device's memory that a plan fills. The rest is an allowance, and not measured: the driver's context, kernels'
workspace, and what the allocator cannot use of its blocks."""
HEAP = 0.5
"""On a CPU, the share of the activations that the heap takes on top: what is freed among them leaves holes. Chosen by eight
recipes, and held against others (docs/plan.md). A tensor of 32 MiB or more has pages of its own, and leaves none."""
SHARDED = ("student", "teacher", "gradients", "optimiser", "averages")
"""What every phase holds of which fsdp2 gives each device its share."""
OF_WEIGHTS = ("update", "live weights, put aside")
"""What single phases hold of that kind."""


@dataclass(frozen=True)
class Split:
    """How a fit lies on its devices, and what one of them then holds at its peak.

    Attributes:
        strategy: of the trainer: auto, ddp or fsdp2.
        devices: how many.
        micro_batch: samples scored at once on each.
        gather: of fsdp2: ``execution.gather``.
        always: bytes by part in every phase.
        phases: the phases of a step by their names.
    """

    strategy: str
    devices: int
    micro_batch: int
    gather: str
    always: dict[str, int]
    phases: dict[str, Phase]

    @property
    def peak(self) -> int:
        """Bytes: what every phase holds, and the largest phase."""
        return sum(self.always.values()) + max(phase.bytes for phase in self.phases.values())

    @property
    def largest(self) -> str:
        """The phase of the peak."""
        return max(self.phases, key=lambda name: self.phases[name].bytes)


@dataclass(frozen=True)
class Plan:
    """What ``cfg-distill plan`` says.

    Attributes:
        name: of the recipe.
        device: of which there are :attr:`asked.devices <Split.devices>`.
        about: the batch in words.
        parameters: numbers by part.
        asked: as the recipe says.
        fitting: the first strategy under which a micro-batch fits, with the largest one; None where none does.
        seconds: the least time of each phase of a step, by its name.
        dtype: in which products are made.
        notes: what the plan supposes.
    """

    name: str
    device: Device
    about: str
    parameters: dict[str, int]
    asked: Split
    fitting: Split | None
    seconds: dict[str, float]
    dtype: str
    notes: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether the recipe fits as it is."""
        return self.asked.peak <= ROOM * self.device.memory

    def as_json(self) -> dict[str, Any]:
        """Everything, for programs: bytes, FLOPs, seconds."""

        def split(each: Split | None) -> dict[str, Any] | None:
            if each is None:
                return None
            phases = {
                name: {"held": phase.held, "flops": phase.flops, "traffic": phase.traffic}
                for name, phase in each.phases.items()
            }
            return {
                "strategy": each.strategy, "devices": each.devices, "micro_batch": each.micro_batch, "gather": each.gather,
                "peak": each.peak, "largest_phase": each.largest, "always": each.always, "phases": phases,
            }  # fmt: skip

        return {
            "recipe": self.name, "device": {"name": self.device.name, "memory": self.device.memory}, "fits": self.fits,
            "parameters": self.parameters, "asked": split(self.asked), "fitting": split(self.fitting),
            "step": {"dtype": self.dtype, "seconds": self.seconds, "floor": sum(self.seconds.values())},
            "notes": self.notes,
        }  # fmt: skip


def plan_of(fit: Fit, device: Device, devices: int) -> Plan:
    """The plan of a fit on some devices of one kind.

    Args:
        fit: built without weights.
        device: the kind.
        devices: how many.
    """
    held = {"libraries": libraries(), "data of metrics": fit.data} if device.is_cpu else {}
    with dry():
        planner = Planner(fit, device, devices, held)
        own = _strategy_of(fit.strategy, devices)
        asked = planner.split(own, fit.micro_batch)
        fitting = planner.largest_that_fits()
        seconds = {
            name: device.seconds(phase.work, planner.step.work_dtype)
            for name, phase in asked.phases.items()
            if name != "validation"
        }
        module, step = fit.module, planner.step
        length = f"{module.sampling.max_new_tokens} positions"
        if module.student.frame_rate:
            length += f" ({module.sampling.max_new_tokens / module.student.frame_rate:g} s)"
        taken = module.student.prompt_positions(fit.prompts)
        prompts = f"{len(fit.prompts)} prompts" + (f" of up to {taken} positions" if taken else "")
        about = f"{prompts} x {module.sampling.samples} samples"
        about = f"{fit.accumulate} batches of {about}" if fit.accumulate > 1 else about
        return Plan(
            fit.name, device, f"{about} x {length} per device, {fit.precision}", step.parameters, asked, fitting, seconds,
            str(step.work_dtype).removeprefix("torch."), fit.notes,
        )  # fmt: skip


def _strategy_of(name: str, devices: int) -> str:
    """auto and all kinds of ddp: a whole student on each device."""
    if name in IN_SHARDS:
        return "fsdp2"
    return "ddp" if devices > 1 else "auto"


class Planner:
    """Splits of one fit, whose dry runs are made once."""

    def __init__(self, fit: Fit, device: Device, devices: int, held: dict[str, int]) -> None:
        self.fit, self.device, self.devices, self.held = fit, device, devices, held
        self.step = DryStep(fit, device.is_cpu)
        drawing = self.step.rollout(fit.prompts)
        self._phases = {
            "rollout": drawing,
            "sound": self.step.sound(),
            "update": self.step.update(),
            "validation": self.step.validation(drawing),
        }

    def split(self, strategy: str, micro_batch: int, gather: str = "") -> Split:
        """The fit under a strategy with a micro-batch.

        Args:
            strategy: auto, ddp or fsdp2.
            micro_batch: samples scored at once.
            gather: of fsdp2; empty for the recipe's own.
        """
        phases = {
            "rollout": self._phases["rollout"],
            "sound": self._phases["sound"],
            "scoring": self.step.scoring(micro_batch),
            "update": self._phases["update"],
            "validation": self._phases["validation"],
        }
        times = {name: 1 if name in ("update", "validation") else self.fit.accumulate for name in phases}
        phases = {name: Phase(phase.held, phase.work * times[name]) for name, phase in phases.items() if phase.held}
        if self.device.is_cpu:
            held = phases["scoring"].held
            holes = {"holes of the heap": round(HEAP * held["activations"])}
            phases["scoring"] = Phase(held | holes, phases["scoring"].work)
        always = {**self.step.always, **self.held}
        if strategy == "ddp":
            # Buckets in which the gradients of the ranks are added up (torch's documentation of `gradient_as_bucket_view`).
            always["buckets of gradients"] = always["gradients"]
        gather = (gather or self.fit.module.execution.gather) if strategy == "fsdp2" else ""
        if strategy == "fsdp2":
            always, phases = self._in_shards(always, phases, gather)
        return Split(
            strategy, self.devices, micro_batch, gather, {name: each for name, each in always.items() if each}, phases
        )

    def _in_shards(
        self, always: dict[str, int], phases: dict[str, Phase], gather: str
    ) -> tuple[dict[str, int], dict[str, Phase]]:
        r"""The same where R devices share what is trained and the teacher.

        Each holds 1/R of student, teacher, gradients, optimiser and averages (stage 3 of Rajbhandari et al., arXiv 1910.02054,
        section 5.3). While a block of layers runs, its weights and those of the next one are gathered, in the dtype of
        products; going back, the gradient of one block is there before it is shared out (Zhao et al., arXiv 2304.11277,
        section 3).
        Embeddings and head stand outside the blocks, and are gathered in their own dtype. While a batch is scored, those of
        student and teacher stay gathered, with the student's gradient. A rollout gathers all weights once, or block by block:
        ``execution.gather``. A LoRA student shares no shard with its teacher.
        """
        teacher: Any = self.step.module.teacher
        always |= {"teacher": bytes_of([*teacher.model.parameters(), *teacher.model.buffers()])}
        always = {name: each // self.devices if name in SHARDED else each for name, each in always.items()}
        model, width = self.step.module.student.model, self.step.work_dtype.itemsize
        blocks = blocks_of(model)
        block = max((numbers_of(each.parameters()) for each in blocks), default=0) * width
        inside = set(blocks.parameters())
        outside = [weight for weight in model.parameters() if weight not in inside]
        ends = bytes_of(outside)
        whole, running = numbers_of(inside) * width + ends, 2 * block + ends
        gradient = bytes_of(weight for weight in outside if weight.requires_grad)
        found = {}
        for name, phase in phases.items():
            held = {part: size // self.devices if part in OF_WEIGHTS else size for part, size in phase.held.items()}
            if name in ("rollout", "validation"):
                # On a CPU gathered weights are packed as others are; under mixed precision they have its dtype already.
                if gather == "layer" or self.fit.is_mixed or not self.device.is_cpu:
                    held.pop("packed weights", None)
                held["gathered weights"] = whole if gather == "rollout" else running
            elif name == "scoring":
                held["activations"] -= self.step.casts  # gathered in the dtype of products, and freed after each pass
                held["gathered weights"] = running + ends + block + gradient
            found[name] = Phase(held, phase.work)
        return always, found

    def largest_that_fits(self) -> Split | None:
        """The first strategy, whole before sharded, under which a micro-batch fits, and its largest."""
        return next(filter(None, (self._largest_under(*each) for each in self._strategies())), None)

    def _strategies(self) -> Iterator[tuple[str, str]]:
        """Strategies and ways to gather, from the fastest on, without those that a fit refuses."""
        if self.devices == 1:
            yield "auto", ""
            return
        yield "ddp", ""
        if self.fit.problems_in_shards:
            return
        module = self.fit.module
        yield "fsdp2", module.execution.gather
        if module.execution.gather == "rollout" and not module.redraw:  # which waits for no other process
            yield "fsdp2", "layer"

    def _largest_under(self, strategy: str, gather: str) -> Split | None:
        """By bisection, since memory grows with the micro-batch; what it finds is run dry as it is, and must fit."""
        sizes = list(micro_batches(self.fit.module.sampling.samples, self.fit.rows))
        low, high = 0, len(sizes)
        while low < high:
            middle = (low + high) // 2
            tried = self.split(strategy, sizes[middle], gather)
            if tried.peak <= ROOM * self.device.memory:
                low = middle + 1
            else:
                high = middle
        for size in reversed(sizes[:low]):
            self.step.run_dry(size)
            best = self.split(strategy, size, gather)
            if best.peak <= ROOM * self.device.memory:
                return best
        return None


def micro_batches(group: int, rows: int) -> Iterator[int]:
    """The micro-batches that a step takes: divisors of the group, then its multiples, up to all rows.

    Example:
        >>> list(micro_batches(group=4, rows=16))
        [1, 2, 4, 8, 12, 16]
    """
    yield from (size for size in range(1, group) if group % size == 0)
    yield from range(group, rows + 1, group)
