"""Three small students of SmolLM2, as users would make them, and the greedy texts that every engine must give.

The texts are those of our own generator, which adds the adapter to the weights: another way than any engine takes.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from cfg_distill.folders import base_of, resolve
from cfg_distill.generators import open_generator
from cfg_distill.sampling import Sampling, rollout
from serving.checks import Text, Texts
from serving.environment import Environment, run

PROMPTS = ("Describe a harbor town at dawn.", "Write a story about a lost key.", "How do bees find their way?")
TOKENS = 24
KNOB = (0.0, 0.25, 0.5, 0.75, 1.0)
DIAL = (0.25, 0.5, 1.0)
ADAPTERS = ("quality", "diversity", "dial")
"""Their order is that of the numbers by which a request to llama.cpp's server names them."""
ALL = "all at 1"
SHORT = (
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.init_args.batch_size=2",
    "--model.sampling.max_new_tokens=16",
)
STEPS = {
    "dial": [
        "recipes/smollm2/quality.yaml",
        "--trainer.max_steps=10",
        "--model.dial={power: 1.0}",
        "--model.guidance.scale=3",
    ],
    "quality": ["recipes/smollm2/quality.yaml", "--trainer.max_steps=10"],
    "diversity": ["recipes/smollm2/diversity.yaml", "--trainer.max_steps=8", "--model.sampling.samples=4"],
}


@dataclass(frozen=True)
class Setting:
    """A setting of the knob or of the dial.

    Attributes:
        scales: of the adapters, in the order of ``ADAPTERS``.
        folder: the adapter folder that is this setting.
        share: what the change of the folder is multiplied by.
    """

    scales: tuple[float, float, float]
    folder: Path
    share: float = 1.0


@dataclass(frozen=True)
class Students:
    """Adapters, merges, whole models and GGUF files in a folder.

    Args:
        folder: it is made.
        environment: with the commands of this package.
        gguf: whether llama.cpp's files are wanted.
    """

    folder: Path
    environment: Environment
    gguf: bool

    @property
    def base(self) -> str:
        return resolve(base_of(self.adapter("quality")))

    def adapter(self, name: str) -> Path:
        return self.folder / "adapters" / name

    def whole(self, name: str) -> Path:
        return self.folder / "students" / name

    def settings(self) -> dict[str, Setting]:
        """Name -> setting: five of the knob, three of the dial."""
        found = {}
        for knob in KNOB:
            ends = {0.0: self.adapter("quality"), 1.0: self.adapter("diversity")}
            found[f"knob {knob:g}"] = Setting((1 - knob, knob, 0), ends.get(knob, self.adapter(f"knob-{knob:g}")))
        for dial in DIAL:
            found[f"dial {dial:g}"] = Setting((0, 0, dial), self.adapter("dial"), dial)
        return found

    def make(self) -> None:
        """Train what was not trained before by the same commands; export and merge everything anew."""
        for kept in ("adapters", "students", "merges"):
            shutil.rmtree(self.folder / kept, ignore_errors=True)
        for name in STEPS:
            self._train(name)
            self._export(name, self.adapter(name))
        for name in ("quality", "diversity"):
            self._export(name, self.whole(name), "--merged")
        self._export("diversity", self.adapter("difference"), "--relative-to", str(self.adapter("quality")))
        self.merge()

    def merge(self) -> None:
        """The settings between the students, and the sum of all adapters, as folders."""
        both = [self.adapter(name) for name in ("quality", "diversity")]
        for knob in KNOB[1:-1]:
            self._merge("lerp", both, [1 - knob, knob], self.adapter(f"knob-{knob:g}"))
        self._merge("sum", [self.adapter(name) for name in ADAPTERS], [1, 1, 1], self.adapter("all"))

    def _train(self, name: str) -> None:
        recipe, *words = STEPS[name]
        root = self.folder / "runs" / name
        begins = [f"--model.start={self.adapter('quality')}"] if name == "diversity" else []
        asked = ["fit", "--config", recipe, *words, *begins, *SHORT, f"--trainer.default_root_dir={root}"]
        stamp = root / "command.txt"
        if not stamp.is_file() or stamp.read_text() != " ".join(asked):
            shutil.rmtree(root, ignore_errors=True)
            self._do(*asked)
            stamp.write_text(" ".join(asked))

    def _export(self, name: str, out: Path, *more: str) -> None:
        (checkpoint,) = (self.folder / "runs" / name).glob("*/checkpoints/last.ckpt")
        gguf = ["--gguf"] if self.gguf else []
        said = self._do("export", "--checkpoint", checkpoint, "--out", out, "--weights", "raw", *more, *gguf)
        if gguf and "--merged" not in more and not out.with_name("base.gguf").is_file():
            # The command says what is left to do: first, the base as GGUF.
            (left,) = (line for line in said.splitlines() if line.startswith("  ") and "convert_hf_to_gguf.py" in line)
            run(shlex.split(left))

    def _merge(self, method: str, models: Sequence[Path], weights: Sequence[float], out: Path) -> None:
        self._do("merge", "--method", method, "--models", *models, "--weights", *map(str, weights), "--out", out)

    def _do(self, *words: str | Path) -> str:
        return run([self.environment.python.parent / "cfg-distill", *words])

    def prompt_tokens(self) -> list[list[int]]:
        return self._prompt_tokens

    @cached_property
    def _prompt_tokens(self) -> list[list[int]]:
        return encoded(str(self.adapter("quality")), PROMPTS)

    def texts(self) -> Texts:
        """The greedy texts of our own generator at every setting, of the base, and of all adapters at 1."""
        made = {name: (str(each.folder), each.share) for name, each in self.settings().items()}
        made |= {"base": (base_of(self.adapter("quality")), None), ALL: (str(self.adapter("all")), 1.0)}
        return {name: greedy(*which) for name, which in made.items()}


def encoded(model: str, prompts: Sequence[str | None]) -> list[list[int]]:
    """The tokens of each prompt alone; None for the dropped prompt."""
    generator = open_generator(model).load()
    return [generator.encode([prompt]).tensors["input_ids"][0].tolist() for prompt in prompts]


@torch.no_grad()
def greedy(model: str, dial: float | None) -> list[Text]:
    """The greedy text of every prompt, each drawn alone, with the lead of every token."""
    generator, found = open_generator(model, dial).load(), []
    for prompt in PROMPTS:
        drawn = rollout(generator, [prompt], Sampling(1, TOKENS, temperature=0.0))
        logits_TV = generator.logits([prompt], drawn.tokens_NKT, drawn.mask_NKT)[0, 0].log_softmax(-1)
        length = int(drawn.length_N[0])
        best_T2 = logits_TV[:length].topk(2).values
        found.append(Text(drawn.tokens_NKT[0, 0, :length].tolist(), (best_T2[:, 0] - best_T2[:, 1]).tolist()))
    return found
