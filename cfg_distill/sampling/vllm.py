"""vLLM draws the samples: every rollout from the student's weights as they are then, in a server or in this process.

    student's adapter      --folder-->  engine: base + adapter  --tokens-->  the student scores them: log-probabilities
    or all of its weights  --folder-->  engine: these weights   --tokens-->

Only tokens come back. Every log-probability of a fit is the student's own, so that no loss depends on the engine's arithmetic.
Shapes: N rows, K codebooks, T positions, M cells.
"""

from __future__ import annotations

import atexit
import logging
import math
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from cfg_distill.errors import ConfigError, Context, Problem, problems_of_counts
from cfg_distill.folders import expanded
from cfg_distill.generators import CausalLM, Generator, PromptLike
from cfg_distill.generators.probes import in_eval_mode
from cfg_distill.sampling.colocated import Colocated
from cfg_distill.sampling.conditioning import Conditioner
from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.engines import Drawn, Engine, Order, Server, patiently
from cfg_distill.sampling.handed import Handed, HandedAdapter, HandedWeights, replaced
from cfg_distill.sampling.rollout import Asked, Rollout
from cfg_distill.sampling.sampler import Sampler
from cfg_distill.sampling.seeds import Seeds

ROWS = 32
"""Samples that the student scores at once behind a rollout, without gradient."""

log = logging.getLogger(__name__)
LARGEST_GAP = 0.25
"""Nats per token between the engine's log-probabilities and the student's, above which they are different models.

Rounding in bfloat16 makes hundredths; another model makes several nats.
"""
COMPARED = 4
"""Samples whose log-probabilities are compared."""
NUDGE = 0.1
"""Of each weight, the standard deviation by which it is moved to see whether it reaches an engine."""


class VLLM(Sampler):
    """vLLM draws the samples of a causal language model.

    Before every rollout the student's weights are written to a folder that the engine reads. Of a LoRA student that is the
    adapter alone, under a new name; the one before is unloaded. Where all weights are trained, it is one file of them, which
    replaces those of the engine. Temperature, filters and end tokens are those of the recipe; each sample has a seed of its
    own, from the keys that our own loop uses. The tokens come back, and the student computes their log-probabilities.

    Args:
        mode: ``server``, an OpenAI-compatible server of vLLM that runs somewhere; ``colocate``, an engine in this process.
        url: of the server: ``http://localhost:8000``.
        model: the name under which the server serves the student's base; empty: its only base, whose folder must have the
            name of the student's.
        folder: where weights are written for the engine: a server on another machine must see it under the same path; empty: a
            temporary folder.
        max_staleness: 0: every step learns from samples of the student as it is. 1: the next rollout runs while this step
            trains, so the samples are one step old; the policy gradient then has an importance ratio
            (:class:`~cfg_distill.losses.PolicyGradient`). What is begun at a step and not used is drawn again on resuming.
            Where all weights are trained, it takes a copy of them.
        patience_seconds: how long a fit waits for an engine that does not answer, before it ends.
        parallel: requests that a server gets at once.
        options: of ``vllm.LLM``, for ``colocate``: ``{gpu_memory_utilization: 0.4, tensor_parallel_size: 2}``.
    """

    def __init__(
        self,
        mode: Literal["server", "colocate"] = "server",
        url: str = "",
        model: str = "",
        folder: str = "",
        max_staleness: int = 0,
        patience_seconds: float = 600.0,
        parallel: int = 256,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.mode = mode
        self.folder = folder
        self.max_staleness = max_staleness
        self.patience_seconds = patience_seconds
        self.parallel = parallel
        self.options = options or {}
        server = Server(url, model, parallel, patience_seconds)
        self.engine: Engine = server if mode == "server" else Colocated(self.options)
        self._home: Path | None = None
        self._rollouts = 0
        self._is_checked = False

    # Problems, known before weights are loaded

    def problems(self, context: Context = Context()) -> list[Problem]:
        found = []
        if self.max_staleness not in (0, 1):
            text = f"expected 0 or 1, since older samples are of another student, but got {self.max_staleness}. Set it to 1."
            found.append(Problem("max_staleness", text))
        if not self.patience_seconds > 0:
            found.append(Problem("patience_seconds", f"expected a number above 0, but got {self.patience_seconds}."))
        found += problems_of_counts(parallel=self.parallel)
        if self.mode == "server" and self.options:
            text = (
                f"expected none under mode server, which was started with its own, but got {', '.join(self.options)}."
            )
            found.append(Problem("options", f"{text} Give them to `vllm serve`."))
        if self.folder and not expanded(self.folder).is_dir():
            text = (
                f"expected a folder that the engine sees, but `{self.folder}` does not exist. Make it, or leave it out."
            )
            found.append(Problem("folder", text))
        return found + self.engine.problems()

    def problems_with(self, student: Generator, sampling: Sampling) -> list[Problem]:
        if not isinstance(student, CausalLM):
            text = (
                f"expected a causal language model, but the student is a {type(student).__name__}, whose codebooks no engine"
                " samples. Leave the sampler out: our own loop draws."
            )
            return [Problem("", text)]
        if type(student)._predict is not CausalLM._predict:
            text = (
                f"expected a student that draws from all tokens of its network, but {type(student).__name__} forbids some,"
                " which an engine would draw. Leave the sampler out: our own loop draws."
            )
            return [Problem("", text)]
        found = []
        if sampling.min_p and sampling.top_p < 1:
            text = (
                f"expected 1 beside `@/model.sampling.min_p` {sampling.min_p}, since vLLM applies the two in another order than"
                f" the loss does, but got {sampling.top_p}. Use one of them."
            )
            found.append(Problem("/model.sampling.top_p", text))
        # The engine is asked last: nobody waits for it to learn of a misspelled number.
        return found or self.engine.problems_with(student, sampling)

    def problems_in(self, num_processes: int, student: Generator) -> list[Problem]:
        if num_processes == 1:
            return []
        if self.mode == "colocate":
            text = f"expected server where a fit has several processes, but got colocate in {num_processes}. Start a server."
            return [Problem("mode", text)]
        if isinstance(student, CausalLM) and student.lora is None:
            text = (
                f"expected a LoRA student in {num_processes} processes: each would replace the weights of the one engine while"
                " another samples. Set `@/model.generator.init_args.lora`, train in one process, or leave the sampler out."
            )
            return [Problem("", text)]
        return []

    def __str__(self) -> str:
        return f"{self.engine}, up to 1 step ahead" if self.max_staleness else str(self.engine)

    # A rollout

    def rollout(
        self,
        student: Generator,
        prompts: Sequence[PromptLike],
        sampling: Sampling,
        seed: int | Seeds = 0,
        conditioner: Conditioner | None = None,
    ) -> Rollout:
        if isinstance(student, CausalLM) and student.lora is None and not self._is_checked:
            self._prove(student, prompts[:1], sampling)
        return self.begin(student, prompts, sampling, seed, conditioner)()

    @torch.no_grad()
    def _prove(self, student: CausalLM, prompts: Sequence[PromptLike], sampling: Sampling) -> None:
        """Hand weights over that are far from the engine's, once: do all of them arrive?

        Between two steps the weights hardly differ, so the same fault would not be seen there.
        """
        random = torch.Generator().manual_seed(0)
        moved = {
            name: parameter * (1 + NUDGE * torch.randn(parameter.shape, generator=random).to(parameter))
            for name, parameter in student.model.named_parameters()
        }
        few = replace(sampling, samples=COMPARED, max_new_tokens=min(16, sampling.max_new_tokens), temperature=1.0)
        with replaced(student.model, moved):
            self.begin(student, prompts, few)()

    def begin(
        self,
        student: Generator,
        prompts: Sequence[PromptLike],
        sampling: Sampling,
        seed: int | Seeds = 0,
        conditioner: Conditioner | None = None,
    ) -> Callable[[], Rollout]:
        """Begin a rollout of the student as it is now; the result waits for its end, and scores it under that student."""
        begun = self._begun(student, Asked.of(student, prompts, sampling, None, seed, conditioner))
        drawn: Future[list[Drawn]] = Future()

        def draw() -> None:
            try:
                drawn.set_result(self._drawn(begun))
            except BaseException as error:  # raised again where the samples are asked for
                drawn.set_exception(error)

        threading.Thread(target=draw, daemon=True).start()
        return lambda: self._scored(begun, drawn.result())

    def _begun(self, student: Generator, asked: Asked) -> _Begun:
        """Everything that the engine needs, taken from the student as it is now."""
        assert isinstance(student, CausalLM)
        encoded = student.encode(asked.prompts).tensors
        prompts = [ids_S[mask_S.bool()].tolist() for ids_S, mask_S in zip(*encoded.values(), strict=True)]
        group = asked.sampling.samples
        orders = [
            Order(prompt, seed)
            for prompt, seed in zip(
                [each for each in prompts for _ in range(group)], asked.seeds.whole_N(group), strict=True
            )
        ]
        handed = HandedWeights(student, self.max_staleness > 0) if student.lora is None else HandedAdapter(student)
        folder = self._new_folder()
        handed.write(student, folder)
        return _Begun(student, asked, orders, handed, folder)

    def _new_folder(self) -> Path:
        """A folder for the weights of one rollout. Its name is unique on a server that several processes and runs use."""
        if self._home is None:
            parent = expanded(self.folder).resolve() if self.folder else None
            self._home = Path(tempfile.mkdtemp(prefix=f"cfg-distill-{uuid.uuid4().hex[:8]}-", dir=parent))
            self._home.chmod(0o755)  # the server may run under another account
            atexit.register(shutil.rmtree, self._home, ignore_errors=True)
        self._rollouts += 1
        folder = self._home / f"rollout-{self._rollouts}"
        folder.mkdir()
        return folder

    def _drawn(self, begun: _Begun) -> list[Drawn]:
        """The tokens of each sample. An engine that is gone is waited for, and asked again: the seeds are the same."""

        def attempt() -> list[Drawn]:
            return self.engine.draw(begun.student, begun.folder, begun.orders, begun.asked.sampling)

        try:
            return patiently(attempt, self.patience_seconds)
        finally:
            shutil.rmtree(begun.folder, ignore_errors=True)

    @torch.no_grad()
    def _scored(self, begun: _Begun, drawn: list[Drawn]) -> Rollout:
        """A rollout of the tokens, with the log-probabilities of the student that it was begun with."""
        student, asked = begun.student, begun.asked
        lengths = [len(each.tokens) for each in drawn]
        shape = (len(drawn), 1, max(lengths))
        tokens_NKT = torch.full(shape, student.pad_token, device=student.device)
        mask_NKT = (
            torch.arange(shape[2], device=student.device) < torch.tensor(lengths, device=student.device)[:, None, None]
        )
        tokens_NKT[mask_NKT] = torch.tensor([token for each in drawn for token in each.tokens], device=student.device)
        with in_eval_mode(student), begun.handed.standing_in(student):
            log_probs_NKT = _log_probs(student, asked, tokens_NKT, mask_NKT)
            # Only an adapter has a name. Whole weights may have been replaced by another fit since, or by a restart.
            if student.lora is None or not self._is_checked:
                self._check(begun, drawn)
        return asked.grouped(tokens_NKT, mask_NKT, log_probs_NKT)

    def _check(self, begun: _Begun, drawn: list[Drawn]) -> None:
        """Compare the engine's log-probabilities of a few samples with the student's: is it the same model?

        Raises:
            ConfigError: it is another one.
        """
        own, theirs = [], []
        for order, sample in list(zip(begun.orders, drawn, strict=True))[:COMPARED]:
            ids_1S = torch.tensor([order.prompt + sample.tokens], device=begun.student.device)
            logits_TV = begun.student.model(ids_1S).logits[0, len(order.prompt) - 1 : -1]
            own.append(logits_TV.float().log_softmax(-1).gather(-1, ids_1S[0, len(order.prompt) :, None])[:, 0].cpu())
            theirs.append(torch.tensor(sample.log_probs))
        gap = float((torch.cat(own) - torch.cat(theirs)).abs().mean())
        if not gap < LARGEST_GAP:
            text = (
                f"expected an engine whose log-probabilities are the student's, but they are {gap:.2f} nats apart per token."
                f" Serve `{begun.student.path}` itself, neither quantised nor tuned."
            )
            if begun.student.lora is None:
                text += (
                    " Let no other fit use the engine. On a CPU, vLLM 0.32 keeps the old head of a model whose head is its"
                    " embedding: train a LoRA there."
                )
            raise ConfigError(Problem("/model.sampler", text))
        if not self._is_checked:
            log.info("The engine's log-probabilities are within %.1g nats per token of the student's.", gap)
        self._is_checked = True


@dataclass(frozen=True)
class _Begun:
    """A rollout that an engine was asked for.

    Attributes:
        student: whose samples they are.
        asked: what is drawn.
        orders: one for each sample.
        handed: the weights of the student as it was.
        folder: the same weights, for the engine.
    """

    student: CausalLM
    asked: Asked
    orders: list[Order]
    handed: Handed
    folder: Path


def _log_probs(student: CausalLM, asked: Asked, tokens_NKT: Tensor, mask_NKT: Tensor) -> Tensor:
    """Log-probabilities of tokens under the distribution that drew them, ``[N, K, T]``; 0 where masked."""
    found_NKT = torch.zeros(tokens_NKT.shape, device=tokens_NKT.device)
    group = asked.sampling.samples
    together = max(1, ROWS // group)
    for first in range(0, len(asked.prompts), together):
        rows = slice(first * group, (first + together) * group)
        tokens_RKT, mask_RKT = tokens_NKT[rows], mask_NKT[rows]
        predicted = student.predictions(asked.prompts[first : first + together], tokens_RKT, mask_RKT)
        for r in range(len(tokens_RKT)):
            (position_M,) = mask_RKT[r, 0].nonzero(as_tuple=True)
            logits_MV = predicted.at(0, torch.full_like(position_M, r), position_M)
            picked_M = asked.sampling.log_probs(logits_MV).gather(-1, tokens_RKT[r, 0, position_M, None])[:, 0]
            # The engine's rounding may put a token just outside a filter of ours. NaN stays: the student is broken.
            found_NKT[rows.start + r, 0, position_M] = picked_M.masked_fill(picked_M == -math.inf, 0.0)
    return found_NKT
