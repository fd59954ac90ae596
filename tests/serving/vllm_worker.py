"""The side of vLLM: ``python -m serving.vllm_worker JOB ANSWER`` in its environment."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from serving.turns import in_turns

NEW = 48
"""Tokens per stream where rows and cache are counted."""


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Greedy texts of all adapters in one batch, and what students and paired streams take."""
    import torch
    import vllm
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(
        job["base"], dtype="float32", enable_lora=True, max_lora_rank=32, max_loras=len(job["adapters"]) + 1, max_model_len=512,
        enforce_eager=True, max_num_seqs=32,
    )  # fmt: skip
    loras = {name: LoRARequest(name, number, path) for number, (name, path) in enumerate(job["adapters"].items(), 1)}
    which = [(name, prompt) for name in [*loras, "base"] for prompt in job["prompts"]]
    made = engine.generate(
        [{"prompt_token_ids": prompt} for _, prompt in which],
        SamplingParams(temperature=0, max_tokens=job["tokens"]),
        lora_request=[loras.get(name) for name, _ in which],
    )
    texts: dict[str, list[list[int]]] = {}
    for (name, _), each in zip(which, made, strict=True):
        texts.setdefault(name, []).append(list(each.outputs[0].token_ids))
    core = engine.llm_engine.engine_core.engine_core

    def counted(prompts: list[list[int]], lora: Any) -> dict[str, Any]:
        """The most rows and blocks of the cache at once, while all streams run."""
        manager, rows, blocks, began = core.scheduler.kv_cache_manager, 0, 0, time.monotonic()
        engine.reset_prefix_cache()
        for number, prompt in enumerate(prompts):
            asked = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)
            engine.llm_engine.add_request(f"{began}-{number}", {"prompt_token_ids": prompt}, asked, lora_request=lora)
        while engine.llm_engine.has_unfinished_requests():
            engine.llm_engine.step()
            rows = max(rows, len(core.scheduler.running))
            blocks = max(blocks, round(manager.usage * (manager.block_pool.num_gpu_blocks - 1)))
        return {"rows": rows, "blocks": blocks, "seconds": time.monotonic() - began}

    turns = in_turns({
        "student": lambda: counted(job["paired"], next(iter(loras.values()))),
        "paired": lambda: counted([each for prompt in job["paired"] for each in (prompt, job["dropped"])], None),
    })  # fmt: skip
    block = engine.llm_engine.vllm_config.cache_config.block_size
    return {"version": vllm.__version__, "torch": torch.__version__, "texts": texts, "block": block, "new": NEW,
            "told": str(turns), **turns.of}  # fmt: skip


if __name__ == "__main__":
    answer = main(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # an engine on a CPU may wait for its own threads for ever
