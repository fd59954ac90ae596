"""Golden losses: the first five steps of six tiny recipes, written down to the last bit.

    python tests/golden/golden.py            writes tests/golden/*.json
    python tests/golden/golden.py lora       writes one of them
    python tests/golden/golden.py --check    exits with 1 when a loss is not what a file says

A change that moves a loss makes the files anew, and says in its message why the losses had to move.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from tiny import tiny_folder  # noqa: E402
from tiny_fits import batches, trainer  # noqa: E402
from tiny_musicgen import tiny_musicgen  # noqa: E402

from cfg_distill import CFGDistillation  # noqa: E402
from cfg_distill.distillation.execution import Execution  # noqa: E402
from cfg_distill.embedders import NGramCounts  # noqa: E402
from cfg_distill.generators import CausalLM, LoRA, MusicGen  # noqa: E402
from cfg_distill.generators.lora import lora_layers  # noqa: E402
from cfg_distill.guidance import Guidance  # noqa: E402
from cfg_distill.losses import ForwardKL, JensenShannon, PolicyGradient, ReverseKL  # noqa: E402
from cfg_distill.rewards import GroupReward, PairwiseDiversity, Reward  # noqa: E402
from cfg_distill.sampling import Sampling  # noqa: E402
from cfg_distill.sampling.samples import Samples  # noqa: E402

COMMAND = "python tests/golden/golden.py"
STEPS = 5
MUSIC = ["rock", "calm jazz piano", "80s synth pop", "loud song"]


class FirstToken(Reward):
    """Each sample's own first token against the group mean, as GRPO has it, without the standard deviation."""

    def forward(self, samples: Samples) -> GroupReward:
        reward_BG = samples.rollout.tokens_BGKT[:, :, 0, 0].float()
        return GroupReward(reward_BG, reward_BG - reward_BG.mean(-1, keepdim=True))


def student(generator: Any, losses: dict[str, Any], **settings: Any) -> CFGDistillation:
    defaults: dict[str, Any] = {
        "guidance": Guidance(2.0),
        "sampling": Sampling(samples=3, max_new_tokens=8),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        "measure_gradients_every": 0,
        # oneDNN chooses its kernels by the processor.
        "execution": Execution(onednn=False),
    }
    return CFGDistillation(generator, losses, **(defaults | settings))


def adapted(folder: str) -> CausalLM:
    """A generator whose adapter is drawn here: peft's draws depend on what was drawn before."""
    generator = CausalLM(folder, lora=LoRA(rank=2)).load()
    torch.manual_seed(0)
    for layer in lora_layers(generator.model).values():
        layer.lora_A["default"].weight.data.normal_(std=0.1)
    return generator


def kl_alone(folder: str) -> CFGDistillation:
    return student(CausalLM(folder), {"kl": ReverseKL()})


def kl_and_diversity(folder: str) -> CFGDistillation:
    losses = {"kl": ReverseKL(), "diversity": PolicyGradient(PairwiseDiversity(NGramCounts()), weight=2.0)}
    return student(CausalLM(folder), losses, micro_batch=3)


def lora(folder: str) -> CFGDistillation:
    return student(adapted(folder), {"kl": ReverseKL(), "diversity": PolicyGradient(PairwiseDiversity(NGramCounts()))})


def score_term(folder: str) -> CFGDistillation:
    return student(CausalLM(folder), {"kl": ReverseKL(score_term=True)}, reduction="sum")


def group_mean(folder: str) -> CFGDistillation:
    losses = {
        "js": JensenShannon(mixture=0.5),
        "forward_kl": ForwardKL(weight=0.1, warmup_steps=3),
        "first": PolicyGradient(FirstToken(), weight=0.1, scale="token"),
    }
    return student(CausalLM(folder), losses)


def codebooks(folder: str) -> CFGDistillation:
    losses = {
        "kl": ReverseKL(codebook_weights=[1.0, 0.5, 0.5, 0.25]),
        "first": PolicyGradient(FirstToken(), weight=0.1),
    }
    return student(MusicGen(folder), losses, sampling=Sampling(samples=3, max_new_tokens=5), guidance=Guidance(3.0))


RECIPES: dict[str, Callable[[str], CFGDistillation]] = {
    "kl": kl_alone,
    "kl_and_diversity": kl_and_diversity,
    "lora": lora,
    "score_term": score_term,
    "group_mean": group_mean,
    "codebooks": codebooks,
}


def environment() -> dict[str, str]:
    """What decides how floating-point sums are rounded."""
    capability = torch.backends.cpu.get_cpu_capability()
    model = [line for line in _lines(Path("/proc/cpuinfo")) if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "capability": capability,
        "processor": model[0].partition(":")[2].strip() if model else platform.processor(),
    }


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines() if file.is_file() else []


class _Losses(L.Callback):
    """The loss of each step, and its terms."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        names = ["loss", *pl_module.losses]
        self.steps.append({name: _number(trainer.callback_metrics[f"train/{name}"]) for name in names})


def _number(value: Tensor) -> float:
    return float(value)


def first_steps(name: str) -> list[dict[str, float]]:
    """The loss of each of the first five steps, and its terms."""
    torch.set_num_threads(1)
    losses = _Losses()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        is_music = name == "codebooks"
        model = RECIPES[name]((tiny_musicgen if is_music else tiny_folder)(Path(folder) / "model"))
        music = torch.utils.data.DataLoader([MUSIC[:2], MUSIC[2:]] * STEPS, batch_size=None)
        trainer([losses], Path(folder), max_steps=STEPS, enable_checkpointing=False).fit(
            model, music if is_music else batches(STEPS)
        )
    return losses.steps


def as_written(name: str, steps: list[dict[str, float]]) -> str:
    """The content of a file: numbers as hexadecimal floats, which lose no bit."""
    content = {
        "recipe": name,
        "made by": COMMAND,
        "environment": environment(),
        "steps": [{key: value.hex() for key, value in step.items()} for step in steps],
    }
    return json.dumps(content, indent=1) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of recipes; all without a name")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    check, moved = given.check, []
    for name in given.names or RECIPES:
        file, text = FOLDER / f"{name}.json", as_written(name, first_steps(name))
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            moved.append(name)
        if not check:
            file.write_text(text, encoding="utf-8")
    print(f"Moved: {', '.join(moved) or 'none'}.")
    return int(check and bool(moved))


if __name__ == "__main__":
    sys.exit(main())
