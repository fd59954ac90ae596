"""MusicGen against transformers' own generate and forward: mono of 4 codebooks, stereo of 8, and melody."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_audio import tone
from tiny_musicgen import PAD, tiny_musicgen
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import MusicgenForConditionalGeneration, MusicgenMelodyForConditionalGeneration

from cfg_distill.audio import write_audio
from cfg_distill.distillation.module import fingerprint
from cfg_distill.distillation.sharding import cut
from cfg_distill.errors import ConfigError, Context
from cfg_distill.generators import Guided, Prompt
from cfg_distill.generators.delay import delayed, undelayed
from cfg_distill.generators.length import problems_of_seconds
from cfg_distill.generators.musicgen import MusicGen
from cfg_distill.guidance import Guidance
from cfg_distill.losses import reverse_kl
from cfg_distill.sampling import Sampling, rollout

KINDS = ["mono", "stereo", "melody"]
PROMPTS = ["rock", "calm jazz piano song", "80s synth pop"]
FRAMES = 12


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """Our generator, and the same folder in transformers. The prompts of a melody model bring a melody."""
    folder = tmp_path_factory.mktemp(request.param)
    path = tiny_musicgen(folder / "model", request.param)
    ours = MusicGen(path, text_positions=6).load().eval()
    kinds = {"melody": MusicgenMelodyForConditionalGeneration}
    theirs = kinds.get(request.param, MusicgenForConditionalGeneration).from_pretrained(path)
    prompts = PROMPTS
    if request.param == "melody":
        prompts = []
        for number, text in enumerate(PROMPTS):
            write_audio(folder / f"{number}.wav", tone(220.0 * 2 ** (number / 3), seconds=0.7))
            prompts.append(Prompt(text, melody=str(folder / f"{number}.wav")))
    return SimpleNamespace(ours=ours, theirs=theirs, prompts=prompts, path=path, kind=request.param)


def inputs_of(pair, prompt):
    """What a user of transformers passes to generate for one prompt."""
    ids = pair.ours.shared.tokenizer(str(prompt))["input_ids"]
    if pair.kind != "melody":
        return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
    length = pair.ours.text_positions
    padded = torch.tensor([ids + [0] * (length - len(ids))])
    inputs = {"input_ids": padded, "attention_mask": (torch.arange(length) < len(ids)).long()[None]}
    if isinstance(prompt, Prompt):
        clip = pair.ours.shared._chroma  # compared with an independent one in test_musicgen_melody.py
        from cfg_distill.audio import read_audio

        inputs["input_features"] = clip(read_audio(prompt.conditions["melody"], clip.rate))[None]
    return inputs


def generate(pair, prompt, **settings):
    """The tokens of transformers' greedy continuation of one prompt, [K, F], and its sound."""
    seen = []
    codec = pair.theirs.audio_encoder
    plain = codec.decode
    codec.decode = lambda codes, **rest: (seen.append(codes), plain(codes, **rest))[1]
    try:
        sound = pair.theirs.generate(
            **inputs_of(pair, prompt),
            do_sample=False,
            max_new_tokens=FRAMES + max(pair.ours.delays),
            **{"guidance_scale": 1.0} | settings,
        )
    finally:
        del codec.decode
    channels = torch.stack([codes[0, 0] for codes in seen], dim=1).flatten(0, 1) if len(seen) == 2 else seen[0][0, 0]
    return channels.tolist(), sound[0]


def greedy(pair, prompts, guidance=None):
    """Our greedy tokens, [K, F] a prompt, and the sound."""
    drawn = rollout(pair.ours, prompts, Sampling(samples=2, max_new_tokens=FRAMES, temperature=0), guidance)
    frames = undelayed(drawn.tokens_NKT, pair.ours.delays)
    assert torch.equal(frames[::2], frames[1::2])
    return frames[::2].tolist(), pair.ours.decode(drawn.tokens_NKT, drawn.mask_NKT)[::2]


@pytest.mark.parametrize("scale", [1.0, 1.5, 3.0])
def test_greedy_rollouts_and_their_sound_are_those_of_transformers(pair, scale):
    theirs = [generate(pair, prompt, guidance_scale=scale) for prompt in pair.prompts]
    tokens, sounds = greedy(pair, pair.prompts, Guidance(scale))
    assert tokens == [tokens for tokens, _ in theirs]
    for ours, (_, sound) in zip(sounds, theirs, strict=True):
        assert ours.rate == pair.ours.sample_rate
        assert ours.samples.shape == (2 if pair.kind == "stereo" else 1, FRAMES * 32)
        torch.testing.assert_close(ours.samples, sound, rtol=1e-3, atol=1e-5)
    if scale == 1.0:
        assert len({str(row) for row in tokens}) == len(tokens)
        assert tokens != greedy(pair, pair.prompts, Guidance(3.0))[0]


def test_logits_are_those_of_transformers_forward_pass(pair):
    """Under prompts, under none, and under a text that takes the place of none."""
    drawn = rollout(pair.ours, pair.prompts, Sampling(samples=2, max_new_tokens=FRAMES), seed=1)
    tokens_NKT, mask_NKT = drawn.tokens_NKT, drawn.mask_NKT
    fed_NKS = torch.nn.functional.pad(tokens_NKT, (1, 0), value=PAD)[..., :-1]
    for prompts in (pair.prompts, ["noise loud"]):
        with torch.no_grad():
            ours_NKTV = pair.ours.logits(prompts, tokens_NKT, mask_NKT)
            repeats = len(tokens_NKT) // len(prompts)
            for row, fed_KS in enumerate(fed_NKS):
                output = pair.theirs(**inputs_of(pair, prompts[row // repeats]), decoder_input_ids=fed_KS)
                theirs_KTV = output.logits[:, -tokens_NKT.shape[-1] :]
                torch.testing.assert_close(ours_NKTV[row], theirs_KTV, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("negative", [None, "noise loud"])
def test_scoring_gives_the_log_probs_of_sampling(pair, negative):
    guidance = Guidance(2.5, negative=negative)
    sampling = Sampling(samples=3, max_new_tokens=FRAMES, temperature=0.9)
    for stream, used in ((pair.ours, None), (Guided(pair.ours, guidance), guidance)):
        drawn = rollout(pair.ours, pair.prompts, sampling, used, seed=4)
        with torch.no_grad():
            logits_NKTV = stream.predictions(pair.prompts, drawn.tokens_NKT, drawn.mask_NKT).whole()
        mask = drawn.mask_NKT
        tokens_NKT = drawn.tokens_NKT.where(mask, 0)
        scored = sampling.log_probs(logits_NKTV).gather(-1, tokens_NKT[..., None])[..., 0]
        torch.testing.assert_close(scored[mask], drawn.log_probs_BGKT.flatten(0, 1)[mask], rtol=1e-3, atol=1e-4)


def test_the_null_condition_is_the_empty_prompt_and_no_other(pair):
    drawn = rollout(pair.ours, pair.prompts, Sampling(samples=1, max_new_tokens=5), seed=2)
    tokens, mask = drawn.tokens_NKT, drawn.mask_NKT
    with torch.no_grad():
        null, empty, mixed, text = (
            pair.ours.logits(prompts, tokens, mask) for prompts in ([None], [""], [None, "rock", ""], ["rock"])
        )
    torch.testing.assert_close(null, empty)
    torch.testing.assert_close(mixed[[0, 2]], null[[0, 2]])
    assert (text - null)[mask].abs().max() > 1e-3


def test_no_guidance_and_equal_weights_have_no_divergence(pair):
    drawn = rollout(pair.ours, pair.prompts, Sampling(samples=4, max_new_tokens=FRAMES), seed=5)
    teacher = Guided(pair.ours.frozen_copy(), Guidance(1.0))
    with torch.no_grad():
        student_NKTV = pair.ours.logits(pair.prompts, drawn.tokens_NKT, drawn.mask_NKT)
        teacher_NKTV = teacher.predictions(pair.prompts, drawn.tokens_NKT, drawn.mask_NKT).whole()
    total, count = reverse_kl(student_NKTV, teacher_NKTV, drawn.mask_NKT)
    assert abs(total / count) < 1e-6
    cells = (student_NKTV.log_softmax(-1) - teacher_NKTV.log_softmax(-1)).abs().amax(-1)[drawn.mask_NKT]
    assert cells.max() < 1e-5


def test_cells_that_do_not_exist_change_nothing(pair):
    """Any token there gives the same predictions; NaN there gives the same loss and gradient."""
    drawn = rollout(pair.ours, pair.prompts, Sampling(samples=2, max_new_tokens=6), seed=6)
    tokens_NKT, mask_NKT = drawn.tokens_NKT, drawn.mask_NKT
    assert not mask_NKT.all()
    assert (tokens_NKT[~mask_NKT] == PAD).all() and (tokens_NKT[mask_NKT] < PAD).all()
    odd_NKT = torch.where(mask_NKT, tokens_NKT, 7)
    losses = []
    for tokens in (tokens_NKT, odd_NKT):
        logits_NKTV = pair.ours.logits(pair.prompts, tokens, mask_NKT)
        teacher_NKTV = (logits_NKTV.detach() * 2).masked_fill(~mask_NKT[..., None], torch.nan)
        spoilt_NKTV = logits_NKTV.masked_fill(~mask_NKT[..., None], torch.nan) if losses else logits_NKTV
        total, count = reverse_kl(spoilt_NKTV, teacher_NKTV, mask_NKT)
        assert count == mask_NKT.sum() == tokens_NKT.shape[0] * tokens_NKT.shape[1] * 6
        gradients = torch.autograd.grad(total, [pair.ours.model.lm_heads[0].weight])
        losses.append((total, *gradients))
    for first, second in zip(*losses, strict=True):
        assert first.isfinite().all()
        torch.testing.assert_close(first, second)


def test_the_pattern_is_that_of_transformers_and_its_inverse(pair):
    frames_NKF = torch.arange(2 * pair.ours.num_codebooks * 7).reshape(2, -1, 7) % PAD
    tokens_NKT = delayed(frames_NKF, pair.ours.delays, PAD)
    assert torch.equal(undelayed(tokens_NKT, pair.ours.delays), frames_NKF)
    # Theirs has the start token in front.
    start_NK1 = torch.full((2, pair.ours.num_codebooks, 1), PAD)
    given = torch.cat([start_NK1, frames_NKF], dim=-1).flatten(0, 1)
    length = 1 + tokens_NKT.shape[-1]
    _, pattern = pair.theirs.decoder.build_delay_pattern_mask(given[:, :1], PAD, length)
    pattern_NKS = pattern.reshape(2, -1, length)
    assert torch.equal(pattern_NKS[..., 1:] == -1, tokens_NKT != PAD)


def test_prompts_are_encoded_once_and_shared_with_the_teacher(pair, monkeypatch):
    calls = []
    encoder = pair.ours.shared.whole.text_encoder
    hook = encoder.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].tolist()), with_kwargs=True
    )
    pair.ours.shared._kept.clear()
    teacher = Guided(pair.ours.frozen_copy(), Guidance(3.0, negative="noise"))
    for seed in range(2):
        drawn = rollout(pair.ours, pair.prompts, Sampling(samples=2, max_new_tokens=3), seed=seed)
        pair.ours.logits(pair.prompts, drawn.tokens_NKT, drawn.mask_NKT)
        teacher.predictions(pair.prompts, drawn.tokens_NKT, drawn.mask_NKT)
    hook.remove()
    assert len(calls) == len(pair.prompts) + 1


def test_only_the_decoder_is_a_module_of_the_generator(pair):
    names = [name for name, _ in pair.ours.named_parameters()]
    assert names and all(name.startswith("model.") for name in names)
    assert {name.removeprefix("model.") for name in pair.ours.state_dict()} == set(pair.theirs.decoder.state_dict())
    teacher = pair.ours.frozen_copy()
    assert teacher.shared is pair.ours.shared
    assert not any(p.requires_grad for p in teacher.parameters())
    mine = {p.data_ptr() for p in pair.ours.parameters()}
    assert not mine & {p.data_ptr() for p in teacher.parameters()}
    assert fingerprint(teacher.model) == fingerprint(pair.theirs.decoder)


def test_a_group_reads_its_prompt_once(pair):
    rows = []
    hook = pair.ours.model.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    rollout(pair.ours, pair.prompts, Sampling(samples=5, max_new_tokens=3), Guidance(2.0))
    hook.remove()
    codebooks = pair.ours.num_codebooks
    assert rows[0] == (2 * 3 * codebooks, 1)
    assert rows[1:] == [(2 * 3 * 5 * codebooks, 1)] * (2 + max(pair.ours.delays))


def test_a_clip_beyond_the_position_table_is_refused(pair):
    taken = {"mono": 3, "stereo": 3, "melody": 3 + 5 + 6}[pair.kind]
    with pytest.raises(ConfigError, match=f"at most {64 - taken}, since .*, but got 62"):
        rollout(pair.ours, pair.prompts, Sampling(max_new_tokens=62))
    longest = rollout(pair.ours, pair.prompts[:1], Sampling(samples=1, max_new_tokens=64 - taken))
    assert longest.mask_BGKT.sum() == (64 - taken) * pair.ours.num_codebooks
    # The same is said before weights are loaded.
    unloaded = MusicGen(pair.ours.path, text_positions=6)
    assert unloaded.longest_sample == 64 - taken
    assert not Sampling(max_new_tokens=64 - taken).problems(Context(longest=unloaded.longest_sample))
    assert Sampling(max_new_tokens=65 - taken).problems(Context(longest=unloaded.longest_sample))
    assert not problems_of_seconds(unloaded, (64 - taken) / 100)
    (problem,) = problems_of_seconds(unloaded, (65 - taken) / 100)
    assert problem.path == "seconds" and problem.told({"seconds": "--seconds"}).startswith("Option `--seconds`: exp")


def test_a_checkpoint_that_is_no_musicgen_is_named(tmp_path):
    from tiny import tiny_folder

    (problem,) = MusicGen(tiny_folder(tmp_path)).problems()
    assert "model_type llama" in str(problem) and "musicgen" in str(problem)
    (missing,) = MusicGen(str(tmp_path / "none")).problems()
    assert "does not exist" in str(missing)
    (tmp_path / "config.json").write_text('{"model_type": "unheard"}')
    (unknown,) = MusicGen(str(tmp_path)).problems()
    assert unknown.path == "path" and "is of model_type unheard by its config.json" in str(unknown)


def test_a_sharded_decoder_gives_the_same(pair):
    """One shard of one, by FSDP2: its parameters are distributed tensors between passes."""
    drawn = rollout(pair.ours, pair.prompts, Sampling(samples=2, max_new_tokens=6), seed=3)
    sharded = pair.ours.frozen_copy()
    init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        cut(sharded, init_device_mesh("cpu", (1,)))
        assert all(isinstance(parameter, DTensor) for parameter in sharded.parameters())
        again = rollout(sharded, pair.prompts, Sampling(samples=2, max_new_tokens=6), seed=3)
        with torch.no_grad():
            scored = sharded.predictions(pair.prompts, drawn.tokens_NKT, drawn.mask_NKT).whole()
            plain_NKTV = pair.ours.logits(pair.prompts, drawn.tokens_NKT, drawn.mask_NKT)
    finally:
        destroy_process_group()
    assert torch.equal(again.tokens_BGKT, drawn.tokens_BGKT)
    torch.testing.assert_close(scored, plain_NKTV)
