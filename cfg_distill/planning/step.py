"""One step in a dry run: what each of its phases holds and computes.

Shapes: N rows (B prompts x G samples), K codebooks, T generated positions, S positions of a prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from cfg_distill.generators import CausalLM, Prompt, PromptLike
from cfg_distill.generators.base import DTYPES
from cfg_distill.generators.frozen import Frozen
from cfg_distill.generators.guided import with_negatives
from cfg_distill.generators.linear import Linear
from cfg_distill.losses import Loss, mix
from cfg_distill.losses.chunked import as_on
from cfg_distill.planning.cache import Cache, cache_of, num_layers
from cfg_distill.planning.depth import Counts, counted, highest, peaks_of, shallow
from cfg_distill.planning.dry import Ledger, bytes_of, numbers_of
from cfg_distill.planning.fit import Fit
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.rollout import MIN_PACKED
from cfg_distill.sampling.samples import Samples


@dataclass(frozen=True)
class Phase:
    """A phase of a step on one device.

    Attributes:
        held: bytes by what they are for, beside what every phase holds. They exist at the same time.
        work: FLOPs and bytes that cross the memory's bus, of each part of the work that must wait for the one before it: the
            larger of the two times bounds it.
    """

    held: dict[str, int]
    work: list[tuple[float, float]] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """Held at the phase's peak."""
        return sum(self.held.values())

    @property
    def flops(self) -> float:
        """Of the whole phase."""
        return sum(flops for flops, _ in self.work)

    @property
    def traffic(self) -> float:
        """Bytes read and written in the whole phase, at least."""
        return sum(moved for _, moved in self.work)


class DryStep:
    """The phases of a step of one device, each computed when it is asked for. To be made and asked inside :func:`dry`.

    Args:
        fit: the fit.
        on_cpu: whether it shall run on a CPU, whose products read packed weights, and whose optimiser takes a parameter at a
            time.
    """

    def __init__(self, fit: Fit, on_cpu: bool) -> None:
        self.fit, self.on_cpu = fit, on_cpu
        self.module = module = fit.module
        module.student.load()
        if isinstance(module.student, CausalLM) and not _ends_with_head(module.student.model):
            vars(module.student)["_linear_head"] = False  # as a fit finds it, whose tensors have values
        with torch.no_grad(), self._precision(), shallow([module.student.model], 1):
            tokens_NKT = self._tokens(1)  # what is done once: the head is looked at, tables of positions grow
            module.student.predictions(fit.prompts[:1], tokens_NKT, torch.ones_like(tokens_NKT, dtype=torch.bool))
        module.teacher = module.student.frozen_copy()
        self._networks: list[nn.Module] = [module.student.model, module.teacher.model]
        self.trained = [p for p in module.student.parameters() if p.requires_grad]
        self._scorings: dict[int, Phase] = {}

    # What every phase holds

    @cached_property
    def always(self) -> dict[str, int]:
        """Bytes by part.

        With P parameters of the student, of which P_t are trained, b bytes per number:

        - student ``b P``; teacher ``b P``, or nothing beside a LoRA student, which shares its base;
        - gradients ``b P_t``, optimiser ``2 b P_t`` for the two moments of AdamW (Kingma and Ba, arXiv 1412.6980; all of it as
          in Rajbhandari et al., arXiv 1910.02054, section 3), measured on the optimiser's own state after a step;
        - averages ``4 P_t``: StudentEMA keeps float32;
        - frozen parts: text encoder and codec, which student and teacher share; embedders ``4 P_e`` each.
        """
        student, teacher = self.module.student, cast(Any, self.module.teacher)
        own = [*student.model.parameters(), *student.model.buffers()]
        both = [*own, *teacher.model.parameters(), *teacher.model.buffers()]
        return {
            "student": bytes_of(own),
            "teacher": bytes_of(both) - bytes_of(own),
            "text encoder, codec": bytes_of(weight for part in self._frozen for weight in part.parameters()),
            "gradients": bytes_of(self.trained),
            "optimiser": self._optimiser[0],
            "averages": 4 * numbers_of(self.trained) if self.fit.averaged else 0,
            "embedders": 4 * sum(numbers or 0 for numbers in self.fit.embedders.values()),
        }

    @property
    def parameters(self) -> dict[str, int]:
        """Numbers: in the student, trained, in the frozen parts, in the embedders."""
        return {
            "student": numbers_of(self.module.student.model.parameters()),
            "trained": numbers_of(self.trained),
            "text encoder, codec": numbers_of(weight for part in self._frozen for weight in part.parameters()),
            "embedders": sum(numbers or 0 for numbers in self.fit.embedders.values()),
        }

    @property
    def _frozen(self) -> list[nn.Module]:
        return [
            each.model
            for each in vars(self.module.student).values()
            if isinstance(each, Frozen) and isinstance(each.model, nn.Module)
        ]

    @cached_property
    def _optimiser(self) -> tuple[int, int]:
        """Bytes of the optimiser's state, and of what a step holds beside it; one parameter of each shape is tried.

        On a CPU a step goes through the parameters one by one. On a GPU it takes them all at once, with a list of
        intermediates as large as they are (torch's documentation of ``foreach`` in ``torch.optim``).
        """
        alike = Counter((parameter.shape, parameter.dtype) for parameter in self.trained)
        tried = [nn.Parameter(torch.empty(shape, dtype=dtype)) for shape, dtype in alike]
        for parameter in tried:
            parameter.grad = torch.empty_like(parameter)
        with Ledger() as ledger:
            ledger.begin()
            optimizer = self.module.optimizer(tried)
            optimizer.step()
            beside = ledger.peak - ledger.live
        state = 0
        for parameter, number in zip(tried, alike.values(), strict=True):
            held = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
            state += number * bytes_of(held)
        in_turn = any(group.get("fused") or group.get("foreach") is False for group in optimizer.param_groups)
        return state, beside if self.on_cpu or in_turn else bytes_of(self.trained)

    # Phases

    def _precision(self) -> torch.autocast:
        """As Lightning's mixed precision runs a step: without a cache of cast weights."""
        low = torch.float16 if self.fit.precision.startswith("16") else torch.bfloat16
        return torch.autocast("cpu", low, enabled=self.fit.is_mixed, cache_enabled=False)

    @property
    def work_dtype(self) -> torch.dtype:
        """In which products are made."""
        if self.fit.is_mixed:
            return torch.float16 if self.fit.precision.startswith("16") else torch.bfloat16
        return DTYPES[self.module.student.dtype]

    @cached_property
    def layers(self) -> int:
        """Numbers in the weights of the student's linear layers, its head included."""
        model: Any = self.module.student.model
        head = model.get_output_embeddings()
        layers = [layer.weight for layer in model.modules() if isinstance(layer, Linear)]
        return numbers_of([*layers, *([head.weight] if isinstance(head, nn.Linear) else [])])

    @property
    def packed(self) -> int:
        """Bytes of the copy of the linear layers' weights that a rollout multiplies by: see ``execution.pack_weights``."""
        sampling, execution = self.module.sampling, self.module.execution
        is_float32 = self.module.student.dtype == "float32"
        if not (sampling.pack_weights and is_float32 and sampling.max_new_tokens >= MIN_PACKED):
            return 0
        if self.fit.is_mixed:
            return 2 * self.layers
        return 4 * self.layers if self.on_cpu and execution.onednn else 0

    def rollout(self, prompts: Sequence[PromptLike]) -> Phase:
        """Sampling G samples of each prompt, all of full length.

        The cache holds ``2 h d b`` bytes per layer, row and position, with h key heads of width d (Pope et al., arXiv
        2211.05102, section 3.3): N rows of S + T positions, in rooms that grow by :data:`ROOM`. A step at length L reads all
        weights once and the cache of L positions, and computes ``2 P`` FLOPs per row and ``4 h_q d L`` per layer and row in
        attention; both are counted in the dry run of one step.
        """
        student, sampling = self.module.student, self.module.sampling
        asked: list[PromptLike | None] = list(prompts)
        repeats = sampling.samples
        if self.module.conditioner is not None:  # each sample is a prompt of its own
            asked, repeats = list(self.module.conditioner.asked(prompts, self._labels(len(prompts), repeats))), 1
        if self.module.off_policy and self.module.guidance.active:
            asked = with_negatives(student, prompts, self.module.guidance)
        num_new = sampling.max_new_tokens + max(student.delays)
        texts = self._read(asked)
        counts = counted(self._networks, lambda ledger: self._drawn(ledger, asked, repeats))
        cache = Cache(*(int(counts[name]) for name in Cache._fields))
        grown = cache.grown(num_new)
        held = {
            "key-value cache": grown + cache.fixed,
            "packed weights": self.packed,
            # A layer's cache is copied into its new room; and the widest tensors of a step.
            "one position": max(highest(counts, "step") - int(counts["live"]), 0) + grown // int(counts["layers"]),
        }
        weights = self.layers * self.work_dtype.itemsize
        work = [(texts + counts["reading"], float(weights))]
        for length in range(cache.begun + 1, cache.begun + num_new):
            flops = counts["products"] + counts["attention"] * cache.seen(length) / cache.seen(cache.begun + 1)
            work.append((flops, float(weights + cache.read(length))))
        return Phase(held, work)

    def _read(self, asked: Sequence[PromptLike | None]) -> float:
        """FLOPs of encoding prompts; a text encoder is asked once for each, before any walk."""
        with torch.no_grad(), self._precision(), Ledger() as ledger:
            self.module.student.encode(asked)
        return ledger.all_flops

    def _drawn(self, ledger: Ledger, asked: Sequence[PromptLike | None], repeats: int) -> Counts:
        """Of reading prompts, and of drawing one position."""
        student, sampling = self.module.student, self.module.sampling
        with torch.no_grad(), self._precision():
            ledger.begin()
            state, first = student.prefill(asked, repeats)
            reading = ledger.all_flops
            cache = cache_of(state.cache)
            tokens_NK = torch.zeros((len(asked) * repeats, student.num_codebooks), dtype=torch.long)
            ledger.begin()
            _, following = student.step(state, tokens_NK)
            sampling.probs(following.whole()[:, :, 0])
            attention = ledger.attention[cache.begun + 1]
            products, live = ledger.all_flops - attention, ledger.live
            del first
        return {
            "reading": reading, "layers": num_layers(state.cache),
            "attention": attention, "products": products, "live": live, **peaks_of("step", ledger),
            **dict(zip(Cache._fields, cache, strict=True)),
        }  # fmt: skip

    def sound(self) -> Phase:
        """Turning the samples into sound, for the reward; text takes nothing worth naming."""
        student = self.module.student
        if student.sample_rate is None:
            return Phase({})
        tokens_NKT = self._tokens(self.fit.rows)
        with torch.no_grad(), Ledger() as ledger:
            before = ledger.begin()
            student.decode(tokens_NKT, torch.ones_like(tokens_NKT, dtype=torch.bool))
            return Phase({"codec": ledger.peak - before}, [(ledger.all_flops, 0.0)])

    def scoring(self, micro_batch: int) -> Phase:
        """Scoring and differentiating a micro-batch, and the work of all micro-batches of a batch.

        Activations are the tensors that autograd keeps of the student's forward pass (Korthikanti et al., arXiv 2205.05198,
        count them by hand for one architecture), beside the states of student and teacher. The logits of a chunk are those of
        ``execution.logits_chunk``. A forward pass computes ``2 P`` FLOPs per position, the backward pass twice as much (Kaplan
        et al., arXiv 2001.08361, section 2.1), and attention on top: all are counted in the dry run.

        Some micro-batches are run dry, that of the recipe among them; the others are on a line through two of these. Below G
        samples a micro-batch reads a whole prompt, and from G on one for each group: the line has its bend there.

        Args:
            micro_batch: samples at once.
        """
        own = self.fit.micro_batch
        if micro_batch == own or micro_batch in self._scorings:
            return self.run_dry(micro_batch)
        one = self.run_dry(own)
        times = -(-self.fit.rows // micro_batch)
        flops = one.flops / len(one.work) / own * micro_batch
        return Phase(self._held_by(micro_batch), [(flops, one.traffic / len(one.work))] * times)

    @property
    def casts(self) -> int:
        """Bytes of activations that depend on no row: the copies of weights that autocast makes, one for each pass."""
        return self._held_by(0)["activations"] if self.fit.is_mixed else 0

    def _held_by(self, micro_batch: int) -> dict[str, int]:
        group, rows = self.module.sampling.samples, self.fit.rows
        is_short = 0 < micro_batch < group or rows == group
        first, last = (1, group) if is_short else (group, rows)
        one, two = self.run_dry(first), self.run_dry(last)
        share = (micro_batch - first) / (last - first) if last != first else 0.0
        return {name: max(round(size + share * (two.held[name] - size)), 0) for name, size in one.held.items()}

    def run_dry(self, micro_batch: int) -> Phase:
        """The phase of a micro-batch as it is, from no line."""
        if micro_batch not in self._scorings:
            self._scorings[micro_batch] = self._scoring(micro_batch)
        return self._scorings[micro_batch]

    def _scoring(self, micro_batch: int) -> Phase:
        module = self.module
        several = micro_batch < self.fit.rows or self.fit.accumulate > 1
        prompts = self.fit.prompts[: max(1, micro_batch // module.sampling.samples)]
        samples = self._samples(prompts, min(micro_batch, module.sampling.samples))
        asked = module.guidance.of_teacher(prompts)
        self._read(with_negatives(module.student, asked, module.guidance) if module.guidance.active else asked)
        if module.conditioner is not None:
            self._read(
                module.conditioner.asked(prompts, self._labels(len(prompts), len(samples.outputs) // len(prompts)))
            )
        counts = counted(self._networks, lambda ledger: self._scored(ledger, samples, several))
        kept, chunk, peak = int(counts["kept"]), highest(counts, "chunk"), highest(counts, "peak")
        if not several:  # the gradient is made while activations go, and counts among what every phase holds
            peak = max(peak - bytes_of(self.trained), chunk)
        passes = 2 + (1 + module.guidance.active)  # student forward and backward, teacher
        moved = float(passes * self.layers * self.work_dtype.itemsize)
        held = {
            "activations": kept,
            "logits chunk": max(chunk - kept, 0),
            "backward pass": max(peak - max(chunk, kept), 0),
        }
        return Phase(held, [(counts["flops"], moved)] * -(-self.fit.rows // micro_batch))

    def _scored(self, ledger: Ledger, samples: Samples, several: bool) -> Counts:
        """Of scoring and differentiating a micro-batch; ``several``: others came before it, and left gradients."""
        module, losses = self.module, self.module.mix
        advantages = {
            name: torch.zeros(len(samples.outputs)) if type(loss).advantage is not Loss.advantage else None
            for name, loss in losses.items()
        }
        for parameter in self.trained:
            parameter.grad = torch.empty_like(parameter) if several else None
        before = ledger.begin()
        with self._precision(), as_on("cpu" if self.on_cpu else "gpu"):
            inputs = module.score(samples)
            kept = ledger.live - before
            weights = dict.fromkeys(losses, 1.0)
            total, _ = mix(losses, inputs, weights, advantages, {}, module.execution.logits_chunk)
        found: Counts = {"kept": kept} | peaks_of("chunk", ledger)
        total.backward()
        found |= {"flops": ledger.all_flops} | peaks_of("peak", ledger)
        for parameter in self.trained:
            parameter.grad = None
        return {key: size - before if isinstance(key, tuple) else size for key, size in found.items()}

    def update(self) -> Phase:
        """The optimiser's step: it reads and writes weights and state, reads the gradient, and computes next to nothing."""
        moved = 2 * bytes_of(self.trained) + bytes_of(self.trained) + 2 * self._optimiser[0]
        return Phase({"update": self._optimiser[1]}, [(0.0, float(moved))])

    def validation(self, drawing: Phase) -> Phase:
        """A validation batch: with averages, the live weights wait beside them.

        Args:
            drawing: the rollout of a training batch, which has as much per prompt.
        """
        if not self.fit.validation:
            return Phase({})
        live = bytes_of(self.trained) if self.fit.averaged else 0
        times = self.fit.validation / len(self.fit.prompts)
        held = {name: size if name == "packed weights" else round(times * size) for name, size in drawing.held.items()}
        return Phase({**held, "live weights, put aside": live})

    def _tokens(self, rows: int) -> Tensor:
        student, sampling = self.module.student, self.module.sampling
        shape = (rows, student.num_codebooks, sampling.max_new_tokens + max(student.delays))
        return torch.zeros(shape, dtype=torch.long)

    @staticmethod
    def _labels(prompts: int, group: int) -> Tensor:
        """A label for each sample. A conditioner reads their values, so these have some."""
        with unset_fake_temporarily():
            return torch.zeros((prompts, group), dtype=torch.long)

    def _samples(self, prompts: Sequence[PromptLike], group: int) -> Samples:
        tokens_BGKT = self._tokens(len(prompts) * group).unflatten(0, (len(prompts), group))
        drawn = Rollout(tokens_BGKT, torch.ones_like(tokens_BGKT, dtype=torch.bool), torch.zeros(tokens_BGKT.shape))
        if self.module.conditioner is not None:
            drawn = replace(drawn, labels_BG=self._labels(len(prompts), group))
        texts = [Prompt.of(prompt).text for prompt in prompts]
        return Samples(texts, [""] * (len(prompts) * group), drawn, list(prompts))


def _ends_with_head(network: Any) -> bool:
    """Whether the logits are what the head makes of the states: a soft cap or a scale behind it makes them anew."""
    made: list[Tensor] = []
    head = network.get_output_embeddings()
    if head is None:
        return True  # nothing to watch; the fit will see
    hook = head.register_forward_hook(lambda _, __, logits: made.append(logits))
    try:
        with torch.no_grad(), shallow([network], 1):
            found = network(input_ids=torch.zeros((1, 4), dtype=torch.long), use_cache=False).logits
    finally:
        hook.remove()
    return not made or any(
        found.dtype != each.dtype or found.untyped_storage() is each.untyped_storage() for each in made
    )
