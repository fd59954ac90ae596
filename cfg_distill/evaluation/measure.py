"""Draw samples of held-out prompts and score them. Shapes: B prompts, G samples per prompt."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import torch

from cfg_distill.data.reading import templated
from cfg_distill.errors import blamed
from cfg_distill.evaluation.system import Kind, System
from cfg_distill.generators import Guidance, Predictor, Prompt, PromptLike
from cfg_distill.generators.guided import under
from cfg_distill.metrics.base import SampleMetric
from cfg_distill.sampling import Conditioner, Sampling, Seeds
from cfg_distill.sampling.samples import Samples, draw


def evaluate(
    predictor: Predictor,
    prompts: Sequence[PromptLike],
    sampling: Sampling,
    guidance: Guidance | None,
    metrics: Mapping[str, SampleMetric],
    seeds: Sequence[int] = (0,),
    batch_size: int = 8,
    name: str = "model",
    kind: Kind = "model",
    progress: Callable[[int, int], None] | None = None,
    listen: Callable[[Samples], None] | None = None,
    template: str | None = None,
    conditioner: Conditioner | None = None,
) -> System:
    """A point of the front.

    Args:
        predictor: the model, loaded; or another predictor over loaded models, of which the first one names the system.
        prompts: held-out prompts.
        sampling: G samples per prompt, their length, temperature and filters.
        guidance: sample under guidance, at twice the forward passes; None for no guidance.
        metrics: name -> metric, loaded. Their states are reset.
        seeds: of sampling. Every prompt is sampled anew under each seed.
        batch_size: prompts at once. The random numbers of a sample depend on the seed, the place of its prompt among all
            prompts, and its number: another batch size draws the same samples, up to rounding.
        name: of the system.
        kind: of the system.
        progress: called with the number of batches that are done, 0 at first, and of all batches.
        listen: called with the samples of every batch of the first seed.
        template: what the model is asked in place of each prompt, with the prompt at ``{prompt}``; None for the prompts
            themselves. Metrics, and ``listen``, see the prompts themselves.
        conditioner: gives each sample a label that the model reads beside the prompt, as it was trained; None for none.
    """
    generator = predictor.parts[0]
    system = System(
        name=name,
        kind=kind,
        model=str(generator.path),
        temperature=sampling.temperature,
        guidance=guidance.strongest if guidance is not None else 1.0,
        samples=sampling.samples,
        seeds=list(seeds),
        prompts=[Prompt.of(prompt).text for prompt in prompts],
        axes={metric: measure.axis for metric, measure in metrics.items()},
        values={metric: [] for metric in metrics},
        relative_cost=float(under(predictor, guidance).passes),
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        prompt=template,
        dial=generator.dial if generator.dial != 1 else None,
        schedule=asdict(guidance.moved) if guidance is not None and guidance.schedule != "constant" else None,
    )
    seconds = 0.0
    starts = range(0, len(prompts), batch_size)
    report = progress or (lambda done, total: None)
    done, batches = 0, len(starts) * len(seeds)
    report(done, batches)
    for seed in seeds:
        for measure in metrics.values():
            measure.reset()
        for start in starts:
            batch = list(prompts[start : start + batch_size])
            began = now(generator.device)
            own = Seeds((seed,), range(start, start + len(batch)))
            samples = draw(predictor, templated(template, batch), sampling, guidance, own, conditioner)
            samples = replace(samples, prompts=[Prompt.of(prompt).text for prompt in batch], asked=batch)
            seconds += now(generator.device) - began
            for metric, measure in metrics.items():
                with blamed(measure, f"metrics.{metric}"):
                    measure.update(samples)
            if listen is not None and seed == seeds[0]:
                listen(samples)
            done += 1
            report(done, batches)
        for metric, measure in metrics.items():
            system.values[metric].append(measure.per_prompt().tolist())
    system.seconds = seconds / (len(prompts) * sampling.samples * len(seeds))
    return system


def now(device: torch.device) -> float:
    """Seconds, once a device has done what it was given: an accelerator works while Python goes on."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
