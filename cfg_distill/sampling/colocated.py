"""vLLM in the process of the fit. Shapes: N rows, T tokens of one of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfg_distill.errors import ConfigError, Problem
from cfg_distill.folders import whole_path
from cfg_distill.generators import CausalLM
from cfg_distill.generators.base import DTYPES
from cfg_distill.sampling.distribution import Sampling
from cfg_distill.sampling.engines import (
    ONE_AT_A_TIME,
    RELOAD,
    Drawn,
    EngineGoneError,
    Order,
    asked_of,
    room_for,
)

INSTALL = 'pip install ".[vllm]"'
OWN_OPTIONS = ("model", "tokenizer", "skip_tokenizer_init", "enable_lora", "generation_config", "logits_processors")
"""Options of ``vllm.LLM`` that would make it another model, or draw from another distribution than the loss knows."""


class Colocated:
    """An engine in this process: ``vllm.LLM`` over the student's base, made at the first rollout.

    Where all weights are trained, its copy of the model is filled anew before every rollout.

    Args:
        options: of ``vllm.LLM``.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.llm: Any = None
        self._adapters = 0

    def problems(self) -> list[Problem]:
        if importlib.util.find_spec("vllm") is None:
            text = f"expected vLLM in this Python, since it runs in this process, but it is not installed: {INSTALL}"
            return [Problem("mode", text)]
        own = [name for name in OWN_OPTIONS if name in self.options]
        text = "expected no value, since the student and its sampling decide it. Leave it out."
        return [Problem(f"options.{name}", text) for name in own]

    def problems_with(self, student: CausalLM, sampling: Sampling) -> list[Problem]:
        return []

    def draw(self, student: CausalLM, weights: Path, orders: Sequence[Order], sampling: Sampling) -> list[Drawn]:
        with ONE_AT_A_TIME:  # a rollout of validation waits for one that runs ahead
            try:
                return self._draw(self._engine(student), student, weights, orders, sampling)
            except Exception as failed:
                if type(failed).__name__ != "EngineDeadError":
                    raise
                self.llm = None
                raise EngineGoneError(f"vLLM has ended in this process ({failed}).") from failed

    def _draw(
        self, llm: Any, student: CausalLM, weights: Path, orders: Sequence[Order], sampling: Sampling
    ) -> list[Drawn]:
        from vllm import SamplingParams
        from vllm.lora.request import LoRARequest

        common = asked_of(student, sampling)
        del common["return_token_ids"]
        asked = [SamplingParams(**common, seed=order.seed) for order in orders]
        prompts = [{"prompt_token_ids": order.prompt} for order in orders]
        if student.lora is None:
            llm.collective_rpc(RELOAD, kwargs={"weights_path": str(weights)})
            llm.reset_prefix_cache()
            answers = llm.generate(prompts, asked, use_tqdm=False)
        else:
            self._adapters += 1
            lora = LoRARequest(weights.name, self._adapters, str(weights))
            answers = llm.generate(prompts, asked, lora_request=lora, use_tqdm=False)
            llm.llm_engine.remove_lora(self._adapters)
        return [_drawn(answer.outputs[0]) for answer in answers]

    def _engine(self, student: CausalLM) -> Any:
        if self.llm is None:
            from vllm import LLM

            settings: dict[str, Any] = {
                "model": whole_path(student.path),
                "dtype": str(DTYPES[student.dtype]).removeprefix("torch."),
                "generation_config": "vllm",  # no defaults of the model's own
                "skip_tokenizer_init": True,
            }
            if student.lora is not None:
                settings |= {"enable_lora": True, "max_lora_rank": room_for(student.lora.rank)}
            try:
                self.llm = LLM(**(settings | self.options))
            except TypeError as unknown:  # of its EngineArgs: a misspelled option
                if "unexpected keyword argument" not in str(unknown):
                    raise
                text = f"expected options of vllm.LLM, but {unknown}."
                raise ConfigError(Problem("/model.sampler.init_args.options", text)) from unknown
        return self.llm

    def __str__(self) -> str:
        return "vLLM in this process"


def _drawn(output: Any) -> Drawn:
    tokens = list(output.token_ids)
    return Drawn(tokens, [at[token].logprob for token, at in zip(tokens, output.logprobs, strict=True)])
