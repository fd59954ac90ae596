"""Broken files of metrics, read by ``evaluate`` and ``validate-metrics``."""

from __future__ import annotations

import random
from typing import Any

from fuzz.case import Case
from fuzz.recipes import NEVER, SOMETIMES, _bomb
from fuzz.world import World, changed, dumped, is_numeric, keys, leaves, without

SEED = 1205


def cases(world: World, number: int) -> list[Case]:
    draw, metrics = random.Random(SEED), world.metrics
    made: list[Case] = []
    evaluate = (
        "evaluate", "--model", world.at("model"), "--samples", "2", "--max-new-tokens", "3",
        "--prompts", world.at("report.txt"), "--metrics", "m.yaml",
    )  # fmt: skip

    def add(name: str, content: Any, expect: Any = "refused", words: tuple[str, ...] = evaluate) -> None:
        text = content if isinstance(content, str | bytes) else dumped(content)
        named = ("m.yaml", "metrics", *(metrics if not isinstance(content, str | bytes) else ()))
        named = named if expect == "refused" else ()  # what comes of it may be found while sampling
        made.append(Case("metrics", name, words, {"m.yaml": text}, expect=expect, named=named))

    whole = dumped(metrics)
    add("whole", metrics, "legal")
    for name, text in {
        "empty": "", "a list": "- x\n", "a word": "x", "null": "a: null\n", "a number": "a: 3\n", "a tab": "a:\n\tb: 1\n",
        "aliases": whole + _bomb(9), "an alias of itself": "a: &a {b: *a}\n", "a key twice": whole + "length: {}\n",
        "a python tag": "a: !!python/object/apply:os.system ['touch PWNED']\n", "deep": "a: " + "[" * 3000,
        "latin-1": b"a: caf\xe9\n", "a number of 5,000 digits": f"a: {'9' * 5000}\n", "NUL": "a: b\0\n",
    }.items():  # fmt: skip
        add(name, text)
    others: tuple[Any, ...] = (
        "os.system", "subprocess.Popen", "builtins.dict", "cfg_distill.losses.ReverseKL", "no.such.Class", "Length2",
        "cfg_distill.metrics.SampleMetric", "", ".", "a..b", 3, ["x"], {"class_path": "os.system"},
    )  # fmt: skip
    for other in others:
        add(f"class_path {other}", changed(metrics, ("length", "class_path"), other))
        add(f"a metric that is {other}", changed(metrics, ("length",), other))
    add("validate-metrics: os.system", {"a": {"class_path": "os.system"}}, words=("validate-metrics", "m.yaml"))
    add("validate-metrics: empty", "", words=("validate-metrics", "m.yaml"))
    add("validate-metrics: aliases", whole + _bomb(9), words=("validate-metrics", "m.yaml"))
    add("validate-metrics: no metric", {"a": 3}, words=("validate-metrics", "m.yaml"))
    certain = made[:]
    made.clear()
    for path, value in leaves(metrics):
        if is_numeric(value):
            for what, wrong in NEVER:
                add(f"{'.'.join(map(str, path))}: {what}", changed(metrics, path, wrong))
            for what, wrong in SOMETIMES:
                add(f"{'.'.join(map(str, path))}: {what}", changed(metrics, path, wrong), "either")
    for path in keys(metrics):
        add(f"{'.'.join(map(str, path))}: missing", without(metrics, path), "either")
        add(f"{'.'.join(map(str, path))}: a bare list", changed(metrics, path, ["x", {"y": 1}]))
        add(f"{'.'.join(map(str, path))}: text", changed(metrics, path, "nothing"))
    draw.shuffle(made)
    return [*certain, *made][:number]
