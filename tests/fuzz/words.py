"""Broken command lines of all commands."""

from __future__ import annotations

import random

from cfg_distill.cli import COMMANDS
from fuzz.case import Case, Expect
from fuzz.world import World, dumped

SEED = 1209
LONG = "x" * 300
NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e400", "1e30", "text", "", "0x10", "1_000", "٣")


def cases(world: World, number: int) -> list[Case]:
    draw = random.Random(SEED)
    made: list[Case] = []
    recipe = dumped(world.recipe)
    model, prompts = world.at("model"), world.at("report.txt")

    def add(name: str, words: tuple[str, ...], expect: Expect = "refused", named: tuple[str, ...] = ()) -> None:
        made.append(Case("command lines", name, words, {"fit.yaml": recipe, "file": "x"}, expect=expect, named=named))

    add("nothing", (), "legal")
    add("an unknown command", ("fitt",), named=("fitt",))
    add("a command in capitals", ("FIT",))
    add("a command with a slash", ("../fit",))
    for command in COMMANDS:
        add(f"{command}: no words", (command,), "legal" if command == "recipes" else "refused")
        add(f"{command}: --help", (command, "--help"), "legal")
        named = (
            ("nonsense", "--config") if command == "plan" else ("nonsense",)
        )  # no recipe is named: its keys are not read
        add(f"{command}: an unknown option", (command, "--nonsense", "3"), named=named)
        add(f"{command}: a word too many", (command, *["x"] * 9))
        add(f"{command}: a bare dash", (command, "-"))
        add(f"{command}: an empty word", (command, ""))
        add(f"{command}: a name of 300 letters", (command, LONG))
    generate = ("generate", "--model", model, "--prompt", "w1", "--samples", "1", "--max-new-tokens", "2")
    evaluate = ("evaluate", "--model", model, "--prompts", prompts, "--samples", "2", "--max-new-tokens", "2")
    certain: dict[str, tuple[str, ...]] = {
        "--samples": ("nan", "-1", "0", "text", ""), "--max-new-tokens": ("-1", "0", "99999999", "text"),
        "--temperature": ("nan", "inf", "-1", "text"), "--guidance": ("nan", "inf", "-1"), "--top-p": ("0", "-1", "5", "nan"),
        "--top-k": ("-1", "nan"), "--seconds": ("nan", "-1", "3"), "--dtype": ("int8", ""), "--seed": ("nan", "text"),
        "--melody": ("file", "nowhere"), "--out": ("file", LONG, "file/inside", "/proc/x"), "--negative": ("x",),
    }  # fmt: skip
    for option, values in certain.items():
        for value in values:
            add(
                f"generate {option} {value[:20]!r}",
                (*generate, option, value),
                named=(option, "seconds", "file", "proc"),
            )
    of_evaluate: dict[str, tuple[str, ...]] = {
        "--samples": ("1", "0", "nan"), "--seeds": ("0 0", "nan"), "--guidance": ("nan", "-1", "inf"),
        "--batch-size": ("0", "-1"), "--temperature": ("nan", "-1"), "--metrics": ("nowhere.yaml", "file"),
        "--out": ("file", LONG, "file/inside", "/proc/x"), "--prompts": ("nowhere.txt", "file", model), "--written": ("nan",),
        "--model": ("nowhere", "/nowhere", "file", LONG, ""),
    }  # fmt: skip
    for option, values in of_evaluate.items():
        for value in values:
            named = (option, "file", "nowhere", "model")
            add(f"evaluate {option} {value[:20]!r}", (*evaluate, option, *value.split(" ")), named=named)
    fit = ("fit", "--config", "fit.yaml")
    for word in (
        "--model.seed=-1", "--seed_everything=-1", "--trainer.val_check_interval=0",
        "--trainer.accumulate_grad_batches=0", "--trainer.devices=-1", "--trainer.devices=-2", "--trainer.devices=0",
        "--model.losses.kl.weight=.nan", "--model.losses.kl.weight=-3", "--model.optimizer.lr=.inf",
        "--model.optimizer.lr=-1", "--model.guidance.scale=.inf", "--model.scheduler.start_factor=.nan",
        "--trainer.gradient_clip_val=-1", "--trainer.max_steps=.nan", "--model.sampling.temperature=.nan",
        "--model.guidance.scal=2", "--modle.guidance.scale=2", "--model.losses.kl.class_path=os.system",
        "--model.losses.new.class_path=os.system", "--model={a: &a [*a]}", "--model=[[[[", "--trainer.callbacks=3",
        "--data.train=nowhere.txt", "--config=nowhere.yaml", "--config=file", "--ckpt_path=nowhere.ckpt",
        "--trainer.precision=64", "--trainer.strategy=magic", "--trainer.accelerator=tpux", "--print_config=magic",
        "--model.generator.path=nowhere/x/y", "--model.start=nowhere/x/y", "--model.sampling.samples=1",
        "--trainer.limit_val_batches=-1", "--trainer.callbacks.checkpoint.save_top_k=-7", "--data.batch_size=0",
        "--model.micro_batch=-1", "--trainer.max_time=soon", "--trainer.default_root_dir=/proc/x",
        "--model.optimizer.betas=[2,3]", "--model.reduction=max", "--version=1",
    ):  # fmt: skip
        key = word.split("=")[0].removeprefix("--").rpartition(".")[2]
        add(f"fit {word}", (*fit, word), named=(key, "no such", "expected", "Expected"))
    add("fit without a value", (*fit, "--model.seed"))
    add("fit with a bare word", (*fit, "more.yaml"))
    add("fit of a folder", ("fit", "--config", model))
    add("fit --print_config", (*fit, "--print_config"), "legal")
    add("fit with a good option", (*fit, "--trainer.max_steps=1"), "legal")
    for command in ("report", "choose", "compare", "listen", "demo"):
        for place in (model, prompts, "file", "nowhere"):
            more = {"compare": (model,), "listen": ("--out", "out")}.get(command, ())
            add(f"{command} {place.rpartition('/')[2]}", (command, place, *more))
    add("ratings of nothing", ("ratings", "file", "--study", model))
    add("recipes of nothing", ("recipes", "nothing"), named=("nothing",))
    add("recipes onto a file", ("recipes", "tunes/quality", "--out", "file"), named=("file",))
    add("recipes into a long name", ("recipes", "tunes/quality", "--out", LONG))
    add("recipes into a file", ("recipes", "tunes/quality", "--out", "file/x.yaml"))
    plan = ("plan", "--config", "fit.yaml")
    for option, value in (
        ("--devices", "0"), ("--devices", "-3"), ("--devices", "two"), ("--memory", "nan"), ("--memory", "-1"),
        ("--memory", "0"), ("--gpu", "abacus"), ("--gpu", ""), ("--config", "nowhere.yaml"), ("--config", "file"),
        ("--model.guidance.scal", "2"), ("--model.micro_batch", "-1"), ("--trainer.max_steps", ".nan"),
    ):  # fmt: skip
        key = option.removeprefix("--").rpartition(".")[2]
        add(f"plan {option} {value!r}", (*plan, option, value), named=(key, "file"))
    init = ("init", "--model", model, "--prompts", world.at("train.txt"), "--device", "cpu", "--out", "out")
    add("init with four prompts", init, named=("--prompts",))
    for option, value in (
        ("--prompts", "nowhere.txt"), ("--prompts", "file"), ("--prompts", model), ("--model", "nowhere/x/y"),
        ("--model", ""), ("--model", LONG), ("--device", "toaster"), ("--guidance", "nan"), ("--guidance", "1"),
        ("--guidance", "-1"), ("--embedder", "nowhere/x/y"), ("--embedder", "os.system"), ("--embedder", LONG),
        ("--out", "file"), ("--out", "file/inside"), ("--out", LONG), ("--out", "/proc/x"),
    ):  # fmt: skip
        add(f"init {option} {value[:20]!r}", (*init, option, value), named=(option, "file", "proc"))
    for value in ("nothing", "RECIPE", "", LONG):
        add(f"schema of {value[:20]!r}", ("schema", value))
        add(f"completion for {value[:20]!r}", ("completion", value))
    for value in ("file", "file/inside", LONG):
        add(f"schema into {value[:20]!r}", ("schema", "study", "--out", value))
    add("runs of nothing", ("runs", "nowhere"), named=("nowhere",))
    options = [
        "--samples",
        "--max-new-tokens",
        "--temperature",
        "--guidance",
        "--top-p",
        "--top-k",
        "--seed",
        "--batch-size",
        "--written",
    ]
    while len(made) < number:
        command = draw.choice((generate, evaluate))
        option, value = draw.choice(options), draw.choice(NUMBERS)
        add(f"{command[0]} {option}={value} ({len(made)})", (*command, f"{option}={value}"), "either")
    return made[:number]
