"""The tune encoder: its loss against plain arithmetic, its network against padding and order, the shipped weights."""

import math
import random
import time
from pathlib import Path

import lightning
import pytest
import torch
from tiny_tunes import TinyData
from torch.nn.functional import normalize

from cfg_distill.errors import ConfigError
from cfg_distill.tunes.corpus import tunes_of
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.encoder import EncoderTraining, info_nce, retrieval
from cfg_distill.tunes.network import NetworkConfig, TuneNetwork, load_network
from cfg_distill.tunes.segments import two_parts

MUSIC = ["|", "||", "C:1", "D:1", "E:1/2", "E:2", "z:1"]


def tiny_network() -> TuneNetwork:
    torch.manual_seed(0)
    return TuneNetwork(NetworkConfig(MUSIC, {"embedding": 6}, width=8, blocks=2, kernel=3)).eval()


def random_tunes(count: int) -> list[str]:
    draw = random.Random(0)
    return [" ".join(draw.choices(MUSIC, k=draw.randint(1, 30))) for _ in range(count)]


def test_info_nce_is_the_mean_of_two_classifications() -> None:
    torch.manual_seed(1)
    first, second = normalize(torch.randn(4, 5), dim=-1), normalize(torch.randn(4, 5), dim=-1)
    family = torch.tensor([0, 1, 0, 2])  # tunes 0 and 2 are near-duplicates
    expected = 0.0
    for one, other in ((first, second), (second, first)):
        for row in range(4):
            cosines = {column: float(one[row] @ other[column]) for column in range(4)}
            cosines = {c: v for c, v in cosines.items() if c == row or family[c] != family[row]}
            expected -= cosines[row] / 0.2 - math.log(sum(math.exp(value / 0.2) for value in cosines.values()))
    total, count = info_nce(first, second, family, temperature=0.2)
    assert total.item() == pytest.approx(expected, rel=1e-5)
    assert count == 8


def test_retrieval_counts_both_directions() -> None:
    first = torch.eye(3)
    second = torch.stack([first[0], first[0], first[2]])  # the second tune's other half looks like the first tune
    # From first to second: 0 and 2 found, 1 is not; from second to first: 0 and 2 found.
    assert retrieval(first, second).item() == pytest.approx(2 / 3)


def test_padding_and_company_change_nothing() -> None:
    network, tunes = tiny_network(), random_tunes(9)
    together = network.read(tunes, batch=4)["embedding"]
    alone = torch.cat([network.read([tune])["embedding"] for tune in tunes])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(network(torch.nn.functional.pad(network.numbers_of(tunes), (0, 50)))["embedding"], alone)


def test_what_is_no_music_token_is_passed_over() -> None:
    network = tiny_network()
    plain, noisy = network.read(["C:1 D:1 |", "C:1 <s> nonsense D:1 |"])["embedding"]
    torch.testing.assert_close(plain, noisy)
    assert network.read([])["embedding"].shape == (0, 6)
    assert network.read([""])["embedding"].isfinite().all()


def test_folder_brings_the_network_back(tmp_path: Path) -> None:
    network = tiny_network()
    network.config.temperatures = {"embedding": 2.0}
    network.save(tmp_path)
    again = load_network(str(tmp_path))
    assert again.config == network.config
    torch.testing.assert_close(again.read(["C:1 E:2"])["embedding"], network.read(["C:1 E:2"])["embedding"])
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_two_parts_do_not_overlap_and_keep_their_lengths() -> None:
    draw, tokens = random.Random(0), list(range(100))
    for _ in range(200):
        first, second = two_parts(tokens, draw, shortest=24, longest=40)  # type: ignore[arg-type]
        assert first[-1] < second[0]
        assert 24 <= len(first) <= 40
        assert 24 <= len(second) <= 40


def test_fit_learns_and_writes_the_folder(tmp_path: Path) -> None:
    lightning.seed_everything(0, verbose=False)
    module = EncoderTraining(
        lambda parameters: torch.optim.AdamW(parameters, lr=5e-3),
        out=str(tmp_path / "out"), width=16, blocks=1, dropout=0.0, warmup_steps=2, decay_steps=80, embedding=8,
    )  # fmt: skip
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=40, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, log_every_n_steps=1,
    )  # fmt: skip
    data = TinyData(pairs=True, batch_size=8, shortest=8, longest=16)
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    assert result["test/retrieval"] > 0.9
    tunes = data.tunes["test"]
    embedding = Tunes(str(tmp_path / "out")).load().embed([" ".join(tune.tokens[:10]) for tune in tunes])
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(8))
    with pytest.raises(ConfigError, match=r"model\.init_args\.out"):
        trainer.fit(module, data)


def test_missing_folder_is_a_problem_before_loading() -> None:
    assert Tunes().problems() == []
    assert str(Tunes("./no/such/folder").problems()[0]).startswith(
        "Key `path`: expected a model folder, but `./no/such"
    )


@pytest.fixture(scope="module")
def halves() -> tuple[list[str], list[str]]:
    """The two halves of every test tune that is long enough."""
    tunes = [tune.tokens for tune in tunes_of("test") if len(tune.tokens) >= 64]
    return [" ".join(t[: len(t) // 2]) for t in tunes], [" ".join(t[len(t) // 2 :]) for t in tunes]


def test_shipped_encoder_finds_the_other_half_of_a_tune(halves: tuple[list[str], list[str]]) -> None:
    embedder = Tunes().load()
    first, second = embedder.embed(halves[0]), embedder.embed(halves[1])
    # Chance is 1 / number of tunes, below 0.01.
    assert len(halves[0]) > 100
    assert retrieval(first, second).item() > 0.35
    same = (first * second).sum(-1).mean()
    other = (first @ second.T).mean()
    assert same > other + 0.3


def test_hundreds_of_samples_take_a_moment(halves: tuple[list[str], list[str]]) -> None:
    tunes = (halves[0] * 2)[:256]
    embedder = Tunes().load()
    start = time.process_time()
    assert embedder.embed(tunes).shape[0] == len(tunes)
    assert time.process_time() - start < 5.0  # about 0.3 s on one core; wide, for busy machines
