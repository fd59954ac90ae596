"""The numbers of docs/neighbours.md: what a step of each reward costs, and what its study found.

    python tests/neighbours.py costs                  # minutes, on one thread
    python tests/neighbours.py codes                  # a minute
    python tests/neighbours.py keep runs/neighbours   # the values of every training seed that is finished
    python tests/neighbours.py table                  # of all values that were kept

All but `keep` print tables; costs, values and tables go into docs/evidence/, and `table` writes the first table of
docs/neighbours.md anew. Training seeds may come from several studies, run
on several days: `training_seeds: [1]` in a copy of recipes/neighbours.yaml.

Costs are seconds of CPU in one process, which others hardly change: every recipe takes a step in turn, and the median of its
steps counts. A step is what a fit does without its callbacks: samples, advantages, the divergence and the reward, backward.
Differences are paired over prompts and training seeds, with their 95 % intervals, from the control `kl`: as many steps of the
divergence alone. Heights are diversity above mixtures of the base and the quality student that have the same quality. Codes
are what samples of the base earn under a code at random, by the temperature of the reward.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
import torch
from jsonargparse import ArgumentParser
from made_study import read_study

from cfg_distill.data import read_prompts
from cfg_distill.distillation import CFGDistillation
from cfg_distill.distillation.asked import advantages_of
from cfg_distill.distillation.off_policy import to_learn_from
from cfg_distill.embedders.similarity import unit
from cfg_distill.evaluation.compare import difference, height_above
from cfg_distill.evaluation.system import System, pooled
from cfg_distill.generators import CausalLM
from cfg_distill.losses import mix
from cfg_distill.recipe import Recipe
from cfg_distill.references import code_log_probs
from cfg_distill.references.directions import principal_components, simplex
from cfg_distill.sampling import Sampling, Seeds, StartModel, draw
from cfg_distill.tunes.embedder import Tunes

ROOT = Path(__file__).parents[1]
OVERLAYS = sorted(path.stem for path in (ROOT / "recipes/tunes/neighbours").glob("*.yaml"))
SHOWN = (
    ("quality", "diversity", "figures_diversity", "melodic_diversity", "bigram_diversity"),
    ("retrieval", "kernel_distance", "bigram_distance", "crowded", "words", "rhythm"),
    ("copy_rate", "rest_share", "longest_run", "bar_validity", "empty_share"),
)
"""The columns of the three tables; heights stand in the first."""
DIFFERENCES = [metric for columns in SHOWN for metric in columns]
COLUMNS = [*DIFFERENCES, "code_accuracy"]
HEIGHTS = ("diversity", "figures_diversity")
ENDS = ("base", "quality")
"""Heights are above mixtures of these two: what variety costs in quality without any reward, at one pass per token."""
KEPT = ROOT / "docs/evidence/neighbours"
PAGE = ROOT / "docs/neighbours.md"
ANNEALED = ("0.5", "1", "2", "4", "step 0.3", "step 0.6")
COMPARED: list[tuple[str, str, tuple[str, ...]]] = [
    *((f"annealed {each}", f"rising {each}", ("quality", "diversity", "bigram_diversity")) for each in ANNEALED),
    ("aig", "rising 2", ("quality", "diversity", "bigram_diversity")),
    ("vendi", "diversity", ("quality", "diversity", "figures_diversity")),
    ("coinseg", "diversity", ("retrieval", "rhythm", "diversity")),
    ("few-shot", "diversity", ("quality", "diversity", "figures_diversity")),
    ("one-shot", "base", ("diversity",)),
    ("one-shot x 4", "base", ("diversity",)),
    ("one-shot x 4", "one-shot", ("quality", "diversity")),
    ("one-shot x 16", "base", ("diversity",)),
    ("one-shot x 16", "one-shot x 4", ("quality", "diversity")),
    ("one-shot", "diversity", ("quality", "diversity")),
    ("one-shot x 16", "diversity", ("quality", "diversity", "figures_diversity")),
    ("one-shot x 16", "vendi", ("quality", "diversity", "figures_diversity")),
    ("pseudo density", "kl", ("crowded", "bigram_diversity")),
    ("pseudo density 16", "kl", ("crowded", "quality", "copy_rate", "bigram_diversity")),
    ("mmd", "kl", ("kernel_distance", "bigram_distance", "diversity")),
    ("few-shot", "kl", ("diversity",)),
    ("avgout siblings", "avgout", ("quality", "bigram_diversity", "diversity", "figures_diversity")),
    ("diversity from base", "kl from base", ("quality", "diversity", "figures_diversity")),
    ("few-shot from base", "kl from base", ("quality", "diversity", "figures_diversity")),
    ("avgout", "kl", ("quality", "bigram_diversity", "words", "bar_validity", "diversity", "figures_diversity")),
]
"""Left minus right: what the claims of the parts' authors need, over all training seeds and in each of them."""
ON_PAGE = {
    "quality": "quality",
    "diversity": "diversity",
    "figures_diversity": "figures",
    "bigram_diversity": "bigrams",
}
"""The columns of the table on the page, heights beside them; of guidance that moves it has one setting."""
PARTS = ("samples", "advantages", "gradient")


def loaded(overlay: str) -> CFGDistillation:
    """The module of diversity.yaml under an overlay, with its weights; an empty name is diversity.yaml itself."""
    files = ["recipes/tunes/diversity.yaml", *([f"recipes/tunes/neighbours/{overlay}.yaml"] if overlay else [])]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CFGDistillation, "model", fail_untyped=False)
    model = Recipe.read(files).at("model")
    module: CFGDistillation = parser.instantiate_classes(parser.parse_object({"model": model})).model
    module.configure_model()
    return module.train()


def seconds_of_step(module: CFGDistillation, prompts: list[Any], step: int) -> dict[str, float]:
    """CPU seconds of the samples, the advantages, and the rest of a step."""
    marks = [process_time()]
    samples = to_learn_from(module, prompts, Seeds((1, step), range(len(prompts))))
    marks.append(process_time())
    advantages = advantages_of(module.mix, samples, step)
    marks.append(process_time())
    weights = {name: loss.weight for name, loss in module.mix.items()}
    total, _ = mix(module.mix, module.score(samples), weights, advantages, chunk=module.execution.logits_chunk)
    module.student.zero_grad()
    total.backward()
    marks.append(process_time())
    return dict(zip(PARTS, (end - begin for begin, end in pairwise(marks)), strict=True))


def costs(repeats: int) -> dict[str, dict[str, float]]:
    """The median of each part of a step, by overlay. The first step of each is not counted: it reads references."""
    torch.set_num_threads(1)
    prompts = read_prompts(ROOT / "recipes/tunes/prompts/train.txt", "prompt")[:4]
    modules = {name: loaded(name) for name in ("", *OVERLAYS)}
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in modules}
    for step in range(repeats + 1):
        for name, module in modules.items():
            taken[name].append(seconds_of_step(module, prompts, step))
    return {
        name or "diversity": {part: median(one[part] for one in steps[1:]) for part in steps[0]}
        for name, steps in taken.items()
    }


def table_of_costs(found: dict[str, dict[str, float]]) -> str:
    first = sum(found["diversity"].values())
    lines = [
        "| recipe | CPU seconds per step | of `diversity.yaml` | reward, ms | its share |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, parts in found.items():
        whole, reward = sum(parts.values()), parts["advantages"]
        lines.append(
            f"| `{name}.yaml` | {whole:.2f} | {whole / first:.2f} | {1000 * reward:.0f} | {reward / whole:.1%} |"
        )
    return "\n".join(lines)


def keep(out: Path) -> list[Path]:
    """Write the values of each training seed that a study has finished, four digits of each.

    Returns:
        The files, one per training seed.
    """
    runs: dict[str, list[System]] = {}
    for name in read_study(ROOT / "recipes/neighbours.yaml").all_systems():
        files = sorted((out / "systems" / name).glob("seed *.json")) or [out / "systems" / f"{name}.json"]
        runs[name] = [System.read(file) for file in files]
    trained = [{each.training_seeds[0] for each in found} for found in runs.values() if found[0].chain]
    rows = json.loads((out / "ladder.json").read_text(encoding="utf-8"))
    real = [_short(row) for row in rows if row["kind"] == "real"]
    KEPT.mkdir(parents=True, exist_ok=True)
    written = []
    for seed in sorted(set.intersection(*trained)):
        systems = [
            _short(asdict(each)) for found in runs.values() for each in found if each.training_seeds in ([], [seed])
        ]
        written.append(KEPT / f"seed_{seed}.json")
        written[-1].write_text(json.dumps({"systems": systems, "real": real}) + "\n", encoding="utf-8")
    return written


def _short(system: dict[str, Any]) -> dict[str, Any]:
    values = {
        metric: [[float(f"{value:.4g}") for value in row] for row in system["values"][metric]] for metric in COLUMNS
    }
    return system | {"model": "", "values": values}


def kept() -> tuple[list[System], list[System]]:
    """The systems, each with all training seeds that were kept, and rows of real tunes.

    Systems without training have the values of the first file: all studies draw the same samples of them.
    """
    contents = _contents()
    runs = {name: [systems[name] for systems, _ in contents] for name in contents[0][0]}
    systems = [pooled(name, each) if each[0].chain else each[0] for name, each in runs.items()]
    return systems, contents[0][1]


def _contents() -> list[tuple[dict[str, System], list[System]]]:
    """Of each training seed that was kept: the systems by name, and rows of real tunes."""
    read = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(KEPT.glob("seed_*.json"))]
    return [
        (
            {fields["name"]: System(**fields) for fields in content["systems"]},
            [System(**row) for row in content["real"]],
        )
        for content in read
    ]


def study() -> dict[str, Any]:
    """Each system: means, differences from the control, heights; and the differences that its authors' claims are about."""
    systems, real = kept()
    named = {system.name: system for system in systems}
    control, ends = named["kl"], [named[name] for name in ENDS]
    by_seed = [of_seed for of_seed, _ in _contents()]
    found: dict[str, Any] = {
        "prompts": len(control.prompts), "samples": control.samples, "seeds": control.seeds,
        "training_seeds": control.training_seeds, "systems": {}, "claims": {},
    }  # fmt: skip
    for system in [*systems, *real]:
        has = [metric for metric in COLUMNS if not np.isnan(system.cells(metric)).all()]
        found["systems"][system.name] = {metric: system.interval(metric)._asdict() for metric in has}
        for metric in () if system is control or system in real else set(has) & set(DIFFERENCES):
            found["systems"][system.name][metric]["from_kl"] = difference(system, control, metric)._asdict() | {
                "by_seed": [difference(each[system.name], each["kl"], metric)._asdict() for each in by_seed]
            }
        if system.name not in ENDS and system not in real:
            heights = {
                metric: height_above(system, ends, "quality", metric)._asdict()
                | {"by_seed": [_height(each, system.name, metric) for each in by_seed]}
                for metric in HEIGHTS
            }
            found["systems"][system.name]["heights"] = heights
    for left, right, metrics in COMPARED:
        found["claims"][f"{left} - {right}"] = {
            metric: difference(named[left], named[right], metric)._asdict()
            | {"by_seed": [difference(each[left], each[right], metric)._asdict() for each in by_seed]}
            for metric in metrics
        }
    return found


def _height(systems: dict[str, System], name: str, metric: str) -> dict[str, Any]:
    return height_above(systems[name], [systems[end] for end in ENDS], "quality", metric)._asdict()


def table_of_study(found: dict[str, Any]) -> str:
    tables = [_table(found["systems"], columns, () if place else HEIGHTS) for place, columns in enumerate(SHOWN)]
    seeds = [f"seed {seed}" for seed in found["training_seeds"]]
    lines = [f"| difference | metric | {' | '.join(['all seeds', *seeds])} |", "|---" * (3 + len(seeds)) + "|"]
    lines += [
        f"| {pair} | {metric.replace('_', ' ')} | {' | '.join(map(_signed, [value, *value['by_seed']]))} |"
        for pair, values in found["claims"].items()
        for metric, value in values.items()
    ]
    lines += [
        f"| {name}, height | {metric.replace('_', ' ')} | {' | '.join(map(_signed, [value, *value['by_seed']]))} |"
        for name, values in found["systems"].items()
        for metric, value in values.get("heights", {}).items()
    ]
    accuracy = "code accuracy of volta: {mean:.3f} ({low:.3f}, {high:.3f})".format(
        **found["systems"]["volta"]["code_accuracy"]
    )
    return "\n\n".join([*tables, "\n".join(lines), accuracy])


def table_on_page(found: dict[str, Any]) -> str:
    """Differences from the control for docs/neighbours.md, ± half of their intervals; heights are skewed."""

    def short(value: dict[str, Any]) -> str:
        text = f"{value['mean']:+.3f} ±{(value['high'] - value['low']) / 2:.3f}"
        return f"**{text}**" if value["low"] > 0 or value["high"] < 0 else text

    heads = ["system", *ON_PAGE.values(), *(f"height, {ON_PAGE[metric]}" for metric in HEIGHTS)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    left_out = {f"{kind} {each}" for kind in ("annealed", "rising") for each in ANNEALED if each != "2"} | {
        "guidance 1.5"
    }
    for name in [name for name in found["systems"] if name not in left_out]:
        values = found["systems"][name]
        cells = [short(values[metric]["from_kl"]) if "from_kl" in values[metric] else f"{values[metric]['mean']:.3f}"
                 for metric in ON_PAGE]  # fmt: skip
        cells += [_signed(values["heights"][metric]) if "heights" in values else "-" for metric in HEIGHTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def on_page(text: str) -> str:
    """The table that the page has: from its head to the empty line behind it."""
    begin = text.index("| system | quality |")
    return text[begin : text.index("\n\n", begin)]


def _table(systems: dict[str, Any], columns: Sequence[str], heights: Sequence[str]) -> str:
    heads = ["system", *columns, *(f"height, {metric}" for metric in heights)]
    lines = [f"| {' | '.join(heads).replace('_', ' ')} |", "|---" * len(heads) + "|"]
    for name, values in systems.items():
        cells = [_cell(values[metric]) if metric in values else "-" for metric in columns]
        cells += [_signed(values["heights"][metric]) if "heights" in values else "-" for metric in heights]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: dict[str, Any]) -> str:
    """The difference from the control, bold where its interval leaves out 0; of the control and of real tunes the mean."""
    return _signed(value["from_kl"]) if "from_kl" in value else f"{value['mean']:.3f}"


def _signed(value: dict[str, Any]) -> str:
    mean, low, high = (value[key] for key in ("mean", "low", "high"))
    text = f"{mean:+.3f} ({low:+.3f}, {high:+.3f})"
    return f"**{text}**" if low > 0 or high < 0 else text


def codes(samples: int = 8, values: int = 4) -> str:
    """What samples of the base earn under random codes, which is the mean over all codes."""
    start = StartModel(CausalLM("tunes:base").load(), Sampling(samples=16, max_new_tokens=80))
    embedder, given = Tunes().load(), read_prompts(ROOT / "recipes/tunes/prompts/train.txt", "prompt")[::4][:10]
    drawn = draw(start.generator, given, replace(start.sampling, samples=samples), seed=7).groups()
    kept, fresh = [], []
    for prompt, outputs in zip(given, drawn, strict=True):
        first, second = (
            unit(embedder.embed(each)[~embedder.degenerate(each)]) for each in (start.draw(prompt, 16).outputs, outputs)
        )
        kept.append(first - first.mean(0))
        fresh.append(second - first.mean(0))
    directions = (simplex(values) @ principal_components(torch.cat(kept), values - 1)).float()
    lines = ["| temperature | mean | standard deviation | best code |", "|---:|---:|---:|---:|"]
    for temperature in (0.05, 0.1, 0.2, 0.3, 0.5, 1.0):
        reward = code_log_probs(torch.cat(fresh), directions, temperature) + math.log(values)
        best = reward.max(-1).values.mean()
        lines.append(f"| {temperature} | {reward.mean():.2f} | {reward.std():.2f} | {best:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("costs").add_argument("--repeats", type=int, default=5)
    kinds.add_parser("codes")
    kinds.add_parser("keep").add_argument("study", type=Path)
    kinds.add_parser("table")
    given = parser.parse_args()
    if given.kind in ("codes", "keep"):
        print(codes() if given.kind == "codes" else "\n".join(map(str, keep(given.study))))
        return
    found: Any
    show: Callable[[Any], str]
    if given.kind == "costs":
        found, show, file = costs(given.repeats), table_of_costs, "neighbours_costs.json"
    else:
        found, show, file = study(), table_of_study, "neighbours.json"
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(page.replace(on_page(page), table_on_page(found)), encoding="utf-8")
    (ROOT / "docs/evidence" / file).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(show(found))


if __name__ == "__main__":
    main()
