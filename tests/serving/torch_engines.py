"""peft and transformers: settings of both dials, several in one batch, a change of adapters without loading, ``linear``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft import __version__ as peft_version
from peft.tuners.lora import LoraLayer
from peft.utils.hotswap import hotswap_adapter
from transformers import AutoModelForCausalLM
from transformers import __version__ as transformers_version

from cfg_distill.errors import ConfigError
from cfg_distill.folders import base_of, resolve
from serving.checks import Checks, Texts, compare
from serving.students import ADAPTERS, PROMPTS, TOKENS, Students, encoded

TUNES = ("a lively Irish jig in D major", "a jig in E minor", "a brisk American jig in A mixolydian")
"""The prompts for students of the tunes, whose chat template refuses the others."""


def weigh(model: Any, scales: dict[str, float]) -> None:
    """Set the scale of each adapter in every layer."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for name, scale in scales.items():
                layer.set_scale(name, scale)


@torch.no_grad()
def greedy(model: Any, rows: Sequence[list[int]], **which: Any) -> list[list[int]]:
    """The greedy continuation of each row; rows of unequal length are padded on the left, and masked there."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    made = model.generate(input_ids=ids, attention_mask=mask, do_sample=False, top_k=None, top_p=None, temperature=None,
                          max_new_tokens=TOKENS, pad_token_id=0, **which)  # fmt: skip
    return [without_padding(row) for row in made[:, longest:].tolist()]


def without_padding(row: list[int]) -> list[int]:
    """The tokens of a finished row, without what stands behind its end."""
    return row[: len(row) - next((n for n, token in enumerate(reversed(row)) if token != 0), len(row))]


def check(students: Students, texts: Texts, checks: Checks, given: Path | None) -> None:
    """Every check of this engine.

    Args:
        students: of which the adapters are loaded.
        texts: our own generator's.
        checks: where the lines go.
        given: a folder with adapters of a real study, whose ``linear`` is measured as well.
    """
    print(f"\npeft {peft_version}, transformers {transformers_version}")
    prompts, settings = students.prompt_tokens(), students.settings()
    whole = AutoModelForCausalLM.from_pretrained(students.whole("quality"))
    got = {"knob 0": [greedy(whole, [prompt])[0] for prompt in prompts]}
    checks(*_named("transformers alone, on a student exported with --merged", compare(texts, got)))
    del whole
    model = loaded(ADAPTERS, [students.adapter(name) for name in ADAPTERS])
    model.base_model.set_adapter(list(ADAPTERS))
    got = {}
    for name, each in settings.items():
        weigh(model, dict(zip(ADAPTERS, each.scales, strict=True)))
        got[name] = [greedy(model, [prompt])[0] for prompt in prompts]
    checks(*_named("set_scale: five settings of the knob and three of the dial", compare(texts, got)))
    _in_one_batch(model, students, texts, checks)
    _hotswap(students, texts, checks)
    _linear(students.folder / "adapters", "the students above", checks)
    if given is not None:
        _linear(given, str(given), checks)


def _named(what: str, found: tuple[bool, str]) -> tuple[bool, str, str]:
    return found[0], what, found[1]


def loaded(names: Sequence[str], folders: Sequence[Path]) -> Any:
    """The base with adapters."""
    base = AutoModelForCausalLM.from_pretrained(resolve(base_of(folders[0])), dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, folders[0], adapter_name=names[0])
    for name, folder in zip(names[1:], folders[1:], strict=True):
        model.load_adapter(folder, adapter_name=name)
    return model.eval()


def _in_one_batch(model: Any, students: Students, texts: Texts, checks: Checks) -> None:
    """A row per setting in one batch: every setting is an adapter, which `cat` makes exactly."""
    weigh(model, dict.fromkeys(ADAPTERS, 1.0))  # `cat` multiplies by the current scales
    prompt, settings = students.prompt_tokens()[0], students.settings()
    names = {}
    for number, (name, each) in enumerate(settings.items()):
        names[name] = f"row{number}"
        some = {adapter: scale for adapter, scale in zip(ADAPTERS, each.scales, strict=True) if scale}
        model.add_weighted_adapter(list(some), list(some.values()), names[name], combination_type="cat")
    rows = greedy(model, [prompt] * (len(names) + 1), adapter_names=[*names.values(), "__base__"])
    first = {name: texts[name][:1] for name in [*names, "base"]}
    got = {name: [row] for name, row in zip([*names, "base"], rows, strict=True)}
    checks(*_named("adapter_names: all of these settings and the base as rows of one batch", compare(first, got)))


def _hotswap(students: Students, texts: Texts, checks: Checks) -> None:
    """Another adapter in the same layers; a merge has twice the rank of a student."""
    prompts = students.prompt_tokens()
    model = loaded(["default"], [students.adapter("quality")])
    got, seconds = {}, 0.0
    for name, folder in (("knob 1", "diversity"), ("knob 0.5", "knob-0.5"), ("knob 0", "quality")):
        began = time.monotonic()
        hotswap_adapter(model, str(students.adapter(folder)), adapter_name="default")
        seconds = max(seconds, time.monotonic() - began)
        got[name] = [greedy(model, [prompt])[0] for prompt in prompts]
    checks(*_named("hotswap_adapter, to a merge of another rank and back", compare(texts, got)))
    print(f"    the slowest change took {seconds:.2f} s")


@torch.no_grad()
def _linear(folder: Path, whose: str, checks: Checks) -> None:
    """How far peft's `linear` and `cat` are from the merge of the two students, in next-token logits.

    Args:
        folder: with the adapters `quality` and `diversity` of any base, whose tokens are those of its own tokenizer.
        whose: the folder in the line of the check.
        checks: where the line goes.
    """
    quality = str(folder / "quality")
    try:
        prompts = encoded(quality, PROMPTS)
    except ConfigError:
        prompts = encoded(quality, TUNES)
    model = loaded(["quality", "diversity"], [folder / "quality", folder / "diversity"])
    both = ["quality", "diversity"]
    for kind in ("cat", "linear"):
        model.add_weighted_adapter(both, [0.5, 0.5], kind, combination_type=kind)

    def logits(names: list[str], scale: float = 1.0) -> list[torch.Tensor]:
        model.base_model.set_adapter(names)
        weigh(model, dict.fromkeys(names, scale))
        return [model(input_ids=torch.tensor([prompt])).logits[0, -1] for prompt in prompts]

    def apart(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
        return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))

    half = logits(both, 0.5)
    students_apart = apart(logits(["quality"]), logits(["diversity"]))
    cat, linear = (apart(half, logits([kind])) for kind in ("cat", "linear"))
    told = f"cat is {cat:.1e} off the half-way merge, linear {linear:.2f}; the students are {students_apart:.2f} apart"
    checks(cat < 1e-3 < linear, f"trap: `linear` of add_weighted_adapter is no merge ({whose})", told)
