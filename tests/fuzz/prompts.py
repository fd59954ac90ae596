"""Broken files of prompts, read by ``evaluate`` and by ``fit``, and prompts of ``generate``."""

from __future__ import annotations

import json
import random

from fuzz.case import Case, Expect
from fuzz.world import World, changed, dumped

SEED = 1204
FILES: list[tuple[str, str, str | bytes, Expect]] = [
    ("empty", "p.txt", "", "refused"),
    ("blank", "p.txt", "\n \n\t\n", "refused"),
    ("a line of 10 MB", "p.txt", "w1 " * 3_400_000, "refused"),
    ("a line of 200,000 characters", "p.txt", "w1\n" + "w2 " * 70_000, "refused"),
    ("too many words", "p.txt", "w1\n" + "w2 " * 100, "refused"),
    ("NUL", "p.txt", "w1\0 w2\n", "refused"),
    ("escape", "p.txt", "w1 \x1b[31m w2\n", "refused"),
    ("BOM", "p.txt", b"\xef\xbb\xbfw1 w2\n", "legal"),
    ("Windows line ends", "p.txt", "w1\r\nw2\r\n", "legal"),
    ("no last line end", "p.txt", "w1", "legal"),
    ("one prompt twice", "p.txt", "w1\nw1\n", "legal"),
    ("utf-16", "p.txt", "w1\nw2\n".encode("utf-16"), "refused"),
    ("latin-1", "p.txt", b"caf\xe9\n", "refused"),
    ("bytes", "p.txt", bytes(range(256)), "refused"),
    ("another kind", "p.md", "w1\n", "refused"),
    ("no suffix", "p", "w1\n", "refused"),
    ("markup", "p.txt", "<script>alert(1)</script>\n{{ 7 * 7 }}\n", "legal"),
    ("a JSON line cut short", "p.jsonl", '{"prompt": "w1"}\n{"prompt": ', "refused"),
    ("a JSON number", "p.jsonl", '{"prompt": 3}\n', "refused"),
    ("a JSON list", "p.jsonl", '["w1"]\n', "refused"),
    ("JSON null", "p.jsonl", "null\n", "refused"),
    ("a null prompt", "p.jsonl", '{"prompt": null}\n', "refused"),
    ("another field", "p.jsonl", '{"promt": "w1"}\n', "refused"),
    ("JSON of 3,000 brackets", "p.jsonl", "[" * 3000 + "]" * 3000 + "\n", "refused"),
    ("JSON of 200,000 brackets", "p.jsonl", "[" * 200_000 + "\n", "refused"),
    ("half a character", "p.jsonl", '{"prompt": "w1 \\ud800"}\n', "refused"),
    ("an escaped NUL", "p.jsonl", '{"prompt": "w1 \\u0000"}\n', "refused"),
    ("JSON of all, in one file", "p.jsonl", json.dumps([{"prompt": "w1"}]), "refused"),
    ("conditions of another model", "p.jsonl", '{"prompt": "w1", "conditions": {"melody": "x.wav"}}\n', "refused"),
    ("conditions that are a list", "p.jsonl", '{"prompt": "w1", "conditions": ["x"]}\n', "refused"),
    ("conditions that are numbers", "p.jsonl", '{"prompt": "w1", "conditions": {"melody": 3}}\n', "refused"),
    ("a JSON text", "p.jsonl", '"w1"\n"w2"\n', "legal"),
    ("more cells than the header", "p.csv", "prompt\nw1,w2\n", "refused"),
    ("fewer cells than the header", "p.csv", "id,prompt\n1,w1\n2\n", "legal"),
    ("an open quote", "p.csv", 'prompt\n"w1\nw2', "refused"),
    ("no such column", "p.csv", "text\nw1\n", "refused"),
    ("a header alone", "p.csv", "prompt\n", "refused"),
    ("an empty table", "p.csv", "", "refused"),
    ("a cell of 200,000 characters", "p.csv", "prompt\n" + "w" * 200_000 + "\n", "refused"),
    ("NUL in a cell", "p.csv", "prompt\nw1\0\n", "refused"),
    ("a column of another model", "p.csv", "prompt,conditions.melody\nw1,x.wav\n", "refused"),
    ("the column twice", "p.csv", "prompt,prompt\nw1,w2\n", "either"),
    ("tabs", "p.tsv", "id\tprompt\n1\tw1\n", "legal"),
]  # fmt: skip


def cases(world: World, number: int) -> list[Case]:
    draw = random.Random(SEED)
    made: list[Case] = []
    evaluate = (
        "evaluate",
        "--model",
        world.at("model"),
        "--samples",
        "2",
        "--max-new-tokens",
        "4",
        "--out",
        "out",
        "--prompts",
    )
    recipe = dumped(changed(world.recipe, ("data", "train"), "PROMPTS"))
    for name, file, content, expect in FILES:
        named = (file,) if name != "too many words" else ("w2",)
        if "another model" in name:
            named = ("melody",)
        made.append(
            Case("prompts", f"evaluate: {name}", (*evaluate, file), {file: content}, expect=expect, named=named)
        )
    for name, file, content, expect in draw.sample(FILES, 12):
        files: dict[str, str | bytes] = {file: content, "fit.yaml": recipe.replace("PROMPTS", file)}
        # One word twice is no mistake, but a prompt of the validation is.
        made.append(Case("prompts", f"fit: {name}", ("fit", "--config", "fit.yaml"), files, expect=expect))
    generate = ("generate", "--model", world.at("model"), "--samples", "1", "--max-new-tokens", "2")
    for name, words, expect in (
        ("an empty prompt", ("",), "either"),
        ("200,000 characters", ("w1 " * 70_000,), "refused"),
        ("too many words", ("w1 " * 80,), "refused"),
        ("an escape", ("w1 \x1b[0m",), "refused"),
        ("markup", ("<b>w1</b>",), "legal"),
        ("half a character", ("w1 \udcff",), "refused"),
    ):
        made.append(Case("prompts", f"generate: {name}", (*generate, "--prompt", *words), expect=expect))  # type: ignore[arg-type]
    tunes = ("generate", "--model", "tunes:base", "--samples", "1", "--max-new-tokens", "4", "--prompt")
    made.append(
        Case("prompts", "generate: nothing that tunes know", (*tunes, "quantum field theory"), named=("quantum",))
    )
    metrics = ("trainer", "callbacks", "diversity", "init_args", "metrics")
    bars = changed(world.recipe, metrics, {"bars": {"class_path": "cfg_distill.tunes.metrics.BarValidity"}})
    made.append(world.fit("prompts", "fit: nothing that tune metrics know", bars, named=("data.validation",)))
    while len(made) < number:
        length = draw.randrange(1, 400)
        content = bytes(draw.choice((*b'w1 \n\r\t",{}[]:\\', draw.randrange(256))) for _ in range(length))
        file = f"p{draw.choice(('.txt', '.jsonl', '.csv', '.tsv'))}"
        made.append(
            Case("prompts", f"random bytes {len(made)} as {file}", (*evaluate, file), {file: content}, expect="either")
        )
    return made[:number]
