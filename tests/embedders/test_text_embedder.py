"""TransformerEmbedder on a tiny BERT, against transformers called by hand one text at a time."""

import shutil

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5Model

from cfg_distill.embedders import TransformerEmbedder
from cfg_distill.errors import ConfigError

TEXTS = ["w1 w2 w3 w4 w5", "w2", "", "w3 w3 w1", "w5 w4 w3 w2 w1 w0 w1 w2 w3 w4", "w2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(f"w{n}" for n in range(6))]
    tokenizer = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=10,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def by_hand(folder: str, text: str, pooling: str, max_length: int = 16) -> torch.Tensor:
    ids = [1, *(4 + int(word[1:]) for word in text.split()), 2]
    if len(ids) > max_length:
        ids = [*ids[: max_length - 1], 2]
    with torch.no_grad():
        hidden_SD = BertModel.from_pretrained(folder).eval()(input_ids=torch.tensor([ids])).last_hidden_state[0]
    pooled_D = hidden_SD[0] if pooling == "cls" else hidden_SD.mean(0)
    return pooled_D / pooled_D.norm()


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_padding_order_and_batches_do_not_matter(folder, pooling, batch_size):
    embedder = TransformerEmbedder(folder, pooling, batch_size, max_length=16).load()
    embedder.train()  # dropout must not reach a reward
    with torch.autocast("cpu", dtype=torch.bfloat16):
        embedding_ND = embedder.embed(TEXTS)
    assert embedding_ND.dtype == torch.float32
    assert not embedding_ND.requires_grad
    expected_ND = torch.stack([by_hand(folder, text, pooling) for text in TEXTS])
    torch.testing.assert_close(embedding_ND, expected_ND, rtol=0, atol=1e-5)
    assert (expected_ND[0] - expected_ND[1]).norm() > 0.1


def test_long_texts_are_cut(folder):
    embedder = TransformerEmbedder(folder, max_length=6).load()
    torch.testing.assert_close(embedder.embed(TEXTS)[4], by_hand(folder, TEXTS[4], "mean", 6), rtol=0, atol=1e-5)


def test_constructing_loads_nothing_and_loading_freezes(folder):
    embedder = TransformerEmbedder(folder, max_length=16)
    assert not list(embedder.parameters())
    assert embedder.problems() == []
    model = embedder.load().model
    assert embedder.load().model is model
    assert not any(parameter.requires_grad for parameter in embedder.parameters())


def test_a_tokenizer_that_adds_nothing_reads_an_empty_text(folder):
    embedder = TransformerEmbedder(folder, max_length=16).load()
    embedder.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    embedding_ND = embedder.embed(["", "w1 w2", ""])
    assert embedding_ND.isfinite().all()
    torch.testing.assert_close(embedding_ND[0], embedding_ND[2])


def test_problems_name_the_key(folder, tmp_path):
    (positions,) = TransformerEmbedder(folder).problems()
    assert str(positions).startswith("Key `max_length`: expected at most the 16 positions")
    assert "got 256" in str(positions)
    (missing,) = TransformerEmbedder(str(tmp_path / "nothing")).problems()
    assert missing.path == "path"
    found = TransformerEmbedder(folder, pooling="max", batch_size=0, max_length=0).problems()
    assert len(found) == 3
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="could not load it"):
        TransformerEmbedder(str(tmp_path)).load()


def test_a_model_with_a_decoder_is_read_by_its_encoder(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "t5")
    config = T5Config(vocab_size=10, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0)
    T5Model(config).save_pretrained(tmp_path / "t5")
    embedder = TransformerEmbedder(str(tmp_path / "t5"), max_length=8)
    assert not embedder.problems()
    found_ND = embedder.load().embed(["w1 w2"])
    ids = embedder.tokenizer(["w1 w2"], return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states_SD = T5EncoderModel.from_pretrained(tmp_path / "t5").eval()(input_ids=ids).last_hidden_state[0]
    torch.testing.assert_close(found_ND[0], torch.nn.functional.normalize(states_SD.mean(0), dim=-1))
