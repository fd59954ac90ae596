"""Dia against transformers' own generate and processor; stepping against scoring; a training, and its export."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tiny_dia import BEGIN, CODES, DELAYS, END, PAD, tiny_dia
from tiny_fits import fitted
from torch import Tensor
from transformers import (
    DacConfig,
    DacModel,
    DiaConfig,
    DiaFeatureExtractor,
    DiaForConditionalGeneration,
    DiaProcessor,
    DiaTokenizer,
)

from cfg_distill import CFGDistillation
from cfg_distill.cli import main
from cfg_distill.embedders import CLAP
from cfg_distill.errors import ConfigError
from cfg_distill.generators import Guided, LoRA, open_generator
from cfg_distill.generators.dia import Dia
from cfg_distill.guidance import Guidance
from cfg_distill.losses import PolicyGradient, ReverseKL, reverse_kl
from cfg_distill.rewards import PairwiseDiversity
from cfg_distill.sampling import Rollout, Sampling, rollout

pytestmark = [
    pytest.mark.filterwarnings("ignore:`max_length` is ignored when `padding`:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`:FutureWarning"),
]
PROMPTS = ["[S1] Hi there.", "[S2] No", "[S1] what? [S2] Well: é"]
SPECIAL = {
    "delay_pattern": list(DELAYS),
    "eos_token_id": END,
    "pad_token_id": PAD,
    "bos_token_id": BEGIN,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Models that end at other places: seldom, early, at once."""
    made = tmp_path_factory.mktemp("dia")
    return [tiny_dia(made / f"{seed}", seed, end_bias=bias) for seed, bias in ((0, 8.0), (1, 0.0), (2, 8.0))]


@pytest.fixture(scope="module")
def dia(folders: list[str]) -> Dia:
    return Dia(folders[0]).load()


def transformers_greedy(folder: str, scale: float | None, num_frames: int) -> Tensor:
    """``[B, K, T]`` as generate has it, the begin position taken off."""
    model = DiaForConditionalGeneration.from_pretrained(folder)
    inputs = DiaProcessor.from_pretrained(folder)(text=PROMPTS, **SPECIAL)
    # Its length counts the end token, forced when no other comes, and the positions of the longest delay.
    longest = num_frames + 1 + max(DELAYS)
    settings = {"do_sample": False, "temperature": 1.0, "top_k": None, "guidance_scale": scale}
    return model.generate(**inputs, max_new_tokens=longest, **settings).transpose(1, 2)[..., 1:]


@pytest.mark.parametrize("scale", [None, 2.0])
def test_greedy_samples_are_those_of_transformers(folders: list[str], scale: float | None) -> None:
    lengths = []
    for folder in folders:
        guidance = None if scale is None else Guidance(1 + scale)  # its formula starts from the prompt's logits
        drawn = rollout(Dia(folder).load(), PROMPTS, Sampling(1, 12, temperature=0), guidance)
        expected_NKT = transformers_greedy(folder, scale, 12)
        length = min(expected_NKT.shape[-1], drawn.tokens_NKT.shape[-1])
        mask_NKT = drawn.mask_NKT[..., :length]
        assert not drawn.mask_NKT[..., length:].any()
        assert torch.equal(drawn.tokens_NKT[..., :length][mask_NKT], expected_NKT[..., :length][mask_NKT])
        # Where theirs has tokens of sound, ours has them too: the end tokens of later codebooks are no choice of the model.
        theirs_NKT = expected_NKT[..., :length] < CODES
        ours_NKT = mask_NKT & (drawn.tokens_NKT[..., :length] != END)
        assert torch.equal(ours_NKT, theirs_NKT)
        lengths += drawn.length_N.tolist()
    assert {1, 12} < set(lengths)  # some end at once, some in the middle, some are cut


def test_the_published_pattern(tmp_path: Path) -> None:
    """Nine codebooks, delays 0, 8, ..., 15 and the special tokens that the processor knows without being told."""
    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
        "head_dim": 8,
        "num_key_value_heads": 2,
    }
    decoder = {**small, "cross_hidden_size": 16, "cross_head_dim": 8, "cross_num_key_value_heads": 2}
    heads = {"num_attention_heads": 2}
    config = DiaConfig(
        encoder_config={**small, **heads}, decoder_config={**decoder, **heads, "cross_num_attention_heads": 2}
    )
    model = DiaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.5)
    model.save_pretrained(tmp_path)
    DacModel(DacConfig(encoder_hidden_size=2, decoder_hidden_size=16, hidden_size=16)).save_pretrained(tmp_path / "dac")
    codec = DacModel.from_pretrained(tmp_path / "dac")
    processor = DiaProcessor(DiaFeatureExtractor(sampling_rate=44100), DiaTokenizer(), codec)
    processor.save_pretrained(tmp_path)
    dia = Dia(str(tmp_path)).load()
    assert dia.delays == (0, 8, 9, 10, 11, 12, 13, 14, 15) and (dia.end_tokens, dia.pad_token) == ((1024,), 1025)
    assert dia.max_positions == 3072 and dia.frame_rate == pytest.approx(86.13, abs=0.01)
    settings = {"do_sample": False, "temperature": 1.0, "top_k": None, "guidance_scale": 2.0}
    output = model.eval().generate(**processor(text=PROMPTS), max_new_tokens=20 + 16, **settings)
    drawn = rollout(dia, PROMPTS, Sampling(1, 20, temperature=0), Guidance(3.0))
    expected_NKT = output.transpose(1, 2)[..., 1 : 1 + drawn.tokens_NKT.shape[-1]]
    assert torch.equal(drawn.tokens_NKT[drawn.mask_NKT], expected_NKT[drawn.mask_NKT])
    for clip, expected_L in zip(
        dia.decode(drawn.tokens_NKT, drawn.mask_NKT), processor.batch_decode(output), strict=True
    ):
        torch.testing.assert_close(clip.samples[0], expected_L)


def test_sampled_tokens_are_drawn_from_the_models_vocabulary(dia: Dia) -> None:
    drawn = rollout(dia, PROMPTS, Sampling(8, 12), seed=3)
    later_NKT = drawn.tokens_NKT[:, 1:][drawn.mask_NKT[:, 1:]]
    assert later_NKT.max() < CODES  # no end token, no special token
    first_NT = drawn.tokens_NKT[:, 0][drawn.mask_NKT[:, 0]]
    assert first_NT.max() == END
    assert (drawn.tokens_NKT[~drawn.mask_NKT] == PAD).all()


@pytest.mark.parametrize("guidance", [None, Guidance(3.0), Guidance(2.0, "[S1] bad")])
def test_scoring_is_stepping(dia: Dia, guidance: Guidance | None) -> None:
    drawn = rollout(dia, PROMPTS, Sampling(6, 12), guidance, seed=5)
    ends_N = (drawn.tokens_NKT[:, 0] == END).any(-1)
    assert ends_N.any() and not ends_N.all()
    stream = dia if guidance is None else Guided(dia, guidance)
    with torch.no_grad():
        logits_NKTV = stream.predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT).whole()
    log_probs_NKT = logits_NKTV.log_softmax(-1).gather(-1, drawn.tokens_NKT.clamp(max=END)[..., None])[..., 0]
    mask_NKT = drawn.mask_NKT
    torch.testing.assert_close(
        log_probs_NKT[mask_NKT], drawn.log_probs_BGKT.flatten(0, 1)[mask_NKT], atol=1e-4, rtol=1e-4
    )
    # What cells hold that do not exist changes nothing.
    noise_NKT = torch.where(mask_NKT, drawn.tokens_NKT, torch.randint(0, CODES, mask_NKT.shape))
    with torch.no_grad():
        again_NKTV = stream.predictions(PROMPTS, noise_NKT, mask_NKT).whole()
    torch.testing.assert_close(again_NKTV[mask_NKT], logits_NKTV[mask_NKT])


def test_logits_are_those_of_transformers(folders: list[str], dia: Dia) -> None:
    drawn = rollout(dia, PROMPTS, Sampling(1, 9), seed=5)
    length = drawn.tokens_NKT.shape[-1]
    # The inputs as the processor would delay them: written out by hand, frame by frame.
    inputs_NTK = torch.full((3, length, 3), PAD)
    for n in range(3):
        end = int(drawn.length_N[n]) - int(END in drawn.tokens_NKT[n, 0].tolist())
        for k, delay in enumerate(DELAYS):
            for t in range(length):
                frame = t - delay - 1
                inputs_NTK[n, t, k] = (
                    BEGIN
                    if frame < 0
                    else PAD
                    if frame > end
                    else END
                    if frame == end
                    else drawn.tokens_NKT[n, k, t - 1]
                )
    model = DiaForConditionalGeneration.from_pretrained(folders[0])
    text = DiaProcessor.from_pretrained(folders[0])(text=PROMPTS, **SPECIAL)
    with torch.no_grad():
        logits = model(text["input_ids"], text["attention_mask"], decoder_input_ids=inputs_NTK, use_cache=False).logits
        own_NKTV = dia.logits(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT)
    expected_NKTV = logits.view(3, 3, length, -1)[..., : END + 1].clone()
    expected_NKTV[:, 1:, :, END] = -1e4
    mask_NKT = drawn.mask_NKT
    torch.testing.assert_close(own_NKTV[mask_NKT][:, :END], expected_NKTV[mask_NKT][:, :END], atol=1e-5, rtol=1e-4)
    assert (own_NKTV[:, 1:][mask_NKT[:, 1:]].softmax(-1)[:, END] == 0).all()


def test_the_null_condition_is_that_of_transformers_whatever_its_length(dia: Dia) -> None:
    tokens_NKT = torch.randint(0, CODES, (1, 3, 6))
    mask_NKT = torch.tensor(DELAYS)[:, None] <= torch.arange(6)
    with torch.no_grad():
        null_NKTV = dia.logits([None], tokens_NKT, mask_NKT[None])
        for length in (2, 17):
            zeros_NS = torch.zeros(1, length, dtype=torch.long)
            hidden_NSD = dia.model.model.encoder(zeros_NS, torch.ones_like(zeros_NS)).last_hidden_state
            inputs_NKT = torch.cat([dia._begin(1), dia._inputs(tokens_NKT, mask_NKT[None], torch.tensor([6]))], dim=-1)
            read = {"hidden": hidden_NSD, "mask": torch.ones_like(zeros_NS)}
            zeros_NKTV = dia._predict(inputs_NKT[..., :-1], read).whole()
            torch.testing.assert_close(null_NKTV, zeros_NKTV)
        assert (dia.logits(["[S1] Hi"], tokens_NKT, mask_NKT[None]) - null_NKTV)[..., :END].abs().max() > 0.01


def test_a_prompt_has_one_reading_whatever_lies_beside_it(dia: Dia) -> None:
    drawn = rollout(dia, PROMPTS, Sampling(2, 5), seed=1)
    with torch.no_grad():
        together = dia.logits(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT)
        for b, prompt in enumerate(PROMPTS):
            rows = slice(2 * b, 2 * b + 2)
            alone = dia.logits([prompt], drawn.tokens_NKT[rows], drawn.mask_NKT[rows])
            torch.testing.assert_close(alone, together[rows], atol=1e-5, rtol=1e-4)


def test_sound_is_that_of_the_processor(folders: list[str], dia: Dia) -> None:
    processor = DiaProcessor.from_pretrained(folders[0])
    output = transformers_greedy(folders[0], None, 12)
    with_begin = torch.cat([torch.full((3, 3, 1), BEGIN), output], dim=-1)
    expected = processor.batch_decode(with_begin.transpose(1, 2), **SPECIAL)
    drawn = rollout(dia, PROMPTS, Sampling(1, 12, temperature=0))
    sounds = dia.decode(drawn.tokens_NKT, drawn.mask_NKT)
    assert len({clip.samples.shape[-1] for clip in sounds}) > 1
    for clip, expected_L in zip(sounds, expected, strict=True):
        assert clip.rate == dia.sample_rate == 8000
        torch.testing.assert_close(clip.samples[0], expected_L)
    assert dia.frame_rate == 2000.0
    # Ended at once: no sound.
    nothing = dia.decode(
        torch.full((1, 3, 4), END), torch.tensor([[[True] + [False] * 3]] + [[[False] * 4]] * 2).view(1, 3, 4)
    )
    assert nothing[0].samples.shape == (1, 0)


def test_gamma_one_has_no_distance(dia: Dia) -> None:
    drawn = rollout(dia, PROMPTS, Sampling(2, 8), seed=2)
    with torch.no_grad():
        student = dia.logits(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT)
        teacher = (
            Guided(dia.frozen_copy(), Guidance(1.0)).predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT).whole()
        )
        far = Guided(dia, Guidance(3.0)).predictions(PROMPTS, drawn.tokens_NKT, drawn.mask_NKT).whole()
    kl, count = reverse_kl(student, teacher, drawn.mask_NKT)
    assert kl / count < 1e-6 and count == drawn.mask_NKT.sum()
    kl, count = reverse_kl(student, far, drawn.mask_NKT)
    assert math.isfinite(kl) and kl / count > 1e-3


@pytest.fixture(scope="module")
def trained(folders: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[CFGDistillation, list[float], Path]:
    """A student of the whole method, CLAP reward included, its KL a step, and its checkpoint."""
    from tiny_audio import tiny_clap

    place = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    reward = PairwiseDiversity(CLAP(tiny_clap(place / "clap")))
    module = CFGDistillation(
        Dia(folders[0]),
        {"kl": ReverseKL(), "diversity": PolicyGradient(reward, weight=0.01)},
        Guidance(3.0),
        Sampling(4, 10),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        measure_gradients_every=0,
    )
    return module, fitted(module, PROMPTS, place), place


@pytest.mark.slow
def test_a_student_learns_the_guidance(trained: tuple[CFGDistillation, list[float], Path]) -> None:
    # The end of the fit has compared the teacher's hash with that of its beginning.
    _, kls, _ = trained
    assert sum(kls[-5:]) < 0.75 * sum(kls[:5])


@pytest.mark.slow
def test_the_export_is_transformers_own(
    trained: tuple[CFGDistillation, list[float], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    module, _, place = trained
    monkeypatch.chdir(place)
    assert main(["export", "--checkpoint", "last.ckpt", "--out", "student"]) == 0
    model = DiaForConditionalGeneration.from_pretrained("student")
    assert all(
        torch.equal(value, model.state_dict()[name]) for name, value in module.student.model.state_dict().items()
    )
    settings = model.generation_config
    assert (settings.guidance_scale, settings.top_k, settings.temperature) == (1.0, 0, 1.0)
    text = DiaProcessor.from_pretrained("student")(text=PROMPTS, **SPECIAL)
    torch.manual_seed(1)
    assert model.generate(**text, max_new_tokens=8).shape[::2] == (3, 3)
    generator = open_generator("student")
    assert type(generator) is Dia and not generator.problems()
    words = ["--prompt", "[S1] Hi there.", "--seconds", "0.01", "--samples", "2", "--out", "sounds"]
    assert main(["generate", "--model", "student", *words]) == 0
    assert len(list(Path("sounds").glob("*.wav"))) == 2


def test_an_adapter_of_encoder_and_decoder(folders: list[str], dia: Dia, tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = Dia(folders[0], lora=LoRA(rank=2)).load()
    names = [name for name, parameter in student.named_parameters() if parameter.requires_grad]
    assert names and all("lora_" in name and "logits_dense" not in name for name in names)
    drawn = rollout(dia, PROMPTS, Sampling(2, 6), seed=1)
    rows = (PROMPTS, drawn.tokens_NKT, drawn.mask_NKT)
    mask_NKT = drawn.mask_NKT
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
        own = student.logits(*rows)[mask_NKT]
        base = dia.logits(*rows)[mask_NKT]
        assert (own - base)[:, :END].abs().max() > 0.1
        torch.testing.assert_close(student.frozen_copy().logits(*rows)[mask_NKT], base)  # the teacher
        student.save(tmp_path / "adapter")
        opened = open_generator(str(tmp_path / "adapter"))
        assert type(opened) is Dia and not opened.problems()
        begun = Dia(folders[0], lora=LoRA(rank=4)).load()
        begun.load_weights(str(tmp_path / "adapter"))
        student.merge_adapter().save(tmp_path / "whole")
        for other in (opened.load(), begun, student, Dia(str(tmp_path / "whole")).load()):
            # Large adapters: these logits are up to 9e-4 from those of float64.
            torch.testing.assert_close(other.logits(*rows)[mask_NKT], own, atol=5e-3, rtol=1e-4)
    (problem,) = Dia(folders[0], lora=LoRA(targets=["q_proj", "logits_dense"])).problems()
    assert problem.path == "lora.targets"
    assert "`logits_dense` matches none" in str(problem) and "gate_up_proj" in str(problem)


def test_weights_of_another_model(folders: list[str], tiny_model: str, tmp_path: Path) -> None:
    generator = Dia(folders[0]).load()
    before = generator.model.logits_dense.weight.clone()
    generator.load_weights(folders[1])
    assert not torch.equal(generator.model.logits_dense.weight, before)
    model = DiaForConditionalGeneration.from_pretrained(folders[0])
    model.config.decoder_config.num_hidden_layers = 1
    DiaForConditionalGeneration(model.config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"do not fit the model .*decoder\.layers\.1\."):
        generator.load_weights(str(tmp_path))


def test_problems(folders: list[str], dia: Dia, tiny_model: str, tmp_path: Path) -> None:
    assert not Dia(folders[0]).problems()
    assert "expected a Dia (model_type dia), but" in str(Dia(tiny_model).problems()[0])
    assert "does not exist" in str(Dia("./nowhere").problems()[0])
    DiaForConditionalGeneration.from_pretrained(folders[0]).save_pretrained(tmp_path)  # no processor
    assert "Key `path`: Model" in str(Dia(str(tmp_path)).problems()[0])
    with pytest.raises(ConfigError, match=r"takes more bytes than the 64 that `.*` reads. Shorten it"):
        dia.encode(["x" * 65])
    unloaded = Dia(folders[0])
    (problem,) = unloaded.problems_of_prompts(["x" * 65, "x" * 64])
    assert "takes more bytes than the 64" in str(problem) and not hasattr(unloaded, "model")
    with pytest.raises(ConfigError, match="expected at most"):
        rollout(dia, PROMPTS, Sampling(1, 126), None)


def test_the_end_token_counts_in_codebook_zero_only(dia: Dia) -> None:
    drawn: Rollout = rollout(dia, PROMPTS, Sampling(8, 12), seed=3)
    for tokens_KT, mask_KT in zip(drawn.tokens_NKT, drawn.mask_NKT, strict=True):
        sound = tokens_KT[0][mask_KT[0]].tolist()
        frames = len(sound) - (sound[-1] == END)
        assert END not in sound[:-1]
        assert mask_KT.sum(-1).tolist() == [len(sound), frames, frames]
        assert [int(row.int().argmax()) for row in mask_KT[1:]] == [2 if frames else 0, 3 if frames else 0]
