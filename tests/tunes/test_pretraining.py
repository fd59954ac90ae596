"""Pre-training: batches, the likelihood, the optimiser, and the shipped model."""

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from cfg_distill.errors import ConfigError
from cfg_distill.folders import resolve
from cfg_distill.tunes.corpus import Tune, tunes_of
from cfg_distill.tunes.data import IGNORED, DropConditions, LengthBuckets, TunesData, collate
from cfg_distill.tunes.encoder import EncoderTraining
from cfg_distill.tunes.judge import JudgeTraining
from cfg_distill.tunes.optimizer import MuonAdamW, parameter_groups
from cfg_distill.tunes.pretraining import Pretraining, add_dropout, nll
from cfg_distill.tunes.tokenizer import build_tokenizer, sequence_of
from cfg_distill.tunes.training import FolderTraining, warmup_cosine

TUNES = [
    Tune("a", "irish", "jig", "6/8", "major", ("C:1", "E:1", "G:1", "|", "C:3", "||")),
    Tune("b", "scottish", "reel", "4/4", "minor", ("G:2", "E:1", "G:1", "C:2", "|", "E:1", "C:3", "||")),
]
VOCABULARY = ("|", "||", "C:1", "C:2", "C:3", "E:1", "G:1", "G:2")


class FewTunes(TunesData):
    """The data module over two tunes, without the corpus."""

    def setup(self, stage: str | None = None) -> None:
        self.tokenizer = build_tokenizer(VOCABULARY, self.max_length)
        rows = [self.tokenizer.convert_tokens_to_ids(sequence_of(tune)) for tune in TUNES]
        self.rows = {"train": rows, "validation": rows, "test": rows}
        null = self.tokenizer.convert_tokens_to_ids(["<origin:any>", "<rhythm:any>", "<metre:any>", "<mode:any>"])
        self.drop = DropConditions(null, self.drop_each, self.drop_all)
        self.drop_everything = DropConditions(null, together=1.0)
        self.draw = random.Random(self.seed)


def fit(out: Path, **settings: Any) -> lightning.Trainer:
    torch.manual_seed(0)
    module = Pretraining(
        optimizer=lambda groups: MuonAdamW(groups, lr=1e-2, rest_lr=1e-2), out=str(out), width=32, layers=2, heads=2,
        intermediate=64, dropout=0.0, warmup_steps=5, decay_steps=60, max_length=64, **settings,
    )  # fmt: skip
    trainer = lightning.Trainer(
        max_epochs=60, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, check_val_every_n_epoch=60, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, datamodule=FewTunes(drop_each=0.0, drop_all=0.0, max_length=64))
    return trainer


@pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and on the number of batches.
def test_two_tunes_are_learnt_by_heart_and_the_folder_is_plain(tmp_path: Path) -> None:
    trainer = fit(tmp_path)
    assert trainer.callback_metrics["val/nll"] < 0.25
    assert trainer.callback_metrics["val/nll_null"] > trainer.callback_metrics["val/nll"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for tune in TUNES:
        prompt = tokenizer(" ".join(sequence_of(tune)[:5]), return_tensors="pt")
        sample = model.generate(**prompt, do_sample=False, max_new_tokens=20, use_cache=True)[0, 5:]
        assert tokenizer.decode(sample, skip_special_tokens=True) == " ".join(tune.tokens)
    settings = model.generation_config
    assert (settings.do_sample, settings.temperature, settings.top_k, settings.top_p) == (True, 1.0, 0, 1.0)
    assert settings.eos_token_id == tokenizer.eos_token_id
    with pytest.raises(ConfigError, match=r"model.init_args.out.*holds one.*overwrite"):
        fit(tmp_path)


def test_nll_is_the_mean_of_the_predicted_tokens_alone() -> None:
    rows = [[9, 9, 9, 9, 1, 5, 6, 2], [9, 9, 9, 9, 1, 7, 2]]
    batch = collate(rows, pad=0)
    assert batch["tokens"].tolist()[1] == [9, 9, 9, 9, 1, 7, 2, 0]
    assert batch["labels"].tolist() == [[IGNORED] * 5 + [5, 6, 2], [IGNORED] * 5 + [7, 2, IGNORED]]
    logits_NTV = torch.randn(2, 8, 10, generator=torch.Generator().manual_seed(0))
    logits_NTV[1, 6:] = float("nan")  # what the padding sees
    log_p = torch.log_softmax(logits_NTV, -1)
    expected = -(log_p[0, 4, 5] + log_p[0, 5, 6] + log_p[0, 6, 2] + log_p[1, 4, 7] + log_p[1, 5, 2])
    sum_, count = nll(logits_NTV, batch["labels"])
    assert count == 5
    torch.testing.assert_close(sum_, expected)


def test_padding_on_the_right_does_not_change_what_is_predicted() -> None:
    torch.manual_seed(0)
    network = tiny_network().eval()
    short = torch.tensor([[1, 2, 3]])
    padded = torch.tensor([[1, 2, 3, 0, 0], [4, 3, 2, 1, 5]])
    torch.testing.assert_close(network(short).logits, network(padded).logits[:1, :3])


def tiny_network() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=12, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            intermediate_size=24, tie_word_embeddings=True,
        )
    )  # fmt: skip


def test_dropout_acts_in_training_alone_and_leaves_the_names() -> None:
    network, plain = tiny_network(), tiny_network()
    plain.load_state_dict(network.state_dict())
    add_dropout(network, 0.5)
    tokens = torch.tensor([[1, 2, 3, 4]])
    torch.testing.assert_close(network.eval()(tokens).logits, plain.eval()(tokens).logits)
    network.train()
    assert not torch.allclose(network(tokens).logits, network(tokens).logits)


def test_conditions_are_dropped_as_often_as_asked() -> None:
    drop, draw = DropConditions([90, 91, 92, 93], each=0.1, together=0.1), random.Random(0)
    rows = [drop([1, 2, 3, 4, 5, 6], draw) for _ in range(20_000)]
    assert all(row[4:] == [5, 6] for row in rows)
    all_null = sum(row[:4] == [90, 91, 92, 93] for row in rows) / len(rows)
    one_null = sum(row[2] == 92 for row in rows) / len(rows)
    assert all_null == pytest.approx(0.1 + 0.9 * 0.1**4, abs=0.01)
    assert one_null == pytest.approx(0.1 + 0.9 * 0.1, abs=0.01)


def test_buckets_hold_every_tune_once_within_the_budget() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(30, 200) for _ in range(300)]
    sampler = LengthBuckets(lengths, budget=1000, seed=3)
    first, second = list(sampler), list(sampler)
    for batches in (first, second):
        assert sorted(index for batch in batches for index in batch) == list(range(300))
        assert all(len(batch) * max(lengths[index] for index in batch) <= 1000 for batch in batches)
    padded = sum(len(batch) * max(lengths[index] for index in batch) for batch in first)
    assert sum(lengths) > 0.85 * padded
    assert first != second
    assert list(LengthBuckets(lengths, 1000, seed=3)) == first
    shares = [list(LengthBuckets(lengths, 1000, 3, rank, 2)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1]) == len(first) // 2
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == first[: len(first) // 2 * 2]


def test_the_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [warmup_cosine(step, 10, 110) for step in range(120)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.5)
    assert rates[110:] == [pytest.approx(0.0, abs=1e-12)] * 10


def test_muon_takes_the_matrices_and_adamw_the_rest() -> None:
    """Each half is compared with torch's own optimiser on the same gradients."""
    torch.manual_seed(0)
    networks = [tiny_network() for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    both = MuonAdamW(parameter_groups(networks[0]), lr=0.01, rest_lr=0.02, weight_decay=0.1)
    named = dict(networks[1].named_parameters())
    matrices = [parameter for name, parameter in named.items() if "proj" in name]
    rest = [parameter for name, parameter in named.items() if "proj" not in name]
    apart = [
        torch.optim.Muon(matrices, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=0.02, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    tokens = torch.randint(0, 12, (4, 9))
    for step in range(4):
        if step == 2:  # a resumed optimiser goes on as the unbroken one
            saved = both.state_dict()
            both = MuonAdamW(parameter_groups(networks[0]))
            both.load_state_dict(saved)
        for network, optimizers in zip(networks, ([both], apart), strict=True):
            network.zero_grad()
            network(tokens, labels=tokens).loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    for own, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        torch.testing.assert_close(own, other)


def test_a_scheduler_reaches_both_halves() -> None:
    optimizer = MuonAdamW(parameter_groups(tiny_network()), lr=0.4, rest_lr=0.2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert optimizer.muon.param_groups[0]["lr"] == pytest.approx(0.2)
    assert optimizer.adamw.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.slow
def test_the_shipped_model_knows_tunes_it_has_not_seen() -> None:
    folder = resolve("tunes:base")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert sum(parameter.numel() for parameter in model.parameters()) <= 2_500_000
    tunes = tunes_of("validation")[:40]
    rows = [tokenizer.convert_tokens_to_ids(sequence_of(tune)) for tune in tunes]
    assert tokenizer.unk_token_id not in {number for row in rows for number in row}
    null = tokenizer.convert_tokens_to_ids(["<origin:any>", "<rhythm:any>", "<metre:any>", "<mode:any>"])
    with torch.no_grad():
        found = SimpleNamespace()
        for name, chosen in (("given", rows), ("dropped", [[*null, *row[4:]] for row in rows])):
            batch = collate(chosen, tokenizer.pad_token_id)
            sum_, count = nll(model(batch["tokens"]).logits, batch["labels"])
            setattr(found, name, float(sum_ / count))
    assert found.given < 1.3
    assert found.given < found.dropped < found.given + 0.2


@pytest.mark.parametrize(
    ("training", "settings", "key"),
    [
        (JudgeTraining, {"width": 0}, "width"),
        (JudgeTraining, {"kernel": 4}, "kernel"),
        (JudgeTraining, {"smoothing": 1.0}, "smoothing"),
        (EncoderTraining, {"embedding": 0}, "embedding"),
        (EncoderTraining, {"temperature": 0.0}, "temperature"),
        (Pretraining, {"heads": 3}, "width"),
        (Pretraining, {"layers": 0}, "layers"),
        (Pretraining, {"decay_steps": 0}, "decay_steps"),
    ],
)
def test_settings_of_no_network_are_refused(training: type[FolderTraining], settings: dict[str, Any], key: str) -> None:
    training().setup("fit")
    with pytest.raises(ConfigError, match=f"^Key `model.init_args.{key}`: expected [^\\n]*$"):
        training(**settings).setup("fit")
