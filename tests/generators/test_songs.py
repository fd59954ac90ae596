"""Language models of songs: the prompt is that of their own scripts, only codes are drawn, guidance drops what theirs drops."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from tiny_songs import ACE_PROMPT, NUM_CODES, YUE_PROMPT, tiny_ace_step, tiny_yue
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

from cfg_distill import CFGDistillation
from cfg_distill.cli import main
from cfg_distill.data import PromptData, read_prompts
from cfg_distill.data.reading import together
from cfg_distill.errors import ConfigError
from cfg_distill.folders import RECIPES
from cfg_distill.folders.history import of_base
from cfg_distill.generators import AceStep, CausalLM, Guidance, Guided, LoRA, Prompt, YuE, open_generator
from cfg_distill.generators.songs import Songs
from cfg_distill.losses import ReverseKL
from cfg_distill.recipe.command_line import start
from cfg_distill.sampling import Sampling, rollout

ACE = Prompt("warm jazz", **ACE_PROMPT)
SYSTEM = (
    "<|im_start|>system\n# Instruction\nGenerate audio semantic tokens based on the given conditions:\n\n<|im_end|>\n"
)
HEAD = "Generate music from the given lyrics segment by segment.\n[Genre] soft pop\n[verse]\nHello\n\n\n[chorus]\nAgain\n\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("songs")
    return {"ace_step": tiny_ace_step(root / "ace"), "yue": tiny_yue(root / "yue")}


@pytest.fixture(scope="module")
def ace(folders: dict[str, str]) -> AceStep:
    return AceStep(folders["ace_step"]).load()


@pytest.fixture(scope="module")
def yue(folders: dict[str, str]) -> YuE:
    return YuE(folders["yue"]).load()


def test_the_prompt_of_ace_step(ace: AceStep) -> None:
    """Written out as ACE-Step's own tokenizer makes it of the messages that its script hands over."""
    thought = "bpm: 96\nduration: 30\nkeyscale: F# minor\ntimesignature: 4"
    user = "<|im_start|>user\n# Caption\nwarm jazz\n\n# Lyric\n[verse]\nHello\n<|im_end|>\n"
    begin = "<|im_start|>assistant\n<think>\n"
    assert ace.tokenizer.decode(ace._rows([ACE])[0]) == f"{SYSTEM}{user}{begin}{thought}\n</think>\n\n<|im_end|>\n"
    for said in (None, "NO USER INPUT"):  # its default: lyrics and caption stay
        (negative,) = ace.negatives([ACE], Guidance(2.0, said))
        assert ace.tokenizer.decode(ace._rows([negative])[0]) == f"{SYSTEM}{user}{begin}\n</think>\n\n<|im_end|>\n"
    (negative,) = ace.negatives([ACE], Guidance(2.0, "noise"))
    assert ace._text(negative) == f"{SYSTEM}{user}{begin}\n</think>\n\n<|im_end|>\n".replace("warm jazz", "noise")
    assert "timesignature: 6/8\n" in ace._text(Prompt("a", **{**ACE_PROMPT, "timesignature": "6/8"}))


def test_the_prompt_of_yue(yue: YuE) -> None:
    def ids(text: str) -> list[int]:
        return yue.tokenizer(text)["input_ids"]

    soa, xcodec = yue.tokenizer.convert_tokens_to_ids(["<SOA>", "<xcodec>"])
    expected = [*ids(HEAD), *ids("[start_of_segment]"), *ids("[verse]\nHello\n\n"), soa, xcodec]
    prompt = Prompt("soft pop ", **YUE_PROMPT)
    assert yue._rows([prompt, None]) == [expected, [xcodec]]
    assert yue.negatives([prompt], Guidance(1.5)) == [None]
    assert yue.codes is yue.codes  # a sample is decoded token by token
    assert yue.negatives([prompt], Guidance(1.5, "harsh")) == [Prompt("harsh", **YUE_PROMPT)]


class Only(LogitsProcessor):
    """Forbid all but some tokens, as the scripts of both models do."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.full_like(scores, -torch.inf).index_copy_(1, torch.tensor(self.tokens), scores[:, self.tokens])


@pytest.mark.parametrize("name", ["ace_step", "yue"])
def test_greedy_tokens_are_those_of_transformers_under_guidance(name: str, folders: dict[str, str]) -> None:
    generator: Songs = {"ace_step": AceStep, "yue": YuE}[name](folders[name]).load()
    prompt = ACE if name == "ace_step" else Prompt("soft pop", **YUE_PROMPT)
    model = AutoModelForCausalLM.from_pretrained(folders[name])
    rows = torch.tensor(generator._rows([prompt]))
    (negative,) = generator.negatives([prompt], Guidance(2.0))
    output = model.generate(
        rows,
        attention_mask=torch.ones_like(rows),
        max_new_tokens=12,
        do_sample=False,
        guidance_scale=2.0,
        # None: transformers then keeps the prompt's last token, as YuE's script has it
        negative_prompt_ids=None if negative is None else torch.tensor(generator._rows([negative])),
        logits_processor=LogitsProcessorList([Only([*generator.codes, *generator.end_tokens])]),
        eos_token_id=list(generator.end_tokens),
        pad_token_id=generator.pad_token,
    )[0, rows.shape[1] :]
    drawn = rollout(generator, [prompt], Sampling(1, 12, temperature=0), Guidance(2.0))
    assert drawn.tokens_NKT[0, 0][drawn.mask_NKT[0, 0]].tolist() == output.tolist()


def test_nothing_but_codes_and_the_end_is_drawn(ace: AceStep) -> None:
    drawn = rollout(ace, [ACE], Sampling(64, 12), seed=3)
    tokens = set(drawn.tokens_NKT[drawn.mask_NKT].tolist())
    assert tokens <= {*ace.codes, *ace.end_tokens} and len(tokens) > NUM_CODES // 2
    assert len(ace.codes) == NUM_CODES  # not the one that the codec has not
    (text, *_) = ace.decode(drawn.tokens_NKT, drawn.mask_NKT)
    assert all(each.startswith("<|audio_code_") for each in text.split())
    with torch.no_grad():  # scored as drawn, under guidance too
        found = Guided(ace, Guidance(2.0)).predictions([ACE], drawn.tokens_NKT, drawn.mask_NKT).whole()[:, 0]
    probs_MV = found[drawn.mask_NKT[:, 0]].softmax(-1)
    forbidden = [token for token in range(probs_MV.shape[-1]) if token not in {*ace.codes, *ace.end_tokens}]
    assert probs_MV[:, forbidden].max() == 0 and probs_MV.isfinite().all()


def test_prompts_without_their_fields_are_one_message(ace: AceStep, yue: YuE) -> None:
    bare = ["a waltz", "a jig", Prompt("a reel", lyrics="[Instrumental]")]
    first, second = together(AceStep(ace.path).problems_of_prompts(bare))  # before weights are loaded
    named = "lyrics, bpm, duration, keyscale, timesignature"
    assert f"Prompts 'a waltz', 'a jig': expected the conditions {named}, but {named} are not there." in str(first)
    assert '"keyscale": "C major"' in str(first)
    assert "Prompt 'a reel'" in str(second) and "but bpm, duration, keyscale, timesignature are not there." in str(
        second
    )
    (problem,) = ace.problems_of_prompts([Prompt("a", **{**ACE_PROMPT, "bpm": "fast"})])
    assert "a whole number from 30 to 300 as `bpm`, but got 'fast'. Write one, such as 96." in str(problem)
    (problem,) = ace.problems_of_prompts([Prompt("a", **ACE_PROMPT, melody="a.wav")])
    assert "carries the condition `melody`" in str(problem)
    (problem,) = yue.problems_of_prompts([Prompt("a", lyrics="no label")])
    assert "found no label" in str(problem)
    for lyrics in ("[verse]\na\n[pre-chorus]\nb", "first\n[verse]\na"):
        (problem,) = yue.problems_of_prompts([Prompt("pop", lyrics=lyrics)])
        assert "some stand under none, and would not be sung" in str(problem)
    assert not yue.problems_of_prompts([Prompt("pop", lyrics="[verse] a (la)\n\n[chorus]\nb")])
    assert not ace.problems_of_prompts([ACE]) and not yue.problems_of_prompts([Prompt("a", **YUE_PROMPT)])


def test_fields_are_asked_for_where_the_prompt_came_from(
    ace: AceStep, yue: YuE, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """On the command line by its option, which can be pasted; in a fit by the key and the file."""
    for model, given, lacking, words in (
        (ace, [], "lyrics, bpm, duration, keyscale, timesignature are", "'lyrics=[Instrumental]' bpm=96 duration=30"),
        (ace, [f"{name}={text}" for name, text in ACE_PROMPT.items() if name != "bpm"], "bpm is", "bpm=96"),
        (yue, [], "lyrics is", "'lyrics=[verse] First line Second line'"),
    ):
        folder = tmp_path / type(model).__name__
        folder.mkdir(exist_ok=True)
        model.save(folder)
        words_given = ["--condition", *given] if given else []
        assert main(["generate", "--model", str(folder), "--prompt", "a waltz", *words_given]) == 2
        err = capsys.readouterr().err
        assert (
            "Option `--condition`: expected lyrics" in err
            and f"but {lacking} missing. Add `--condition` {words}" in err
        )
        assert "JSON" not in err
    (tmp_path / "train.jsonl").write_text('{"prompt": "a waltz"}\n')
    module = CFGDistillation(AceStep(ace.path), {"kl": ReverseKL()})
    data = PromptData(str(tmp_path / "train.jsonl"))
    data.setup("fit")
    (problem,) = module.problems_of_data(data)
    begins = (
        f"Key `train`: File `{tmp_path / 'train.jsonl'}`, line 1: Prompt 'a waltz': expected the conditions lyrics, bpm"
    )
    assert str(problem).startswith(begins) and 'Add them, in JSON lines as {"prompt": "...", "conditions"' in str(
        problem
    )


def test_other_models_are_refused(folders: dict[str, str], tiny_model: str) -> None:
    (problem,) = AceStep(folders["yue"]).problems()
    assert "no tokens <|audio_code_N|>" in str(problem)
    (problem,) = YuE(folders["ace_step"]).problems()
    assert "has no <SOA>, <EOA>, <xcodec>" in str(problem)
    assert not AceStep(folders["ace_step"]).problems() and not YuE(folders["yue"]).problems()


def test_a_folder_or_a_hub_name_tells_the_generator(folders: dict[str, str], tmp_path: Path, ace: AceStep) -> None:
    assert type(open_generator("ACE-Step/acestep-5Hz-lm-4B")) is AceStep
    assert type(open_generator("m-a-p/YuE-s1-7B-anneal-en-cot")) is YuE
    assert of_base("ACE-Step/acestep-5Hz-lm-4B").licence == "mit"
    assert of_base("m-a-p/YuE-s1-7B-anneal-en-cot").licence == "apache-2.0"
    assert type(open_generator(folders["ace_step"])) is CausalLM  # a Qwen3 like any other
    AceStep(ace.path, lora=LoRA(rank=2)).load().save(tmp_path)
    assert type(open_generator(str(tmp_path))) is AceStep
    (tmp_path / "cfg_distill.json").write_text('{"generator": "Ace"}')
    with pytest.raises(ConfigError, match="expected one of AceStep, YuE as `generator`"):
        open_generator(str(tmp_path))


def test_the_recipe_trains_and_exports(folders: dict[str, str], folder: Path, capsys: pytest.CaptureFixture) -> None:
    """From the recipe to a folder that the commands read as what it is."""
    words = ["--config", "recipes/songs/ace_step.yaml", f"--model.generator.init_args.path={folders['ace_step']}"]
    short = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.precision=32-true", "--data.batch_size=2"]
    short += ["--model.sampling.max_new_tokens=8", "--model.measure_gradients_every=0", "--model.micro_batch=4"]
    assert main(["fit", *words, *short, "--quiet"]) in (None, 0)
    (checkpoint,) = Path("runs").rglob("last.ckpt")
    assert main(["export", "--checkpoint", str(checkpoint), "--out", "student", "--merged"]) == 0
    student = open_generator("student")
    assert (
        type(student) is AceStep
        and json.loads(Path("student/cfg_distill.json").read_text())["history"]["guidance"] == 2
    )
    said = [f"{name}={value}" for name, value in ACE_PROMPT.items()]
    drawing = ["generate", "--model", "student", "--prompt", "jazz", "--samples", "2", "--max-new-tokens", "8"]
    assert main([*drawing, "--condition", *said]) == 0
    assert "== jazz (2 of 2)\n<|audio_code_" in capsys.readouterr().out
    assert main([*drawing, "--condition", "bpm"]) == 2
    assert "Option `--condition`: expected NAME=TEXT, but got 'bpm'." in capsys.readouterr().err
    moved, base = (dict(each.load().named_parameters()) for each in (student, AceStep(folders["ace_step"])))
    assert not any(torch.equal(moved[name], base[name]) for name in base if name.endswith("q_proj.weight"))


def test_the_base_is_evaluated_under_guidance(folders: dict[str, str], folder: Path) -> None:
    """A local copy of the base, which says what it is; its negative branch has a prompt of its own for each prompt."""
    shutil.copytree(folders["ace_step"], "base")
    Path("base/cfg_distill.json").write_text('{"generator": "AceStep"}')
    metrics = Path(RECIPES / "songs" / "metrics.yaml").read_text().replace("ACE-Step/acestep-5Hz-lm-0.6B", "base")
    Path("metrics.yaml").write_text(metrics)
    lines = Path(RECIPES / "songs" / "prompts" / "ace_step_report.jsonl").read_text().splitlines()
    Path("prompts.jsonl").write_text("\n".join(lines[:3]))
    words = ["--prompts", "prompts.jsonl", "--metrics", "metrics.yaml", "--guidance", "1", "2", "--max-new-tokens", "8"]
    assert main(["evaluate", "--model", "base", *words, "--samples", "2", "--out", "points"]) == 0
    systems = json.loads(Path("points/front.json").read_text())["systems"]
    assert len(systems) == 2 and all(math.isfinite(each["quality"]["information"]["mean"]) for each in systems)


def test_the_prompts_of_the_recipes_have_their_fields(ace: AceStep, yue: YuE) -> None:
    for name, generator in (("ace_step", ace), ("yue", yue)):
        parts = [
            read_prompts(f"recipes/songs/prompts/{name}_{part}.jsonl") for part in ("train", "validation", "report")
        ]
        texts = [str(prompt) for prompts in parts for prompt in prompts]
        assert len(set(texts)) == len(texts) and len(parts[2]) >= 24
        assert not generator.problems_of_prompts([prompt for prompts in parts for prompt in prompts])


@pytest.mark.parametrize("name", ["ace_step", "yue"])
def test_a_recipe_has_no_problems(name: str, folders: dict[str, str], folder: Path) -> None:
    path = f"--model.generator.init_args.path={folders[name]}"
    start("fit", ["--config", f"recipes/songs/{name}.yaml", path], check_only=True)
