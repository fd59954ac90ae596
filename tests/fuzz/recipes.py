"""Broken recipes: as text, and value by value."""

from __future__ import annotations

import random
from typing import Any

from fuzz.case import Case
from fuzz.world import World, changed, dumped, is_numeric, keys, leaves, without

TEXT_SEED, VALUE_SEED = 1201, 1202

NEVER: list[tuple[str, Any]] = [
    ("nan", float("nan")), ("inf", float("inf")), ("-inf", float("-inf")), ("text", "many"), ("a mapping", {"a": 1}),
    ("a number of 400 digits", 10**400), ("a date", "2023-13-45"), ("a list of lists", [[1.0]]),
]  # fmt: skip
"""No key that takes numbers takes these."""
SOMETIMES: list[tuple[str, Any]] = [
    ("-1", -1),
    ("0", 0),
    ("-0.5", -0.5),
    ("2.5", 2.5),
    ("1e30", 1e30),
    ("true", True),
    ("null", None),
]
"""Some keys take these. In the others they must be refused; what must never come of them is a traceback or NaN."""
BETA = ("diversity", "init_args", "weight")
NONSENSE: dict[str, list[Any]] = {
    "weight": [-1, -3.0, -1e30],
    "warmup_steps": [-1, -5],
    "temperature": [0, -1],
    "scale": [-1],
    "top_p": [0, -1, 5],
    "top_k": [-3],
    "min_p": [-1, 2.0],
    "samples": [0, -1, 1],
    "max_new_tokens": [0, -1, 10**9],
    "lr": [-1, 0],
    "weight_decay": [-0.5],
    "betas": [[0.9, 1.5], [-1, 0.5]],
    "eps": [-1],
    "start_factor": [0, -1, 2.5],
    "end_factor": [-1, 3],
    "total_iters": [0, -1],
    "micro_batch": [-1, 2],
    "measure_gradients_every": [-1],
    "logits_chunk": [-1],
    "batch_size": [0, -1],
    "validation_batch_size": [-1],
    "gradient_clip_val": [-1],
    "accumulate_grad_batches": [0, -1],
    "val_check_interval": [0, -1],
    "log_every_n_steps": [-1],
    "num_nodes": [0, -1],
    "devices": [0],
    "max_steps": [-2],
    "max_epochs": [-5],
    "decay": [1.0, -1, 2],
    "update_every": [0, -1],
    "start_step": [-1],
    "num_steps": [-1],
    "ratio": [0, -1],
    "momentum": [1.0, -1],
    "collapse_below": [-1, 2],
    "num_prompts": [0],
    "num_samples": [0],
    "window": [0, -1],
    "n": [0, -1],
    "buckets": [0, -1],
    "seed": [-1],
    "seed_everything": [-1, 2**40],
    "every_n_train_steps": [-1],
    "save_top_k": [-2],
}
"""By the last part of the key: numbers that mean nothing there."""
ENDLESS = {"max_steps", "max_epochs", "devices", "num_nodes"}
"""Keys whose large or missing values ask for much work, or for other machines: a long run is what was asked for."""


def of_values(world: World, number: int) -> list[Case]:
    """Every numeric key with wrong values, misspelled keys, missing keys, wrong classes."""
    draw, recipe = random.Random(VALUE_SEED), world.recipe
    made: list[Case] = []

    def add(path: tuple[str | int, ...], what: str, content: Any, expect: Any) -> None:
        # A rate of 1e30 is refused once the model diverges, and that message names no key.
        named = (str(path[-1]),) if expect == "refused" else ()
        made.append(
            world.fit("recipe values", f"{'.'.join(map(str, path))}: {what}", content, expect=expect, named=named)
        )

    numeric = [path for path, value in leaves(recipe) if is_numeric(value)]
    for path in numeric:
        for wrong in NONSENSE.get(str(path[-1]), ()):
            expect = "either" if path[-3:] == BETA else "refused"  # a negative beta asks for sameness
            add(path, repr(wrong), changed(recipe, path, wrong), expect)
    certain = made[:]
    made.clear()
    for path in numeric:
        for what, wrong in NEVER:
            add(path, what, changed(recipe, path, wrong), "refused")
        for what, wrong in SOMETIMES:
            if str(path[-1]) not in ENDLESS:
                add(path, what, changed(recipe, path, wrong), "either")
    for path in keys(recipe):
        inside_of_names = path[-2:-1] in (("losses",), ("callbacks",), ("metrics",))
        word = str(path[-1])
        place = draw.randrange(len(word))
        misspelled = word[:place] + draw.choice("qxz") + word[place + 1 :]
        content = without(recipe, path)
        node: Any = content
        for key in path[:-1]:
            node = node[key]
        node[misspelled] = _at(recipe, path)
        if not inside_of_names:
            add((*path[:-1], misspelled), "misspelled", content, "refused")
        add(path, "missing", without(recipe, path), "either")
        add(path, "a bare list", changed(recipe, path, ["x", {"y": 1}]), "refused")
    for path, _ in leaves(recipe):
        if path[-1] == "class_path":
            for other in (
                "os.system",
                "subprocess.Popen",
                "builtins.dict",
                "no_such_module.Class",
                "torch.nn.Linear",
                "",
                3,
            ):
                add(path, f"class_path {other}", changed(recipe, path, other), "refused")
    endless = {"trainer.max_steps: missing", "trainer: missing", "trainer.devices: missing"}
    known = endless | {case.name for case in certain}
    rest = [case for case in made if case.name not in known]
    draw.shuffle(rest)
    return [*certain, *rest][:number]


def _at(content: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def _bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def of_text(world: World, number: int) -> list[Case]:
    """Recipes that are no YAML, or more of it than anybody wants."""
    draw = random.Random(TEXT_SEED)
    whole = dumped(world.recipe)
    texts: list[tuple[str, str | bytes]] = [
        ("empty", ""),
        ("blank lines", "\n \n"),
        ("a comment", "# nothing\n"),
        ("a list", "- a\n- b\n"),
        ("a word", "hello"),
        ("a number", "3"),
        ("null", "null"),
        ("a tab", "model:\n\tguidance: {scale: 2}\n"),
        ("a tab in the middle", whole.replace("  guidance:", "\tguidance:", 1)),
        ("aliases of nine levels", whole + _bomb(9)),
        ("aliases of thirty levels", whole + _bomb(30)),
        ("an alias of itself", "a: &a {b: *a}\n"),
        ("an alias of itself in a list", whole + "x: &x [1, *x]\n"),
        ("an unknown alias", whole + "x: *nothing\n"),
        ("3,000 brackets", "a: " + "[" * 3000 + "]" * 3000),
        ("200,000 open brackets", "a: " + "[" * 200_000),
        ("300 levels", "".join(f"{' ' * n}k:\n" for n in range(300)) + " " * 300 + "k: 1\n"),
        ("a number of 5,000 digits", whole + f"x: {'9' * 5000}\n"),
        ("a date that is none", whole + "when: 2023-13-45\n"),
        ("ten megabytes", whole + "# " + "x" * 10**7 + "\n"),
        ("200,000 keys", "".join(f"k{n}: 1\n" for n in range(200_000))),
        ("a python tag", "model: !!python/object/apply:os.system ['touch PWNED']\n"),
        ("a python name", "model: !!python/name:os.system\n"),
        ("an unknown tag", whole + "x: !thing 3\n"),
        ("a newer version", whole + "version: 99\n"),
        ("latin-1", "model: caf\xe9\n".encode("latin-1")),
        ("utf-16", whole.encode("utf-16")),
        ("NUL", whole.replace("guidance", "guid\0ance", 1)),
        ("bytes", bytes(range(256))),
        ("a control character", whole + "x: \x07\n"),
        ("a second model", whole + "model: {guidance: {scale: 2}}\n"),
        ("a key twice", whole.replace("    scale: 3.0", "    scale: 3.0\n    scale: 2.0", 1)),
        ("two documents", whole + "---\n" + whole),
        ("a list as a key", whole + "? [1, 2]\n: 3\n"),
        ("a number as a key", whole + "3: 4\n"),
        ("null as a key", whole + "null: 4\n"),
        ("true as a key", whole + "true: 4\n"),
        ("a merge key of a word", whole + "<<: hello\n"),
        ("an open quote", whole + 'x: "abc\n'),
        ("an open brace", whole + "x: {a: 1\n"),
        ("wrong indentation", whole.replace("    scale", "   scale", 1) + "  x: 1\n"),
        ("JSON cut short", '{"model": {"guidance": '),
        ("a colon in text", "model: a: b\n"),
        ("an emoji key", whole + "\U0001f600: 1\n"),
        ("a right-to-left key", whole + "\u202emodel: 1\n"),
        ("a very long key", whole + "k" * 5000 + ": 1\n"),
        ("a very long value", whole.replace("max_steps: 1", "max_steps: " + "1" * 4000)),
    ]
    legal: list[tuple[str, str | bytes]] = [
        ("a BOM", b"\xef\xbb\xbf" + whole.encode()),
        ("Windows line ends", whole.replace("\n", "\r\n")),
        ("a small alias", "x_: &s {scale: 3.0}\n".replace("x_", "model") + ""),
    ]
    made = [world.fit("recipe text", name, text, named=("fit.yaml", "Key ", "Option")) for name, text in texts]
    made += [world.fit("recipe text", name, text, expect="legal") for name, text in legal[:2]]
    lines = whole.splitlines()
    while len(made) < number:
        place = draw.randrange(len(lines))
        kind = draw.choice(("cut", "swap", "indent", "letter", "double"))
        edited = lines[:]
        if kind == "cut":
            text = whole[: draw.randrange(len(whole))]
        else:
            other = draw.randrange(len(lines))
            if kind == "swap":
                edited[place], edited[other] = edited[other], edited[place]
            elif kind == "indent":
                edited[place] = " " * draw.choice((1, 3, 5)) + edited[place]
            elif kind == "letter":
                column = draw.randrange(len(edited[place]) or 1)
                edited[place] = (
                    edited[place][:column] + draw.choice("{}[]:&*!%@`\"'|>#\t") + edited[place][column + 1 :]
                )
            else:
                edited.insert(place, edited[place])
            text = "\n".join(edited) + "\n"
        # The one limit of the length must stay, or the run is endless on purpose.
        if "max_steps: 1" in text.replace(" \n", "\n"):
            made.append(world.fit("recipe text", f"{kind} at line {place} ({len(made)})", text, expect="either"))
    return made[:number]
