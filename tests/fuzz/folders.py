"""Broken model folders, read by ``generate``, ``evaluate`` and ``fit``."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from fuzz.case import Case, Expect
from fuzz.world import World, changed, dumped, edit_json

SEED = 1206
WEIGHTS = "model.safetensors"
Break = Callable[[Path], None]


def copied(world: World, break_: Break, name: str = "model") -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(world.at("model"), folder / name)
        break_(folder / name)

    return make


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Break:
    def break_(model: Path) -> None:
        state = load_file(model / WEIGHTS)
        change(state)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, model / WEIGHTS, {"format": "pt"})

    return break_


def config(file: str = "config.json", **changes: Any) -> Break:
    return lambda model: edit_json(model / file, **changes)


def text(file: str, content: str | bytes) -> Break:
    return lambda model: (
        (model / file).write_bytes(content if isinstance(content, bytes) else content.encode()) and None
    )


def gone(file: str) -> Break:
    return lambda model: (model / file).unlink()


def cut(file: str, share: float) -> Break:
    def break_(model: Path) -> None:
        content = (model / file).read_bytes()
        (model / file).write_bytes(content[: int(share * len(content))])

    return break_


def template(program: str) -> Break:
    return text("chat_template.jinja", program)


def sharded(**named: str) -> Break:
    def break_(model: Path) -> None:
        state = load_file(model / WEIGHTS)
        (model / WEIGHTS).rename(model / "model-00001-of-00001.safetensors")
        table = dict.fromkeys(state, "model-00001-of-00001.safetensors") | named
        (model / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))

    return break_


class Bomb:
    """Unpickled, it leaves a file."""

    def __reduce__(self) -> Any:
        return exec, ("open('PWNED', 'w').close()",)


def pickled(model: Path) -> None:
    (model / WEIGHTS).unlink()
    torch.save({"model.norm.weight": Bomb()}, model / "pytorch_model.bin")


def foreign_code(model: Path) -> None:
    edit_json(
        model / "config.json",
        auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        model_type="evil",
    )
    (model / "evil.py").write_text("open('PWNED', 'w').close()\n")


def index_of_nothing(model: Path) -> None:
    (model / WEIGHTS).unlink()
    (model / f"{WEIGHTS}.index.json").write_text("{}")


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
FIRST = "model.layers.0.mlp.up_proj.weight"
BROKEN: list[tuple[str, Break, Expect]] = [
    ("whole", lambda model: None, "legal"),
    ("a tensor less", tensors(lambda state: state.pop(FIRST)), "refused"),
    ("a tensor more", tensors(lambda state: state.update(extra=torch.ones(2))), "refused"),
    ("another shape", tensors(lambda state: state.update({FIRST: torch.ones(3, 3)})), "refused"),
    ("integers", tensors(lambda state: state.update({FIRST: state[FIRST].int()})), "refused"),
    ("NaN", tensors(lambda state: state[FIRST].fill_(torch.nan)), "refused"),
    ("infinity", tensors(lambda state: state[FIRST].fill_(torch.inf)), "refused"),
    ("no tensors", tensors(lambda state: state.clear()), "refused"),
    ("half of the weights", cut(WEIGHTS, 0.5), "refused"),
    ("a header cut short", cut(WEIGHTS, 0.01), "refused"),
    ("empty weights", text(WEIGHTS, b""), "refused"),
    ("weights that are text", text(WEIGHTS, "hello"), "refused"),
    ("a header of 2^60 bytes", text(WEIGHTS, (2**60).to_bytes(8, "little") + b"{}"), "refused"),
    ("no weights", gone(WEIGHTS), "refused"),
    ("a pickle", pickled, "refused"),
    ("code", foreign_code, "refused"),
    ("no config", gone("config.json"), "refused"),
    ("an empty config", text("config.json", ""), "refused"),
    ("a config cut short", cut("config.json", 0.5), "refused"),
    ("a config that is a list", text("config.json", "[]"), "refused"),
    ("a config of 3,000 brackets", text("config.json", "[" * 3000 + "]" * 3000), "refused"),
    ("a config of 200,000 brackets", text("config.json", '{"a":' * 100_000), "refused"),
    ("a config in latin-1", text("config.json", b'{"a": "\xe9"}'), "refused"),
    ("an empty mapping as config", text("config.json", "{}"), "refused"),
    ("model_type bert", config(model_type="bert"), "refused"),
    ("model_type nothing", config(model_type="nothing"), "refused"),
    ("no model_type", config(model_type=...), "refused"),
    ("model_type 3", config(model_type=3), "refused"),
    ("99 layers", config(num_hidden_layers=99), "refused"),
    ("one layer", config(num_hidden_layers=1), "refused"),
    ("-1 layers", config(num_hidden_layers=-1), "refused"),
    ("layers as text", config(num_hidden_layers="two"), "refused"),
    ("another width", config(hidden_size=32), "refused"),
    ("a width of 0", config(hidden_size=0), "refused"),
    ("three heads", config(num_attention_heads=3), "refused"),
    ("0 heads", config(num_attention_heads=0), "refused"),
    ("another vocabulary", config(vocab_size=99), "refused"),
    ("-5 positions", config(max_position_embeddings=-5), "refused"),
    ("positions as text", config(max_position_embeddings="many"), "refused"),
    ("an unknown activation", config(hidden_act="magic"), "refused"),
    ("a rope of nonsense", config(rope_scaling={"rope_type": "magic"}), "refused"),
    ("no tokenizer", gone("tokenizer.json"), "refused"),
    ("an empty tokenizer", text("tokenizer.json", ""), "refused"),
    ("a tokenizer cut short", cut("tokenizer.json", 0.5), "refused"),
    ("a tokenizer of another kind", text("tokenizer.json", "{}"), "refused"),
    ("a tokenizer config cut short", cut("tokenizer_config.json", 0.5), "refused"),
    ("a tokenizer config that is a list", text("tokenizer_config.json", "[]"), "refused"),
    ("an unknown tokenizer class", config("tokenizer_config.json", tokenizer_class="Magic"), "either"),
    ("a tokenizer of code", config("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}), "either"),
    ("a generation config cut short", cut("generation_config.json", 0.5), "refused"),
    ("a profile cut short", text("cfg_distill.json", "{"), "refused"),
    ("a profile that is a list", text("cfg_distill.json", "[]"), "refused"),
    ("a profile of os.system", text("cfg_distill.json", '{"renderer": "os.system"}'), "either"),
    ("a profile of a strange module", text("cfg_distill.json", '{"renderer": "evil.Renderer"}'), "either"),
    ("a profile of no class", text("cfg_distill.json", '{"renderer": "cfg_distill.files.write_text"}'), "refused"),
    ("a profile of numbers", text("cfg_distill.json", '{"renderer": 3}'), "refused"),
    ("a profile of 3,000 brackets", text("cfg_distill.json", "[" * 3000 + "]" * 3000), "refused"),
    ("a template that is a bomb", template("{{ 'x' * 999999999 }}"), "refused"),
    ("a template of 10^12 letters", template("{{ 'x' * 999999999999 }}"), "refused"),
    ("a template without end", template(ENDLESS), "refused"),
    ("a template of powers", template("{{ 9 ** 9 ** 9 ** 9 }}"), "refused"),
    ("a template that calls itself", template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"), "refused"),
    ("a template of a long text", template("{% for i in range(99999) %}{{ messages }}{% endfor %}"), "refused"),
    ("a template that fails", template("{{ 1 / 0 }}"), "refused"),
    ("a template that reaches out", template("{{ ''.__class__.__mro__[1].__subclasses__() }}"), "refused"),
    ("a template that opens", template("{{ cycler.__init__.__globals__.os.popen('touch PWNED').read() }}"), "refused"),
    ("a template that is broken", template("{% for %}"), "refused"),
    ("a template that says nothing", template(""), "either"),
    ("a wide format", template("{{ '%999999999d' % 3 }}"), "refused"),
    ("shards", sharded(), "legal"),
    ("a shard outside", sharded(**{FIRST: "../../../../etc/passwd"}), "refused"),
    ("an absolute shard", sharded(**{FIRST: "/etc/passwd"}), "refused"),
    ("a missing shard", sharded(**{FIRST: "model-00002-of-00002.safetensors"}), "refused"),
    ("an index of nothing", index_of_nothing, "refused"),
    ("an index cut short", lambda model: (sharded()(model), cut(f"{WEIGHTS}.index.json", 0.5)(model))[1], "refused"),
    ("an adapter without a base", text("adapter_config.json", "{}"), "refused"),
    ("an adapter cut short", text("adapter_config.json", "{"), "refused"),
    ("an adapter of itself", text("adapter_config.json", '{"base_model_name_or_path": "model"}'), "refused"),
]  # fmt: skip


def cases(world: World, number: int) -> list[Case]:
    draw = random.Random(SEED)
    made: list[Case] = []
    generate = ("generate", "--model", "model", "--prompt", "w1 w2", "--samples", "1", "--max-new-tokens", "2")
    for name, break_, expect in BROKEN:
        made.append(
            Case(
                "folders",
                f"generate: {name}",
                generate,
                make=copied(world, break_),
                expect=expect,
                named=("model", "template"),
            )
        )
    recipe = dumped(changed(world.recipe, ("model", "generator", "init_args", "path"), "model"))
    start = dumped(changed(world.recipe, ("model", "start"), "model"))
    for name, break_, expect in draw.sample(BROKEN[1:10] + BROKEN[24:30], 10):
        for way, content in (("teacher", recipe), ("start", start)):
            words = ("fit", "--config", "fit.yaml")
            made.append(Case("folders", f"{way}: {name}", words, {"fit.yaml": content}, copied(world, break_), expect))
    while len(made) < number:
        file = draw.choice(("config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS))
        place, bit = draw.random(), draw.randrange(8)

        def flip(model: Path, file: str = file, place: float = place, bit: int = bit) -> None:
            content = bytearray((model / file).read_bytes())
            # Of the weights only the header: a flipped bit of a weight is a weight.
            end = 8 + int.from_bytes(content[:8], "little") if file == WEIGHTS else len(content)
            content[int(place * end)] ^= 1 << bit
            (model / file).write_bytes(bytes(content))

        made.append(
            Case(
                "folders",
                f"generate: a bit of {file} ({len(made)})",
                generate,
                make=copied(world, flip),
                expect="either",
            )
        )
    return made[:number]
