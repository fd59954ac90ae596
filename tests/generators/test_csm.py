"""CSM: tokens, sound and logits are those of transformers; guidance, losses and exports hold behind a depth decoder."""

from __future__ import annotations

import json
from itertools import product as all_of
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_csm import BOOKS, CODES, PAD, tiny_csm
from tiny_fits import FirstToken, fitted
from transformers import CsmForConditionalGeneration, CsmProcessor, GenerationConfig

from cfg_distill import CFGDistillation
from cfg_distill.cli import main
from cfg_distill.generators import CSM, DepthStates, Guidance, Guided, LoRA, Prompt, open_generator, predictions
from cfg_distill.generators.linear import product as product_of_rows
from cfg_distill.losses import LossInputs, PolicyGradient, ReverseKL, chunked, reverse_kl
from cfg_distill.losses.chunked import Cells, sum_over_cells
from cfg_distill.losses.watched import ENTROPIES
from cfg_distill.recipe.command_line import start
from cfg_distill.sampling import Rollout, Sampling, rollout
from cfg_distill.sampling.samples import Samples

PROMPTS = ["Hi there.", "[1]A longer text of the other speaker", "Well?"]
SPECIAL = {"suppress_tokens": list(range(CODES, CODES + 3))}  # what the codec does not have
GUIDANCES = [None, Guidance(2.0), Guidance(3.0, "bad"), Guidance(2.0, mix_states=False)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("csm")
    return [tiny_csm(root / str(seed), seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def csm(folders: list[str]) -> CSM:
    return CSM(folders[0]).load()


def texts(prompts: list[str]) -> list[str]:
    return [prompt if prompt.startswith("[") else f"[0]{prompt}" for prompt in prompts]


def test_greedy_tokens_and_sound_are_those_of_transformers(folders: list[str], csm: CSM) -> None:
    model = CsmForConditionalGeneration.from_pretrained(folders[0])
    processor = CsmProcessor.from_pretrained(folders[0])
    inputs = processor(text=texts(PROMPTS), add_special_tokens=True, padding=True)
    greedy = {"do_sample": False, "max_new_tokens": 24, **SPECIAL}
    depth = {"depth_decoder_do_sample": False, "depth_decoder_suppress_tokens": SPECIAL["suppress_tokens"]}
    output_NTK = model.generate(**inputs, **greedy, **depth)
    sounds = model.generate(**inputs, **greedy, **depth, output_audio=True)
    drawn = rollout(csm, PROMPTS, Sampling(1, 24, temperature=0))
    length = drawn.tokens_NKT.shape[-1]
    assert drawn.mask_NKT.any(-1).all() and torch.equal(
        drawn.tokens_NKT[drawn.mask_NKT], output_NTK.transpose(1, 2)[..., :length][drawn.mask_NKT]
    )
    for clip, sound_L, length in zip(csm.decode(drawn.tokens_NKT, drawn.mask_NKT), sounds, drawn.length_N, strict=True):
        assert clip.rate == csm.sample_rate == 8000 and csm.frame_rate == 1000
        if length == 24:  # transformers plays the padding of clips that ended before
            torch.testing.assert_close(clip.samples[0], sound_L)


def test_a_frame_of_end_tokens_ends_a_clip(csm: CSM) -> None:
    drawn = rollout(csm, PROMPTS, Sampling(24, 20), seed=4)
    ended = 0
    for tokens_KT, mask_KT in zip(drawn.tokens_NKT, drawn.mask_NKT, strict=True):
        num_frames = int(mask_KT[0].sum())
        ends_T = (tokens_KT[: BOOKS - 1, :num_frames] == 0).all(0)
        assert not ends_T[:-1].any()  # one codebook that holds the end token alone ends nothing
        assert mask_KT.sum(-1).tolist() == [num_frames] * (BOOKS - 1) + [num_frames - int(ends_T[-1])]
        assert (tokens_KT[~mask_KT] == PAD).all() and tokens_KT[mask_KT].max() < CODES
        ended += int(ends_T[-1])
    assert 0 < ended < len(drawn.tokens_NKT)
    assert drawn.tokens_NKT[:, 0][drawn.mask_NKT[:, 0]].eq(0).sum() > ended
    clips = csm.decode(drawn.tokens_NKT, drawn.mask_NKT)
    frames = [int(mask_KT.all(0).sum()) for mask_KT in drawn.mask_NKT]
    assert [clip.samples.shape[-1] for clip in clips] == [8 * each for each in frames]


@pytest.mark.parametrize("guidance", GUIDANCES)
def test_scoring_is_stepping(csm: CSM, guidance: Guidance | None) -> None:
    drawn = rollout(csm, PROMPTS, Sampling(6, 12), guidance, seed=5)
    predictor = csm if guidance is None else Guided(csm, guidance)
    mask_NKT = drawn.mask_NKT
    with torch.no_grad():
        logits_NKTV = predictor.predictions(PROMPTS, drawn.tokens_NKT, mask_NKT).whole()
        noise_NKT = torch.where(mask_NKT, drawn.tokens_NKT, torch.randint(0, CODES, mask_NKT.shape))
        again_NKTV = predictor.predictions(PROMPTS, noise_NKT, mask_NKT).whole()
    log_probs_NKT = logits_NKTV.log_softmax(-1).gather(-1, drawn.tokens_NKT.clamp(max=CODES - 1)[..., None])[..., 0]
    torch.testing.assert_close(
        log_probs_NKT[mask_NKT], drawn.log_probs_BGKT.flatten(0, 1)[mask_NKT], atol=1e-4, rtol=1e-4
    )
    # What cells hold that do not exist changes nothing.
    torch.testing.assert_close(again_NKTV[mask_NKT], logits_NKTV[mask_NKT], atol=1e-5, rtol=1e-4)


def of_transformers(folder: str, text: str, frames_TK: torch.Tensor) -> torch.Tensor:
    """The logits of transformers' own two models for the frames of one clip behind a text, ``[K, T, V]``."""
    model = CsmForConditionalGeneration.from_pretrained(folder)
    ids = torch.tensor([CsmProcessor.from_pretrained(folder).tokenizer(text)["input_ids"]])
    with torch.no_grad():
        embedded = [model.embed_text_tokens(ids), model.backbone_model.embed_tokens(frames_TK[None, :-1])]
        hidden = model.backbone_model(inputs_embeds=torch.cat(embedded, 1)).last_hidden_state[0, ids.shape[1] - 1 :]
        inputs = torch.cat([torch.zeros_like(frames_TK[:, :1]), frames_TK[:, :-1]], dim=1)
        deeper = model.depth_decoder(input_ids=inputs, backbone_last_hidden_state=hidden).logits
        return torch.cat([model.lm_head(hidden)[:, None], deeper], dim=1).transpose(0, 1)[..., :CODES]


def test_logits_and_guided_logits_are_those_of_transformers(folders: list[str], csm: CSM) -> None:
    drawn = rollout(csm, PROMPTS, Sampling(1, 9), seed=5)
    with torch.no_grad():
        own_NKTV = csm.logits(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT)
        guided_NKTV = Guided(csm, Guidance(3.0)).predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT).whole()
    for n, text in enumerate(texts(PROMPTS)):
        frames_TK = drawn.tokens_NKT[n].T
        given, dropped = (of_transformers(folders[0], each, frames_TK) for each in (text, ""))
        mask_KT = drawn.mask_NKT[n]
        torch.testing.assert_close(own_NKTV[n][mask_KT], given[mask_KT], atol=1e-5, rtol=1e-4)
        expected = dropped + 3 * (given - dropped)
        torch.testing.assert_close(guided_NKTV[n][mask_KT], expected[mask_KT], atol=1e-4, rtol=1e-4)
        assert (given - dropped)[mask_KT].abs().max() > 0.1


def test_gamma_one_has_no_distance(csm: CSM) -> None:
    drawn = rollout(csm, PROMPTS, Sampling(2, 8), seed=2)
    rows, mask_NKT = (PROMPTS, drawn.tokens_NKT, drawn.mask_NKT), drawn.mask_NKT
    with torch.no_grad():
        student = csm.logits(*rows)
        near, far = (Guided(csm.frozen_copy(), Guidance(scale)).predictions(*rows).whole() for scale in (1.0, 3.0))
    kl, count = reverse_kl(student, near, mask_NKT)
    assert kl / count < 1e-6 and count == mask_NKT.sum()
    assert reverse_kl(student, far, mask_NKT)[0] / count > 1e-3


def inputs_of(csm: CSM, teacher: CSM, drawn: Rollout, guidance: Guidance) -> LossInputs:
    with torch.no_grad():
        guided = Guided(teacher, guidance).predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT)
    student = csm.predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT)
    samples = Samples(PROMPTS, [""] * len(drawn.tokens_NKT), drawn)
    return LossInputs(student, guided, drawn.tokens_NKT, drawn.mask_NKT, Sampling(2, 9), samples)


def test_the_loss_in_chunks_is_the_plain_one(folders: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """No logits of more than two cells are made at a time; values and gradients are those of whole logits."""
    made: list[int] = []

    def counted(rows: torch.Tensor, *rest: Any) -> torch.Tensor:
        made.append(rows.numel() // rows.shape[-1])
        return product_of_rows(rows, *rest)

    monkeypatch.setattr(predictions, "product", counted)  # of the teacher
    monkeypatch.setattr(chunked, "product", counted)  # of the student
    csm, teacher = (CSM(folder).load() for folder in folders)
    drawn = rollout(csm, PROMPTS, Sampling(2, 9), seed=5)
    found = {}
    for chunk in (0, 2 * CODES):
        inputs = inputs_of(csm, teacher, drawn, Guidance(2.0))
        made.clear()
        assert isinstance(inputs.student, DepthStates)
        terms = {"kl": ReverseKL(codebook_weights=[1.0, 0.5, 2.0]).cells(inputs), **ENTROPIES}
        total, sums = sum_over_cells(
            inputs.student, inputs.teacher, inputs.tokens_NKT, inputs.mask_NKT, terms, {"kl": 1.0}, chunk
        )
        assert made and (max(made) <= 2) == bool(chunk)
        csm.zero_grad()
        total.backward()
        gradients = {name: parameter.grad.clone() for name, parameter in csm.named_parameters()}
        found[chunk] = (total.detach(), sums, gradients)
    # Gradients reach 45, and a millionth of that is rounding.
    torch.testing.assert_close(*found.values(), atol=5e-5, rtol=1e-4)
    assert all(gradient.abs().max() > 0 for name, gradient in gradients.items() if "norm" not in name)


def test_the_score_term_makes_the_gradient_of_the_sequence(tmp_path: Path) -> None:
    """Two frames of two codebooks of two codes: all 16 clips are enumerated. A token also changes the rest of its frame."""
    folders = [tiny_csm(tmp_path / str(seed), seed, codes=2, books=2, end=4, sharpness=4.0) for seed in range(2)]
    csm, teacher = (CSM(folder).load() for folder in folders)
    tokens_NKT = torch.tensor(list(all_of(range(2), repeat=4))).view(16, 2, 2)
    mask_NKT = torch.ones_like(tokens_NKT, dtype=torch.bool)

    def log_prob_N(generator: CSM) -> torch.Tensor:
        log_probs_NKTV = generator.logits(["Hi"], tokens_NKT, mask_NKT).log_softmax(-1)
        return log_probs_NKTV.gather(-1, tokens_NKT[..., None]).sum((1, 2, 3))

    own_N = log_prob_N(csm)
    torch.testing.assert_close(own_N.exp().sum(), torch.tensor(1.0))
    (own_N.exp() * (own_N - log_prob_N(teacher).detach())).sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in csm.named_parameters()}

    csm.zero_grad()
    with torch.no_grad():
        theirs = teacher.predictions(["Hi"], tokens_NKT, mask_NKT)
    student = csm.predictions(["Hi"], tokens_NKT, mask_NKT)
    rolled = Rollout(tokens_NKT[None], mask_NKT[None], torch.zeros_like(tokens_NKT[None], dtype=torch.float32))
    inputs = LossInputs(student, theirs, tokens_NKT, mask_NKT, Sampling(16, 2), Samples(["Hi"], [""] * 16, rolled))
    term = ReverseKL(score_term=True).cells(inputs)
    weight_N = own_N.detach().exp()

    def weighed(cells: Cells) -> torch.Tensor:
        return term(cells) * weight_N[cells.row_M]

    sum_over_cells(student, theirs, tokens_NKT, mask_NKT, {"": weighed}, {"": 1.0}, 4)[0].backward()
    for name, parameter in csm.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)


@pytest.fixture(scope="module")
def trained(folders: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[CFGDistillation, list[float], Path]:
    """A student of divergence and reward, its KL per step, and its checkpoint."""
    place = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    module = CFGDistillation(
        CSM(folders[0]),
        {"kl": ReverseKL(), "reward": PolicyGradient(FirstToken(), weight=0.01)},
        Guidance(1.5),
        Sampling(4, 8),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        measure_gradients_every=0,
        micro_batch=4,
    )
    return module, fitted(module, PROMPTS, place), place


@pytest.mark.slow
def test_a_student_learns_the_guidance(trained: tuple[CFGDistillation, list[float], Path]) -> None:
    # The end of the fit has compared the teacher's hash with that of its beginning.
    _, kls, place = trained
    assert sum(kls[-8:]) < 0.8 * sum(kls[:8]), kls
    kept = torch.load(place / "last.ckpt", weights_only=True)["state_dict"]
    assert any("depth_decoder" in name for name in kept) and not any("codec" in name for name in kept)


@pytest.mark.slow
def test_the_export_is_transformers_own(
    trained: tuple[CFGDistillation, list[float], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _, place = trained
    monkeypatch.chdir(place)
    assert main(["export", "--checkpoint", "last.ckpt", "--out", "student"]) == 0
    model = CsmForConditionalGeneration.from_pretrained("student")
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in module.student.model.state_dict().items()
    )
    for settings in (model.generation_config, model.depth_decoder.generation_config):
        assert (settings.do_sample, settings.top_k, settings.top_p, settings.temperature) == (True, 0, 1.0, 1.0)
    torch.manual_seed(1)
    inputs = CsmProcessor.from_pretrained("student")(text=texts(PROMPTS), add_special_tokens=True, padding=True)
    assert model.generate(**inputs, max_new_tokens=4).shape[::2] == (3, BOOKS)
    student = open_generator("student")
    assert type(student) is CSM and not student.problems()
    drawn = rollout(student.load(), PROMPTS, Sampling(1, 6), seed=1)
    with torch.no_grad():
        rows = (PROMPTS, drawn.tokens_NKT, drawn.mask_NKT)
        torch.testing.assert_close(student.logits(*rows), module.student.logits(*rows))
    sounds = (each.decode(drawn.tokens_NKT, drawn.mask_NKT) for each in (student, module.student))
    for after, before in zip(*sounds, strict=True):  # the exported codec plays what the trained student played
        assert (
            after.rate == before.rate and torch.equal(after.samples, before.samples) and before.samples.abs().max() > 0
        )
    words = ["--prompt", "Hi there.", "--seconds", "0.01", "--samples", "2", "--out", "sounds"]
    assert main(["generate", "--model", "student", *words]) == 0
    assert len(list(Path("sounds").glob("*.wav"))) == 2


def test_an_adapter_of_backbone_and_depth_decoder(folders: list[str], csm: CSM, tmp_path: Path) -> None:
    from peft import PeftModel

    torch.manual_seed(0)
    student = CSM(folders[0], lora=LoRA(rank=2)).load()
    names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[1] for name in names} == {"backbone_model", "depth_decoder"}
    assert all("lora_" in name for name in names)
    drawn = rollout(csm, PROMPTS, Sampling(2, 6), seed=1)
    rows, mask_NKT = (PROMPTS, drawn.tokens_NKT, drawn.mask_NKT), drawn.mask_NKT
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        own, base = student.logits(*rows)[mask_NKT], csm.logits(*rows)[mask_NKT]
        assert (own - base).abs().max() > 0.1
        torch.testing.assert_close(student.frozen_copy().logits(*rows)[mask_NKT], base)  # the teacher
        student.save(tmp_path / "adapter")
        settings = GenerationConfig.from_pretrained(tmp_path / "adapter")
        assert settings.top_k == settings.depth_decoder_top_k == 0
        opened = open_generator(str(tmp_path / "adapter"))
        assert type(opened) is CSM and not opened.problems()
        undialled = open_generator(str(tmp_path / "adapter"), dial=0.0).load()
        torch.testing.assert_close(undialled.logits(*rows)[mask_NKT], base)
        begun = CSM(folders[0], lora=LoRA(rank=4)).load()
        begun.load_weights(str(tmp_path / "adapter"))
        with_peft = CSM(folders[0]).load()
        whole = with_peft._whole()
        layers = PeftModel.from_pretrained(whole, tmp_path / "adapter").base_model.model
        assert not any("lora" in name for name, _ in layers.codec_model.named_modules())
        with_peft.model = layers
        student.merge_adapter().save(tmp_path / "whole")
        for other in (opened.load(), begun, with_peft, student, CSM(str(tmp_path / "whole")).load()):
            # Large adapters: these logits are up to 9e-4 from those of float64.
            torch.testing.assert_close(other.logits(*rows)[mask_NKT], own, atol=5e-3, rtol=1e-4)
    (problem,) = CSM(folders[0], lora=LoRA(targets=["q_proj", "codebooks_head"])).problems()
    assert problem.path == "lora.targets" and "`codebooks_head` matches none" in str(problem)


def test_problems(folders: list[str], csm: CSM, tiny_model: str, tmp_path: Path) -> None:
    assert not CSM(folders[0]).problems()
    assert "expected a CSM (model_type csm), but" in str(CSM(tiny_model).problems()[0])
    assert "does not exist" in str(CSM("./nowhere").problems()[0])
    (problem,) = csm.problems_of_prompts([Prompt("Hi", melody="a.wav")])
    assert "carries the condition `melody`" in str(problem)
    config = json.loads(Path(folders[0], "config.json").read_text())
    for name, change, said in (
        ("num_codebooks", 4, "as many codebooks in backbone, depth decoder and codec, but"),
        (
            "vocab_size",
            CODES + 4,
            f"expected the {CODES} codes of the codec in equal vocabularies of backbone and depth decoder",
        ),
    ):
        folder = tmp_path / name
        folder.mkdir()
        for file in Path(folders[0]).iterdir():
            (folder / file.name).symlink_to(file)
        (folder / "config.json").unlink()
        changed = config | {"depth_decoder_config": config["depth_decoder_config"] | {name: change}}
        (folder / "config.json").write_text(json.dumps(changed))
        (problem,) = CSM(str(folder)).problems()  # before weights are loaded
        assert problem.path == "path" and said in str(problem)


def test_the_recipe_has_no_problems(folders: list[str], folder: Path) -> None:
    path = f"--model.generator.init_args.path={folders[0]}"
    start("fit", ["--config", "recipes/speech/csm.yaml", path], check_only=True)
