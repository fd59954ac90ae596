"""Broken checkpoints, read by ``export``."""

from __future__ import annotations

import copy
import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fuzz.case import Case, Expect
from fuzz.folders import Bomb
from fuzz.world import World

SEED = 1207


def content_of(world: World) -> dict[str, Any]:
    """A checkpoint as ``fit`` writes it, as far as ``export`` reads it."""
    from cfg_distill import checkpoints
    from cfg_distill.generators import CausalLM

    generator = CausalLM(world.at("model"))
    spec = checkpoints.spec_of(generator)
    weights = {f"student.{name}": tensor.clone() for name, tensor in generator.load().state_dict().items()}
    return {**checkpoints.keys_of_ours(spec, {}), "global_step": 1, "state_dict": weights, "callbacks": {}}


def saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def cases(world: World, number: int) -> list[Case]:
    draw = random.Random(SEED)
    made: list[Case] = []
    original = content_of(world)
    whole = saved(original)

    def add(
        name: str, content: bytes, expect: Expect = "refused", words: tuple[str, ...] = (), make: Any = None
    ) -> None:
        command = ("export", "--checkpoint", "x.ckpt", "--out", "out", *words)
        named = ("x.ckpt", "checkpoint", "generator", "--weights", "Tensor", "weights")
        made.append(Case("checkpoints", name, command, {"x.ckpt": content}, make, expect, named))

    def edited(name: str, change: Callable[[dict[str, Any]], Any], expect: Expect = "refused", *words: str) -> None:
        content = copy.deepcopy(original)
        change(content)
        add(name, saved(content), expect, words)

    def generator(name: str, **changes: Any) -> None:
        edited(f"generator: {name}", lambda content: content["generator"].update(changes))

    add("whole", whole, "legal")
    for share in (0, 0.001, 0.3, 0.9, 0.999):
        add(f"{share:.1%} of it", whole[: int(share * len(whole))])
    add("text", b"hello\n" * 100)
    add("a zip of nothing", b"PK\x05\x06" + bytes(18))
    add("a bare pickle", pickle.dumps({"state_dict": {}}))
    add("a bare pickle that runs", pickle.dumps(Bomb()))
    for name, value in {
        "a list": [1],
        "a tensor": torch.ones(2),
        "null": None,
        "empty": {},
        "text inside": "hello",
    }.items():
        add(f"holds {name}", saved(value))
    edited("a pickle that runs", lambda content: content.update(bomb=Bomb()))
    edited("a pickle among the weights", lambda content: content["state_dict"].update(bomb=Bomb()))
    for key in ("generator", "state_dict"):
        edited(f"no {key}", lambda content, key=key: content.pop(key))
        for value in (None, 3, "text", [], {}):
            edited(f"{key} is {value!r}", lambda content, key=key, value=value: content.update({key: value}))
    generator("os.system", class_path="os.system", init_args={"command": "touch PWNED"})
    generator("subprocess", class_path="subprocess.Popen", init_args={"args": ["touch", "PWNED"]})
    generator("a module of the folder", class_path="evil.Generator", init_args={})
    generator("a function of ours", class_path="cfg_distill.files.write_text", init_args={"file": "PWNED", "text": ""})
    generator("a class of another kind", class_path="cfg_distill.generators.LoRA", init_args={})
    generator("the abstract one", class_path="cfg_distill.generators.Generator", init_args={})
    generator("a misspelled one", class_path="cfg_distill.generators.CausalML")
    generator("no such module", class_path="cfg_distill.generators.nothing.X")
    generator("no path", class_path="")
    generator("a number", class_path=3)
    generator("other arguments", init_args={"x": 1})
    generator("arguments of other types", init_args={"path": 3})
    generator("no such folder", init_args={"path": "/nowhere/model"})
    generator("a dtype of nonsense", init_args={"path": world.at("model"), "dtype": "magic"})
    generator("a LoRA of nonsense", init_args={"path": world.at("model"), "lora": {"x": 1}})
    generator("a LoRA of rank 0", init_args={"path": world.at("model"), "lora": {"rank": 0}})
    weight = "student.model.lm_head.weight"
    edited("a tensor less", lambda content: content["state_dict"].pop(weight))
    edited("a tensor more", lambda content: content["state_dict"].update({"student.x": torch.ones(2)}))
    edited("another shape", lambda content: content["state_dict"].update({weight: torch.ones(3)}))
    edited("NaN", lambda content: content["state_dict"][weight].fill_(torch.nan))
    edited("infinity", lambda content: content["state_dict"][weight].fill_(-torch.inf))
    edited("integers", lambda content: content["state_dict"].update({weight: torch.ones(16, 16, dtype=torch.int32)}))
    edited("text in place of a tensor", lambda content: content["state_dict"].update({weight: "hello"}))
    edited("a name that is a number", lambda content: content["state_dict"].update({3: torch.ones(1)}), "either")
    edited("another student", lambda content: content.update(state_dict={"student.y": torch.ones(2)}))
    edited("no averages", lambda content: None, "refused", "--weights", "ema")
    edited(
        "averages of nothing",
        lambda content: content["callbacks"].update(StudentEMA={"weights": {}}),
        "refused",
        "--weights",
        "ema",
    )
    edited("averages with NaN", lambda content: content["callbacks"].update(
        StudentEMA={"weights": {weight: torch.full((16, 16), torch.nan)}}))  # fmt: skip
    edited(
        "averages of another shape",
        lambda content: content["callbacks"].update(StudentEMA={"weights": {weight: torch.ones(2)}}),
    )
    edited("averages that are a list", lambda content: content["callbacks"].update(StudentEMA=[1]), "either")
    edited("format 99", lambda content: content["cfg_distill"].update(format=99))
    edited("format text", lambda content: content["cfg_distill"].update(format="new"))
    edited("a stamp of nonsense", lambda content: content.update(cfg_distill=3), "either")
    add("a folder", b"", words=(), make=_as_folder)
    add("a link to nowhere", b"", make=_as_link)
    while len(made) < number:
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        # The padding between the records has no checksum, and means nothing.
        add(f"a bit ({len(made)})", bytes(content), "either")
    return made[:number]


def averages(weights: dict[str, torch.Tensor]) -> Callable[[dict[str, Any]], Any]:
    return lambda content: content["callbacks"].update(StudentEMA={"weights": weights})


def _as_folder(folder: Path) -> None:
    (folder / "x.ckpt").unlink()
    (folder / "x.ckpt").mkdir()


def _as_link(folder: Path) -> None:
    (folder / "x.ckpt").unlink()
    (folder / "x.ckpt").symlink_to("nowhere")
