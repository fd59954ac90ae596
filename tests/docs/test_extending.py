"""docs/extending.md: its code is taken out of the page, run by its own commands, and compared with something else."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fenced import SHORT_FIT, Block, blocks
from tiny import tiny_folder, tiny_tokenizer

from cfg_distill.cli import main

PAGE = "docs/extending.md"
RENDERER = "Render samples of your own model"
BLOCKS = blocks(PAGE)
SECTIONS = list(dict.fromkeys(block.heading for block in BLOCKS))
SHORT = {
    "fit": SHORT_FIT,
    "evaluate": ["--samples=2", "--max-new-tokens=6", "--out=points"],
    "export": [],
    "generate": ["--samples=1", "--max-new-tokens=6"],
}
# What TensorBoard shows of each part once it has run.
SEEN = {
    "A reward": "train/diversity_reward",
    "An embedder": "train/diversity_reward",
    "A loss": "train/entropy_per_token",
    "A callback": "weight/diversity",
    "A metric": "val/openings",
    "A generator": "train/kl_per_token",
}


def logged(events: Path) -> list[str]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(events)).Reload().Tags()["scalars"]


def section(heading: str) -> list[Block]:
    return [block for block in BLOCKS if block.heading == heading]


def write_files(found: list[Block], folder: Path) -> None:
    for block in found:
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def tiny_t5(folder: Path) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0, eos_token_id=2,
        decoder_start_token_id=0, dropout_rate=0.1,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3.0)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_commands_of_a_section_run(heading: str, desk: Path) -> None:
    found = section(heading)
    write_files(found, desk)
    if heading == "A generator":
        tiny_t5(desk / "my-t5")
    if heading == RENDERER:
        (block,) = (block for block in found if block.language == "json")
        tiny_folder(desk / "my-model")
        (desk / "my-model" / "cfg_distill.json").write_text(block.text)
    (desk / "my_prompts.txt").write_text("w1 w2\nw3\nw4 w5\n")
    commands = [words for block in found if block.language == "sh" for words in block.commands()]
    assert commands, "a section that says nothing to run"
    for program, command, *words in commands:
        assert program == "cfg-distill"
        assert main([command, *words, *SHORT[command]]) == 0
    if any(words[1] == "fit" for words in commands):
        (events,) = desk.glob("runs/*/version_0/events.out.tfevents.*")
        assert SEEN[heading] in logged(events)
    if heading == "A generator":
        from transformers import AutoModelForSeq2SeqLM

        assert AutoModelForSeq2SeqLM.from_pretrained(desk / "my-student").config.d_model == 16
    if heading == "A metric":
        assert "openings" in (desk / "points" / "front.json").read_text()
    if heading == RENDERER:
        (page,) = (desk / "pages").iterdir()
        assert page.name == "01-w1-w2-1.html" and page.read_text().startswith("<h1>w1 w2</h1><p>w")
        assert len([*desk.glob("points/samples/01 my-model/*.html")]) == 6
        assert list(json.loads((desk / "points" / "front.json").read_text())["systems"][0]["diversity"]) == ["distinct"]


def test_the_page_leaves_no_block_out() -> None:
    for block in BLOCKS:
        assert block.language in ("sh", "python", "yaml") or (block.language, block.heading) == ("json", RENDERER)
        assert block.language in ("sh", "json") or block.file is not None, (
            f"a block under `{block.heading}` has no file name"
        )


# The parts do what they say


def samples_of(outputs: list[str], prompts: int) -> Any:
    from cfg_distill.sampling.samples import Samples

    return Samples([f"w{number}" for number in range(prompts)], outputs, rollout=None)  # type: ignore[arg-type]


def module_of(heading: str, desk: Path) -> Any:
    write_files(section(heading), desk)
    name = next(block.file for block in section(heading) if block.language == "python")
    assert name is not None
    return importlib.import_module(name.removesuffix(".py"))


def test_rewards(desk: Path) -> None:
    module = module_of("A reward", desk)
    samples = samples_of(["a b c", "a b d", "x y z", "x"], prompts=1)
    distance_11 = module.BigramDistance().pairs(samples)
    assert distance_11[0, 0].tolist() == pytest.approx([0, 2 / 3, 1, 0])  # a sample without a bigram earns nothing
    assert torch.equal(distance_11, distance_11.mT)
    looping = samples_of(["a a a a", "a b c d"], prompts=1)
    assert module.Fresh(n=1).score(looping).tolist() == [pytest.approx([0.25, 1.0])]
    kinds = samples_of(["a b c", "d e f", "a b c", "a b c", "", "", "", ""], prompts=2)
    share_2 = module.Kinds().value(module.Kinds().features(kinds))
    assert share_2.tolist() == pytest.approx([4**0.25 * (4 / 3) ** 0.75 / 4, 0.25])  # three of a kind and one; nothing


def test_embedder(desk: Path) -> None:
    from cfg_distill.embedders import cosine_distances, embedded

    letters = module_of("An embedder", desk).Letters(power=1.0).load()
    distance_NN = cosine_distances(embedded(letters, ["aab", "BAA", "zz", " "])[None])[0]
    assert distance_NN[0].tolist() == pytest.approx([0, 0, 1, 0])  # the empty text has no distance from any other
    (problem,) = type(letters)(power=0).problems()
    assert str(problem) == "Key `power`: expected a number above 0, but got 0."


def test_loss(desk: Path) -> None:
    from cfg_distill.generators import Logits
    from cfg_distill.losses import LossInputs
    from cfg_distill.sampling import Sampling

    module = module_of("A loss", desk)
    torch.manual_seed(0)
    student_NKTV = torch.randn(3, 1, 4, 7, requires_grad=True)
    mask_NKT = torch.tensor([[[1, 1, 0, 0]], [[1, 1, 1, 1]], [[1, 0, 0, 0]]]).bool()

    inputs = LossInputs(
        Logits(student_NKTV),
        Logits(torch.zeros(3, 1, 4, 7)),
        torch.zeros(3, 1, 4, dtype=torch.long),
        mask_NKT,
        Sampling(),
        samples=None,  # type: ignore[arg-type]
    )
    expected = torch.distributions.Categorical(logits=student_NKTV[mask_NKT]).entropy().sum()
    value = module.EntropyBonus()(inputs)
    torch.testing.assert_close(value, -expected)
    value.backward()
    assert not student_NKTV.grad[~mask_NKT].any()  # type: ignore[index]


def test_callback(desk: Path) -> None:
    from tiny_fits import batches, student_of, trainer

    callback = module_of("A callback", desk).SwitchOn(below=1e-6)
    student = student_of(tiny_folder(desk / "model"))
    before = float(student.losses["diversity"].weight)
    trainer([callback], desk, max_steps=2).fit(student, batches(4))
    assert float(student.losses["diversity"].weight) == 0
    assert not callback.is_on
    resumed = type(callback)(below=1e6)
    resumed.load_state_dict(callback.state_dict())
    trainer([resumed], desk, max_steps=1).fit(student, batches(4))
    assert resumed.is_on
    assert float(student.losses["diversity"].weight) == pytest.approx(before)
    (problem,) = type(callback)(below=-1).problems()
    assert str(problem) == "Key `below`: expected a number above 0, but got -1."


def test_metric(desk: Path) -> None:
    metric = module_of("A metric", desk).DistinctOpenings(words=2)
    metric.update(samples_of(["a b c", "a b d", "a c", "b"], prompts=2))
    assert metric.per_prompt().tolist() == [0.5, 1.0]


def test_generator_agrees_with_transformers(desk: Path) -> None:
    from cfg_distill.sampling import Sampling, rollout

    reference = tiny_t5(desk / "my-t5")
    generator = module_of("A generator", desk).EncoderDecoder(str(desk / "my-t5")).load().eval()
    prompts = ["w1 w2 w3", "w4", "w5 w6"]
    drawn = rollout(generator, prompts, Sampling(samples=1, max_new_tokens=9, temperature=0))
    batch = generator.encode(prompts).tensors
    expected = reference.generate(**batch, max_new_tokens=9, do_sample=False, num_beams=1)[:, 1:]
    tokens_NT = drawn.tokens_NKT[:, 0]
    assert torch.equal(tokens_NT, expected[:, : tokens_NT.shape[1]])
    assert len({tuple(row) for row in tokens_NT.tolist()}) > 1

    # Scored at once, the log-probabilities are those of decoding step by step.
    drawn = rollout(generator, prompts, Sampling(samples=3, max_new_tokens=9), seed=1)
    scored_NKTV = generator.logits(prompts, drawn.tokens_NKT, drawn.mask_NKT).log_softmax(-1)
    picked_NKT = scored_NKTV.gather(-1, drawn.tokens_NKT[..., None])[..., 0]
    torch.testing.assert_close(
        picked_NKT[drawn.mask_NKT], drawn.log_probs_BGKT.flatten(0, 1)[drawn.mask_NKT], atol=1e-5, rtol=1e-4
    )
    assert generator.decode(drawn.tokens_NKT, drawn.mask_NKT)[0].startswith("w")
