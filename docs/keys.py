"""Write docs/keys.md: every key of a recipe, a study and a metrics file, from the docstrings of the classes that take them.

    python docs/keys.py            writes the page
    python docs/keys.py --check    exits with 1 when the page is not what the docstrings say

Keys, types and defaults are those of jsonargparse's own parser, which reads recipes. So a default on the page is what a recipe
without the key gets, also where a class has another default of its own than its holder gives it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.plugins import CheckpointIO
from lightning.pytorch.strategies import Strategy

from cfg_distill.embedders import Embedder
from cfg_distill.generators import Generator
from cfg_distill.losses import Loss
from cfg_distill.metrics import SampleMetric
from cfg_distill.recipe import keys
from cfg_distill.recipe.keys import Key, keys_of
from cfg_distill.recipe.types import classes_of, describe, members
from cfg_distill.references import Reference
from cfg_distill.rewards import Reward
from cfg_distill.sampling import Conditioner, Sampler

PAGE = Path(__file__).parent / "keys.md"
AXES = ("quality", "diversity", "guard")


@dataclass(frozen=True)
class Group:
    """A part of the page: every concrete class in some modules that derives from one of some bases.

    Args:
        title: its heading.
        where: the key that takes such a class, and what else a reader should know first.
        bases: what its classes derive from.
        modules: where a recipe finds the classes: ``module`` for all its public names, ``module:Name`` for one.
    """

    title: str
    where: str
    bases: tuple[type, ...]
    modules: tuple[str, ...]

    def classes(self) -> dict[str, type]:
        """class_path -> class, in the order of the modules."""
        found: dict[str, type] = {}
        for entry in self.modules:
            name, _, only = entry.partition(":")
            module = importlib.import_module(name)
            for each in [only] if only else sorted(module.__all__, key=str.lower):
                part = getattr(module, each)
                if inspect.isclass(part) and (only or issubclass(part, self.bases)) and not inspect.isabstract(part):
                    found[f"{name}.{each}"] = part
        return found


GROUPS = (
    Group(
        "Model",
        "`model`. With `model.class_path` another module takes its place, and its keys go under `init_args`.",
        (LightningModule,),
        ("cfg_distill:CFGDistillation",),
    ),
    Group("Generators", "`model.generator`: the model that is distilled.", (Generator,), ("cfg_distill.generators",)),
    Group(
        "Losses",
        "`model.losses`: a dict of names, each one of these classes or [your own](extending.md#a-loss).",
        (Loss,),
        ("cfg_distill.losses",),
    ),
    Group(
        "Rewards",
        "The `reward` of a policy gradient, or [your own](extending.md#a-reward).",
        (Reward,),
        ("cfg_distill.rewards", "cfg_distill.tunes.rewards"),
    ),
    Group(
        "References",
        "The `reference` of a reward or a metric that compares samples with real outputs.",
        (Reference,),
        ("cfg_distill.references", "cfg_distill.tunes.reference:TuneReference"),
    ),
    Group(
        "Conditioners",
        "`model.conditioner`, and `conditioner` of a system of a study: what a student reads beside the prompt.",
        (Conditioner,),
        ("cfg_distill.sampling",),
    ),
    Group(
        "Samplers",
        "`model.sampler`: who draws the samples that a student learns from ([an engine](text.md#an-engine-for-rollouts)).",
        (Sampler,),
        ("cfg_distill.sampling",),
    ),
    Group(
        "Embedders",
        "The `embedder` of a reward or a metric.",
        (Embedder,),
        ("cfg_distill.embedders", "cfg_distill.tunes.embedder:Judged", "cfg_distill.tunes.embedder:Tunes"),
    ),
    Group(
        "Data",
        "`data`. Prompts come from a text file (one per line), JSON lines, CSV or TSV, or a Hugging Face dataset on disk.",
        (LightningDataModule,),
        ("cfg_distill.data",),
    ),
    Group(
        "Callbacks and plugins",
        "`trainer.callbacks`, and `trainer.plugins` for the checkpoint plugin.",
        (Callback, CheckpointIO),
        ("cfg_distill.callbacks",),
    ),
    Group(
        "Strategy",
        "`trainer.strategy`: the word `fsdp2`, or the class with its keys ([several GPUs](cluster.md)).",
        (Strategy,),
        ("cfg_distill.distillation",),
    ),
    Group(
        "Metrics",
        "In a metrics file, in `evaluation.metrics` of a study, and in DiversityLogging. A metric belongs to an axis: quality,"
        " diversity, or guard (a sign of failure).",
        (SampleMetric,),
        ("cfg_distill.metrics", "cfg_distill.tunes.metrics"),
    ),
    Group(
        "Study",
        "The keys of a study file. See [recipes](recipes.md#studies).",
        (),
        ("cfg_distill.study.config:Study",),
    ),
    Group(
        "Training the embedded models",
        "What `recipes/tunes/pretrain.yaml`, `encoder.yaml` and `judge.yaml` name as `model.class_path` and"
        " `data.class_path`. [Tunes](tunes.md) says what came of them.",
        (),
        (
            "cfg_distill.tunes.pretraining:Pretraining",
            "cfg_distill.tunes.encoder:EncoderTraining",
            "cfg_distill.tunes.judge:JudgeTraining",
            "cfg_distill.tunes.data:TunesData",
            "cfg_distill.tunes.segments:SegmentsData",
            "cfg_distill.tunes.pairs:TunePairs",
            "cfg_distill.tunes.negatives:JudgeData",
            "cfg_distill.tunes.optimizer:MuonAdamW",
        ),
    ),
)
HEAD = """# Every key

`python docs/keys.py` writes this page from the docstrings; do not edit it. [Recipes](recipes.md) says how files and options are
merged, and what Lightning's `trainer` takes.

A class is written as `{class_path: module.Class, init_args: {...}}`. A default is what a recipe without the key gets.

| at the top of a recipe | type | default | meaning |
|---|---|---|---|
| `version` | a whole number | `1` | of the keys of this file, also in a study; a newer one is refused |
| `seed_everything` | a whole number | `0` | seeds what is drawn before the first step |
| `model` | keys and values | required | see [Model](#model) |
| `data` | keys and values | required | see [Data](#data) |
| `trainer` | keys and values | `{}` | Lightning's Trainer |
| `ckpt_path` | text or null | `null` | the checkpoint to resume from, or `last`; on the command line |
"""


def text_of(cls: type, name: str) -> str:
    """What the docstring says of an argument, in one line of markdown."""
    return _escaped(keys.text_of(cls, name))


def summary_of(cls: type) -> str:
    """The first paragraph of a class's docstring, in one line of markdown."""
    return _escaped(keys.summary_of(cls))


def _escaped(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def anchor(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def _type(expected: Any) -> str:
    """A type in words, with links to the parts of the page that list its classes or keys."""
    inside = get_args(expected)
    if get_origin(expected) is dict and inside[1] is not Any and classes_of(inside[1]):
        words = f"names, each {describe(inside[1])}"
    else:
        words = describe(expected)
    for group in GROUPS:
        for base in group.bases:
            words = re.sub(rf"\b{base.__name__}\b", f"[{base.__name__}](#{anchor(group.title)})", words)
    for cls in _dataclasses(expected):
        words = re.sub(rf"\ban? {cls.__name__}\b", f"[{cls.__name__}](#{anchor(cls.__name__)})", words)
    words = re.sub(r"\ba (?=\[?[AEIOaeio])", "an ", words)
    return re.sub(r"(?<!\\)\|", r"\\|", words)


def _dataclasses(expected: Any) -> Iterator[type]:
    """The dataclasses that a value of a type is, or holds by name."""
    inside = get_args(expected)[1] if get_origin(expected) is dict else expected
    yield from (each for each in members(inside) if inspect.isclass(each) and dataclasses.is_dataclass(each))


def _default(key: Key) -> str:
    """A default as YAML."""
    if key.required:
        return "required"
    default = list(key.default) if isinstance(key.default, tuple) else key.default
    if isinstance(default, dict) and "class_path" in default:
        return f"`{default['class_path']}`"
    if inspect.isclass(default):
        return f"`{default.__module__}.{default.__qualname__}`"
    written = yaml.safe_dump(default, default_flow_style=True, width=1000).removesuffix("...\n").strip()
    return f"`{written}`"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _section(heading: str, cls: type, prefix: str, told: dict[type, str]) -> Iterator[str]:
    """Heading and table of a class; then of the dataclasses that it holds or refers to, each once on the page."""
    found = keys_of(cls)
    if cls in told or not found:
        return
    told[cls] = heading
    for level, owner in [("", cls)] + [(key.path, key.expected) for key in found if key.holds]:
        told.setdefault(owner, f"{prefix}{level}")
        yield f"#### `{prefix}{level}`\n" if level else f"### `{heading}`\n"
        yield f"{summary_of(owner)}\n"
        rows = []
        for key in found:
            above, _, name = key.path.rpartition(".")
            if above == level and key.holds:
                rows.append((f"`{name}`", f"[keys below](#{anchor(prefix + key.path)})", "", text_of(owner, name)))
            elif above == level:
                rows.append((f"`{name}`", _type(key.expected), _default(key), text_of(owner, name)))
        yield from _table(("key", "type", "default", "meaning"), rows)
    for other in dict.fromkeys(cls for key in found if not key.holds for cls in _dataclasses(key.expected)):
        yield from _section(other.__name__, other, "", told)


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    told: dict[type, str] = {}
    for group in GROUPS:
        classes = group.classes()
        has_axes = SampleMetric in group.bases
        lines += [f"## {group.title}\n", f"{group.where}\n"]
        rows = []
        for path, cls in classes.items():
            name = f"[`{path}`](#{anchor(path)})" if keys_of(cls) else f"`{path}`"
            rows.append((name, *((cls.axis,) if has_axes else ()), summary_of(cls)))  # type: ignore[attr-defined]
        if has_axes:
            rows.sort(key=lambda row: AXES.index(row[1]))
        if len(rows) > 1:
            lines += _table(("class", *(("axis",) if has_axes else ()), "what it is"), rows)
        for path, cls in classes.items():
            lines += _section(path, cls, "model." if group.title == "Model" else "", told)
    text = "\n".join(lines).rstrip("\n") + "\n"
    for cls, heading in told.items():  # a class that another one holds stands under the key that holds it
        text = text.replace(f"[{cls.__name__}](#{anchor(cls.__name__)})", f"[{cls.__name__}](#{anchor(heading)})")
    return text


def main(words: list[str] | None = None) -> int:
    """Write the page, or say whether it is as the docstrings are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when the page is stale")
    check = parser.parse_args(words).check
    text = page()
    if not check:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("docs/keys.md is not what the docstrings say. Run: python docs/keys.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
