"""Two processes with their share of the prompts must say what one process says of all of them."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from forked import in_ranks
from torch import Tensor, distributed, nn

from cfg_distill.embedders import NGramCounts
from cfg_distill.metrics import (
    EAD,
    FAD,
    KAD,
    DistinctN,
    KernelDistance,
    Length,
    PairwiseCosineDiversity,
    PromptAdherence,
    PseudoDensity,
    Repetition,
    SampleMetric,
    SelfBLEUDiversity,
    VendiScore,
)
from cfg_distill.references import Reference
from cfg_distill.rewards import DiversityTarget, Mixed, PairwiseDiversity
from cfg_distill.rewards import PromptAdherence as AdherenceReward
from cfg_distill.sampling import Rollout
from cfg_distill.sampling.samples import Samples

WORDS = ["a", "b", "c", "d", "e", "f"]
# Prompts of each rank and batch: shares of different size, and in the second round a rank without any.
ROUNDS = [[[4], [1]], [[2], []]]


class Words(Reference):
    """A few real texts."""

    def parts(self) -> Iterator[list[str]]:
        yield [" ".join(WORDS[:length]) for length in range(2, 6)]


def draw(rank: int, batch: int, num_prompts: int) -> Samples:
    """Texts with their masks."""
    random = torch.Generator().manual_seed(10 * rank + batch)
    lengths_BG = torch.randint(3, 9, (num_prompts, 3), generator=random)
    texts = [
        " ".join(WORDS[word] for word in torch.randint(len(WORDS), (int(length),), generator=random))
        for length in lengths_BG.flatten()
    ]
    mask_BGKT = (torch.arange(9) <= lengths_BG[..., None])[:, :, None]
    return Samples(["a b c"] * num_prompts, texts, Rollout(mask_BGKT.long(), mask_BGKT, mask_BGKT.float()))


def sample_metrics() -> dict[str, SampleMetric]:
    embedder = NGramCounts(n=1)
    metrics = [PairwiseCosineDiversity(embedder), VendiScore(embedder), PromptAdherence(embedder), DistinctN(n=1)]
    metrics += [KernelDistance(embedder, Words(), kernel="energy"), PseudoDensity(embedder, Words(), k=2)]
    metrics += [EAD(vocabulary=6), SelfBLEUDiversity(), Repetition(n=1), Length()]
    for kind in (FAD, KAD):  # distances of all samples, whatever they are samples of
        distance = kind(NGramCounts(n=1, buckets=4), reference="")
        distance._reference_RD = torch.rand(9, 4, generator=torch.Generator().manual_seed(0))
        metrics.append(distance)
    return {type(metric).__name__: metric for metric in metrics}


def rewards() -> nn.ModuleDict:
    parts = {"diversity": PairwiseDiversity(NGramCounts(n=1)), "adherence": AdherenceReward(NGramCounts(n=1))}
    return nn.ModuleDict(
        {
            "target": DiversityTarget(NGramCounts(n=1), target=Words()),
            "running_mean": PairwiseDiversity(NGramCounts(n=1), baseline="running_mean"),
            "additive": Mixed(parts),
            "multiplicative": Mixed(parts, mode="multiplicative"),
        }
    )


def measure(shares: list[list[list[int]]]) -> dict[str, Tensor]:
    """Everything that the given shares of the prompts say, one list of batch sizes for each (pretended) rank."""
    results = {}
    for number, ranks in enumerate(shares):
        metrics = sample_metrics()
        for rank, batches in ranks:
            for batch, num_prompts in enumerate(batches):
                for metric in metrics.values():
                    metric.update(draw(rank, batch, num_prompts))
        results |= {f"{name} {number}": metric.compute() for name, metric in metrics.items()}
    return results


def reward_states(batches: list[Samples]) -> dict[str, Tensor]:
    kept = rewards()
    for samples in batches:
        for reward in kept.values():
            reward(samples)
    return {name: value for name, value in kept.state_dict().items() if "past" in name}


def run_rank(rank: int, folder: str) -> None:
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    found = measure([[(rank, ranks[rank])] for ranks in ROUNDS])
    # A share of each batch: 2 prompts on rank 0 and 1 on rank 1.
    found |= reward_states([take(draw(9, batch, 3), slice(0, 2) if rank == 0 else slice(2, 3)) for batch in range(3)])
    torch.save(found, Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def take(samples: Samples, prompts: slice) -> Samples:
    rollout = samples.rollout
    part = Rollout(rollout.tokens_BGKT[prompts], rollout.mask_BGKT[prompts], rollout.log_probs_BGKT[prompts])
    outputs = [output for group in samples.groups()[prompts] for output in group]
    return Samples(samples.prompts[prompts], outputs, part)


def test_two_processes_agree_with_one(tmp_path):
    in_ranks(run_rank, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    expected = measure([list(enumerate(ranks)) for ranks in ROUNDS])
    expected |= reward_states([draw(9, batch, 3) for batch in range(3)])
    assert first.keys() == expected.keys()
    assert all(value.isfinite().all() for value in expected.values())
    assert [name for name, value in expected.items() if not torch.allclose(first[name], value, rtol=1e-5)] == []
    assert [name for name in expected if not torch.equal(first[name], second[name])] == []


def test_a_mean_of_means_would_differ():
    """The shares are uneven enough that an average of the ranks' averages is another number."""
    apart = [measure([[(rank, ROUNDS[0][rank])]]) for rank in range(2)]
    together = measure([list(enumerate(ROUNDS[0]))])
    for name, value in together.items():
        assert (sum(part[name] for part in apart) / 2).item() != pytest.approx(value.item(), abs=1e-4), name
