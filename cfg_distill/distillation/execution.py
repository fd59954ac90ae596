"""Speed switches in one place: how the arithmetic of a distillation is carried out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from cfg_distill.errors import Context, Problem
from cfg_distill.generators import CausalLM, Generator, Guidance
from cfg_distill.losses import LOGITS_CHUNK
from cfg_distill.sampling import Sampling


@dataclass
class Execution:
    """How the arithmetic is carried out. Every key changes speed and memory, and nothing else but rounding.

    Args:
        onednn: on a CPU, in float32, let oneDNN multiply by the weights where that is faster: up to twice as fast as torch's
            own products on AMD's processors, never on Intel's.
        logits_chunk: logits that exist at once (cells times vocabulary): head, losses and their gradients in one pass; 0
            makes all logits at once, and differentiates them by autograd. On an accelerator the default makes at least 512
            cells at once.
        drop_finished: while sampling, decode only rows whose sample has not ended.
        pack_weights: while sampling, keep a second copy of the weights, as few rows are multiplied by it fastest: on a CPU in
            float32 in oneDNN's layout, under mixed precision in the lower one.
        mix_states: mix the states of the two branches of guidance in front of a linear head, which gives the same logits for
            one product instead of two.
        prompt_once: read each prompt once for its whole group, through the key-value cache; of a causal language model.
        halve_micro_batch: when memory runs out while samples are scored and differentiated, repeat that with the same samples
            and half of ``micro_batch``, down to one sample, instead of ending the run. Not under fsdp2.
        gather: under fsdp2, how a rollout gets the weights: ``rollout`` gathers the whole model on each device, once per
            rollout; ``layer`` gathers layer by layer at each position, which takes little memory and much more time.
    """

    onednn: bool = True
    logits_chunk: int = LOGITS_CHUNK
    drop_finished: bool = True
    pack_weights: bool = True
    mix_states: bool = True
    prompt_once: bool = True
    halve_micro_batch: bool = True
    gather: Literal["rollout", "layer"] = "rollout"

    def problems(self, context: Context = Context()) -> list[Problem]:
        """What is wrong with these settings."""
        if self.logits_chunk >= 0:
            return []
        return [Problem("logits_chunk", f"expected 0 (all at once) or more, but got {self.logits_chunk}.")]

    def with_old_keys(
        self,
        generator: Generator,
        guidance: Guidance,
        sampling: Sampling,
        onednn: bool | None,
        logits_chunk: int | None,
    ) -> Execution:
        """These settings, and those that were given by the keys of version 0.1: accepted for one release, with a note."""
        old: dict[str, tuple[str, Any]] = {
            "onednn": ("onednn", onednn),
            "logits_chunk": ("logits_chunk", logits_chunk),
            "drop_finished": ("sampling.drop_finished", _if_off(sampling.drop_finished)),
            "pack_weights": ("sampling.pack_weights", _if_off(sampling.pack_weights)),
            "mix_states": ("guidance.mix_states", _if_off(guidance.mix_states)),
            "prompt_once": (
                "generator.init_args.prompt_once",
                _if_off(not isinstance(generator, CausalLM) or generator.prompt_once),
            ),
        }
        given = {name: value for name, (_, value) in old.items() if value is not None}
        for name in given:
            rank_zero_warn(f"Key `model.{old[name][0]}` is now `model.execution.{name}`.", category=FutureWarning)
        return replace(self, **given)

    def applied(self, generator: Generator, guidance: Guidance, sampling: Sampling) -> tuple[Guidance, Sampling]:
        """Guidance and sampling under these settings; the generator takes its own in place."""
        if isinstance(generator, CausalLM):
            generator.prompt_once = self.prompt_once
        return (
            replace(guidance, mix_states=self.mix_states),
            replace(sampling, drop_finished=self.drop_finished, pack_weights=self.pack_weights),
        )


def _if_off(switch: bool) -> bool | None:
    """A switch that somebody has turned off; None while it is on, as it is by itself."""
    return None if switch else False
