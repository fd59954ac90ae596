"""The tune encoder: its loss and its counts against plain arithmetic, its training, the shipped weights.

The network of the judge (network.py), which was the encoder's too, is tested here against padding and order.
"""

import json
import math
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import median_low
from typing import Literal

import lightning
import pytest
import torch
from torch.nn.functional import normalize
from tune_distances import melodic, other_part_found, table, under

from cfg_distill.errors import ConfigError
from cfg_distill.tunes.abc import note_token
from cfg_distill.tunes.canonical import Sounding, sounding_notes
from cfg_distill.tunes.corpus import Tune, tunes_of
from cfg_distill.tunes.embedder import Tunes
from cfg_distill.tunes.encoder import EncoderTraining, info_nce, load_encoder, retrieval
from cfg_distill.tunes.figures import FAMILIES, FiguresConfig, FiguresNetwork, counts_of
from cfg_distill.tunes.network import NetworkConfig, TuneNetwork, load_network
from cfg_distill.tunes.notes import NotesNetwork, rows_of
from cfg_distill.tunes.pairs import TunePairs, two_parts
from cfg_distill.tunes.phrases import PhrasesConfig, PhrasesNetwork
from cfg_distill.tunes.rewriting import in_values, rewritten_bars, transposed

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
        first, second = two_parts(tokens, draw, shortest=24, longest=40)
        assert first[-1] < second[0]
        assert 24 <= len(first) <= 40
        assert 24 <= len(second) <= 40


class TinyPairs(TunePairs):
    """Eight made-up tunes, each to and fro over its own interval: separable in any key, so that a few steps must learn them."""

    def setup(self, stage: str | None = None) -> None:
        tunes = [
            Tune(
                str(n), "irish", "jig", "6/8", "major", tuple([note_token(0, 1), note_token(n + 1, 1)] * 20), cluster=n
            )
            for n in range(8)
        ]
        self.tunes = dict.fromkeys(("train", "validation", "test"), tunes)


@pytest.mark.parametrize("kind", ["phrases", "figures"])
def test_fit_learns_and_writes_the_folder(kind: Literal["phrases", "figures"], tmp_path: Path) -> None:
    lightning.seed_everything(0, verbose=False)
    module = EncoderTraining(
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
        out=str(tmp_path / "out"), kind=kind, warmup_steps=2, decay_steps=80, embedding=8, dropout=0.1, steadiness=1.0,
    )  # fmt: skip
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=40, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0, log_every_n_steps=1,
    )  # fmt: skip
    data = TinyPairs(batch_size=8, shortest=8, longest=16, rests=0.2)
    trainer.fit(module, data)
    (result,) = trainer.test(module, data, verbose=False)
    assert result["test/retrieval"] > 0.9
    assert result["test/rests"] < 0.3
    tunes = data.tunes["test"]
    embedding = Tunes(str(tmp_path / "out")).load().embed([" ".join(tune.tokens[:10]) for tune in tunes])
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(8))
    with pytest.raises(ConfigError, match=r"model\.init_args\.out"):
        trainer.fit(module, data)


def test_a_batch_holds_two_parts_with_rests_and_the_first_without() -> None:
    data = TunePairs(shortest=24, longest=40, rests=0.6)
    tunes = tunes_of("validation")[:30]
    batch = data.collate(tunes, random.Random(3))
    first, second, plain = (
        [{tuple(note) for note in rows.tolist() if note[0] >= 0} for rows in v] for v in batch["notes"]
    )
    assert batch["family"].tolist() == [tune.cluster for tune in tunes]
    for number, tune in enumerate(tunes):
        whole = rows_of([sounding_notes(" ".join(tune.tokens))])[0].tolist()
        assert first[number] <= plain[number] <= set(map(tuple, whole))
        assert second[number] <= set(map(tuple, whole))
        assert not second[number] & plain[number]
    share = 1 - sum(map(len, first)) / sum(map(len, plain))
    assert 0.2 < share < 0.4  # between 0 and 0.6 of each


def test_half_of_the_first_parts_are_in_other_rhythms() -> None:
    data, tunes = TunePairs(shortest=24, longest=40, rests=0.0, dotted=0.5), tunes_of("validation")[:60]
    first, _, plain = data.collate(tunes, random.Random(3))["notes"]
    changed = (first != plain).any(-1).any(-1)
    assert 0.35 < changed.float().mean() < 0.65
    assert torch.equal(first[..., 2], plain[..., 2])  # every pitch stays
    pairs = TunePairs(shortest=24, longest=40, rests=0.0).collate(tunes, random.Random(3))["notes"]
    assert torch.equal(pairs[0], pairs[2])


def tiny_figures(embedding: int = 6) -> FiguresNetwork:
    torch.manual_seed(0)
    network = FiguresNetwork(FiguresConfig(embedding))
    network.begin([sounding_notes(tune) for tune in random_tunes(40)])
    network.train()(rows_of([sounding_notes(tune) for tune in random_tunes(40)]))  # moves the running mean
    return network.eval()


def in_usual_lengths(tune: str) -> list[Sounding]:
    """The notes in units of their median length, in twelfths."""
    notes = sounding_notes(tune)
    usual = median_low([note.length for note in notes] or [Fraction(1)])
    return [
        note._replace(
            onset=Fraction(round(note.onset / usual * 12), 12), length=Fraction(round(note.length / usual * 12), 12)
        )
        for note in notes
    ]


def test_figures_are_those_of_plain_loops() -> None:
    tunes = random_tunes(12)
    counts = counts_of(rows_of([sounding_notes(tune) for tune in tunes]))
    for family, counts_NV in zip(FAMILIES, counts, strict=True):
        expected = torch.zeros_like(counts_NV)
        for tune, expected_V in zip(tunes, expected, strict=True):
            notes = in_usual_lengths(tune)
            for start, note in enumerate(notes):
                for places in family.places:
                    if start + max(places) >= len(notes):
                        continue
                    later = [(place, notes[start + place]) for place in places]
                    times = [math.floor((then.onset - note.onset) * 2 + Fraction(1, 2)) for _, then in later]
                    steps = [max(-12, min(12, then.pitch - note.pitch)) + 12 for _, then in later]
                    if max(times) > 16:
                        continue
                    values: list[int] = []
                    for (place, then), time_, step in zip(later, times, steps, strict=True):
                        values += {
                            "melody": [time_, step],
                            "rhythm": [time_],
                            "lengths": [step, int(note.length * 12), int(then.length * 12), place],
                        }[family.hears]
                    # The hash: the values as digits to the base 48271, modulo a prime.
                    number = sum((value + 1) * 48271**power for power, value in enumerate(reversed(values)))
                    expected_V[number % (2**31 - 1) % family.buckets] += 1
        assert torch.equal(counts_NV, expected)


def tiny_phrases(embedding: int = 6) -> PhrasesNetwork:
    torch.manual_seed(0)
    network = PhrasesNetwork(PhrasesConfig(embedding, width=8, blocks=2, kernel=3))
    network.train()(rows_of([sounding_notes(tune) for tune in random_tunes(40)]))  # moves the running mean
    return network.eval()


@pytest.mark.parametrize("tiny", [tiny_figures, tiny_phrases])
def test_key_octave_and_bar_signs_change_nothing_at_all(tiny: Callable[[], NotesNetwork]) -> None:
    network, tunes = tiny(), random_tunes(9)
    plain = network.hear(tunes)
    for by in (-5, 1, 7, 12):
        assert torch.equal(network.hear([transposed(tune, by) for tune in tunes]), plain)
    for style in ("none", "double", "everywhere"):
        assert torch.equal(network.hear([rewritten_bars(tune, style) for tune in tunes]), plain)


@pytest.mark.parametrize("tiny", [tiny_figures, tiny_phrases])
def test_the_note_values_change_nothing_at_all(tiny: Callable[[], NotesNetwork]) -> None:
    network, tunes = tiny(), random_tunes(9)
    for factor in (Fraction(1, 2), Fraction(3, 2), Fraction(2)):
        assert torch.equal(network.hear([in_values(tune, factor) for tune in tunes]), network.hear(tunes))


def test_a_note_made_a_rest_adds_no_figure() -> None:
    tune = sounding_notes(" ".join(tunes_of("test")[0].tokens))
    gaps = [note for place, note in enumerate(tune) if place % 5]
    melody = next(place for place, family in enumerate(FAMILIES) if family.hears == "melody")
    whole, fewer = (counts_of(rows_of([notes]))[melody][0] for notes in (tune, gaps))
    # Pairs reach eight notes far and eight eighths: nearly all pairs of the fewer notes were pairs before.
    assert torch.minimum(whole, fewer).sum() > 0.97 * fewer.sum()


@pytest.mark.parametrize("tiny", [tiny_figures, tiny_phrases])
def test_company_and_padding_change_nothing_for_the_encoder(tiny: Callable[[], NotesNetwork]) -> None:
    network, tunes = tiny(), random_tunes(9)
    alone = torch.cat([network.hear([tune]) for tune in tunes])
    torch.testing.assert_close(network.hear(tunes, batch=4), alone)
    assert network.hear([]).shape == (0, 6)
    assert torch.equal(network.hear(["", "| z:1"]), torch.zeros(2, 6))
    assert Tunes().load().embed(["", "C:1"]).norm() == 0  # no figure in a single note


def test_it_begins_with_rarity_and_the_directions_of_most_variance() -> None:
    tunes = [sounding_notes(tune) for tune in random_tunes(40)]
    network = FiguresNetwork(FiguresConfig(30))
    network.begin(tunes)
    present = (torch.cat(counts_of(rows_of(tunes)), -1) > 0).sum(0)
    torch.testing.assert_close(network.rarity, torch.log(41 / (present + 1.0)))
    figures = network.figures(rows_of(tunes))
    centred = figures - figures.mean(0)
    exact = torch.linalg.svd(centred, full_matrices=False)
    found = network.linear(figures).detach()
    # U S of the exact decomposition, divided by the root of S, up to signs and one common factor.
    expected = exact.U[:, :2] * exact.S[:2].sqrt()
    cosines = torch.cosine_similarity(found[:, :2], expected, dim=0).abs()
    assert (cosines > 0.98).all()


@pytest.mark.parametrize("tiny", [tiny_figures, tiny_phrases])
def test_encoder_folder_comes_back_and_another_is_a_problem(tiny: Callable[[], NotesNetwork], tmp_path: Path) -> None:
    network = tiny()
    network.save(tmp_path / "new")
    again = load_encoder(str(tmp_path / "new"))
    # Weights that lie at other addresses may be summed in another order.
    torch.testing.assert_close(again.hear(["C:1 E:2 G:1"]), network.hear(["C:1 E:2 G:1"]))
    assert Tunes(str(tmp_path / "new")).problems() == []
    tiny_network().save(tmp_path / "old")  # an encoder as it was written before
    (problem,) = Tunes(str(tmp_path / "old")).problems()
    assert str(problem).startswith("Key `path`: expected a tune encoder")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["embedding"] == 6


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


@pytest.mark.slow
@pytest.mark.parametrize("path", ["tunes:encoder", "tunes:figures", "tunes:rhythms"])
def test_shipped_encoders_hear_the_tune_and_not_how_it_is_written(path: str) -> None:
    embedder = Tunes(path).load()
    found = table(under(embedder))
    for name, most in {
        "the same tune": 1e-6, "transposed by +7": 1e-6, "transposed by +12": 1e-6, "transposed by -5": 1e-6,
        "bar signs: none": 1e-6, "bar signs: double": 1e-6, "20% of the notes made rests": 0.12,
        "40% of the notes made rests": 0.27, "two halves of one tune": 0.5,
    }.items():  # fmt: skip
        assert found[name] <= most, name
    assert found["two different tunes"] >= 0.85
    assert other_part_found(embedder) > 0.2  # chance is below 0.005


@pytest.mark.slow
def test_table_of_the_melodic_distance() -> None:
    found = table(melodic)
    assert (
        found["40% of the notes made rests"] == found["transposed by +5"] == found["rests behind 10% of the notes"] == 0
    )
    assert found["two halves of one tune"] < found["two different tunes"]


def test_which_tunes_are_degenerate() -> None:
    tune = " ".join(tunes_of("test")[0].tokens[:96])
    loop = "C:1 E:1 G:1 E:1 C:1 E:1 G:1 c:1 | " * 12
    assert Tunes().degenerate(["", tune, loop, "C:1 D:1 E:1 F:1", "z:3 " * 40 + tune]).tolist() == [
        True,
        False,
        True,
        True,
        True,
    ]
